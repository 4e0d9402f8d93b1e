"""The Inception of FID on random weights: key layout, and each detail in which ports go wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.backbones import inception_v3
from visual_tokenizer.backbones.base import resize_like_tensorflow
from visual_tokenizer.backbones.inception_v3 import InceptionV3, InceptionV3Config, _InceptionLayers
from visual_tokenizer.errors import UserError


def random_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    with torch.device("meta"):
        empty = _InceptionLayers().state_dict()
    state = {}
    for key, value in empty.items():
        if key.endswith("running_var"):
            state[key] = torch.rand(value.shape) + 0.5
        elif key.endswith("conv.weight"):
            state[key] = torch.randn(value.shape) * (2 / value[0].numel()) ** 0.5
        elif key.endswith(("bn.weight", "fc.weight", "fc.bias", "bn.bias", "running_mean")):
            state[key] = torch.rand(value.shape)
    return state  # without num_batches_tracked, as the published file


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> InceptionV3:
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(random_state(), path)
    return InceptionV3(InceptionV3Config(weights=str(path)))


def test_the_keys_are_those_of_the_published_file() -> None:
    """Counted from the published architecture: 94 convolutions with BatchNorm, and a classifier of 1,008."""
    state = random_state()
    assert len([key for key in state if key.endswith(".conv.weight")]) == 94
    assert len(state) == 94 * 5 + 2
    wanted = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_5d.branch_pool.bn.running_var": (64,),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
        "Mixed_6e.branch7x7dbl_2.conv.weight": (192, 192, 7, 1),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "fc.weight": (1008, 2048),
    }
    assert {key: tuple(state[key].shape) for key in wanted} == wanted
    assert sum(value.numel() for key, value in state.items() if "running" not in key and "fc" not in key) == 21_785_568


def test_shapes(network: InceptionV3) -> None:
    pixels = torch.rand(1, 3, 64, 48) * 2 - 1
    resized = resize_like_tensorflow(pixels, 299)
    assert [tuple(maps.shape[1:]) for maps in network.features(resized)] == [
        (64, 73, 73),
        (192, 35, 35),
        (288, 35, 35),
        (768, 17, 17),
        (2048, 8, 8),
    ]
    embedding = network.embedding(pixels)
    assert embedding.shape == (1, 2048)
    torch.testing.assert_close(embedding, network.features(resized)[-1].mean((2, 3)))


def test_the_first_layer_sees_levels_less_128_over_128(network: InceptionV3) -> None:
    seen = []
    handle = network.network.Conv2d_1a_3x3.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    levels = torch.tensor([0.0, 100.0, 255.0]).view(3, 1, 1).expand(1, 3, 75, 75)
    network.features(levels / 127.5 - 1, 1)
    handle.remove()
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([-1.0, -28 / 128, 127 / 128]))


def block_pool(block: nn.Module, maps: Tensor) -> Tensor:
    """What enters the block's pooled branch."""
    seen = []
    handle = block.branch_pool.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    block(maps)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(("name", "width"), [("Mixed_5b", 192), ("Mixed_6b", 768), ("Mixed_7b", 1280)])
def test_average_pools_leave_the_padding_out(network: InceptionV3, name: str, width: int) -> None:
    """Of a constant map the mean is the constant at the border too; the zeros of the padding would lower it."""
    pooled = block_pool(getattr(network.network, name), torch.ones(1, width, 5, 5))
    torch.testing.assert_close(pooled, torch.ones(1, width, 5, 5))


def test_only_the_last_block_pools_by_the_maximum(network: InceptionV3) -> None:
    maps = torch.rand(1, 2048, 5, 5)
    torch.testing.assert_close(block_pool(network.network.Mixed_7c, maps), F.max_pool2d(maps, 3, 1, 1))
    spike = torch.zeros(1, 1280, 5, 5)
    spike[..., 2, 2] = 9
    assert block_pool(network.network.Mixed_7b, spike)[0, 0, 1, 1] == pytest.approx(1)


def test_resizing_is_tensorflow_1s() -> None:
    """Position i looks at i x length / size: written out pixel by pixel, up and down."""
    for height, width, size in ((4, 7, 9), (13, 20, 6)):
        pixels = torch.rand(1, 3, height, width)
        wanted = torch.zeros(3, size, size)
        for i in range(size):
            for j in range(size):
                y, x = i * height / size, j * width / size
                top, left = int(y), int(x)
                bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
                upper = pixels[0, :, top, left] * (1 - (x - left)) + pixels[0, :, top, right] * (x - left)
                lower = pixels[0, :, bottom, left] * (1 - (x - left)) + pixels[0, :, bottom, right] * (x - left)
                wanted[:, i, j] = upper * (1 - (y - top)) + lower * (y - top)
        torch.testing.assert_close(resize_like_tensorflow(pixels, size)[0], wanted, rtol=1e-4, atol=1e-5)
    pixels = torch.rand(2, 3, 8, 8)
    assert torch.equal(resize_like_tensorflow(pixels, 8), pixels)
    half_pixel = F.interpolate(pixels, (16, 16), mode="bilinear", align_corners=False)
    assert not torch.allclose(resize_like_tensorflow(pixels, 16), half_pixel, atol=1e-2)


def test_torchvisions_inception_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its classifier has 1,000 outputs; its distances would be no FID."""
    state = random_state()
    state["fc.weight"], state["fc.bias"] = torch.zeros(1000, 2048), torch.zeros(1000)
    torch.save(state, tmp_path / "torchvision.pth")
    with pytest.raises(UserError, match=r"fc\.weight of shape \(1000, 2048\), not \(1008, 2048\)"):
        InceptionV3(InceptionV3Config(weights=str(tmp_path / "torchvision.pth")))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=inception_v3.FILE_NAMES[0]):
        InceptionV3()
