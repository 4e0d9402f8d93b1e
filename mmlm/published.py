"""Published multimodal models as starting points: they learn and draw pictures as a merged model does."""

from __future__ import annotations

import os
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmlm.backbones._published import PublishedBackbone
from mmlm.backbones.base import BackboneConfig
from mmlm.processing import MultimodalProcessor
from visual_tokenizer.errors import UserError
from visual_tokenizer.registry import UnknownPartError


def published_backbone(section: Any) -> PublishedBackbone:
    """Return the backbone of a section or config.

    Raises:
        UnknownPartError: no such backbone, or one whose model has no visual tokens of its own.
    """
    backbone = BackboneConfig.family.build(section)
    if not isinstance(backbone, PublishedBackbone):
        raise UnknownPartError(
            f"'{backbone.config.type}' gives a language model without visual tokens: merge it with a visual tokenizer"
        )
    return backbone


def load_published_lm(
    weights: str | os.PathLike[str] | PreTrainedModel,
    source: str,
    *,
    text_tokenizer: PreTrainedTokenizerBase | None = None,
    decoder: Any = None,
    **fields: Any,
) -> tuple[PreTrainedModel, MultimodalProcessor]:
    """Return a published model's language model, an ordinary causal LM, and a processor with its visual tokenizer.

    Both are saved with `save_pretrained` and loaded again as those of a merge are.

    Args:
        weights: a folder or hub name in transformers' layout, or transformers' module, whose tensors are then shared.
        source: chameleon or emu3.
        text_tokenizer: of a module.
        decoder: where the visual tokenizer's decoder is published by itself (chameleon): what
            `visual_tokenizer.convert.load_published` takes.
        **fields: of the backbone's config, such as `dtype` and `revision`.

    Raises:
        MissingFileError: nothing there.
        UnknownPartError: no such source.
        ValueError: a module without its text tokenizer.
    """
    if isinstance(weights, nn.Module):
        if text_tokenizer is None:
            raise UserError("text_tokenizer must be given where weights is a module")
        backbone = published_backbone({"type": source, "path": weights.name_or_path, **fields})
        return backbone.adopt(weights, text_tokenizer, decoder)
    backbone = published_backbone({"type": source, "path": os.fspath(weights), **fields})
    whole, tokenizer = backbone.read()
    return backbone.adopt(whole, text_tokenizer or tokenizer, decoder or backbone.decoder())
