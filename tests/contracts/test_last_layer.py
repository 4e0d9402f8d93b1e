"""Every decoder says which weight is the last before the pixels; adversarial training compares gradients there."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from visual_tokenizer.decoders.base import DecoderConfig

WITHOUT = ("pixels", "absent")  # nothing is learned, nothing is decoded
NAMES = [name for name in DecoderConfig.family.names() if name not in WITHOUT]


def distances(output: torch.Tensor) -> dict[torch.Tensor, int]:
    """Steps of the graph from `output` back to each parameter, by the shortest way."""
    found: dict[torch.Tensor, int] = {}
    nodes, seen, step = [output.grad_fn], set(), 0
    while nodes:
        following = []
        for node in nodes:
            if hasattr(node, "variable"):
                found.setdefault(node.variable, step)
            for child, _ in node.next_functions:
                if child is not None and child not in seen:
                    seen.add(child)
                    following.append(child)
        nodes, step = following, step + 1
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_last_layer_is_the_learned_weight_nearest_to_the_pixels(name):
    with torch.device("meta"):  # the published widths, without arithmetic
        decoder = DecoderConfig.family.build({"type": name}, image_size=256)
        grid = token_grid(decoder)
        output = decoder.pixels(decoder(torch.empty(1, math.prod(grid), decoder.width), grid))
    weight = decoder.last_layer
    assert isinstance(weight, nn.Parameter)
    assert any(weight is parameter for parameter in decoder.parameters())
    found = {parameter: step for parameter, step in distances(output).items() if parameter.ndim >= 2}
    assert found[weight] == min(found.values())


def token_grid(decoder) -> tuple[int, ...]:
    config = decoder.config
    if hasattr(config, "num_latents"):
        return (config.num_latents,)
    return (4, 4, 4) if "causal" in config.type or "3d" in config.type or config.type == "tats" else (16, 16)


def test_a_decoder_without_weights_says_so():
    decoder = DecoderConfig.family.build({"type": "pixels"}, image_size=16)
    with pytest.raises(NotImplementedError, match=r"Pixels names no last_layer.*adversarial.adaptive"):
        _ = decoder.last_layer
