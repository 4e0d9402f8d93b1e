"""Emu3 as published: its language model, its vision tokenizer, its layout.

Paper: Emu3: Next-Token Prediction is All You Need (Wang et al., 2024), arXiv:2409.18869.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from transformers import Emu3ForConditionalGeneration, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from mmlm.backbones.base import PublishedBackbone, PublishedConfig, with_weights
from mmlm.layouts.base import LayoutConfig
from mmlm.layouts.emu3 import published_table

TEXT_PREFIX, HEAD_PREFIX = "model.text_model.", "lm_head."
OTHER_FIELDS = ("model_type", "architectures", "transformers_version", "_name_or_path", "dtype")


@dataclass(kw_only=True)
class Emu3Config(PublishedConfig):
    """Which Emu3, in transformers' layout: language model and vision tokenizer in one folder."""


class Emu3(PublishedBackbone):
    """Its language model is Llama's, tensor by tensor, and becomes that class.

    A folder of transformers' `Emu3ForCausalLM` cannot be loaded by `AutoModelForCausalLM`; one of Llama can, by every
    tool. What is lost is the dropout of the residual stream, which transformers' class ties to `attention_dropout`.
    """

    Config = Emu3Config
    whole_class = Emu3ForConditionalGeneration
    source = "emu3"
    sampling: ClassVar[dict[str, float]] = {"guidance_scale": 3.0, "top_k": 2048}

    def language_model(self, whole: PreTrainedModel) -> PreTrainedModel:
        state = whole.state_dict()
        weights = {f"model.{n.removeprefix(TEXT_PREFIX)}": v for n, v in state.items() if n.startswith(TEXT_PREFIX)}
        weights |= {name: value for name, value in state.items() if name.startswith(HEAD_PREFIX)}
        fields = whole.config.get_text_config().to_dict()
        config = LlamaConfig(**{name: value for name, value in fields.items() if name not in OTHER_FIELDS})
        return with_weights(LlamaForCausalLM, config, weights)

    def layout(self, grid: tuple[int, ...]) -> LayoutConfig:
        return LayoutConfig.family.config({"type": "emu3", "grid_rank": 3}).for_grid(grid)

    def table(self, names: dict[str, int]) -> list[int]:
        return published_table(names)
