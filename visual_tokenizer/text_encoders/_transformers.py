"""Loading of a transformers text model together with its tokenizer, from safetensors only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from visual_tokenizer.backbones.base import MissingWeightsError
from visual_tokenizer.errors import MissingFileError
from visual_tokenizer.runs.saved_models import FAULTS_OF_A_PART, load_text_tokenizer, load_whole
from visual_tokenizer.text_encoders.base import without_gradient


def load_text_model(name: str | Path, max_length: int) -> tuple[Any, Any]:
    """Return the frozen float32 model of `name` and its tokenizer, which cuts at `max_length` tokens or earlier.

    Raises:
        FileNotFoundError: `name` is a path where nothing is.
        MissingWeightsError: neither this machine nor the hub has the model, or it has no tokenizer.
        UserError: the checkpoint lacks weights that are not those of a pooling layer.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            model, _ = load_whole(
                AutoModel.from_pretrained,
                name,
                "transformers text model",
                refused=FAULTS_OF_A_PART,
                dispensable="pooler",
                dtype=torch.float32,
                trust_remote_code=False,
            )
        tokenizer: Any = load_text_tokenizer(name)
    except MissingFileError as error:
        raise MissingWeightsError(
            f"weights: {error}; put config.json, model.safetensors and the tokenizer's files into a folder and give "
            f"the folder as `weights` (where there is a network: `hf download {name} --local-dir FOLDER`)"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"  # the texts of a batch begin at the first position, as alone
    section = getattr(model.config, "text_config", model.config)
    positions = getattr(section, "max_position_embeddings", None) or max_length
    tokenizer.model_max_length = min(max_length, positions, tokenizer.model_max_length)
    return without_gradient(model), tokenizer


def token_batch(tokenizer: Any, texts: Sequence[str], device: torch.device, padding: str | bool = True) -> Any:
    """Return `input_ids` and `attention_mask`, (B, L) int64, of `texts` on `device`."""
    batch = tokenizer(list(texts), padding=padding, truncation=True, return_tensors="pt", return_attention_mask=True)
    named: dict[str, Tensor] = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
    return named
