"""Forward and backward steps of a quantizer: inputs, seconds, and how far the memory rises."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.cases import Case, Read

PICTURE_TOKENS = 256
"""Tokens of a picture, at most: the latents are (tokens / 256, 256, C) where 256 divides the tokens."""

BOUND_BYTES = 512 * 2**20
"""Largest buffer of scores for the bound; more tokens × codes are taken in several products."""

MIB = 2**20


def make_inputs(case: Case, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return latents (B, N, C) that want a gradient, and the gradient of their codes."""
    length = math.gcd(tokens, PICTURE_TOKENS)
    generator = torch.Generator().manual_seed(1)
    shape = (tokens // length, length, case.code_dim)
    latents = torch.randn(shape, generator=generator) * (case.scale or case.code_dim**-0.5)
    gradient = torch.randn(shape, generator=generator) / tokens
    return latents.to(device).requires_grad_(), gradient.to(device)


def take_step(read: Read, latents: Tensor, gradient: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Quantize, carry the losses and the codes' gradient back, and let the optimizer, if any, move the codes."""
    codes, _, loss = read(latents)
    if loss is not None and loss.requires_grad:
        torch.autograd.backward([codes, loss], [gradient, None])
    else:
        codes.backward(gradient)
    if optimizer is not None:
        optimizer.step()


def forget_gradients(latents: Tensor, module: nn.Module) -> None:
    """Drop the gradients of the last step."""
    latents.grad = None
    module.zero_grad(set_to_none=True)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternating_seconds(
    actions: Mapping[str, tuple[Callable[[], None], Callable[[], None]]],
    *,
    warmup: int,
    repeats: int,
    device: torch.device,
) -> dict[str, list[float]]:
    """Time actions in turn, so that whatever else the machine does meets all alike.

    Args:
        actions: by name, what is timed and what comes before it and is not.
        warmup: rounds before the first that counts.
        repeats: rounds that count.
        device: where the work is done.

    Returns:
        The seconds of each round, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(warmup + repeats):
        for name, (action, prepare) in actions.items():
            prepare()
            synchronize(device)
            begin = time.perf_counter()
            action()
            synchronize(device)
            if number >= warmup:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


class SearchBound:
    """The least that a nearest-neighbour search computes: the inner product of each token with each code, in float32.

    The scores go to a buffer that is there already, and nothing is done with them.

    Args:
        tokens: M.
        searches: K and C of each search of the quantizer.
        device: where.
    """

    def __init__(self, tokens: int, searches: tuple[tuple[int, int], ...], device: torch.device) -> None:
        self.operands = [
            (torch.randn(tokens, dim, device=device), torch.randn(size, dim, device=device)) for size, dim in searches
        ]
        widest = max(size for size, _ in searches)
        self.rows = min(tokens, max(1, BOUND_BYTES // (4 * widest)))
        self.scores = torch.zeros(self.rows * widest, device=device)

    def __call__(self) -> None:
        for latents, codebook in self.operands:
            for part in latents.split(self.rows):
                target = self.scores[: part.shape[0] * codebook.shape[0]].view(part.shape[0], -1)
                torch.mm(part, codebook.t(), out=target)


class PeakMemory:
    """How far the memory rises between the construction and `growth`.

    On a GPU the allocator's peak. On a CPU that of the resident set, which the kernel keeps: everything that the
    process touched for the first time counts, so measure in a process of its own.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.start = torch.cuda.memory_allocated(device)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
            self.start = _resident_bytes("VmRSS")

    def growth(self) -> int:
        """Return the bytes between the peak since the construction and what was there then."""
        if self.device.type == "cuda":
            synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device) - self.start
        return _resident_bytes("VmHWM") - self.start


def _resident_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {field}; peak memory on a CPU is measured on Linux only")
    return int(found[1]) * 1024


def warm_up_backend(device: torch.device) -> None:
    """Load what torch loads at first use (kernels, threads, autograd), so that no measurement counts it."""
    first = torch.randn(256, 64, device=device, requires_grad=True)
    scores = first @ torch.randn(64, 256, device=device)
    indices = scores.softmax(dim=1).log().argmax(dim=1)
    total = scores.new_zeros(256).index_add_(0, indices, torch.ones(256, device=device)).sum()
    (scores.square().mean() + total).backward()
    synchronize(device)
