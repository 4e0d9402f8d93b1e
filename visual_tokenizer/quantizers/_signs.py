"""What quantizers by sign share: the signs of the channels are the code, and the bits of its index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor

from visual_tokenizer.codebooks.binary_entropy import MAX_GROUP_BITS, batch_entropy, group_count, sample_entropy
from visual_tokenizer.codebooks.packing import BitOrder, bit_places, bits_of, unpack_signs
from visual_tokenizer.outputs import QuantizerOutput
from visual_tokenizer.quantizers.base import Quantizer, QuantizerConfig


@dataclass(kw_only=True)
class SignConfig(QuantizerConfig):
    """Fields of every quantizer by sign."""

    codebook_size: Annotated[int, Ge(2)] = 8192
    """Number of codes K, a power of two up to 2^62; a code has log2 K channels."""

    index_order: BitOrder = "most_significant_first"
    """Whether the first channel is the index's most or least significant bit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        bits_of(self.codebook_size)


class SignQuantizer(Quantizer):
    """Codes in {−s, +s}^d, s the `scale`; no codebook. A latent of exactly 0 has the sign −1."""

    places: Tensor

    def __init__(self, config: SignConfig) -> None:
        super().__init__(config)
        self.codebook_size = config.codebook_size
        self.code_dim = bits_of(config.codebook_size)
        self.scale = 1.0
        self.register_derived_buffers()

    def derived_buffers(self) -> dict[str, Tensor]:
        return {"places": bit_places(bits_of(self.config.codebook_size), self.config.index_order)}

    def lookup(self, indices: Tensor) -> Tensor:
        return unpack_signs(indices, self.places) * self.scale


@dataclass(kw_only=True)
class EntropicSignConfig(SignConfig):
    """Fields of those that keep tokens sure of their code and all codes in use."""

    entropy_weight: Annotated[float, Ge(0)] = 0.1
    """Factor on the entropy term, in nats; 0 leaves it out."""

    batch_entropy_weight: Annotated[float, Ge(0)] = 1.0
    """Factor γ on the entropy of the batch's mean distribution, within the entropy term."""

    inverse_temperature: Annotated[float, Gt(0)] = 100.0
    """1/τ of the softmax over all codes."""

    entropy_group_bits: Annotated[int, Interval(ge=1, le=MAX_GROUP_BITS)] = 18
    """Bits of a group whose joint distribution is exact in the batch entropy; the entropies of the groups are summed,
    which with more than one group is an upper bound. The metric `batch_entropy_groups` says how many."""


class EntropicSignQuantizer(SignQuantizer):
    """Adds the entropy term in training."""

    def add_entropy(self, output: QuantizerOutput, latents: Tensor, *, sample_weight: float, unit: float) -> None:
        """Add γ₀·E[H(p(·|z))] − γ·H(E[p(·|z)]), and its metrics.

        Args:
            output: what it is added to.
            latents: (M, d), whose signs times `scale` are the codes.
            sample_weight: γ₀.
            unit: what the term is divided by.
        """
        config = self.config
        logits = 4 * config.inverse_temperature * self.scale * latents
        of_samples = sample_entropy(logits)
        of_batch = batch_entropy(logits, config.entropy_group_bits)
        difference = sample_weight * of_samples - config.batch_entropy_weight * of_batch
        output.losses["entropy"] = config.entropy_weight * difference / unit
        output.metrics |= {
            "sample_entropy": of_samples.detach(),
            "batch_entropy": of_batch.detach(),
            "batch_entropy_groups": torch.full_like(
                of_batch.detach(), group_count(self.code_dim, config.entropy_group_bits)
            ),
        }
