"""A Qwen3 with random weights: Llama's block with RMSNorm of queries and keys.

Paper: Qwen3 Technical Report (Qwen Team, 2025), arXiv:2505.09388, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from mmlm.backbones._scratch import ScratchBackbone, ScratchConfig


@dataclass(kw_only=True)
class ScratchQwen3Config(ScratchConfig):
    """The shape alone; a head has hidden_size / heads elements."""


class ScratchQwen3(ScratchBackbone):
    """Queries and keys are normalised over each head before rotary positions, so attention logits cannot grow."""

    Config = ScratchQwen3Config

    def build(self, **shape: Any) -> PreTrainedModel:
        head_dim = self.config.hidden_size // self.config.heads
        return Qwen3ForCausalLM(Qwen3Config(head_dim=head_dim, **shape))
