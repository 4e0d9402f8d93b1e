"""The memory layout that convolutions on tensor cores prefer, for pictures and for clips."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(tensor: Tensor) -> Tensor:
    """Return `tensor` channels-last if it has the four dimensions of pictures or the five of clips, else as it is."""
    layout = _LAYOUTS.get(tensor.ndim)
    return tensor if layout is None else tensor.contiguous(memory_format=layout)


def lay_out_channels_last(module: nn.Module) -> None:
    """Lay out the kernels of two- and three-dimensional convolutions so, in place."""
    for parameter in module.parameters():
        parameter.data = channels_last(parameter.data)
