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

import torch
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.codebooks.binary_entropy import MAX_GROUP_BITS, batch_entropy, group_count, sample_entropy
from visual_tokenizer.codebooks.packing import BitOrder, bit_places, bits_of, pack_signs, unpack_signs
from visual_tokenizer.codebooks.usage import usage_metrics
from visual_tokenizer.errors import UserError
from visual_tokenizer.outputs import QuantizerOutput
from visual_tokenizer.quantizers.base import Quantizer, QuantizerConfig


@dataclass(kw_only=True)
class BSQConfig(QuantizerConfig):
    """Fields of BSQ."""

    codebook_size: int = 8192
    """Number of codes K, a power of two from 2 to 2^62; a code has L = log2 K channels."""

    index_order: BitOrder = "most_significant_first"
    """Whether the first channel is the index's most or least significant bit."""

    commitment_weight: float = 0.0
    """Factor β on the mean over tokens of ‖u − sg(q)‖²; 0 or more."""

    entropy_weight: float = 0.1
    """Factor ζ on (γ₀·E[H(p(·|u))] − γ·H(E[p(·|u)]))·τ, entropies in nats; 0 or more, 0 leaves it out."""

    sample_entropy_weight: float = 1.0
    """Factor γ₀ on the mean entropy of a token, within the entropy term; 0 or more."""

    batch_entropy_weight: float = 1.0
    """Factor γ on the entropy of the batch's mean distribution, within the entropy term; 0 or more."""

    inverse_temperature: float = 1.0
    """1/τ of p = softmax(2⟨u, c⟩/τ) over the codes c on the unit sphere; above 0."""

    entropy_group_bits: int = 9
    """Bits of a group whose joint distribution is exact in the batch entropy, 1 to 24; the entropies of the groups are
    summed, which with more than one group is an upper bound. The metric `batch_entropy_groups` says how many."""

    def __post_init__(self) -> None:
        bits_of(self.codebook_size)
        for name in ("commitment_weight", "entropy_weight", "sample_entropy_weight", "batch_entropy_weight"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not self.inverse_temperature > 0:
            raise UserError(f"inverse_temperature must be above 0, got {self.inverse_temperature}")
        if not 1 <= self.entropy_group_bits <= MAX_GROUP_BITS:
            raise UserError(f"entropy_group_bits must be 1 to {MAX_GROUP_BITS}, got {self.entropy_group_bits}")


class BSQ(Quantizer):
    """Codes in {−1/√L, +1/√L}^L; no codebook."""

    Config = BSQConfig
    places: Tensor

    def __init__(self, config: BSQConfig) -> None:
        super().__init__(config)
        self.codebook_size = config.codebook_size
        self.code_dim = bits_of(config.codebook_size)
        self.scale = self.code_dim**-0.5
        self.register_derived_buffers()

    def derived_buffers(self) -> dict[str, Tensor]:
        return {"places": bit_places(bits_of(self.config.codebook_size), self.config.index_order)}

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
        if self.config.commitment_weight > 0:
            distances = (flat - (signs * self.scale).view(flat.shape)).square().sum()
            output.losses["commitment"] = self.config.commitment_weight * distances / max(1, flat.shape[0])
        if self.config.entropy_weight > 0 and self.training:
            self._add_entropy(output, flat)
        return output

    def _add_entropy(self, output: QuantizerOutput, on_sphere: Tensor) -> None:
        config = self.config
        logits = 4 * config.inverse_temperature * self.scale * on_sphere
        of_samples = sample_entropy(logits)
        of_batch = batch_entropy(logits, config.entropy_group_bits)
        difference = config.sample_entropy_weight * of_samples - config.batch_entropy_weight * of_batch
        output.losses["entropy"] = config.entropy_weight * difference / config.inverse_temperature
        output.metrics |= {
            "sample_entropy": of_samples.detach(),
            "batch_entropy": of_batch.detach(),
            "batch_entropy_groups": torch.full_like(
                of_batch.detach(), group_count(self.code_dim, config.entropy_group_bits)
            ),
        }

    def lookup(self, indices: Tensor) -> Tensor:
        return unpack_signs(indices, self.places) * self.scale
