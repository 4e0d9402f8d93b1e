"""Soft assignment of latents to codes, whose memory does not grow with tokens × codes.

All functions look at p = softmax(latents · keysᵀ + bias), a row for each token. Tokens are taken in chunks, and p is
computed again on the way back, by the same GEMM. −‖z − e‖²/τ is such a logit: ‖z‖²/τ is the same for all codes and
drops out of the softmax, which leaves (2/τ) z·e − ‖e‖²/τ. The chunked loops are operators of their own, which
torch.compile does not look into; they have a first derivative only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

CHUNK_BYTES = 16 * 2**20
"""Budget of one chunk's two (tokens × codes) buffers. On a CPU with 32 MiB of last-level cache, 32 MiB took 20 % longer
and 8 MiB 10 % less for 8192 codes; accelerators would rather have more."""

MIN_CHUNK_TOKENS = 128
"""Tokens that a chunk has even above the budget: with fewer, the time goes to moving the (K, C) gradient."""

Similarity = Literal["distance", "dot"]


def distance_logits(latents: Tensor, codebook: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return latents, keys and bias of softmax(−‖z − e‖²/τ): (M, C), (K, C) → (M, C), (K, C), (K,)."""
    return latents * (2 / temperature), codebook, codebook.square().sum(dim=1) / -temperature


def dot_logits(latents: Tensor, codebook: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return latents, keys and bias of softmax(z·e/τ): (M, C), (K, C) → (M, C), (K, C), (K,)."""
    return latents / temperature, codebook, codebook.new_zeros(codebook.shape[0])


LOGITS = {"distance": distance_logits, "dot": dot_logits}
"""Logits by the name of the similarity."""


def expected_values(latents: Tensor, keys: Tensor, bias: Tensor, values: Tensor) -> Tensor:
    """Return Σ_k p_k values_k: (M, C), (K, C), (K,), (K, D) → (M, D), with gradient to all four."""
    expected: Tensor = _expected_values(latents, keys, bias, values)
    return expected


def assignment_entropies(latents: Tensor, keys: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of p over tokens, (K,), and the mean over tokens of H(p) in nats; zeros without tokens.

    Both have a gradient to all three inputs: (M, C), (K, C), (K,).
    """
    mean_probabilities, entropies = _assignment_entropies(latents, keys, bias)
    return mean_probabilities, entropies.sum() / max(latents.shape[0], 1)


def log_normalizers(latents: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    """Return each token's log Σ_k exp(logit_k): (M, C), (K, C), (K,) → (M,), with gradient to all three."""
    normalizers: Tensor = _log_normalizers(latents, keys, bias)
    return normalizers


def distribution_entropy(probabilities: Tensor) -> Tensor:
    """Return H(p) in nats of one distribution (K,), with a finite gradient where p is 0.

    The clamp is the smallest normal number and not the 1e-5 of published code, which is above 1/K for large codebooks.
    """
    return -(probabilities * probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()).sum()


def _chunks(latents: Tensor, keys: Tensor, bias: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield tokens, their logits and p, in two buffers that are overwritten by the next chunk.

    Results go to `out=` or in place throughout: fresh buffers would cost page faults, and autocast leaves these alone.
    """
    size = keys.shape[0]
    rows = max(MIN_CHUNK_TOKENS, CHUNK_BYTES // (2 * keys.element_size() * size))
    memory = keys.new_empty(2, min(rows, latents.shape[0]), size)
    for start in range(0, latents.shape[0], rows):
        tokens = slice(start, min(start + rows, latents.shape[0]))
        logits, probabilities = memory[:, : tokens.stop - start]
        torch.addmm(bias, latents[tokens], keys.t(), out=logits)
        # softmax, not exp: it subtracts the maximum in the same pass, and MKL's exp was 12 times slower where results
        # underflow, as most do at a low temperature (49 against 4 ms for 512 tokens × 8192 codes).
        torch.softmax(logits, dim=1, out=probabilities)
        yield tokens, logits, probabilities


def _row_normalizers(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Return logsumexp of each row, from the largest logit and its probability, which is at least 1/K."""
    return logits.amax(dim=1) - probabilities.amax(dim=1).log_()


class _LogitGradients:
    """Carries gradients of the logits, chunk by chunk, to latents, keys and bias, those that are wanted."""

    def __init__(self, latents: Tensor, keys: Tensor, bias: Tensor, wanted: list[bool]) -> None:
        self.latents, self.keys, self.wanted = latents, keys, wanted
        self.results = _gradients_of((latents, keys, bias), wanted)

    def add(self, tokens: slice, gradients: Tensor) -> None:
        of_latents, of_keys, of_bias = self.results
        if self.wanted[0]:
            torch.mm(gradients, self.keys, out=of_latents[tokens])
        if self.wanted[1]:
            of_keys.addmm_(gradients.t(), self.latents[tokens])
        if self.wanted[2]:
            of_bias.add_(gradients.sum(dim=0))


def _gradients_of(inputs: tuple[Tensor, ...], wanted: list[bool]) -> tuple[Tensor, ...]:
    """Return zeros like each input, an empty tensor where the gradient is not wanted."""
    return tuple(
        torch.zeros(tensor.shape if want else 0, dtype=tensor.dtype, device=tensor.device)
        for tensor, want in zip(inputs, wanted, strict=True)
    )


def _differentiate(operator: Any, backward_operator: Any) -> None:
    """Make `backward_operator(gradients, inputs, last output, wanted)` the derivative of `operator`."""

    def save(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs, output[-1] if isinstance(output, tuple) else output)

    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        wanted = list(ctx.needs_input_grad)
        results = backward_operator(*(g.contiguous() for g in gradients), *ctx.saved_tensors, wanted)
        return tuple(result if want else None for result, want in zip(results, wanted, strict=True))

    operator.register_autograd(backward, setup_context=save)


@torch.library.custom_op(
    "visual_tokenizer::expected_values",
    mutates_args=(),
    schema="(Tensor latents, Tensor keys, Tensor bias, Tensor values) -> Tensor",
)
def _expected_values(latents: Tensor, keys: Tensor, bias: Tensor, values: Tensor) -> Tensor:
    expected = values.new_empty(latents.shape[0], values.shape[1])
    for tokens, _, probabilities in _chunks(latents, keys, bias):
        torch.mm(probabilities, values, out=expected[tokens])
    return expected


@torch.library.custom_op(
    "visual_tokenizer::expected_values_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor latents, Tensor keys, Tensor bias, Tensor values, Tensor expected, bool[] wanted)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def _expected_values_backward(
    gradient: Tensor,
    latents: Tensor,
    keys: Tensor,
    bias: Tensor,
    values: Tensor,
    expected: Tensor,
    wanted: list[bool],
) -> tuple[Tensor, ...]:
    """d/dlogit_k = p_k g·(values_k − expected); d/dvalues = pᵀ g."""
    logit_gradients = _LogitGradients(latents, keys, bias, wanted[:3])
    (of_values,) = _gradients_of((values,), wanted[3:])
    centre = (gradient * expected).sum(dim=1, keepdim=True)
    for tokens, logits, probabilities in _chunks(latents, keys, bias):
        if wanted[3]:
            of_values.addmm_(probabilities.t(), gradient[tokens])
        torch.mm(gradient[tokens], values.t(), out=logits)
        logit_gradients.add(tokens, logits.sub_(centre[tokens]).mul_(probabilities))
    return (*logit_gradients.results, of_values)


@torch.library.custom_op(
    "visual_tokenizer::assignment_entropies",
    mutates_args=(),
    schema="(Tensor latents, Tensor keys, Tensor bias) -> (Tensor, Tensor)",
)
def _assignment_entropies(latents: Tensor, keys: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    mean_probabilities, entropies = keys.new_zeros(keys.shape[0]), latents.new_empty(latents.shape[0])
    for tokens, logits, probabilities in _chunks(latents, keys, bias):
        mean_probabilities.add_(probabilities.sum(dim=0))
        log_probabilities = logits.sub_(_row_normalizers(logits, probabilities)[:, None])
        torch.sum(log_probabilities.mul_(probabilities), dim=1, out=entropies[tokens])
    return mean_probabilities.div_(max(latents.shape[0], 1)), entropies.neg_()


@torch.library.custom_op(
    "visual_tokenizer::assignment_entropies_backward",
    mutates_args=(),
    schema="(Tensor mean_gradient, Tensor entropy_gradient, Tensor latents, Tensor keys, Tensor bias, Tensor entropies,"
    " bool[] wanted) -> (Tensor, Tensor, Tensor)",
)
def _assignment_entropies_backward(
    mean_gradient: Tensor,
    entropy_gradient: Tensor,
    latents: Tensor,
    keys: Tensor,
    bias: Tensor,
    entropies: Tensor,
    wanted: list[bool],
) -> tuple[Tensor, ...]:
    """d/dlogit_k = p_k (s_k − p·s) with s = g/M − h log p, where g and h are the gradients of mean and entropy."""
    logit_gradients = _LogitGradients(latents, keys, bias, wanted)
    share = mean_gradient / max(latents.shape[0], 1)
    for tokens, logits, probabilities in _chunks(latents, keys, bias):
        weight = entropy_gradient[tokens]
        centre = (weight * entropies[tokens]).addmv_(probabilities, share)
        log_probabilities = logits.sub_(_row_normalizers(logits, probabilities)[:, None])
        slopes = log_probabilities.mul_(-weight[:, None]).add_(share).sub_(centre[:, None])
        logit_gradients.add(tokens, slopes.mul_(probabilities))
    return logit_gradients.results


@torch.library.custom_op(
    "visual_tokenizer::log_normalizers",
    mutates_args=(),
    schema="(Tensor latents, Tensor keys, Tensor bias) -> Tensor",
)
def _log_normalizers(latents: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    normalizers = latents.new_empty(latents.shape[0])
    for tokens, logits, probabilities in _chunks(latents, keys, bias):
        normalizers[tokens] = _row_normalizers(logits, probabilities)
    return normalizers


@torch.library.custom_op(
    "visual_tokenizer::log_normalizers_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor latents, Tensor keys, Tensor bias, Tensor normalizers, bool[] wanted)"
    " -> (Tensor, Tensor, Tensor)",
)
def _log_normalizers_backward(
    gradient: Tensor, latents: Tensor, keys: Tensor, bias: Tensor, _normalizers: Tensor, wanted: list[bool]
) -> tuple[Tensor, ...]:
    """d/dlogit_k = p_k g."""
    logit_gradients = _LogitGradients(latents, keys, bias, wanted)
    for tokens, _, probabilities in _chunks(latents, keys, bias):
        logit_gradients.add(tokens, probabilities.mul_(gradient[tokens, None]))
    return logit_gradients.results


_expected_values.register_fake(lambda latents, keys, bias, values: values.new_empty(latents.shape[0], values.shape[1]))
_assignment_entropies.register_fake(
    lambda latents, keys, bias: (keys.new_empty(keys.shape[0]), latents.new_empty(latents.shape[0]))
)
_log_normalizers.register_fake(lambda latents, keys, bias: latents.new_empty(latents.shape[0]))
_expected_values_backward.register_fake(lambda _, *saved: _gradients_of(saved[:4], saved[-1]))
_assignment_entropies_backward.register_fake(lambda _mean, _entropy, *saved: _gradients_of(saved[:3], saved[-1]))
_log_normalizers_backward.register_fake(lambda _, *saved: _gradients_of(saved[:3], saved[-1]))
_differentiate(_expected_values, _expected_values_backward)
_differentiate(_assignment_entropies, _assignment_entropies_backward)
_differentiate(_log_normalizers, _log_normalizers_backward)
