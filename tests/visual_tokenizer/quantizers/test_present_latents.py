"""Absent latents are as if they had not been given, whatever the quantizer."""

from __future__ import annotations

import copy

import pytest
import torch

from visual_tokenizer import build_quantizer, list_quantizers
from visual_tokenizer.outputs import ABSENT
from visual_tokenizer.quantizers.base import LatentsError, QuantizerConfig

NAMES = [name for name in list_quantizers() if build_quantizer(name).latent_grid is None]
PRESENT = torch.tensor([[True] * 5 + [False] * 3, [True] * 8, [True] + [False] * 7])


def latents_for(quantizer, seed: int) -> torch.Tensor:
    return torch.randn(3, 8, quantizer.code_dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_that_of_the_present_latents_alone(name):
    torch.manual_seed(0)
    quantizer = build_quantizer(name)
    alone = copy.deepcopy(quantizer)
    for step in range(3):
        latents = latents_for(quantizer, step).requires_grad_(True)
        kept = latents.detach()[PRESENT][None].requires_grad_(True)
        torch.manual_seed(step)
        given = quantizer(latents, PRESENT)
        torch.manual_seed(step)
        wanted = alone(kept)
        assert torch.equal(given.codes[PRESENT], wanted.codes[0])
        assert torch.equal(given.indices[PRESENT], wanted.indices[0])
        assert not given.codes[~PRESENT].any()
        assert bool((given.indices[~PRESENT] == ABSENT).all())
        assert given.losses.keys() == wanted.losses.keys()
        assert all(torch.equal(given.losses[key], wanted.losses[key]) for key in wanted.losses)
        assert all(torch.equal(given.metrics[key], wanted.metrics[key]) for key in wanted.metrics)
        for output in (given, wanted):
            (output.codes.square().sum() + sum(output.losses.values())).backward()
        torch.testing.assert_close(latents.grad[PRESENT], kept.grad[0])
        assert not latents.grad[~PRESENT].any()
    for key, value in quantizer.state_dict().items():  # codes, averages, counts, ages, steps
        assert torch.equal(value, alone.state_dict()[key]), key


def test_what_is_absent_may_be_anything():
    quantizer = build_quantizer("vq").eval()
    latents = latents_for(quantizer, 0)
    spoiled = latents.masked_fill(~PRESENT[..., None], float("nan"))
    assert torch.equal(quantizer(spoiled, PRESENT).indices, quantizer(latents, PRESENT).indices)


def test_a_quantizer_of_whole_pictures_refuses():
    section = {"type": "multi_scale", "scales": [1, 2], "base": {"type": "vq", "update": {"type": "gradient"}}}
    quantizer = QuantizerConfig.family.build(section)
    with pytest.raises(LatentsError, match="absent"):
        quantizer(torch.randn(1, 4, quantizer.code_dim), torch.tensor([[True, True, False, False]]))
