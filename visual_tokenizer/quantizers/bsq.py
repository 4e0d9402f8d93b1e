"""Binary spherical quantization: latents on the unit sphere, codes at the corners of the cube inscribed in it.

Paper: Image and Video Tokenization with Binary Spherical Quantization (Zhao et al., 2024), arXiv:2406.07548, sections 4
and 4.1. What is followed is the authors' code (bsq-vit, `BinarySphericalQuantizer`) where it differs from the paper:
the sign of exactly 0 is −1 (the paper: +1); the gradient passes the sign unchanged and is then scaled by 1/√L together
with the codes; the commitment is summed over channels and averaged over tokens; the entropy term is divided by the
inverse temperature; the first channel is the most significant bit. Defaults are those of the authors' ImageNet
configurations, with their loss weight 0.1 of the entropy term in `entropy_weight`.

Departs from the code in four points: the latents are put on the sphere here, not by the caller; the entropies are
exact, without 1e-8 inside the logarithm; the batch is that of all ranks; a number of bits that the group size does not
divide leaves a smaller last group. In eval mode neither entropy is computed. An index holds 62 bits at most: where the
authors use groups of bits as tokens, compose several of these with the `product` quantizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Interval
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.codebooks.binary_entropy import MAX_GROUP_BITS
from visual_tokenizer.codebooks.packing import pack_signs
from visual_tokenizer.codebooks.usage import usage_metrics
from visual_tokenizer.outputs import QuantizerOutput
from visual_tokenizer.quantizers._signs import EntropicSignConfig, EntropicSignQuantizer


@dataclass(kw_only=True)
class BSQConfig(EntropicSignConfig):
    """Fields of BSQ.

    The entropy term is (γ₀·E[H(p(·|u))] − γ·H(E[p(·|u)]))·τ, its factor is ζ; a code has L = log2 K channels.
    """

    commitment_weight: Annotated[float, Ge(0)] = 0.0
    """Factor β on the mean over tokens of ‖u − sg(q)‖²."""

    sample_entropy_weight: Annotated[float, Ge(0)] = 1.0
    """Factor γ₀ on the mean entropy of a token, within the entropy term."""

    inverse_temperature: Annotated[float, Gt(0)] = 1.0
    """1/τ of p = softmax(2⟨u, c⟩/τ) over the codes c on the unit sphere."""

    entropy_group_bits: Annotated[int, Interval(ge=1, le=MAX_GROUP_BITS)] = 9
    """Bits of a group whose joint distribution is exact in the batch entropy; see the metric `batch_entropy_groups`."""


class BSQ(EntropicSignQuantizer):
    """Codes in {−1/√L, +1/√L}^L; no codebook."""

    Config = BSQConfig

    def __init__(self, config: BSQConfig) -> None:
        super().__init__(config)
        self.scale = self.code_dim**-0.5

    def quantize(self, latents: Tensor) -> QuantizerOutput:
        on_sphere = F.normalize(latents, dim=-1)
        is_positive = on_sphere.detach() > 0
        signs = is_positive.float() * 2 - 1
        indices = pack_signs(is_positive, self.places)
        output = QuantizerOutput(
            # Straight-through before the scale; the value is the code to the last bit.
            codes=(signs + (on_sphere - on_sphere.detach())) * self.scale,
            indices=indices,
            metrics=usage_metrics(indices, self.codebook_size),
        )
        flat = on_sphere.reshape(-1, self.code_dim)
        config = self.config
        if config.commitment_weight > 0:
            distances = (flat - (signs * self.scale).view(flat.shape)).square().sum()
            output.losses["commitment"] = config.commitment_weight * distances / max(1, flat.shape[0])
        if config.entropy_weight > 0 and self.training:
            self.add_entropy(output, flat, sample_weight=config.sample_entropy_weight, unit=config.inverse_temperature)
        return output
