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
from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from visual_tokenizer.codebooks.packing import pack_signs
from visual_tokenizer.codebooks.usage import usage_metrics
from visual_tokenizer.outputs import QuantizerOutput
from visual_tokenizer.quantizers._signs import EntropicSignConfig, EntropicSignQuantizer


@dataclass(kw_only=True)
class LFQConfig(EntropicSignConfig):
    """Fields of LFQ.

    The entropy term is E[H(p(·|z))] − γ·H(E[p(·|z)]), p = softmax(2⟨z, c⟩/τ), τ in squared units of the latents.
    """

    commitment_weight: Annotated[float, Ge(0)] = 0.25
    """Factor on mean(‖z − sg(q)‖²), the mean over tokens and channels."""


class LFQ(EntropicSignQuantizer):
    """Codes in {−1, +1}^d; no codebook."""

    Config = LFQConfig

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
            self.add_entropy(output, latents.reshape(-1, self.code_dim), sample_weight=1.0, unit=1.0)
        return output
