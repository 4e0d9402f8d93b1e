"""What every source of a language model has in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from visual_tokenizer.registry import PartConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(kw_only=True)
class BackboneConfig(PartConfig, package="mmlm.backbones"):
    """Fields that every source has."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights."""


class Backbone:
    """Gives a causal language model and its text tokenizer."""

    Config: ClassVar[type[BackboneConfig]]

    def __init__(self, config: BackboneConfig) -> None:
        self.config: Any = config

    @property
    def torch_dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return DTYPES[self.config.dtype]

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Return the model, in eval mode on the CPU, and its text tokenizer.

        Raises:
            MissingFileError: it is not there.
        """
        raise NotImplementedError


PART = Backbone
