"""Any text model of transformers (CLIP, SigLIP, BERT, T5, Llama, …), by folder or name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visual_tokenizer.backbones.base import MissingWeightsError
from visual_tokenizer.text_encoders._transformers import load_text_model, token_batch
from visual_tokenizer.text_encoders.base import TextEncoder, TextEncoderConfig, mean_of_words


@dataclass(kw_only=True)
class TransformersTextConfig(TextEncoderConfig):
    """A transformers model has no field of its own: `weights` is its folder or its name on the hub."""


class TransformersText(TextEncoder):
    """A frozen transformers model of texts.

    The embedding is that which the model was trained to compare with pictures (CLIP, SigLIP) and otherwise the mean of
    the last hidden states over a text's tokens; of a model of two halves (T5) the encoder's.

    Raises:
        MissingWeightsError: `weights` is null, or can be had neither here nor from the hub.
    """

    Config = TransformersTextConfig

    def __init__(self, config: TransformersTextConfig | None = None) -> None:
        config = config or TransformersTextConfig()
        super().__init__(config)
        if config.weights is None:
            raise MissingWeightsError("weights of transformers_text must name a folder or a model of the hub")
        model, self.tokenizer = load_text_model(config.weights, config.max_length)
        self.sees_pictures = hasattr(model, "get_text_features")
        if self.sees_pictures:
            model.vision_model = None  # pictures are another network's business
        # SigLIP has no mask: it was trained on texts that are all padded to its full length.
        self.is_masked = not str(model.config.model_type).startswith("siglip")
        self.model: Any = model.get_encoder() if model.config.is_encoder_decoder else model
        self.embedding_dim = self(["a"]).shape[1]

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        device = next(self.model.parameters()).device
        batch = token_batch(self.tokenizer, texts, device, True if self.is_masked else "max_length")
        if not self.is_masked:
            batch.pop("attention_mask")
        with torch.autocast(device.type, enabled=False):
            if self.sees_pictures:
                features = self.model.get_text_features(**batch)
                return getattr(features, "pooler_output", features).float()
            hidden = self.model(**batch).last_hidden_state
        return mean_of_words(hidden, batch["attention_mask"])
