"""Reductions over ranks that keep every rank's codebook the same, bit for bit; identities on one process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Tell whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Add `tensor` over all ranks, in place."""
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor


def max_over_ranks(tensor: Tensor) -> Tensor:
    """Take the element-wise largest of all ranks' `tensor`, in place."""
    if is_distributed():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def average_over_ranks(tensor: Tensor) -> Tensor:
    """Average `tensor` over all ranks, with gradient.

    Every rank then computes the same loss from the average; its gradient is summed over ranks on the way back, so that
    DDP's mean over ranks is the gradient of that one loss.
    """
    if not is_distributed():
        return tensor
    average: Tensor = _SumOverRanks.apply(tensor) / dist.get_world_size()  # type: ignore[no-untyped-call]
    return average


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, tensor: Tensor) -> Tensor:
        return sum_over_ranks(tensor.clone())

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        gradient: Tensor = _SumOverRanks.apply(gradients[0].contiguous())  # type: ignore[no-untyped-call]
        return gradient  # through `apply`, so that a gradient penalty can differentiate it again


def gather_over_ranks(tensor: Tensor) -> Tensor:
    """Concatenate (M, …) tensors of all ranks along the first dimension; M may differ between ranks."""
    if not is_distributed():
        return tensor
    world_size = dist.get_world_size()
    lengths = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(world_size)]
    dist.all_gather(lengths, torch.tensor([tensor.shape[0]], device=tensor.device))
    longest = int(max(length.item() for length in lengths))
    padded = tensor.new_zeros(longest, *tensor.shape[1:])
    padded[: tensor.shape[0]] = tensor
    parts = [torch.empty_like(padded) for _ in range(world_size)]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(length.item())] for part, length in zip(parts, lengths, strict=True)])


def broadcast_from_first_rank(tensor: Tensor) -> Tensor:
    """Overwrite `tensor` with the first rank's, in place."""
    if is_distributed():
        dist.broadcast(tensor, src=0)
    return tensor
