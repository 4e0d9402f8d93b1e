"""A Chameleon with random weights: what keeps text and pictures in one softmax stable.

Paper: Chameleon: Mixed-Modal Early-Fusion Foundation Models (Chameleon Team, 2024), arXiv:2405.09818, section 2.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Interval
from transformers import ChameleonConfig, PreTrainedModel

from mmlm.backbones._scratch import ScratchBackbone, ScratchConfig
from mmlm.models.chameleon import ChameleonForCausalLM


@dataclass(kw_only=True)
class ScratchChameleonConfig(ScratchConfig):
    """The shape and the recipe's norms and dropout. Published: 7B norms before and dropout 0.1, 34B norms after."""

    tie: bool = False
    """Whether the head is the embedding table; not so in the published models."""
    swin_norm: bool = False
    """Whether outputs of attention and feed-forward layers are normalised, in place of their inputs (34B)."""
    residual_dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Share of the outputs of attention and feed-forward layers dropped while training."""


class ScratchChameleon(ScratchBackbone):
    """LayerNorm of queries and keys over each head before rotary positions, RMSNorm, SwiGLU."""

    Config = ScratchChameleonConfig

    def build(self, **shape: Any) -> PreTrainedModel:
        config = ChameleonConfig(swin_norm=self.config.swin_norm, vocabulary_map={}, **shape)
        if self.config.residual_dropout:
            config.residual_dropout = self.config.residual_dropout
        return ChameleonForCausalLM(config)
