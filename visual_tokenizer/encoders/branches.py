"""Several encoders look at the same picture; their latents lie side by side in the channels.

Paper: ImageFolder: Autoregressive Image Generation with Folded Tokens (Li et al., 2024), arXiv:2410.01756, section 3.2:
a semantic and a detail branch, each with latent queries of its own and a codebook of its own. The latents are quantized
as they are, by `product` with a group for each branch, because a map over all channels would mix the branches. In the
authors' network the branches are one pretrained transformer with two sets of queries; here they are any encoders.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Ge, Len
from torch import Tensor, nn

from visual_tokenizer.encoders.base import Encoder, EncoderConfig, ResolutionError
from visual_tokenizer.errors import UserError


def _two_latent_queries() -> list[EncoderConfig]:
    return [EncoderConfig.family.config({"type": "latent_query"}) for _ in range(2)]


@dataclass(kw_only=True)
class BranchesConfig(EncoderConfig):
    """Fields of the branches."""

    branches: Annotated[list[EncoderConfig], Len(1)] = field(default_factory=_two_latent_queries)
    """Encoders that give equal token grids, in the order of the channels."""

    branch_dim: Annotated[int, Ge(1)] = 32
    """Channels that each branch gives. The quantizer's code_dim is the sum over the branches."""

    branch_dims: list[Annotated[int, Ge(1)]] | None = None
    """Channels of each branch in turn, in place of `branch_dim`; null: all give `branch_dim`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.branch_dims is not None and len(self.branch_dims) != len(self.branches):
            raise UserError(f"branch_dims must be {len(self.branches)} numbers, or null, got {self.branch_dims}")

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
