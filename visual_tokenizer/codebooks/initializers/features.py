"""Initialisation from pretrained features: cluster centres of a frozen network's features, brought into latent space.

The survey's section 5, item 5: z = P(E_pre(x)). Features of any width are read from a file (`python -m
visual_tokenizer.features` writes one), projected onto their principal directions, clustered by k-means, and given the
mean and spread of the early latents along the latents' own principal directions, so that the strongest direction of
the features falls on the strongest of the latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from visual_tokenizer.codebooks.distributed import broadcast_from_first_rank
from visual_tokenizer.codebooks.initializers.base import Initializer, InitializerConfig
from visual_tokenizer.codebooks.lloyd import cluster_centres
from visual_tokenizer.errors import MissingFileError, UserError


@dataclass(kw_only=True)
class FeaturesConfig(InitializerConfig):
    """Fields of initialisation from features."""

    path: str = ""
    """A safetensors file with one tensor `features` (M, D); read once, when training begins."""

    samples: Annotated[int, Ge(1)] = 4096
    """Early latents, over all ranks, that give mean and directions; more than the code dimension."""

    iterations: Annotated[int, Ge(1)] = 10
    """Lloyd iterations of the k-means."""

    seed: Annotated[int, Ge(0)] = 0
    """Seed of the choice of the first centres."""


class Features(Initializer):
    """Centres of projected features."""

    Config = FeaturesConfig

    @property
    def samples(self) -> int:
        return self.config.samples

    @torch.no_grad()
    def from_latents(self, latents: Tensor, codebook_size: int) -> Tensor:
        features = self._read().to(latents)
        if features.shape[1] < latents.shape[1]:
            raise UserError(
                f"initializer.path: features must be at least as wide as the codes, {latents.shape[1]}; "
                f"{self.config.path} has {features.shape[1]}"
            )
        mean, directions, spread = _principal_directions(latents)
        feature_mean, feature_directions, feature_spread = _principal_directions(features)
        width = latents.shape[1]
        coordinates = (features - feature_mean) @ feature_directions[:, :width]
        coordinates = coordinates / feature_spread[:width].clamp_min(1e-8) * spread
        centres = cluster_centres(
            coordinates @ directions.T + mean, codebook_size, self.config.iterations, self.config.seed
        )
        return broadcast_from_first_rank(centres)

    def _read(self) -> Tensor:
        path = Path(self.config.path)
        if not path.is_file():
            raise MissingFileError(
                f"initializer.path: no file {self.config.path!r}; write one with python -m visual_tokenizer.features"
            )
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise UserError(f"initializer.path: {path} is not a safetensors file: {error}") from error
        features = tensors.get("features")
        if features is None or features.ndim != 2 or features.shape[0] < 2:
            raise UserError(
                f"initializer.path: {path} must hold a tensor 'features' (M, D) with M of 2 or more; "
                f"it holds { {name: tuple(t.shape) for name, t in tensors.items()} }"
            )
        return features.float()


def _principal_directions(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (D,), directions (D, D) as columns, strongest first, and standard deviations along them (D,)."""
    mean = vectors.mean(dim=0)
    centred = vectors - mean
    variances, directions = torch.linalg.eigh(centred.T @ centred / vectors.shape[0])
    return mean, directions.flip(1), variances.flip(0).clamp_min(0).sqrt()
