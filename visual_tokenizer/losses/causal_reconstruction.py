"""A transformer gives back from the codes what the encoder gave before they were quantized (SEED).

Paper: Making LLaMA SEE and Draw with SEED Tokenizer (Ge et al., 2023), arXiv:2310.01218, section 3.1, stage II, and
Planting a SEED of Vision in Large Language Model (Ge et al., 2023), arXiv:2307.08041, section 3.2: the cosine of the
two is made as large as can be, query by query. As in the authors' code two layers with tanh between lead from a code to
the transformer's width, which is the encoder's, and four blocks follow that are not causal.

Departs from it in that positions are sines and cosines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, MultipleOf
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.errors import UserError
from visual_tokenizer.layers.shape import TransformerShape
from visual_tokenizer.layers.transformer import Transformer, sinusoidal_positions
from visual_tokenizer.losses._activation import Activation
from visual_tokenizer.losses.base import Loss, LossConfig
from visual_tokenizer.outputs import TokenizerOutput


@dataclass(kw_only=True)
class CausalReconstructionConfig(TransformerShape, LossConfig):
    """Fields of the reconstruction of the encoder's latents; the defaults are SEED's."""

    code_dim: Annotated[int, Ge(1)] = 32
    """Channels of a code, the quantizer's."""

    width: Annotated[int, Ge(1), MultipleOf(4)] = 768
    """Channels of the encoder's latents and of the transformer; a multiple of `heads` and of 4."""

    depth: Annotated[int, Ge(1)] = 4
    heads: Annotated[int, Ge(1)] = 12


class CausalReconstruction(Loss):
    """1 − cos(transformer(codes), sg(latents of the encoder)), averaged over pictures and tokens."""

    Config = CausalReconstructionConfig

    def __init__(self, config: CausalReconstructionConfig) -> None:
        super().__init__(config)
        dims = config.code_dim
        self.projection = nn.Sequential(nn.Linear(dims, dims), nn.Tanh(), nn.Linear(dims, config.width))
        self.transformer = Transformer(config.width, config.depth, config.heads)
        self.latents = Activation()

    def watch(self, tokenizer: Any) -> None:
        self.latents.watch(tokenizer.encoder)

    def predict(self, codes: Tensor) -> Tensor:
        """Return what is made of (B, N, code_dim) codes: (B, N, width)."""
        hidden = self.projection(codes)
        positions = sinusoidal_positions(1, codes.shape[1], self.config.width, codes.device)
        return self.transformer(hidden + positions.to(hidden.dtype))

    def forward(self, output: TokenizerOutput, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean of 1 − cos, a float32 scalar in [0, 2]; no gradient passes to the latents.

        Raises:
            ValueError: the encoder gives latents of another width, or codes have another number of channels.
        """
        latents = self.latents.take().detach()
        if latents.shape[2] != self.config.width or output.codes.shape[2] != self.config.code_dim:
            raise UserError(
                f"width must be {latents.shape[2]} (the encoder's) and code_dim {output.codes.shape[2]} (the "
                f"quantizer's), got {self.config.width} and {self.config.code_dim}"
            )
        return 1 - F.cosine_similarity(self.predict(output.codes).float(), latents.float(), dim=2).mean()
