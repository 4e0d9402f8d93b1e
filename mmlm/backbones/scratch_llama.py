"""A Llama with random weights, and a text tokenizer trained on captions.

Paper: LLaMA: Open and Efficient Foundation Language Models (Touvron et al., 2023), arXiv:2302.13971.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from mmlm.backbones._scratch import ScratchBackbone, ScratchConfig


@dataclass(kw_only=True)
class ScratchLlamaConfig(ScratchConfig):
    """The shape alone."""


class ScratchLlama(ScratchBackbone):
    """RMSNorm before each layer, rotary positions, SwiGLU; no query-key norm."""

    Config = ScratchLlamaConfig

    def build(self, **shape: Any) -> PreTrainedModel:
        return LlamaForCausalLM(LlamaConfig(**shape))
