"""No decoder: for published tokenizers of which only the encoder and the codebook are at hand.

Paper: Chameleon: Mixed-Modal Early-Fusion Foundation Models (Team, Chameleon et al., 2024), arXiv:2405.09818, whose
class in transformers leaves the decoder out. It encodes as usual; whoever decodes is told, instead of getting pictures
from weights that were never trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from visual_tokenizer.decoders.base import Decoder, DecoderConfig
from visual_tokenizer.errors import UserError


@dataclass(kw_only=True)
class AbsentConfig(DecoderConfig):
    """Fields of the decoder that is not there."""

    latent_channels: Annotated[int, Ge(1)] = 256
    """Channels that the decoder would take."""


class Absent(Decoder):
    """Has no weights and decodes nothing."""

    Config = AbsentConfig

    def __init__(self, config: AbsentConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.latent_channels

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Raise.

        Raises:
            UserError: always.
        """
        raise UserError(
            "this tokenizer has no decoder: the weights that it was made from hold the encoder and the codebook only. "
            "It encodes; to decode, give the file with the decoder's weights as well when converting "
            "(`load_published(..., decoder=FILE)`, or `--decoder FILE`)."
        )
