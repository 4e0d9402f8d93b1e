"""What every metric has in common: sums that do not depend on how data is cut into batches and processes."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


class NoDataError(RuntimeError):
    """A metric was asked for its value before it saw enough data."""


class Metric:
    """A value computed from sums over pictures.

    Each process calls `update` on its own pictures, as often as it likes (also never); `compute` adds the
    sums of all processes, so every process must call it. Sums are int64 or float64. They follow the device
    of the data.

    A process that pads its last batch with repeated pictures must drop these before `update`: they would
    count twice.

    Args:
        sums: the zeros to start from; their keys, shapes and dtypes are the same in every process.
    """

    def __init__(self, sums: dict[str, Tensor]) -> None:
        self.sums = sums

    def reset(self) -> None:
        """Forget all data."""
        self.sums = {name: torch.zeros_like(value) for name, value in self.sums.items()}

    def add(self, **values: Tensor) -> None:
        """Add `values` to the sums of the same names."""
        for name, value in values.items():
            self.sums[name] = self.sums[name].to(value.device) + value.detach()

    def reduced_sums(self) -> dict[str, Tensor]:
        """Return the sums over all processes; without a process group, this process's own."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return self.sums
        # A process that saw no data still has its sums on the CPU, where NCCL cannot reach them.
        on_gpu = distributed.get_backend() == "nccl"
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        reduced = {}
        for name in sorted(self.sums):
            reduced[name] = self.sums[name].detach().to(device, copy=True)
            distributed.all_reduce(reduced[name])
        return reduced

    def compute(self) -> dict[str, float]:
        """Return the metric's values over all processes by name, ready for JSON; call it in every process.

        Raises:
            NoDataError: too little data was seen.
        """
        raise NotImplementedError


class PictureMean(Metric):
    """Mean over pictures of a value that each pair of pictures has.

    Args:
        name: key of the value in `compute`.
    """

    def __init__(self, name: str) -> None:
        total, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
        super().__init__({"total": total, "count": count})
        self.name = name

    def values(self, pixels: Tensor, reconstruction: Tensor) -> Tensor:
        """Return the value of each pair of (B, 3, H, W) pictures in [-1, 1], (B,)."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self, pixels: Tensor, reconstruction: Tensor) -> None:
        """Take in B pairs of pictures.

        Args:
            pixels: (B, 3, H, W) in [-1, 1], the reference.
            reconstruction: (B, 3, H, W); clamped to [-1, 1].

        Raises:
            ValueError: the shapes differ or are not (B, 3, H, W).
        """
        check_pair(pixels, reconstruction)
        values = self.values(pixels, reconstruction).double()
        self.add(total=values.sum(), count=torch.full_like(values, 1, dtype=torch.int64).sum())

    def compute(self) -> dict[str, float]:
        """Return `{name: mean over pictures}`; see the base class."""
        sums = self.reduced_sums()
        count = int(sums["count"])
        if count == 0:
            raise NoDataError(f"{self.name}: compute was called, but no process saw a picture")
        return {self.name: float(sums["total"]) / count}


def round_to_levels(pixels: Tensor) -> Tensor:
    """Return `pixels` as an 8-bit picture would hold them: clamped, then whole levels 0..255 in float32.

    Halves go to the even level. NaN stays NaN, so a broken reconstruction shows in the metric.
    """
    return ((pixels.detach().float().clamp(-1, 1) + 1) * 127.5).round()


def round_pixels(pixels: Tensor) -> Tensor:
    """Return `pixels` as an 8-bit picture would hold them, float32 in [-1, 1]."""
    return round_to_levels(pixels) / 127.5 - 1


def check_pair(pixels: Tensor, reconstruction: Tensor) -> None:
    """Raise ValueError unless both are (B, 3, H, W) and of one shape."""
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape != reconstruction.shape:
        raise ValueError(
            "pixels and reconstruction must have one shape (B, 3, H, W), "
            f"got {tuple(pixels.shape)} and {tuple(reconstruction.shape)}"
        )
