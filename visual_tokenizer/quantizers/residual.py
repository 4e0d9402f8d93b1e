"""Residual quantization: each level quantizes what the levels before it left over; a code is the sum of its levels.

Papers: Autoregressive Image Generation using Residual Quantization (Lee et al., 2022), arXiv:2203.01941, section 3.1
(`shared`: one codebook for all levels, which then learns once a level, as in the authors' code); SoundStream: An
End-to-End Neural Audio Codec (Zeghidour et al., 2021), arXiv:2107.03312, section III-C, for `quantizer_dropout`;
`level_scale` as in vector-quantize-pytorch's ResidualFSQ (1/L a channel) and ResidualLFQ (1/2).

Losses are averaged over levels. A level sees x − sg(sum of the codes so far), so that a base's own commitment
‖r − sg(q)‖² is that of a prefix, ‖x − sg(q₁ + … + q_d)‖², and the average is RQ-VAE's commitment. Codes pass the mean
of the levels' gradients: the straight-through gradient, once, where the base's is straight-through, and the base's own
where it is not (the bound of FSQ, a relaxation); codes that learn from the decoder learn at 1/depth of the rate, as
their losses do. vector-quantize-pytorch passes the sum, depth times the gradient.

Departs from SoundStream in drawing the number of levels a step, not a sample, and in that levels left out of the codes
are quantized and learn all the same: `indices` always hold all levels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Interval, Len
from torch import Tensor

from visual_tokenizer.errors import IndexOutOfRangeError, UserError
from visual_tokenizer.outputs import QuantizerOutput
from visual_tokenizer.quantizers.base import (
    Composition,
    Quantizer,
    QuantizerConfig,
    draw_levels,
    join_indices,
    part_metrics,
    split_indices,
    sum_terms,
)


@dataclass(kw_only=True)
class ResidualConfig(QuantizerConfig):
    """Fields of residual quantization."""

    base: QuantizerConfig = field(
        default_factory=lambda: QuantizerConfig.family.config({"type": "vq", "codebook_size": 1024})
    )
    """Quantizer of a level."""

    depth: Annotated[int, Ge(1)] = 4
    """Number of levels."""

    shared: bool = False
    """Let all levels use one quantizer, in place of one each."""

    level_scale: Annotated[float, Gt(0)] | Annotated[list[Annotated[float, Gt(0)]], Len(1)] = 1.0
    """Factor s, or one for each channel: level i = 0, 1, … quantizes its residual divided by sⁱ, and its codes are
    multiplied by sⁱ. Quantizers with a fixed grid need one below 1."""

    quantizer_dropout: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Probability that a training step's codes are the sum of the first n levels only, n even from 1 to depth."""


class Residual(Composition):
    """`q_d = Q_d(x − q_1 − … − q_{d−1})`, codes `q_1 + … + q_D`; `indices_to_codes` takes a prefix of levels too."""

    Config = ResidualConfig
    scales: Tensor

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__(config)
        built = 1 if config.shared else config.depth
        self._take_parts(
            [QuantizerConfig.family.build(config.base) for _ in range(built)], repeats=config.depth // built
        )
        self.code_dim = self.levels[0].code_dim
        if isinstance(config.level_scale, list) and len(config.level_scale) != self.code_dim:
            raise UserError(
                f"level_scale must be one number or {self.code_dim} (the base's code_dim), got {config.level_scale}"
            )
        self.register_derived_buffers()

    @property
    def levels(self) -> list[Quantizer]:
        """The quantizer of each level."""
        return [self.parts[level % len(self.parts)] for level in range(self.config.depth)]

    def derived_buffers(self) -> dict[str, Tensor]:
        scale = torch.tensor(self.config.level_scale).view(1, -1)
        return {"scales": scale ** torch.arange(self.config.depth)[:, None]}

    def quantize(self, latents: Tensor) -> QuantizerOutput:
        config = self.config
        if self.training and self.samples_wanted > 0:
            self.begin(latents)
        kept = None
        if self.training and config.quantizer_dropout > 0:
            kept = draw_levels(config.depth, config.quantizer_dropout, latents.device)
        outputs, codes, residual = [], torch.zeros_like(latents), latents
        for depth, level in enumerate(self.levels):
            output = level.quantize(residual / self.scales[depth])
            level_codes = output.codes * self.scales[depth]
            residual = residual - level_codes.detach()
            codes = codes + (level_codes if kept is None else torch.where(depth < kept, level_codes, 0.0))
            outputs.append(output)
        errors = residual.detach().square().sum()
        return QuantizerOutput(
            codes=codes.detach() + (codes - codes.detach()) / (config.depth if kept is None else kept),
            indices=join_indices([output.indices for output in outputs]),
            losses=sum_terms([output.losses for output in outputs], 1 / config.depth),
            metrics={
                **part_metrics([output.metrics for output in outputs]),
                "quantization_error": errors / max(1, latents.shape[0] * latents.shape[1]),
            },
        )

    def lookup(self, indices: Tensor) -> Tensor:
        """Return the sum of the first levels' codes: (B, N, n) → (B, N, C), n a number of whole levels."""
        each = self.levels[0].num_codebooks
        given = 1 if indices.ndim == 2 else indices.shape[2]
        if given % each or not 0 < given <= self.num_codebooks:
            raise IndexOutOfRangeError(
                f"indices must be (B, N, n) with n levels of {each}, {self.num_codebooks} at most, "
                f"got {tuple(indices.shape)}"
            )
        prefix = split_indices(indices, [each] * (given // each))
        codes = self.scales.new_zeros(())
        for level, level_indices, scale in zip(self.levels, prefix, self.scales, strict=False):
            codes = codes + level.lookup(level_indices) * scale
        return codes

    @torch.no_grad()
    def initialize(self, latents: Tensor) -> None:
        residual = self.whole_pictures(latents.float())
        seen = []
        for depth, level in enumerate(self.levels):
            scaled = residual / self.scales[depth]
            seen.append(scaled.reshape(-1, self.code_dim))
            if level.samples_wanted > 0:
                level.initialize(seen[-1])
            residual = residual - level.codes_in_use(scaled) * self.scales[depth]
        if self.config.shared:
            # The first latents alone would leave the codebook without the small vectors of the later levels.
            self.levels[0].initialize(torch.stack(seen, dim=1).reshape(-1, self.code_dim))
