"""Vector quantization with an explicit codebook, composed from parts.

Papers: Neural Discrete Representation Learning (van den Oord et al., 2017), arXiv:1711.00937, eq. 1–3; with
`normalize`, codes and latents lie on the unit sphere as in Vector-quantized Image Modeling with Improved VQGAN
(Yu et al., 2022), arXiv:2110.04627, section 3.2. The commitment weight multiplies ‖z − sg(e)‖², as in the paper (not as
in the VQGAN code, which weighs the other term).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.codebooks.distributed import gather_over_ranks, is_distributed, sum_over_ranks
from visual_tokenizer.codebooks.estimators.base import EstimatorConfig
from visual_tokenizer.codebooks.initializers.base import InitializerConfig
from visual_tokenizer.codebooks.reseeders.base import ReseederConfig
from visual_tokenizer.codebooks.search import code_counts
from visual_tokenizer.codebooks.updates.base import UpdateConfig
from visual_tokenizer.outputs import QuantizerOutput
from visual_tokenizer.quantizers.base import Quantizer, QuantizerConfig, batch_metrics
from visual_tokenizer.registry import PartConfig


@dataclass(kw_only=True)
class VQConfig(QuantizerConfig):
    """Fields of VQ."""

    codebook_size: int = 8192
    """Number of codes K; 2 or more."""

    code_dim: int = 32
    """Channels of a code C; 1 or more."""

    normalize: bool = False
    """Put latents and codes on the unit sphere, so that the nearest code is that of the largest cosine."""

    commitment_weight: float = 0.25
    """Factor β on mean(‖z − sg(e)‖²), which keeps the encoder near its codes; 0 or more."""

    usage_decay: float = 0.99
    """Weight of the past in the running share of each code, which reseeding looks at; in [0, 1)."""

    estimator: EstimatorConfig = field(default_factory=lambda: _part(EstimatorConfig, "straight_through"))
    """How gradients pass the assignment."""

    update: UpdateConfig = field(default_factory=lambda: _part(UpdateConfig, "ema"))
    """How the codes learn."""

    initializer: InitializerConfig = field(default_factory=lambda: _part(InitializerConfig, "random"))
    """Where the first codes come from."""

    reseeder: ReseederConfig | None = None
    """What becomes of dead codes; none leaves them."""

    def __post_init__(self) -> None:
        if self.codebook_size < 2:
            raise ValueError(f"codebook_size must be 2 or more, got {self.codebook_size}")
        if self.code_dim < 1:
            raise ValueError(f"code_dim must be 1 or more, got {self.code_dim}")
        if not self.commitment_weight >= 0:
            raise ValueError(f"commitment_weight must be 0 or more, got {self.commitment_weight}")
        if not 0 <= self.usage_decay < 1:
            raise ValueError(f"usage_decay must be in [0, 1), got {self.usage_decay}")


def _part(kind: type[PartConfig], name: str) -> Any:
    return kind.family.config({"type": name})


class VQ(Quantizer):
    """Nearest code of a learned table."""

    Config = VQConfig
    shares: Tensor
    steps: Tensor
    is_initialized: Tensor

    def __init__(self, config: VQConfig) -> None:
        super().__init__(config)
        self.codebook_size = config.codebook_size
        self.code_dim = config.code_dim
        shape = {"codebook_size": config.codebook_size, "code_dim": config.code_dim}
        self.estimator = EstimatorConfig.family.build(config.estimator)
        self.update = UpdateConfig.family.build(config.update, **shape)
        self.initializer = InitializerConfig.family.build(config.initializer)
        self.reseeder = None if config.reseeder is None else ReseederConfig.family.build(config.reseeder)
        codebook = self._on_sphere(self.initializer.at_construction(**shape))
        self.codebook = nn.Parameter(codebook, requires_grad=self.update.trains_by_gradient)
        self.update.reset(codebook)
        self.register_buffer("shares", torch.full((config.codebook_size,), 1 / config.codebook_size))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("is_initialized", torch.tensor(self.initializer.samples == 0))
        # Host copies of the two scalars: reading the buffers would wait for the device at each step.
        self._steps, self._is_initialized = 0, self.initializer.samples == 0

    def after_load(self) -> None:
        self._steps = int(self.steps)
        self._is_initialized = bool(self.is_initialized)

    def _on_sphere(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.config.normalize else vectors

    def quantize(self, latents: Tensor) -> QuantizerOutput:
        flat = self._on_sphere(latents.reshape(-1, self.code_dim))
        if self.training and not self._is_initialized:
            self.initialize(flat.detach())
        codebook = self._on_sphere(self.codebook)
        indices = self.estimator.assign(flat.detach(), codebook.detach())
        codes = self.estimator(flat, codebook, indices) if torch.is_grad_enabled() else codebook[indices]
        counts = code_counts(indices, self.codebook_size)
        output = QuantizerOutput(
            codes=codes.view(latents.shape),
            indices=indices.view(latents.shape[:-1]),
            losses=self._losses(flat, codebook[indices]),
            metrics=batch_metrics(counts),
        )
        if self.training:
            self._learn(flat.detach(), indices, counts)
        return output

    def _losses(self, latents: Tensor, codes: Tensor) -> dict[str, Tensor]:
        losses = {}
        if self.config.commitment_weight > 0:
            losses["commitment"] = self.config.commitment_weight * F.mse_loss(latents, codes.detach())
        codebook_loss = self.update.loss(latents, codes)
        if codebook_loss is not None:
            losses["codebook"] = codebook_loss
        return losses

    @torch.no_grad()
    def _learn(self, latents: Tensor, indices: Tensor, counts: Tensor) -> None:
        """Move the codes, after the output was taken from the codes as they were."""
        errors = None
        counts = sum_over_ranks(counts.clone())
        self.shares.lerp_(counts / counts.sum().clamp_min(1), 1 - self.config.usage_decay)
        self._steps += 1
        self.steps.fill_(self._steps)
        is_reseeding = self.reseeder is not None and self._steps % self.reseeder.config.every_steps == 0
        if is_reseeding:  # before the codes move: the error is that of the codes that were chosen
            errors = (latents - self._on_sphere(self.codebook)[indices]).square().sum(dim=1)
        self.update.step(self.codebook.data, latents, indices)
        if errors is not None:
            self._reseed(latents, errors)
        if self.config.normalize and not self.update.trains_by_gradient:
            self.codebook.data.copy_(self._on_sphere(self.codebook.data))

    def _reseed(self, latents: Tensor, errors: Tensor) -> None:
        assert self.reseeder is not None
        threshold = self.reseeder.config.usage_below / self.codebook_size
        dead = (self.shares < threshold).nonzero().squeeze(1)
        if dead.numel() == 0 or (latents.shape[0] == 0 and not is_distributed()):
            return
        codes = self.reseeder.replacements(latents, errors, dead.numel())
        dead = dead[: codes.shape[0]]
        self.codebook.data[dead] = codes
        self.update.reset(self.codebook.data, dead)
        self.shares[dead] = 1 / self.codebook_size

    def lookup(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self._on_sphere(self.codebook))

    @property
    def samples_wanted(self) -> int:
        return 0 if self._is_initialized else self.initializer.samples

    @torch.no_grad()
    def initialize(self, latents: Tensor) -> None:
        pool = gather_over_ranks(self._on_sphere(latents.detach().float().reshape(-1, self.code_dim)))
        if pool.shape[0] == 0:
            return
        self.codebook.data.copy_(self._on_sphere(self.initializer.from_latents(pool, self.codebook_size)))
        self.update.reset(self.codebook.data)
        self._is_initialized = True
        self.is_initialized.fill_(True)
