"""L1 and L2 by hand, built by name as a recipe does."""

from __future__ import annotations

import pytest
import torch

from visual_tokenizer.outputs import TokenizerOutput
from visual_tokenizer.registry import Family

LOSSES = Family("visual_tokenizer.losses")


def output_of(pixels: torch.Tensor) -> TokenizerOutput:
    nothing = torch.zeros(1, 1, 1)
    return TokenizerOutput(pixels=pixels, raw=pixels, indices=nothing.long(), latents=nothing, codes=nothing)


@pytest.mark.parametrize(("name", "expected"), [("l1", 0.75), ("l2", 0.875)])
def test_value_and_gradient(name: str, expected: float) -> None:
    pixels = torch.zeros(2, 3, 4, 4)
    reconstruction = torch.full((2, 3, 4, 4), 0.5)
    reconstruction[0, 0] = -2.0  # 16 of 96 elements
    reconstruction.requires_grad_()
    loss = LOSSES.build({"type": name, "weight": 0.5})
    value = loss(output_of(reconstruction), {"pixels": pixels})
    assert value.item() == pytest.approx(expected)
    value.backward()
    grad = {"l1": 1 / 96, "l2": 2 * 0.5 / 96}[name]
    assert reconstruction.grad[1].unique().tolist() == pytest.approx([grad])


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_half_precision_is_compared_in_float32(name: str) -> None:
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    value = LOSSES.build({"type": name})(output_of(pixels.half()), {"pixels": pixels})
    assert value.dtype == torch.float32
    assert 0 < value < 1e-3


def test_weight_is_checked() -> None:
    with pytest.raises(Exception, match="weight must be 0 or more, got -1"):
        LOSSES.build({"type": "l1", "weight": -1})
