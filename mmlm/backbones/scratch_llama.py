"""A Llama with random weights, and a text tokenizer trained on captions.

Paper: LLaMA: Open and Efficient Foundation Language Models (Touvron et al., 2023), arXiv:2302.13971.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from mmlm.backbones.base import Backbone, BackboneConfig
from mmlm.text_tokenizer import train_text_tokenizer
from visual_tokenizer.data.sources.base import SPLITS, DataSourceError, Source, SourceConfig


@dataclass(kw_only=True)
class ScratchLlamaConfig(BackboneConfig):
    """Shape of the model, and the captions that its text tokenizer learns from."""

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
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.hidden_size < 1 or self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size must be a multiple of 2 · heads = {2 * self.heads}, got {self.hidden_size}")
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise ValueError(f"kv_heads must divide heads = {self.heads}, got {self.kv_heads}")
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")


class ScratchLlama(Backbone):
    """For small experiments whose text is captions alone."""

    Config = ScratchLlamaConfig

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        config: ScratchLlamaConfig = self.config
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = train_text_tokenizer(self.captions(), config.vocab_size, folder)
        tokenizer.name_or_path = ""
        shape = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.ffn,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads if config.kv_heads is None else config.kv_heads,
            max_position_embeddings=config.max_positions,
            tie_word_embeddings=config.tie,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = LlamaForCausalLM(shape)
        torch.nn.Module.to(model, self.torch_dtype)
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
