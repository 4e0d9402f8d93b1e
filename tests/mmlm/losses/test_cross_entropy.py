"""Cross-entropy without logits: against PyTorch's own of materialized logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.losses.cross_entropy import TokenLosses, linear_cross_entropy, logits_cross_entropy

ROWS, WIDTH, TOKENS = 53, 12, 29


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(s, generator=generator) for s in ((TOKENS, WIDTH), (ROWS, WIDTH), (ROWS,)))
    labels = torch.randint(0, ROWS, (TOKENS,), generator=generator)
    labels[::5] = -100
    leaves = [tensor.to(dtype).requires_grad_() for tensor in (hidden, weight, bias)]
    return *leaves, labels, torch.rand(TOKENS, generator=generator)


def slow(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, weights: Tensor, z_loss: float) -> Any:
    logits = hidden.double() @ weight.double().T + bias.double()
    losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=-100)
    normalizers = logits.exp().sum(1).log() * (labels >= 0)
    return (weights * (losses + z_loss * normalizers**2)).sum(), losses, normalizers


@pytest.mark.parametrize("at_a_time", [2**27, 7 * ROWS, 1])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_losses_and_gradients_are_those_of_logits(
    at_a_time: int, z_loss: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmlm.losses.cross_entropy.LOGITS_AT_A_TIME", at_a_time)
    monkeypatch.setattr("mmlm.losses.cross_entropy.CACHED_LOGITS", 3 * ROWS)
    hidden, weight, bias, labels, weights = inputs()
    total, losses, normalizers = slow(hidden, weight, bias, labels, weights, z_loss)
    expected = torch.autograd.grad(3 * total, (hidden, weight, bias))
    logits = hidden @ weight.T + bias
    for found in (
        linear_cross_entropy(hidden, weight, labels, bias, weights, z_loss=z_loss),
        logits_cross_entropy(logits, labels, weights, z_loss),
    ):
        assert torch.allclose(found.total, total.float(), rtol=1e-5)
        assert torch.allclose(found.losses, losses.float(), atol=1e-5)
        assert torch.allclose(found.log_normalizers, normalizers.float(), atol=1e-5)
        assert not found.losses.requires_grad
        assert not found.log_normalizers.requires_grad
        for one, other in zip(torch.autograd.grad(3 * found.total, (hidden, weight, bias)), expected, strict=True):
            assert torch.allclose(one, other, atol=1e-5)


def test_only_wanted_gradients_are_made() -> None:
    hidden, weight, _, labels, _ = inputs()
    frozen = linear_cross_entropy(hidden, weight.detach(), labels)
    (gradient,) = torch.autograd.grad(frozen.total, hidden)
    plain = F.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    assert torch.allclose(gradient, torch.autograd.grad(plain, hidden)[0], atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(linear_cross_entropy(hidden, weight, labels).total, plain, rtol=1e-5)


def test_huge_logits_and_all_ignored_are_finite() -> None:
    hidden, weight, _, labels, _ = inputs()
    found = linear_cross_entropy(1e4 * hidden, weight, labels)
    plain = F.cross_entropy(1e4 * hidden @ weight.T, labels, reduction="none")
    assert torch.allclose(found.losses, plain, rtol=1e-5)
    nothing = linear_cross_entropy(hidden, weight, torch.full_like(labels, -100), z_loss=1.0)
    assert nothing.total == 0
    assert all((g == 0).all() for g in torch.autograd.grad(nothing.total, (hidden, weight)))


def test_autocast_sums_gradients_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmlm.losses.cross_entropy.LOGITS_AT_A_TIME", 7 * ROWS)
    hidden, weight, bias, labels, weights = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy(hidden, weight, labels, bias, weights, z_loss=0.01)
    total, losses, _ = slow(hidden, weight, bias, labels, weights, 0.01)
    assert torch.allclose(found.losses, losses.float(), atol=0.1)
    for one, other in zip(
        torch.autograd.grad(found.total, (hidden, weight, bias)),
        torch.autograd.grad(total, (hidden, weight, bias)),
        strict=True,
    ):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.02 * other.norm()


def test_it_never_holds_the_logits() -> None:
    """Every tensor that PyTorch makes inside has fewer elements than the logits."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                largest = max(largest, tensor.numel() if isinstance(tensor, Tensor) else 0)
            return out

    hidden, weight, _, labels, _ = inputs()
    import mmlm.losses.cross_entropy as module

    before, module.LOGITS_AT_A_TIME = module.LOGITS_AT_A_TIME, 5 * ROWS
    try:
        with Sizes():
            linear_cross_entropy(hidden, weight, labels).total.backward()
    finally:
        module.LOGITS_AT_A_TIME = before
    assert largest <= max(5 * ROWS, ROWS * WIDTH) < TOKENS * ROWS


def test_mistakes_are_named() -> None:
    hidden, weight, bias, labels, weights = inputs()
    for message, arguments in {
        r"labels must be \(29,\)": {"labels": labels[1:]},
        r"bias must be \(53,\)": {"bias": bias[1:]},
        r"weights must be \(29,\)": {"weights": weights[1:]},
        "z_loss must be 0 or more, got -1": {"z_loss": -1.0},
        "one dtype": {"hidden": hidden.bfloat16()},
        "float16": {"hidden": hidden.half(), "weight": weight.half()},
    }.items():
        with pytest.raises(ValueError, match=message):
            linear_cross_entropy(**{"hidden": hidden, "weight": weight, "labels": labels, **arguments})
    found: TokenLosses = linear_cross_entropy(hidden, weight, labels)
    found.total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        found.total.backward()
