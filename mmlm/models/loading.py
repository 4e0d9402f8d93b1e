"""Causal LMs from a folder or the hub, all of their weights read."""

from __future__ import annotations

import os
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

import mmlm.models.chameleon  # noqa: F401 - AutoModelForCausalLM knows Chameleon from here on
from visual_tokenizer.runs.saved_models import load_whole


def load_causal_lm(name: str | os.PathLike[str], what: str = "language model", **options: Any) -> PreTrainedModel:
    """Return the causal LM in a folder or on the hub, all of its weights read; no code of its own is run.

    Args:
        name: folder, or name on the hub.
        what: what is loaded, for the message.
        **options: of `from_pretrained`: `dtype`, `revision`, `quantization_config`, …
    """
    options = {"trust_remote_code": False, **options}
    model, _ = load_whole(AutoModelForCausalLM.from_pretrained, name, what, **options)
    return model
