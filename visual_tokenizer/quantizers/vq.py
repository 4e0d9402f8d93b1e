"""Vector quantization with an explicit codebook, composed from parts.

Papers: Neural Discrete Representation Learning (van den Oord et al., 2017), arXiv:1711.00937, eq. 1–3; with
`normalize`, codes and latents lie on the unit sphere as in Vector-quantized Image Modeling with Improved VQGAN
(Yu et al., 2022), arXiv:2110.04627, section 3.2, whose factorised codes are a small `code_dim`. How gradients
pass, how codes learn, what they are made of, where they begin, what becomes of dead ones and what else is asked of them
are parts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Interval
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.codebooks.assignment import Assignment, mean_square
from visual_tokenizer.codebooks.distributed import gather_over_ranks, sum_over_ranks
from visual_tokenizer.codebooks.estimators.base import EstimatorConfig
from visual_tokenizer.codebooks.initializers.base import InitializerConfig
from visual_tokenizer.codebooks.liveness import Liveness
from visual_tokenizer.codebooks.parametrizations.base import ParametrizationConfig
from visual_tokenizer.codebooks.regularizers.base import RegularizerConfig
from visual_tokenizer.codebooks.reseeders.base import ReseederConfig
from visual_tokenizer.codebooks.search import code_counts
from visual_tokenizer.codebooks.updates.base import UpdateConfig
from visual_tokenizer.errors import UserError
from visual_tokenizer.outputs import QuantizerOutput
from visual_tokenizer.quantizers.base import Quantizer, QuantizerConfig, batch_metrics
from visual_tokenizer.registry import PartConfig


@dataclass(kw_only=True)
class VQConfig(QuantizerConfig):
    """Fields of VQ."""

    codebook_size: Annotated[int, Ge(2)] = 8192
    """Number of codes K."""

    code_dim: Annotated[int, Ge(1)] = 32
    """Channels of a code C."""

    normalize: bool = False
    """Put latents and codes on the unit sphere, so that the nearest code is that of the largest cosine."""

    commitment_weight: Annotated[float, Ge(0)] = 0.25
    """Factor β on mean(‖z − sg(e)‖²), which keeps the encoder near its codes."""

    loss_weighting: Literal["paper", "legacy"] = "paper"
    """`paper`: β weighs the commitment. `legacy`: β weighs the codebook loss mean(‖sg(z) − e‖²) and the commitment has
    weight 1, as the first VQGAN code had it and published checkpoints were trained."""

    usage_decay: Annotated[float, Interval(ge=0, lt=1)] = 0.99
    """Weight of the past in the running share of each code, which reseeding looks at."""

    estimator: EstimatorConfig = field(default_factory=lambda: _part(EstimatorConfig, "straight_through"))
    """How gradients pass the assignment."""

    update: UpdateConfig = field(default_factory=lambda: _part(UpdateConfig, "ema"))
    """How the codes learn."""

    parametrization: ParametrizationConfig = field(default_factory=lambda: _part(ParametrizationConfig, "table"))
    """What the codes are made of."""

    initializer: InitializerConfig = field(default_factory=lambda: _part(InitializerConfig, "random"))
    """Where the first codes come from."""

    reseeder: ReseederConfig | None = None
    """What becomes of dead codes; none leaves them."""

    regularizers: list[RegularizerConfig] = field(default_factory=list)
    """Further objectives on codes and assignments."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = [regularizer.type for regularizer in self.regularizers]
        if len(set(kinds)) < len(kinds):
            raise UserError(f"regularizers must be of different types, got {', '.join(kinds)}")


def _part(kind: type[PartConfig], name: str) -> Any:
    return kind.family.config({"type": name})


class VQ(Quantizer):
    """Nearest code of a learned table."""

    Config = VQConfig
    steps: Tensor
    codes_set: Tensor

    def __init__(self, config: VQConfig) -> None:
        super().__init__(config)
        self.codebook_size = config.codebook_size
        self.code_dim = config.code_dim
        shape = {"codebook_size": config.codebook_size, "code_dim": config.code_dim}
        self.estimator = EstimatorConfig.family.build(config.estimator)
        self.update = UpdateConfig.family.build(config.update, **shape)
        self.parametrization = ParametrizationConfig.family.build(config.parametrization, **shape)
        self.initializer = InitializerConfig.family.build(config.initializer)
        self.reseeder = None
        if config.reseeder is not None:
            self.reseeder = ReseederConfig.family.build(config.reseeder, **shape)
        self.regularizers = nn.ModuleDict({r.type: RegularizerConfig.family.build(r) for r in config.regularizers})
        self._weights = {r.type: r.weight for r in config.regularizers}
        self._refuse_what_does_not_fit()
        codebook = self._on_sphere(self.initializer.at_construction(**shape))
        is_trained = self.update.trains_by_gradient and self.parametrization.trains_table
        self.codebook = nn.Parameter(codebook, requires_grad=is_trained)
        self.update.reset(codebook)
        self.liveness = Liveness(config.codebook_size, config.usage_decay)
        begins_with_data = self.initializer.samples > 0 or self.initializer.is_online
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        # How many codes, the first ones, have been set: all, unless data sets them.
        # Host copies of the two scalars: reading the buffers would wait for the device at each step.
        self._steps, self._codes_set = 0, 0 if begins_with_data else config.codebook_size
        self.register_buffer("codes_set", torch.tensor(self._codes_set))

    def _refuse_what_does_not_fit(self) -> None:
        config = self.config
        by_gradient = self.update.trains_by_gradient
        if self.parametrization.learns_by_gradient and not by_gradient:
            raise UserError(
                f"parametrization '{config.parametrization.type}' learns by gradient: update must be 'gradient', "
                f"got '{config.update.type}'"
            )
        if self.estimator.needs_trained_codebook and not by_gradient:
            raise UserError(
                f"estimator '{config.estimator.type}' trains the codebook: update must be 'gradient', "
                f"got '{config.update.type}'"
            )
        if not self.parametrization.trains_table:
            if self.reseeder is not None:
                raise UserError(
                    f"parametrization '{config.parametrization.type}' keeps its table: reseeder must be null"
                )
            if self.initializer.samples > 0 or self.initializer.is_online:
                raise UserError(
                    f"parametrization '{config.parametrization.type}' keeps its table: initializer must be 'random', "
                    f"got '{config.initializer.type}'"
                )
        for name, regularizer in self.regularizers.items():
            if not regularizer.moves_latents and not by_gradient:
                raise UserError(
                    f"regularizer '{name}' shapes the codebook: update must be 'gradient', got '{config.update.type}'"
                )

    def after_load(self) -> None:
        self._steps = int(self.steps)
        self._codes_set = int(self.codes_set)

    def _on_sphere(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.config.normalize else vectors

    @property
    def vectors(self) -> Tensor:
        """The codes (K, C), whatever they are made of."""
        return self._on_sphere(self.parametrization(self.codebook))

    def quantize(self, latents: Tensor) -> QuantizerOutput:
        flat = self._on_sphere(latents.reshape(-1, self.code_dim))
        if self.training:
            if self._codes_set < self.codebook_size:
                self._set_codes(flat.detach())
            self.parametrization.observe(flat.detach(), self.codebook.detach())
        codebook = self.vectors
        if 0 < self._codes_set < self.codebook_size:
            codebook = codebook[: self._codes_set]
        noise = self.estimator.draw_noise(flat.detach(), codebook.detach()) if self.training else None
        indices = self.estimator.assign(flat.detach(), codebook.detach(), noise)
        if self.training:
            self.update.step_before(self.codebook.detach(), flat.detach(), indices)
        assignment = Assignment(flat, codebook, indices, codebook[indices], self.steps, noise)
        codes = self._codes(assignment)
        errors = (flat.detach() - assignment.codes.detach()).square().sum(dim=1)
        counts = code_counts(indices, self.codebook_size)
        output = QuantizerOutput(
            codes=codes.view(latents.shape),
            indices=indices.view(latents.shape[:-1]),
            losses=self._losses(assignment, codes),
            metrics={
                **batch_metrics(counts),
                "quantization_error": errors.sum() / max(errors.shape[0], 1),
            },
        )
        if self.training:
            self._learn(flat.detach(), indices, counts, errors)
        return output

    def _codes(self, assignment: Assignment) -> Tensor:
        if not torch.is_grad_enabled():
            return assignment.codes
        if self.training:
            codes: Tensor = self.estimator(assignment)
            return codes
        # Outside training the codes are those of the indices, whatever the estimator shows the decoder in training.
        return assignment.codes.detach() + (assignment.latents - assignment.latents.detach())

    def _losses(self, assignment: Assignment, codes: Tensor) -> dict[str, Tensor]:
        losses = {}
        is_legacy = self.config.loss_weighting == "legacy"
        commitment_weight = 1.0 if is_legacy else self.config.commitment_weight
        if commitment_weight > 0:
            losses["commitment"] = commitment_weight * mean_square(assignment.latents, assignment.codes.detach())
        codebook_loss = self.update.loss(assignment.latents, assignment.codes)
        if codebook_loss is not None:
            losses["codebook"] = self.config.commitment_weight * codebook_loss if is_legacy else codebook_loss
        losses.update(self.estimator.losses(assignment, codes))
        for name, regularizer in self.regularizers.items():
            term = regularizer(assignment.latents, assignment.codebook, assignment.indices)
            losses[name] = self._weights[name] * term
        return losses

    @torch.no_grad()
    def _learn(self, latents: Tensor, indices: Tensor, counts: Tensor, errors: Tensor) -> None:
        """Move the codes, after the output was taken from the codes as they were."""
        self.liveness.observe(sum_over_ranks(counts.clone()))
        self.steps.add_(1)
        self.update.step(self.codebook.data, latents, indices)
        if self.reseeder is not None:
            self.reseeder.observe(latents)
            if torch.compiler.is_compiling():
                # A compiled step can't branch on the step: it always reseeds, under a mask that is mostly empty.
                self._reseed(latents, errors, self.steps % self.reseeder.config.every_steps == 0)
            else:
                self._steps += 1
                if self._steps % self.reseeder.config.every_steps == 0:
                    self._reseed(latents, errors, torch.ones_like(self.steps, dtype=torch.bool))
        if self.config.normalize and not self.update.trains_by_gradient:
            self.codebook.data.copy_(self._on_sphere(self.codebook.data))

    def _reseed(self, latents: Tensor, errors: Tensor, is_due: Tensor) -> None:
        assert self.reseeder is not None
        config = self.reseeder.config
        dead = self.liveness.dead(config.usage_below, config.unused_steps, config.perplexity_below)
        codes = self.vectors
        new, good = self.reseeder.replacements(latents, errors, codes, self.liveness.shares, dead)
        if new.shape[0] == 0:
            return
        place = dead.long().cumsum(dim=0) - 1
        moved = dead & (place < good) & is_due
        rows = self.parametrization.invert(self._on_sphere(new)[place.clamp(0, new.shape[0] - 1)])
        self.codebook.data.copy_(torch.where(moved[:, None], rows, self.codebook.data))
        self.update.reset(self.codebook.data, moved)
        self.liveness.revive(moved)

    def lookup(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.vectors)

    @property
    def samples_wanted(self) -> int:
        is_waiting = self._codes_set == 0 and not self.initializer.is_online
        return self.initializer.samples if is_waiting else 0

    @torch.no_grad()
    def initialize(self, latents: Tensor) -> None:
        pool = gather_over_ranks(self._on_sphere(latents.detach().float().reshape(-1, self.code_dim)))
        if pool.shape[0] > 0:
            self._write(self._on_sphere(self.initializer.from_latents(pool, self.codebook_size)), 0)

    @torch.compiler.disable  # runs in the first steps only, and its shapes follow the data
    @torch.no_grad()
    def _set_codes(self, latents: Tensor) -> None:
        """Set the first codes from one step's latents."""
        if not self.initializer.is_online:
            self.initialize(latents)
            return
        pool = gather_over_ranks(latents)
        if pool.shape[0] == 0:
            return
        errors = None
        if self._codes_set > 0:
            known = self.vectors[: self._codes_set]
            errors = (pool - known[self.estimator.assign(pool, known)]).square().sum(dim=1)
        missing = self.codebook_size - self._codes_set
        self._write(self._on_sphere(self.initializer.next_codes(pool, errors, missing)), self._codes_set)

    def _write(self, codes: Tensor, first: int) -> None:
        """Make `codes` those from number `first` on."""
        written = torch.arange(self.codebook_size, device=codes.device) - first
        rows = (written >= 0) & (written < codes.shape[0])
        table = self.parametrization.invert(codes[written.clamp(0, codes.shape[0] - 1)])
        self.codebook.data.copy_(torch.where(rows[:, None], table, self.codebook.data))
        self.update.reset(self.codebook.data, rows)
        self.liveness.revive(rows)
        self._codes_set = first + codes.shape[0]
        self.codes_set.fill_(self._codes_set)
