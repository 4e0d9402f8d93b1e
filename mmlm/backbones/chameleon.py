"""Chameleon as published: its language model without the mask on image logits, its image tokenizer, its layout.

Paper: Chameleon: Mixed-Modal Early-Fusion Foundation Models (Chameleon Team, 2024), arXiv:2405.09818.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import ChameleonForConditionalGeneration, PreTrainedModel

from mmlm.backbones.base import PublishedBackbone, PublishedConfig, with_weights
from mmlm.layouts.base import LayoutConfig
from mmlm.layouts.chameleon import published_table
from mmlm.models.chameleon import ChameleonForCausalLM

IMAGE_PLACEHOLDER = "<image>"


@dataclass(kw_only=True)
class ChameleonConfig(PublishedConfig):
    """Which Chameleon."""

    decoder: str | None = None
    """File of the original `vqgan.ckpt`: transformers' folder has no decoder; null: pictures are read, not shown."""


class Chameleon(PublishedBackbone):
    """The released weights of the image tokens' head rows were not published as trained: they have to be tuned."""

    Config = ChameleonConfig
    whole_class = ChameleonForConditionalGeneration
    source = "chameleon"
    sampling: ClassVar[dict[str, float]] = {"guidance_scale": 3.0, "temperature": 0.7, "top_p": 0.9}

    def language_model(self, whole: PreTrainedModel) -> PreTrainedModel:
        weights = {name: value for name, value in whole.state_dict().items() if ".vqmodel." not in name}
        config = copy.deepcopy(whole.config)
        # transformers' own class masks the ids under the names of this map: without them it loads the saved folder as a
        # model that draws, too.
        names: Any = config.vocabulary_map or {}
        config.vocabulary_map = {name: names[name] for name in (IMAGE_PLACEHOLDER,) if name in names}
        return with_weights(ChameleonForCausalLM, config, weights)

    def layout(self, grid: tuple[int, ...]) -> LayoutConfig:
        return LayoutConfig.family.config({"type": "chameleon"}).for_grid(grid)

    def table(self, names: dict[str, int]) -> list[int]:
        return published_table(names)

    def decoder(self) -> str | None:
        return self.config.decoder
