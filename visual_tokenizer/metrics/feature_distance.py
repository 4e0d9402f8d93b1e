"""Fréchet distance between two sets of pictures in the embedding of a frozen network.

Paper: GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al.,
2017), arXiv:1706.08500, eq. 6; the network is another one than theirs, so the value is never called FID.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visual_tokenizer.backbones.base import Backbone, check_pixels, load_backbone
from visual_tokenizer.metrics.base import Metric, NoDataError, round_pixels


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """Return |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2), 0 or more, computed in float64.

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


class FeatureDistance(Metric):
    """Fréchet distance between reference and generated pictures, as `FD-<network>`.

    Protocol: pictures clamped to [-1, 1] and rounded to 8-bit levels; `network.embedding` at its own size
    (bilinear), float32 also under autocast; means and unbiased covariances (n - 1) in float64. The value
    falls as the number of
    pictures grows: compare only at equal numbers, which are returned beside it.

    Args:
        network: a frozen network, moved to the pictures' device when needed; default EfficientNet-Lite0.

    Raises:
        MissingWeightsError: no network is given, and the weights of EfficientNet-Lite0 are not installed.
    """

    def __init__(self, network: Backbone | None = None) -> None:
        self.network = network or load_backbone("efficientnet_lite0")
        self.name = f"FD-{self.network.config.type}"
        width = self.network.embedding_dim
        sums = {}
        for side in ("reference", "generated"):
            sums[f"{side}_count"] = torch.zeros((), dtype=torch.int64)
            sums[f"{side}_sum"] = torch.zeros(width, dtype=torch.float64)
            sums[f"{side}_outer"] = torch.zeros(width, width, dtype=torch.float64)
        super().__init__(sums)

    @torch.no_grad()
    def update(self, pixels: Tensor, is_reference: bool) -> None:
        """Take in (B, 3, H, W) `pixels` in [-1, 1], of the reference set or else of the generated set."""
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
        """Return `FD-<network>` and the numbers of pictures, `…_n_reference` and `…_n_generated`.

        Raises:
            NoDataError: a set has fewer than 2 pictures over all processes.
        """
        sums = self.reduced_sums()
        moments: list[Tensor] = []
        counts: dict[str, float] = {}
        for side in ("reference", "generated"):
            count = int(sums[f"{side}_count"])
            if count < 2:
                raise NoDataError(f"{self.name}: the {side} set needs 2 pictures or more, got {count}")
            mean = sums[f"{side}_sum"] / count
            covariance = (sums[f"{side}_outer"] - count * torch.outer(mean, mean)) / (count - 1)
            moments += [mean, covariance]
            counts[f"{self.name}_n_{side}"] = float(count)
        return {self.name: frechet_distance(*moments), **counts}
