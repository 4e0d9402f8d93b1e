"""The share of kept places, in closed form."""

from __future__ import annotations

import pytest
import torch

from visual_tokenizer.losses.base import LossConfig
from visual_tokenizer.outputs import TokenizerOutput
from visual_tokenizer.registry import ConfigError


def output(decisions: torch.Tensor | None) -> TokenizerOutput:
    empty = torch.zeros(0)
    return TokenizerOutput(empty, empty, empty, empty, empty, decisions=decisions)


def test_it_is_the_squared_distance_of_each_pictures_share():
    loss = LossConfig.family.build({"type": "keep_ratio", "ratio": 0.25})
    decisions = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 0]], requires_grad=True)
    value = loss(output(decisions), {})
    torch.testing.assert_close(value, torch.tensor(((0.25 - 0.25) ** 2 + (0.75 - 0.25) ** 2) / 2))
    value.backward()
    # d/dm = 2 (share − ρ) / (places · pictures)
    torch.testing.assert_close(decisions.grad, torch.tensor([[0.0] * 4, [2 * 0.5 / (4 * 2)] * 4]))


def test_an_encoder_that_selects_nothing_is_refused():
    with pytest.raises(ValueError, match="selects places"):
        LossConfig.family.build({"type": "keep_ratio"})(output(None), {})


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1])
def test_a_ratio_outside_its_range_is_refused(ratio):
    with pytest.raises(ConfigError, match="ratio must be in"):
        LossConfig.family.config({"type": "keep_ratio", "ratio": ratio})
