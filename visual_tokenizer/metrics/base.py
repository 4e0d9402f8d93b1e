"""What every metric has in common: sums that do not depend on how data is cut into batches and processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed

from visual_tokenizer.backbones.base import Backbone, check_clips, check_pixels, frames_as_pictures
from visual_tokenizer.errors import UserError
from visual_tokenizer.registry import PartConfig


@dataclass(kw_only=True)
class MetricConfig(PartConfig, package="visual_tokenizer.metrics"):
    """No field is common to all metrics."""

    def for_codebook(self, codebook_size: int, num_codebooks: int) -> MetricConfig:
        """Return the config for a tokenizer of these numbers; most metrics do not ask for them."""
        return self


class Metric:
    """A value computed from sums over pictures or clips.

    Each process calls `observe` on its own pictures, as often as it likes (also never); `compute` adds the
    sums of all processes, so every process must call it. Sums are int64 or float64. They follow the device
    of the data.

    A process that pads its last batch with repeated pictures must drop these before `observe`: they would
    count twice.

    Args:
        sums: the zeros to start from; their keys, shapes and dtypes are the same in every process.
    """

    Config: ClassVar[type[MetricConfig]]
    unprotocolled: ClassVar[tuple[str, ...]] = ("weights", "heads")
    """Fields in which two values may differ and still be compared: where files of weights lie."""

    def __init__(self, config: MetricConfig, sums: dict[str, Tensor]) -> None:
        self.config: Any = config
        self.sums = sums

    def observe(self, pixels: Tensor, reconstruction: Tensor, indices: Tensor) -> None:
        """Take in B pictures or clips and what a tokenizer made of them.

        Args:
            pixels: (B, 3, H, W) or (B, 3, T, H, W) in [-1, 1].
            reconstruction: of the same shape.
            indices: (B, *token_grid[, num_codebooks]) int64; `ABSENT` behind a picture's own tokens.
        """
        raise NotImplementedError

    def protocol(self) -> dict[str, Any]:
        """Return what two values must have in common to be compared: type, fields, what is measured, which weights.

        Fields that say where a file lies are left out; the file's digest is in.
        """
        meaning = (type(self).__doc__ or "").strip().splitlines()[0]
        fields = {name: value for name, value in self.config.to_dict().items() if name not in self.unprotocolled}
        digest = self.weights_digest()
        return {**fields, "measures": meaning, **({"weights_digest": digest} if digest else {})}

    def weights_digest(self) -> str:
        """Return what tells the weights of the metric's `network` from others; empty where there is none."""
        return getattr(getattr(self, "network", None), "weights_digest", "")

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
            UserError: too little data was seen.
        """
        raise NotImplementedError


class PictureMean(Metric):
    """Mean over pictures of a value that each pair of pictures has, as `name`; each frame of a clip is a picture."""

    def __init__(self, config: MetricConfig, name: str) -> None:
        total, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
        super().__init__(config, {"total": total, "count": count})
        self.name = name

    def values(self, pixels: Tensor, reconstruction: Tensor) -> Tensor:
        """Return the value of each pair of (B, 3, H, W) pictures in [-1, 1], (B,)."""
        raise NotImplementedError

    @torch.no_grad()
    def observe(self, pixels: Tensor, reconstruction: Tensor, indices: Tensor) -> None:
        """Take in B pairs of pictures or clips, the reconstruction clamped to [-1, 1]; see the base class.

        Raises:
            ValueError: the shapes differ or are others.
        """
        check_pair(pixels, reconstruction)
        pixels, reconstruction = frames_as_pictures(pixels), frames_as_pictures(reconstruction)
        values = self.values(pixels, reconstruction).double()
        self.add(total=values.sum(), count=torch.full_like(values, 1, dtype=torch.int64).sum())

    def compute(self) -> dict[str, float]:
        """Return `{name: mean over pictures}`; see the base class."""
        sums = self.reduced_sums()
        count = int(sums["count"])
        if count == 0:
            raise UserError(f"{self.name}: compute was called, but no process saw a picture")
        return {self.name: float(sums["total"]) / count}


class FrechetMetric(Metric):
    """Fréchet distance between pictures or clips and their reconstructions, as `name`.

    Protocol: clamped to [-1, 1] and rounded to 8-bit levels; `network.embedding` at its own size, float32 also
    under autocast; means and unbiased covariances (n - 1) in float64. The value falls as the number of pictures
    grows: compare only at equal numbers, which are returned beside it. A network of pictures takes each frame of
    a clip for one.

    Args:
        network: a frozen network, moved to the pictures' device when needed.
    """

    def __init__(self, config: MetricConfig, network: Backbone, name: str) -> None:
        self.network = network
        self.name = name
        width = network.embedding_dim
        sums = {}
        for side in ("reference", "generated"):
            sums[f"{side}_count"] = torch.zeros((), dtype=torch.int64)
            sums[f"{side}_sum"] = torch.zeros(width, dtype=torch.float64)
            sums[f"{side}_outer"] = torch.zeros(width, width, dtype=torch.float64)
        super().__init__(config, sums)

    def observe(self, pixels: Tensor, reconstruction: Tensor, indices: Tensor) -> None:
        """Take in `pixels` as reference and their reconstruction as generated; see the base class."""
        self.update(pixels, is_reference=True)
        self.update(reconstruction, is_reference=False)

    @torch.no_grad()
    def update(self, pixels: Tensor, is_reference: bool) -> None:
        """Take in `pixels` in [-1, 1] of the reference set or else of the generated set.

        Args:
            pixels: (B, 3, H, W) or (B, 3, T, H, W); a network of clips takes the latter only.
            is_reference: which set they are of.

        Raises:
            ValueError: another shape, or pictures for a network of clips.
        """
        if self.network.takes_clips:
            check_clips(pixels)
        else:
            pixels = frames_as_pictures(pixels)
            check_pixels(pixels)
        self.network.to(pixels.device)
        with torch.autocast(pixels.device.type, enabled=False):
            embeddings = self.network.embedding(round_pixels(pixels)).double()
        side = "reference" if is_reference else "generated"
        self.add(
            **{
                f"{side}_count": torch.tensor(len(embeddings), device=pixels.device),
                f"{side}_sum": embeddings.sum(0),
                f"{side}_outer": embeddings.T @ embeddings,
            }
        )

    def compute(self) -> dict[str, float]:
        """Return the distance and the numbers of pictures (or clips), `…_n_reference` and `…_n_generated`.

        Raises:
            UserError: a set has fewer than 2 pictures over all processes.
        """
        sums = self.reduced_sums()
        moments: list[Tensor] = []
        counts: dict[str, float] = {}
        for side in ("reference", "generated"):
            count = int(sums[f"{side}_count"])
            if count < 2:
                raise UserError(f"{self.name}: the {side} set needs 2 pictures or more, got {count}")
            mean = sums[f"{side}_sum"] / count
            covariance = (sums[f"{side}_outer"] - count * torch.outer(mean, mean)) / (count - 1)
            moments += [mean, covariance]
            counts[f"{self.name}_n_{side}"] = float(count)
        return {self.name: frechet_distance(*moments), **counts}


def round_to_levels(pixels: Tensor) -> Tensor:
    """Return `pixels` as an 8-bit picture would hold them: clamped, then whole levels 0..255 in float32.

    Halves go to the even level. NaN stays NaN, so a broken reconstruction shows in the metric.
    """
    return ((pixels.detach().float().clamp(-1, 1) + 1) * 127.5).round()


def round_pixels(pixels: Tensor) -> Tensor:
    """Return `pixels` as an 8-bit picture would hold them, float32 in [-1, 1]."""
    return round_to_levels(pixels) / 127.5 - 1


def check_pair(pixels: Tensor, reconstruction: Tensor) -> None:
    """Raise ValueError unless both are (B, 3, H, W) or (B, 3, T, H, W) and of one shape."""
    if pixels.ndim not in (4, 5) or pixels.shape[1] != 3 or pixels.shape != reconstruction.shape:
        raise UserError(
            "pixels and reconstruction must have one shape, (B, 3, H, W) or (B, 3, T, H, W), "
            f"got {tuple(pixels.shape)} and {tuple(reconstruction.shape)}"
        )


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """Return |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2), 0 or more, computed in float64.

    Paper: GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al., 2017),
    arXiv:1706.08500, eq. 6.

    The inner matrix is symmetric and has the eigenvalues of C_a C_b, so its root needs no general matrix
    root and singular covariances (fewer pictures than dimensions) do no harm.

    Args:
        mean_a, mean_b: (D,).
        covariance_a, covariance_b: (D, D), symmetric positive semi-definite.
    """
    mean_a, covariance_a, mean_b, covariance_b = (
        value.double() for value in (mean_a, covariance_a, mean_b, covariance_b)
    )
    values, vectors = torch.linalg.eigh(covariance_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    inner = root @ covariance_b @ root
    trace_root = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * trace_root
    return max(float(distance), 0.0)


def cubic_kernel(first: Tensor, second: Tensor) -> Tensor:
    """Return (x · y / D + 1)³ of all rows of (N, D) and (M, D), (N, M)."""
    return (first @ second.T / first.shape[1] + 1) ** 3


def kernel_distance(first: Tensor, second: Tensor) -> float:
    """Return the unbiased squared MMD of embeddings (N, D) and (M, D), computed in float64; below 0 by chance only.

    Paper: Demystifying MMD GANs (Bińkowski et al., 2018), arXiv:1801.01401, section 4, with a cubic kernel: the
    expectation does not depend on how many embeddings there are. With Inception's it is called KID; with another
    network's it is not.

    Args:
        first: N >= 2 embeddings.
        second: M >= 2 embeddings.

    Raises:
        ValueError: too few embeddings, or widths that differ.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise UserError(
            f"embeddings must be (N, D) and (M, D) with one D, got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    if min(len(first), len(second)) < 2:
        raise UserError(f"each set must have 2 embeddings or more, got {len(first)} and {len(second)}")
    first, second = first.double(), second.double()
    within = [_mean_off_diagonal(cubic_kernel(one, one)) for one in (first, second)]
    return float(within[0] + within[1] - 2 * cubic_kernel(first, second).mean())


def _mean_off_diagonal(matrix: Tensor) -> Tensor:
    count = len(matrix)
    return (matrix.sum() - torch.trace(matrix)) / (count * (count - 1))


PART = Metric
