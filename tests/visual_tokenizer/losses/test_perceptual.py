"""The perceptual loss against a direct computation of the LPIPS form, and its behaviour in training."""

from __future__ import annotations

import copy

import pytest
import skimage.data
import torch
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.backbones.base import load_backbone
from visual_tokenizer.losses.perceptual import Perceptual, PerceptualConfig, perceptual_distance
from visual_tokenizer.outputs import TokenizerOutput
from visual_tokenizer.registry import Family, UnknownPartError


@pytest.fixture(scope="module")
def loss() -> Perceptual:
    return Family("visual_tokenizer.losses").build({"type": "perceptual", "weight": 0.5})


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    photographs = [skimage.data.chelsea()[:256, :256], skimage.data.coffee()[:256, 200:456]]
    full = torch.stack([torch.from_numpy(photograph) for photograph in photographs]).permute(0, 3, 1, 2).float()
    return F.interpolate(full / 127.5 - 1, (64, 64), mode="area")


def output_of(pixels: Tensor) -> TokenizerOutput:
    nothing = torch.zeros(1, 1, 1)
    return TokenizerOutput(pixels=pixels, raw=pixels, indices=nothing.long(), latents=nothing, codes=nothing)


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    offsets = torch.arange(-12.0, 13.0)
    window = torch.exp(-(offsets**2) / (2 * sigma**2))
    window = (window / window.sum()).expand(3, 1, 1, 25)
    padded = F.pad(pixels, (12, 12, 12, 12), mode="reflect")
    return F.conv2d(F.conv2d(padded, window, groups=3), window.transpose(2, 3), groups=3)


def noisy(pixels: Tensor, sigma: float) -> Tensor:
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    return (pixels + sigma * noise).clamp(-1, 1)


def test_equals_direct_computation(loss: Perceptual, pixels: Tensor) -> None:
    """Zhang et al., eq. 1, position by position in float64, with the weight 1 / (2 L) on every channel."""
    network = load_backbone("efficientnet_lite0")
    other = noisy(pixels, 0.2)
    total = 0.0
    for ours, theirs in zip(network.features(pixels), network.features(other), strict=True):
        batch, _, height, width = ours.shape
        for b in range(batch):
            for y in range(height):
                for x in range(width):
                    a, c = ours[b, :, y, x].double(), theirs[b, :, y, x].double()
                    difference = a / (a.norm() + 1e-10) - c / (c.norm() + 1e-10)
                    total += float((difference**2).sum()) / (height * width) / (2 * 5) / batch
    assert loss(output_of(other), {"pixels": pixels}).item() == pytest.approx(total, rel=1e-4)


def test_zero_for_identical_pictures(loss: Perceptual, pixels: Tensor) -> None:
    assert loss(output_of(pixels), {"pixels": pixels}).item() == 0


@pytest.mark.parametrize("spoil", [blurred, noisy])
def test_grows_with_degradation(loss: Perceptual, pixels: Tensor, spoil) -> None:
    strengths = (0.6, 1.0, 2.0, 4.0) if spoil is blurred else (0.02, 0.1, 0.3, 0.6)
    values = [loss(output_of(spoil(pixels, strength)), {"pixels": pixels}).item() for strength in strengths]
    assert values == sorted(values)
    assert values[0] < 0.1
    assert 0.3 < values[-1] < 1


def test_unrelated_pictures_are_far(loss: Perceptual, pixels: Tensor) -> None:
    assert 0.7 < loss(output_of(pixels.flip(0)), {"pixels": pixels}).item() < 1.1


def test_gradient_reaches_the_reconstruction_only(loss: Perceptual, pixels: Tensor) -> None:
    reference, reconstruction = pixels.clone().requires_grad_(), noisy(pixels, 0.1).requires_grad_()
    loss(output_of(reconstruction), {"pixels": reference}).backward()
    assert reference.grad is None
    assert reconstruction.grad is not None
    assert (reconstruction.grad != 0).float().mean() > 0.9
    assert all(parameter.grad is None for parameter in loss.network.parameters())


def test_a_gradient_step_brings_the_pictures_nearer(loss: Perceptual, pixels: Tensor) -> None:
    reconstruction = blurred(pixels, 2.0).requires_grad_()
    before = loss(output_of(reconstruction), {"pixels": pixels})
    (gradient,) = torch.autograd.grad(before, reconstruction)
    after = loss(output_of(reconstruction - 0.01 * gradient.sign()), {"pixels": pixels})
    assert after < before


def test_gradient_is_finite_for_flat_and_identical_pictures(loss: Perceptual) -> None:
    flat = torch.ones(1, 3, 64, 64).requires_grad_()
    loss(output_of(flat), {"pixels": torch.ones(1, 3, 64, 64)}).backward()
    assert flat.grad is not None
    assert torch.isfinite(flat.grad).all()


def test_network_is_neither_saved_nor_optimised(loss: Perceptual) -> None:
    model = torch.nn.ModuleDict({"perceptual": loss})
    assert not model.state_dict()
    assert not list(model.parameters())
    assert not list(model.buffers())
    assert not copy.deepcopy(model).train()["perceptual"].network.training


def test_network_follows_to(loss: Perceptual) -> None:
    moved = torch.nn.Sequential(copy.deepcopy(loss)).to("meta", torch.float16)
    weights = list(moved[0].network.parameters())
    assert {weight.device.type for weight in weights} == {"meta"}
    assert {weight.dtype for weight in weights} == {torch.float16}
    assert {weight.device.type for weight in loss.network.parameters()} == {"cpu"}


def test_layers_are_averaged(loss: Perceptual, pixels: Tensor) -> None:
    other = noisy(pixels, 0.2)
    single = [perceptual_distance(loss.network, pixels, other, [layer], 64) for layer in (1, 3)]
    both = perceptual_distance(loss.network, pixels, other, [1, 3], 64)
    torch.testing.assert_close(both, (single[0] + single[1]) / 2)


def test_small_pictures_are_enlarged(loss: Perceptual, pixels: Tensor) -> None:
    small, other = pixels[..., ::2, ::2], noisy(pixels, 0.2)[..., ::2, ::2]
    enlarged = [F.interpolate(p, (64, 64), mode="bilinear", align_corners=False) for p in (small, other)]
    wanted = perceptual_distance(loss.network, *enlarged, [0, 4], 32)
    torch.testing.assert_close(perceptual_distance(loss.network, small, other, [0, 4], 64), wanted)
    unchanged = perceptual_distance(loss.network, small, other, [0, 4], 32)
    assert not torch.allclose(unchanged, wanted)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": []}, "layers must hold 1 or more"),
        ({"layers": [1, 1]}, "layers must be all different"),
        ({"min_size": 16}, "min_size must be 32 or more"),
    ],
)
def test_config_is_checked(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PerceptualConfig(**fields)


def test_unknown_layer_and_network_are_named() -> None:
    with pytest.raises(ValueError, match=r"0\.\.4"):
        Perceptual(PerceptualConfig(layers=[7]))
    with pytest.raises(UnknownPartError, match="efficientnet_lite0"):
        Perceptual(PerceptualConfig(network="efficientnet_lite"))
