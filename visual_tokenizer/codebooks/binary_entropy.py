"""Entropies of a codebook of all sign patterns: exact, without a table of tokens × codes.

Papers: Language Model Beats Diffusion – Tokenizer is Key to Visual Generation (Yu et al., 2024), arXiv:2310.05737,
section 3.2; Image and Video Tokenization with Binary Spherical Quantization (Zhao et al., 2024), arXiv:2406.07548,
section 4.1. Both want tokens that are sure of their code (a small mean entropy) and a batch that uses all codes (a
large entropy of the mean distribution) under p(c|z) = softmax(2⟨z, c⟩/τ) over c in {−s, +s}^d.

Given z the bits are independent, p(c_i = +s | z) = σ(4 s z_i/τ), so the entropy of a token is the sum of those of its
bits. That of the mean distribution is not, but a product of Bernoullis is the outer product of its two halves: the mean
over tokens of P_A ⊗ P_B is P_Aᵀ P_B, one matrix product of (2^(d/2) × M)(M × 2^(d/2)). At d = 18 that is 512 × 512
numbers instead of M × 262,144.

Logits here are 4 s z/τ: the logarithm of the odds of +s.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.codebooks.distributed import average_over_ranks

HALF_BYTES = 32 * 2**20
"""Budget of one half's (groups × tokens × 2^(bits/2)) probabilities; tokens are taken in chunks of that size."""

MAX_GROUP_BITS = 24
"""Bits whose joint distribution is kept in one table; 2^24 probabilities are 64 MiB."""


def sample_entropy(logits: Tensor) -> Tensor:
    """Return the mean over tokens of H(p(·|z)) in nats: (M, d) logits → scalar, 0 where there is no token."""
    # −p ln p − (1−p) ln(1−p) in the odds' smaller side: neither the value nor the gradient leaves float32.
    magnitude = logits.abs()
    entropies = F.softplus(-magnitude) + magnitude * torch.sigmoid(-magnitude)
    return entropies.sum() / max(1, logits.shape[0])


def batch_entropy(logits: Tensor, group_bits: int) -> Tensor:
    """Return H(E[p(·|z)]) in nats, the expectation taken over all tokens of all ranks; differentiable.

    Args:
        logits: (M, d) float32; M may differ between ranks, and may be 0.
        group_bits: bits whose joint distribution is exact. With fewer than d, consecutive groups of that many bits (the
            last has the remainder) are taken for independent and their entropies are summed: an upper bound.

    Returns:
        Scalar; 0 where there is no token.
    """
    tokens, bits = logits.shape
    whole = bits // group_bits
    stacks = [logits[:, : whole * group_bits].reshape(tokens, whole, group_bits), logits[:, None, whole * group_bits :]]
    tables = [sum_of_tables(stack.transpose(0, 1)) for stack in stacks if stack.shape[1] * stack.shape[2] > 0]
    count = logits.new_full((1,), tokens)
    averages = average_over_ranks(torch.cat([*(table.flatten() for table in tables), count]))
    probabilities = averages[:-1] / (averages[-1] + (averages[-1] == 0))
    # clamp_min keeps the logarithm's gradient finite where a code's probability underflows.
    smallest = torch.finfo(torch.float32).tiny
    return -(probabilities * probabilities.clamp_min(smallest).log()).sum()


def group_count(bits: int, group_bits: int) -> int:
    """Return in how many groups `batch_entropy` takes `bits` bits; with 1 it is exact."""
    return -(-bits // group_bits)


def sum_of_tables(logits: Tensor) -> Tensor:
    """Add up the tokens' joint distributions of bits.

    Args:
        logits: (G, M, g) float32: G groups of g bits.

    Returns:
        (G, 2^⌈g/2⌉, 2^⌊g/2⌋): entry [:, a, b] is the sum over tokens of the probability that the group's first bits are
        those of a and its other bits those of b.
    """
    tables: Tensor = _sum_of_tables(logits)
    return tables


def _halves(logits: Tensor) -> tuple[Tensor, Tensor]:
    first = logits.shape[-1] - logits.shape[-1] // 2
    return logits[..., :first], logits[..., first:]


def _chunk_rows(logits: Tensor) -> int:
    groups, _, bits = logits.shape
    return max(1, HALF_BYTES // (4 * groups * 2 ** (bits - bits // 2)))


def _products(logits: Tensor) -> Tensor:
    """Return the probabilities of all patterns of independent bits, (…, h) → (…, 2^h), the first bit slowest."""
    pairs = torch.stack([torch.sigmoid(-logits), torch.sigmoid(logits)], dim=-1)
    products = logits.new_ones(*logits.shape[:-1], 1)
    for bit in range(logits.shape[-1]):
        products = (products[..., :, None] * pairs[..., bit, None, :]).flatten(-2)
    return products


def _gradient_through_products(gradients: Tensor, products: Tensor, logits: Tensor) -> Tensor:
    """Chain (…, 2^h) gradients to (…, h) logits: ∂P(c)/∂x_i = P(c)·(c_i − σ(x_i)), bits in {0, 1}."""
    bits = logits.shape[-1]
    codes = torch.arange(2**bits, device=logits.device)
    ones = ((codes[:, None] >> torch.arange(bits - 1, -1, -1, device=logits.device)) & 1).to(products.dtype)
    weighted = gradients * products
    # Split by the value of the bit, so that nothing cancels where a bit is nearly certain.
    return torch.sigmoid(-logits) * (weighted @ ones) - torch.sigmoid(logits) * (weighted @ (1 - ones))


# Operators of their own: torch.compile keeps the loop over chunks whole, and backward makes the halves' probabilities
# again from the logits instead of holding them.
@torch.library.custom_op("visual_tokenizer::sum_of_tables", mutates_args=(), schema="(Tensor logits) -> Tensor")
def _sum_of_tables(logits: Tensor) -> Tensor:
    groups, _, bits = logits.shape
    tables = logits.new_zeros(groups, 2 ** (bits - bits // 2), 2 ** (bits // 2))
    for chunk in logits.split(_chunk_rows(logits), dim=1):
        first, second = map(_products, _halves(chunk))
        tables.baddbmm_(first.transpose(1, 2), second)
    return tables


@_sum_of_tables.register_fake
def _(logits: Tensor) -> Tensor:
    groups, _, bits = logits.shape
    return logits.new_empty(groups, 2 ** (bits - bits // 2), 2 ** (bits // 2))


@torch.library.custom_op(
    "visual_tokenizer::sum_of_tables_backward", mutates_args=(), schema="(Tensor gradients, Tensor logits) -> Tensor"
)
def _sum_of_tables_backward(gradients: Tensor, logits: Tensor) -> Tensor:
    found = []
    for chunk in logits.split(_chunk_rows(logits), dim=1):
        halves = _halves(chunk)
        first, second = map(_products, halves)
        found.append(
            torch.cat(
                [
                    _gradient_through_products(second @ gradients.transpose(1, 2), first, halves[0]),
                    _gradient_through_products(first @ gradients, second, halves[1]),
                ],
                dim=-1,
            )
        )
    return torch.cat(found, dim=1)


@_sum_of_tables_backward.register_fake
def _(gradients: Tensor, logits: Tensor) -> Tensor:
    return logits.new_empty(logits.shape)


def _keep_logits(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradients: Tensor) -> Tensor:
    (logits,) = ctx.saved_tensors
    return _sum_of_tables_backward(gradients, logits)


_sum_of_tables.register_autograd(_backward, setup_context=_keep_logits)
