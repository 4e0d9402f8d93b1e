"""Several encoders look at the same picture; their latents lie side by side in the channels.

Paper: ImageFolder: Autoregressive Image Generation with Folded Tokens (Li et al., 2024), arXiv:2410.01756, section 3.2:
a semantic and a detail branch, each with latent queries of its own and a codebook of its own. The latents are quantized
as they are, by `product` with a group for each branch, because a map over all channels would mix the branches. In the
authors' network the branches are one pretrained transformer with two sets of queries; here they are any encoders.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from visual_tokenizer.encoders.base import Encoder, EncoderConfig, ResolutionError
from visual_tokenizer.errors import UserError


def _two_latent_queries() -> list[EncoderConfig]:
    return [EncoderConfig.family.config({"type": "latent_query"}) for _ in range(2)]


@dataclass(kw_only=True)
class BranchesConfig(EncoderConfig):
    """Fields of the branches."""

    branches: list[EncoderConfig] = field(default_factory=_two_latent_queries)
    """Encoders that give equal token grids, in the order of the channels; one or more."""

    branch_dim: int = 32
    """Channels that each branch gives; 1 or more. The quantizer's code_dim is the sum over the branches."""

    branch_dims: list[int] | None = None
    """Channels of each branch in turn, in place of `branch_dim`, each 1 or more; null: all give `branch_dim`."""

    def __post_init__(self) -> None:
        if not self.branches:
            raise UserError("branches must hold one encoder or more")
        if self.branch_dim < 1:
            raise UserError(f"branch_dim must be 1 or more, got {self.branch_dim}")
        dims = self.branch_dims
        if dims is not None and (len(dims) != len(self.branches) or min(dims) < 1):
            raise UserError(f"branch_dims must be {len(self.branches)} numbers of 1 or more, or null, got {dims}")

    @property
    def channels(self) -> list[int]:
        """Channels of each branch."""
        return [self.branch_dim] * len(self.branches) if self.branch_dims is None else self.branch_dims


class Branches(Encoder):
    """`[W_1 E_1(x), …, W_n E_n(x)]`."""

    Config = BranchesConfig
    latents_are_codes = True

    def __init__(self, config: BranchesConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        built: list[Encoder] = [EncoderConfig.family.build(one, image_size=image_size) for one in config.branches]
        # Typed as anything, because torch types the items of a list as plain modules.
        self.branches: Any = nn.ModuleList(built)
        pairs = zip(built, config.channels, strict=True)
        self.projections = nn.ModuleList(nn.Linear(branch.width, channels) for branch, channels in pairs)
        self.width = sum(config.channels)
        grids = self._grids(image_size, image_size)
        if len(set(grids)) > 1:
            raise UserError(f"branches must have equal token grids, got {', '.join(map(str, grids))}")

    def _grids(self, height: int, width: int) -> list[tuple[int, ...]]:
        return [branch.token_grid(height, width) for branch in self.branches]

    def token_grid(self, height: int, width: int) -> tuple[int, ...]:
        grids = self._grids(height, width)
        if len(set(grids)) > 1:
            raise ResolutionError(f"at {height} × {width} the branches have different token grids: {grids}")
        return grids[0]

    def forward(self, pixels: Tensor) -> Tensor:
        pairs = zip(self.branches, self.projections, strict=True)
        return torch.cat([projection(branch(pixels)) for branch, projection in pairs], dim=2)
