"""What models with random weights have in common: their shape, and a text tokenizer trained on captions."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Interval
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmlm.backbones.base import LMBackbone, LMBackboneConfig
from mmlm.text_tokenizer import train_text_tokenizer
from visual_tokenizer.data.sources.base import DataSourceError, Source, SourceConfig, Split
from visual_tokenizer.errors import UserError


@dataclass(kw_only=True)
class ScratchConfig(LMBackboneConfig):
    """Shape of a model with random weights, and the captions that its text tokenizer learns from."""

    hidden_size: Annotated[int, Ge(1)] = 384
    """Width of the residual stream; a multiple of 2 · heads."""
    layers: Annotated[int, Ge(1)] = 6
    """Transformer blocks."""
    heads: Annotated[int, Ge(1)] = 6
    """Attention heads."""
    kv_heads: Annotated[int, Ge(1)] | None = None
    """Key-value heads, a divisor of heads; null: as many as heads."""
    ffn: Annotated[int, Ge(1)] = 1024
    """Inner width of the gated feed-forward layers."""
    max_positions: Annotated[int, Ge(1)] = 1024
    """Longest sequence in tokens."""
    tie: bool = True
    """Whether the head is the embedding table."""
    attention_dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Share of attention weights dropped while training."""
    vocab_size: Annotated[int, Gt(260)] = 2048
    """Text tokens; fewer come out where the captions do not hold so many. 260 are bytes and control tokens."""
    captions: SourceConfig
    """Source whose captions train the text tokenizer."""
    split: Split = "train"
    """Split of the source."""
    seed: Annotated[int, Ge(0)] = 0
    """Of the random weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % (2 * self.heads):
            raise UserError(f"hidden_size must be a multiple of 2 · heads = {2 * self.heads}, got {self.hidden_size}")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise UserError(f"kv_heads must divide heads = {self.heads}, got {self.kv_heads}")


class ScratchBackbone(LMBackbone):
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
