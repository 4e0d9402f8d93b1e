"""Lookup-free quantization: the signs of the channels are the code, and the bits of its index.

Paper: Language Model Beats Diffusion – Tokenizer is Key to Visual Generation (Yu et al., 2024), arXiv:2310.05737,
section 3.2, eq. 3–5; weights and commitment as in Open-MAGVIT2 (Luo et al., 2024), arXiv:2409.04410. A latent of
exactly 0 has the sign −1. The first channel is the most significant bit, as in vector-quantize-pytorch and bsq-vit;
Open-MAGVIT2's own code, and eq. 4 of the paper, take it for the least significant: see `index_order`.

Departs from published code in the entropies: they are exact, without a softmax over all codes and without the 1e-5
inside the logarithms, which at 2^18 codes is more than a code's share of the batch and hides the term's gradient. The
batch is that of all ranks. In eval mode neither entropy is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visual_tokenizer.codebooks.binary_entropy import MAX_GROUP_BITS, batch_entropy, group_count, sample_entropy
from visual_tokenizer.codebooks.packing import BitOrder, bit_places, bits_of, pack_signs, unpack_signs
from visual_tokenizer.codebooks.usage import usage_metrics
from visual_tokenizer.errors import UserError
from visual_tokenizer.outputs import QuantizerOutput
from visual_tokenizer.quantizers.base import Quantizer, QuantizerConfig


@dataclass(kw_only=True)
class LFQConfig(QuantizerConfig):
    """Fields of LFQ."""

    codebook_size: int = 8192
    """Number of codes K, a power of two from 2 to 2^62; a code has log2 K channels."""

    index_order: BitOrder = "most_significant_first"
    """Whether the first channel is the index's most or least significant bit."""

    commitment_weight: float = 0.25
    """Factor on mean(‖z − sg(q)‖²), the mean over tokens and channels; 0 or more."""

    entropy_weight: float = 0.1
    """Factor on E[H(p(·|z))] − γ·H(E[p(·|z)]) in nats; 0 or more, 0 leaves it out."""

    batch_entropy_weight: float = 1.0
    """Factor γ on the entropy of the batch's mean distribution, within the entropy term; 0 or more."""

    inverse_temperature: float = 100.0
    """1/τ of p = softmax(2⟨z, c⟩/τ), per squared unit of the latents; above 0."""

    entropy_group_bits: int = 18
    """Bits of a group whose joint distribution is exact in the batch entropy, 1 to 24; the entropies of the groups are
    summed, which with more than one group is an upper bound. The metric `batch_entropy_groups` says how many."""

    def __post_init__(self) -> None:
        bits_of(self.codebook_size)
        for name in ("commitment_weight", "entropy_weight", "batch_entropy_weight"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not self.inverse_temperature > 0:
            raise UserError(f"inverse_temperature must be above 0, got {self.inverse_temperature}")
        if not 1 <= self.entropy_group_bits <= MAX_GROUP_BITS:
            raise UserError(f"entropy_group_bits must be 1 to {MAX_GROUP_BITS}, got {self.entropy_group_bits}")


class LFQ(Quantizer):
    """Codes in {−1, +1}^d; no codebook."""

    Config = LFQConfig
    places: Tensor

    def __init__(self, config: LFQConfig) -> None:
        super().__init__(config)
        self.codebook_size = config.codebook_size
        self.code_dim = bits_of(config.codebook_size)
        self.register_derived_buffers()

    def derived_buffers(self) -> dict[str, Tensor]:
        return {"places": bit_places(bits_of(self.config.codebook_size), self.config.index_order)}

    def quantize(self, latents: Tensor) -> QuantizerOutput:
        is_positive = latents.detach() > 0
        signs = is_positive.float() * 2 - 1
        indices = pack_signs(is_positive, self.places)
        output = QuantizerOutput(
            # Straight-through, written so that the value is the sign to the last bit.
            codes=signs + (latents - latents.detach()),
            indices=indices,
            metrics=usage_metrics(indices, self.codebook_size),
        )
        if self.config.commitment_weight > 0:
            squares = (latents - signs).square()
            output.losses["commitment"] = self.config.commitment_weight * squares.sum() / max(1, squares.numel())
        if self.config.entropy_weight > 0 and self.training:
            self._add_entropy(output, latents.reshape(-1, self.code_dim))
        return output

    def _add_entropy(self, output: QuantizerOutput, latents: Tensor) -> None:
        logits = 4 * self.config.inverse_temperature * latents
        of_samples = sample_entropy(logits)
        of_batch = batch_entropy(logits, self.config.entropy_group_bits)
        difference = of_samples - self.config.batch_entropy_weight * of_batch
        output.losses["entropy"] = self.config.entropy_weight * difference
        groups = group_count(self.code_dim, self.config.entropy_group_bits)
        output.metrics |= {
            "sample_entropy": of_samples.detach(),
            "batch_entropy": of_batch.detach(),
            "batch_entropy_groups": torch.full_like(of_batch.detach(), groups),
        }

    def lookup(self, indices: Tensor) -> Tensor:
        return unpack_signs(indices, self.places)
