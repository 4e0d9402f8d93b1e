"""A language model in a folder or on the hub, as `AutoModelForCausalLM` loads it."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from mmlm.backbones.base import Backbone, BackboneConfig
from visual_tokenizer.errors import MissingFileError


@dataclass(kw_only=True)
class PretrainedConfig(BackboneConfig):
    """Which model."""

    path: str
    """Folder, or name on the hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null: the newest."""


class Pretrained(Backbone):
    """Safetensors weights and a text tokenizer beside them; no code of the model's own is run."""

    Config = PretrainedConfig

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        options = {} if self.config.revision is None else {"revision": self.config.revision}
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.config.path, **options)
            model = AutoModelForCausalLM.from_pretrained(
                self.config.path, dtype=self.torch_dtype, use_safetensors=True, **options
            )
        except (OSError, ValueError) as error:
            raise MissingFileError(
                f"no language model with safetensors weights and a tokenizer at '{self.config.path}': {error}"
            ) from error
        return model.eval(), tokenizer
