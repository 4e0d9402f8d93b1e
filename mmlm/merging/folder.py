"""Folders of merged models: language model, text tokenizer, layout and visual tokenizer in one place."""

from __future__ import annotations

import os

import torch
from torch import nn
from transformers import PreTrainedModel

from mmlm.models.loading import load_causal_lm
from mmlm.processing import MultimodalProcessor
from visual_tokenizer.errors import UserError
from visual_tokenizer.runs.saved_models import loading


def _device(name: str | torch.device | None) -> torch.device:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name is None:
        return torch.device("cpu") if accelerator is None else accelerator
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {str(name)!r} cannot be used: {str(error).splitlines()[0]}") from error
    return torch.device(name)


def load_merged(
    path: str | os.PathLike[str],
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = "auto",
) -> tuple[PreTrainedModel, MultimodalProcessor]:
    """Load a merged model and its processor from a folder or the hub, in eval mode.

    Args:
        path: folder or name on the hub.
        device: of the model and the visual tokenizer; None: an accelerator where there is one.
        dtype: of the language model; "auto": as it was saved.

    Raises:
        UserError: no such device, or model and processor do not belong together.
    """
    device = _device(device)
    processor = MultimodalProcessor.from_pretrained(path)
    model = load_causal_lm(path, "merged model", dtype=dtype)
    with loading(path, "merged model"):
        processor.check_model(model)
    if processor.codec is not None:
        nn.Module.to(processor.codec, device)
    model.eval()
    nn.Module.to(model, device)
    return model, processor
