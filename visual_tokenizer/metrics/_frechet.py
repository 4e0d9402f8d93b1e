"""Fréchet distance between two sets in the embedding of a frozen network: shared by `feature_distance`, FID and FVD.

Paper: GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al.,
2017), arXiv:1706.08500, eq. 6.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visual_tokenizer.backbones.base import Backbone, check_clips, check_pixels, frames_as_pictures
from visual_tokenizer.errors import UserError
from visual_tokenizer.metrics.base import Metric, MetricConfig, round_pixels


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


class FrechetMetric(Metric):
    """Fréchet distance between pictures or clips and their reconstructions, as `name`.

    Protocol: clamped to [-1, 1] and rounded to 8-bit levels; `network.embedding` at its own size, float32 also
    under autocast; means and unbiased covariances (n - 1) in float64. The value falls as the number of pictures
    grows: compare only at equal numbers, which are returned beside it. A network of pictures takes each frame of
    a clip for one.

    Args:
        config: the part's fields.
        network: a frozen network, moved to the pictures' device when needed.
        name: key of the value in `compute`.
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

    def weights_digest(self) -> str:
        """Return the digest of the network's weights."""
        return self.network.weights_digest

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
