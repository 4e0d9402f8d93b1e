"""Dual codebooks with one index: a semantic and a pixel code chosen together.

Paper: TokenFlow: Unified Image Tokenizer for Multimodal Understanding and Generation (Qu et al., 2024),
arXiv:2412.03069, section 3.1: argmin over i of d_sem,i + w · d_pix,i on parts that are put on unit spheres, codes
and latents alike. As in the authors' code both losses are means over the channels of both parts together. The first
`semantic_dim` channels are the semantic part. The search is one for all: on vectors whose pixel part is multiplied by
√w, that sum is a squared distance.

Departs from it in the codes' start, which is a part (the paper's is uniform noise), and in the entropy term, which the
published configurations weigh 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.codebooks.assignment import mean_square
from visual_tokenizer.codebooks.distributed import gather_over_ranks
from visual_tokenizer.codebooks.initializers.base import InitializerConfig
from visual_tokenizer.codebooks.search import nearest_codes
from visual_tokenizer.codebooks.updates.base import UpdateConfig
from visual_tokenizer.codebooks.usage import usage_metrics
from visual_tokenizer.errors import UserError
from visual_tokenizer.outputs import QuantizerOutput
from visual_tokenizer.quantizers.base import Quantizer, QuantizerConfig
from visual_tokenizer.registry import PartConfig


def _part(kind: type[PartConfig], name: str) -> Any:
    return kind.family.config({"type": name})


@dataclass(kw_only=True)
class DualConfig(QuantizerConfig):
    """Fields of dual codebooks."""

    codebook_size: Annotated[int, Ge(2)] = 8192
    """Number of codes K of each codebook."""

    semantic_dim: Annotated[int, Ge(1)] = 32
    """Channels of the semantic part."""

    pixel_dim: Annotated[int, Ge(1)] = 8
    """Channels of the pixel part."""

    distance_weight: Annotated[float, Gt(0)] = 1.0
    """Factor w on the pixel part's squared distance in the choice of a code."""

    commitment_weight: Annotated[float, Ge(0)] = 1.0
    """Factor β on mean(‖z − sg(e)‖²), both on the spheres."""

    update: UpdateConfig = field(default_factory=lambda: _part(UpdateConfig, "gradient"))
    """How the codes learn."""

    initializer: InitializerConfig = field(default_factory=lambda: _part(InitializerConfig, "random"))
    """Where the first codes come from; none that sets them step by step."""


class Dual(Quantizer):
    """`[e_sem, e_pix]` of one index."""

    Config = DualConfig
    is_ready: Tensor
    weights: Tensor

    def __init__(self, config: DualConfig) -> None:
        super().__init__(config)
        self.codebook_size = config.codebook_size
        self.code_dim = config.semantic_dim + config.pixel_dim
        shape = {"codebook_size": config.codebook_size, "code_dim": self.code_dim}
        self.update = UpdateConfig.family.build(config.update, **shape)
        self.initializer = InitializerConfig.family.build(config.initializer)
        if self.initializer.is_online:
            raise UserError(f"initializer must not set codes step by step, got '{config.initializer.type}'")
        codebook = self._on_spheres(self.initializer.at_construction(**shape))
        self.codebook = nn.Parameter(codebook, requires_grad=self.update.trains_by_gradient)
        self.update.reset(codebook)
        # The host copy spares a wait for the device at each step.
        self._is_ready = self.initializer.samples == 0
        self.register_buffer("is_ready", torch.tensor(self._is_ready))
        self.register_derived_buffers()

    def derived_buffers(self) -> dict[str, Tensor]:
        config = self.config
        weights = torch.ones(config.semantic_dim + config.pixel_dim)
        weights[config.semantic_dim :] = config.distance_weight**0.5
        return {"weights": weights}

    def after_load(self) -> None:
        self._is_ready = bool(self.is_ready)

    def _on_spheres(self, vectors: Tensor) -> Tensor:
        parts = vectors.split([self.config.semantic_dim, self.config.pixel_dim], dim=-1)
        return torch.cat([F.normalize(part, dim=-1) for part in parts], dim=-1)

    @property
    def code_pairs(self) -> Tensor:
        """Both codebooks side by side, (K, C)."""
        return self._on_spheres(self.codebook)

    def quantize(self, latents: Tensor) -> QuantizerOutput:
        flat = self._on_spheres(latents.reshape(-1, self.code_dim))
        if self.training and not self._is_ready:
            self.begin(flat)
        indices = nearest_codes(flat.detach() * self.weights, self.code_pairs.detach() * self.weights)
        if self.training:
            self.update.step_before(self.codebook.detach(), flat.detach(), indices)
        codes = self.code_pairs[indices]
        losses = {}
        if self.config.commitment_weight > 0:
            losses["commitment"] = self.config.commitment_weight * mean_square(flat, codes.detach())
        codebook_loss = self.update.loss(flat, codes)
        if codebook_loss is not None:
            losses["codebook"] = codebook_loss
        squares = (flat - codes).detach().square() / max(1, flat.shape[0])
        semantic, pixel = (part.sum() for part in squares.split([self.config.semantic_dim, self.config.pixel_dim], 1))
        if self.training:
            self._learn(flat.detach(), indices)
        return QuantizerOutput(
            codes=(codes.detach() + (flat - flat.detach())).view(latents.shape),
            indices=indices.view(latents.shape[:-1]),
            losses=losses,
            metrics={
                **usage_metrics(indices, self.codebook_size),
                "quantization_error": semantic + pixel,
                "semantic_error": semantic,
                "pixel_error": pixel,
            },
        )

    @torch.no_grad()
    def _learn(self, latents: Tensor, indices: Tensor) -> None:
        """Move the codes, after the output was taken from the codes as they were."""
        self.update.step(self.codebook.data, latents, indices)
        if not self.update.trains_by_gradient:
            self.codebook.data.copy_(self._on_spheres(self.codebook.data))

    def lookup(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.code_pairs)

    @property
    def samples_wanted(self) -> int:
        return 0 if self._is_ready else self.initializer.samples

    @torch.no_grad()
    def initialize(self, latents: Tensor) -> None:
        pool = gather_over_ranks(self._on_spheres(latents.float().reshape(-1, self.code_dim)))
        if pool.shape[0] == 0:
            return
        codes = self.initializer.from_latents(pool * self.weights, self.codebook_size) / self.weights
        self.codebook.data.copy_(self._on_spheres(codes))
        self.update.reset(self.codebook.data)
        self.is_ready.fill_(True)
        self._is_ready = True
