"""A language model in a folder or on the hub, as `AutoModelForCausalLM` loads it."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmlm.backbones.base import LMBackbone, LMBackboneConfig
from mmlm.models.loading import load_causal_lm
from visual_tokenizer.runs.saved_models import load_text_tokenizer


@dataclass(kw_only=True)
class PretrainedConfig(LMBackboneConfig):
    """Which model."""

    path: str
    """Folder, or name on the hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null: the newest."""


class Pretrained(LMBackbone):
    """Safetensors weights and a text tokenizer beside them; no code of the model's own is run."""

    Config = PretrainedConfig

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        options = {} if self.config.revision is None else {"revision": self.config.revision}
        what = "language model with safetensors weights"
        model = load_causal_lm(self.config.path, what, dtype=self.torch_dtype, **options)
        return model.eval(), load_text_tokenizer(self.config.path, **options)
