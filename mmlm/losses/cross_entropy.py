"""Next-token cross-entropy of large vocabularies: of a head's input, without its logits, or of logits by parts."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from visual_tokenizer.errors import UserError

IGNORED_LABEL = -100
"""Label of a token that is not trained."""
LOGITS_AT_A_TIME = 2**27
"""Logits that are in memory at one time; 512 MB in float32."""
CACHED_LOGITS = 2**20
"""Logits that a CPU normalizes at one time, so that they stay in its cache; 4 MB."""


class TokenLosses(NamedTuple):
    """What a head's loss is made of, token by token; only `total` has a gradient."""

    total: Tensor
    """Σ weight · (loss + z_loss · log_normalizer²), () float32."""
    losses: Tensor
    """Cross-entropy in nats (M,) float32, 0 where the label is ignored."""
    log_normalizers: Tensor
    """log Σ exp(logits) (M,) float32, 0 where the label is ignored."""


@torch.compiler.disable
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    weights: Tensor | None = None,
    *,
    ignore_index: int = IGNORED_LABEL,
    z_loss: float = 0.0,
) -> TokenLosses:
    """Return the weighted cross-entropy of `hidden @ weight.T + bias`, of which `LOGITS_AT_A_TIME` exist at a time.

    The gradients are computed with the loss, chunk by chunk, from logits that are there already: three products, as
    many as head and backward pass take anyway, and none a second time. They are summed in float32; the products are in
    autocast's dtype where autocast is on, otherwise in that of `hidden`. The idea is that of Liger Kernel (Hsu et al.,
    arXiv:2410.10989, section 3.2); z-loss is Chameleon's (arXiv:2405.09818, section 2.3).

    Args:
        hidden: (M, D), what the head is given.
        weight: (V, D), the head's.
        labels: (M,) int64.
        bias: (V,).
        weights: of the tokens, (M,); None: 1. It gets no gradient. Weights near 1 suit half precision; divide the
            total, not the weights, by their sum.
        ignore_index: label of tokens that count for nothing.
        z_loss: factor of the squared log normalizer; 0 or more.

    Raises:
        ValueError: shapes or dtypes do not fit together, a negative `z_loss`, or float16 products, whose gradients need
            the loss scaling that comes later.
    """
    tokens, (rows, width) = hidden.shape[0], weight.shape
    wanted = {"hidden": (hidden, (tokens, width)), "labels": (labels, (tokens,))}
    wanted |= {} if bias is None else {"bias": (bias, (rows,))}
    wanted |= {} if weights is None else {"weights": (weights, (tokens,))}
    for name, (tensor, shape) in wanted.items():
        if tensor.shape != shape:
            raise UserError(f"{name} must be {shape} with weight {(rows, width)}, got {tuple(tensor.shape)}")
    if z_loss < 0:
        raise UserError(f"z_loss must be 0 or more, got {z_loss}")
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    if not torch.is_autocast_enabled(kind) and weight.dtype != hidden.dtype:
        raise UserError(f"hidden and weight must have one dtype, got {hidden.dtype} and {weight.dtype}")
    if dtype == torch.float16:
        raise UserError("float16 gradients need loss scaling before the head: use bfloat16 or float32")
    trained = labels != ignore_index
    factors = trained.float() if weights is None else weights.detach().float() * trained
    with torch.autocast(kind, enabled=False):
        total, losses, normalizers = _LinearCrossEntropy.apply(
            hidden, weight, bias, labels.masked_fill(~trained, 0), trained, factors, z_loss, dtype
        )
    return TokenLosses(total, losses, normalizers)


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are made in the forward pass and only scaled in the backward pass."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        trained: Tensor,
        factors: Tensor,
        z_loss: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        tokens, vocabulary = hidden.shape[0], weight.shape[0]
        losses, normalizers = factors.new_zeros(tokens), factors.new_zeros(tokens)
        inputs, matrix = hidden.detach().to(dtype), weight.detach().to(dtype)
        grad_hidden = torch.empty_like(inputs) if wants_hidden else None
        grad_weight = torch.empty_like(weight, dtype=torch.float32) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wants_bias else None
        chunks = max(1, -(-tokens * vocabulary // LOGITS_AT_A_TIME))
        height = -(-tokens // chunks)
        buffer = inputs.new_empty(height, vocabulary)
        summand = torch.empty_like(matrix) if wants_weight and dtype != torch.float32 else None
        for start in range(0, tokens, max(1, height)):
            part = slice(start, min(start + height, tokens))
            scores = buffer[: part.stop - start]
            torch.mm(inputs[part], matrix.t(), out=scores)
            if bias is not None:
                scores.add_(bias.detach().to(dtype))
            _normalize(
                scores,
                labels[part],
                factors[part] if any(ctx.needs_input_grad[:3]) else None,
                z_loss,
                losses[part],
                normalizers[part],
            )
            if grad_hidden is not None:
                torch.mm(scores, matrix, out=grad_hidden[part])
            if grad_weight is not None:
                _add_product(grad_weight, scores, inputs[part], summand, is_first=start == 0)
            if grad_bias is not None:
                grad_bias += scores.sum(0, dtype=torch.float32)
        if tokens == 0 and grad_weight is not None:
            grad_weight.zero_()
        losses *= trained
        normalizers *= trained
        total = (factors * (losses + z_loss * normalizers.square())).sum()
        ctx.gradients = [grad_hidden, grad_weight, grad_bias]
        ctx.dtypes = [hidden.dtype, weight.dtype, None if bias is None else bias.dtype]
        ctx.mark_non_differentiable(losses, normalizers)
        return total, losses, normalizers

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor, *_: Any) -> tuple[Any, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "backward of linear_cross_entropy was called twice: its gradients are gone after the first call"
            )
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [
            None if gradient is None else gradient.mul_(outer).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return *scaled, None, None, None, None, None


def _normalize(
    scores: Tensor, labels: Tensor, factors: Tensor | None, z_loss: float, losses: Tensor, normalizers: Tensor
) -> None:
    """Write losses and log normalizers of logits (C, V), and over the logits their gradient if there are `factors`."""
    rows = max(1, CACHED_LOGITS // scores.shape[1]) if scores.device.type == "cpu" else scores.shape[0]
    in_place = scores.dtype == torch.float32
    scratch = None if in_place else scores.new_empty(min(rows, len(scores)), scores.shape[1], dtype=torch.float32)
    for start in range(0, scores.shape[0], rows):
        part = slice(start, start + rows)
        block = scores[part] if scratch is None else scratch[: len(scores[part])].copy_(scores[part])
        target = labels[part, None]
        largest = block.amax(1, keepdim=True)
        chosen = block.gather(1, target)
        total = block.sub_(largest).exp_().sum(1, keepdim=True)
        normalizer = largest + total.log()
        losses[part] = (normalizer - chosen)[:, 0]
        normalizers[part] = normalizer[:, 0]
        if factors is None:
            continue
        factor = factors[part, None]
        block.mul_(factor * (1 + 2 * z_loss * normalizer) / total)
        block.scatter_add_(1, target, -factor)
        if scratch is not None:
            scores[part] = block


def _add_product(total: Tensor, scores: Tensor, inputs: Tensor, summand: Tensor | None, *, is_first: bool) -> None:
    """Add `scores.T @ inputs` to a float32 `total`, or write it there; `summand` is for products in half precision."""
    if summand is None:
        torch.addmm(total, scores.t(), inputs, beta=0 if is_first else 1, out=total)
        return
    torch.mm(scores.t(), inputs, out=summand)
    if is_first:
        total.copy_(summand)
    else:
        total.add_(summand)


def logits_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor, z_loss: float = 0.0) -> TokenLosses:
    """Return the same of logits (…, V) that are there already, for models that change them after the head.

    Only `LOGITS_AT_A_TIME` of them are float32 at one time; they are made again in the backward pass.
    """
    flat, wanted = logits.flatten(0, -2), labels.flatten()
    rows = max(1, LOGITS_AT_A_TIME // flat.shape[1])
    if flat.shape[0] <= rows:
        losses, normalizers = _plain_losses(flat, wanted)
    else:
        parts = [
            checkpoint(_plain_losses, part, want, use_reentrant=False, preserve_rng_state=False)
            for part, want in zip(flat.split(rows), wanted.split(rows), strict=True)
        ]
        losses, normalizers = (torch.cat(column) for column in zip(*parts, strict=True))
    total = (weights.flatten() * (losses + z_loss * normalizers.square())).sum()
    return TokenLosses(total, losses.detach(), normalizers.detach())


def _plain_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.float()
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="none")
    return losses, logits.logsumexp(1) * (labels != IGNORED_LABEL)
