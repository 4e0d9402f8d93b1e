"""Discrete visual tokenizers of every family in the literature: train, measure, save, load."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from visual_tokenizer.configuration import VisualTokenizerConfig
from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.outputs import QuantizerOutput, TokenizerOutput
from visual_tokenizer.processing import VisualTokenizerImageProcessor
from visual_tokenizer.quantizers.base import Quantizer, QuantizerConfig

AutoConfig.register("visual_tokenizer", VisualTokenizerConfig, exist_ok=True)
AutoModel.register(VisualTokenizerConfig, VisualTokenizer, exist_ok=True)
# Both backends name the same class: it works on PIL pictures, so a torchvision that is installed changes nothing.
AutoImageProcessor.register(
    VisualTokenizerConfig,
    image_processor_classes={"pil": VisualTokenizerImageProcessor, "torchvision": VisualTokenizerImageProcessor},
    exist_ok=True,
)


def build_quantizer(name: str, **fields: Any) -> Quantizer:
    """Build a quantizer by its name in a recipe; keyword arguments are the fields of its config.

    Raises:
        UnknownPartError: no quantizer of that name.
        ConfigError: an unknown field or a wrong value.
    """
    return QuantizerConfig.family.build({"type": name, **fields})


def list_quantizers() -> list[str]:
    """Return the names that `build_quantizer` knows."""
    return QuantizerConfig.family.names()


__all__ = [
    "Quantizer",
    "QuantizerOutput",
    "TokenizerOutput",
    "VisualTokenizer",
    "VisualTokenizerConfig",
    "VisualTokenizerImageProcessor",
    "build_quantizer",
    "list_quantizers",
]
