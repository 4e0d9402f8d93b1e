"""What models with random weights have in common: their shape, and a text tokenizer trained on captions."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmlm.backbones.base import Backbone, BackboneConfig
from mmlm.text_tokenizer import train_text_tokenizer
from visual_tokenizer.data.sources.base import SPLITS, DataSourceError, Source, SourceConfig
from visual_tokenizer.errors import UserError


@dataclass(kw_only=True)
class ScratchConfig(BackboneConfig):
    """Shape of a model with random weights, and the captions that its text tokenizer learns from."""

    hidden_size: int = 384
    """Width of the residual stream; a multiple of 2 · heads."""
    layers: int = 6
    """Transformer blocks; 1 or more."""
    heads: int = 6
    """Attention heads; 1 or more."""
    kv_heads: int | None = None
    """Key-value heads, a divisor of heads; null: as many as heads."""
    ffn: int = 1024
    """Inner width of the gated feed-forward layers; 1 or more."""
    max_positions: int = 1024
    """Longest sequence in tokens; 1 or more."""
    tie: bool = True
    """Whether the head is the embedding table."""
    attention_dropout: float = 0.0
    """Share of attention weights dropped while training; in [0, 1)."""
    vocab_size: int = 2048
    """Text tokens, more than 260; fewer come out where the captions do not hold so many."""
    captions: SourceConfig
    """Source whose captions train the text tokenizer."""
    split: str = "train"
    """Split of the source: train, heldout or all."""
    seed: int = 0
    """Of the random weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("layers", "heads", "ffn", "max_positions"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.hidden_size < 1 or self.hidden_size % (2 * self.heads):
            raise UserError(f"hidden_size must be a multiple of 2 · heads = {2 * self.heads}, got {self.hidden_size}")
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise UserError(f"kv_heads must divide heads = {self.heads}, got {self.kv_heads}")
        if not 0 <= self.attention_dropout < 1:
            raise UserError(f"attention_dropout must be in [0, 1), got {self.attention_dropout}")
        if self.split not in SPLITS:
            raise UserError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")


class ScratchBackbone(Backbone):
    """A model with random weights, for small experiments whose text is captions alone."""

    def build(self, **shape: Any) -> PreTrainedModel:
        """Return the model; `shape` are fields that every transformers config of a decoder has."""
        raise NotImplementedError

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        config: ScratchConfig = self.config
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = train_text_tokenizer(self.captions(), config.vocab_size, folder)
        tokenizer.name_or_path = ""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = self.build(
                vocab_size=len(tokenizer),
                hidden_size=config.hidden_size,
                intermediate_size=config.ffn,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads if config.kv_heads is None else config.kv_heads,
                max_position_embeddings=config.max_positions,
                tie_word_embeddings=config.tie,
                attention_dropout=config.attention_dropout,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        nn.Module.to(model, self.torch_dtype)
        return model.eval(), tokenizer

    def captions(self) -> Iterator[str]:
        """Yield every caption of the split.

        Raises:
            DataSourceError: the source has no captions.
        """
        source: Source = SourceConfig.family.build(self.config.captions)
        rows = source.load_encoded(self.config.split)
        has_column = "caption" in (rows.column_names or ["caption"])  # a stream may not know its columns
        is_empty = True
        for row in rows.select_columns(["caption"]) if has_column else []:
            texts = row["caption"]
            for text in [texts] if isinstance(texts, str) else texts or []:
                if text and text.strip():
                    is_empty = False
                    yield text
        if is_empty:
            raise DataSourceError(f"the source '{source.config.type}' has no captions to train a text tokenizer on")
