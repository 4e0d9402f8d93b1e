"""VGG-16 on random weights in torchvision's key layout, against the layers written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.backbones.base import MissingWeightsError
from visual_tokenizer.backbones.vgg16 import VGG16, VGG16Config
from visual_tokenizer.errors import UserError

# Index of each convolution in torchvision's `features`, with its widths; a pool stands at 4, 9, 16 and 23.
CONVOLUTIONS = {
    0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256),
    17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512),
}  # fmt: skip


def random_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {"classifier.6.bias": torch.zeros(1000)}
    for index, (width, out) in CONVOLUTIONS.items():
        state[f"features.{index}.weight"] = (
            torch.randn(out, width, 3, 3, generator=generator) * (2 / (9 * width)) ** 0.5
        )
        state[f"features.{index}.bias"] = torch.randn(out, generator=generator) * 0.1
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(random_state(), path)
    return path


def direct_features(pixels: Tensor) -> list[Tensor]:
    state = random_state()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    maps, found = ((pixels + 1) / 2 - mean) / std, []
    for index in range(31):
        if index in (4, 9, 16, 23):
            found.append(maps)
            maps = F.max_pool2d(maps, 2)
        elif index in CONVOLUTIONS:
            maps = F.relu(F.conv2d(maps, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1))
    return [*found, maps]


def test_features_equal_the_layers_written_out(weights: Path) -> None:
    network = VGG16(VGG16Config(weights=str(weights)))
    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for level, (found, wanted) in enumerate(zip(network.features(pixels), direct_features(pixels), strict=True)):
        assert found.shape == (2, network.feature_dims[level], 32 // 2**level, 48 // 2**level)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert len(network.features(pixels, 2)) == 2
    wanted = direct_features(pixels)[-1].mean((2, 3))
    torch.testing.assert_close(network.embedding(pixels, 32), wanted, rtol=1e-4, atol=1e-4)


def test_it_is_frozen_and_gradients_reach_the_pixels(weights: Path) -> None:
    network = VGG16(VGG16Config(weights=str(weights))).train()
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    pixels = torch.rand(1, 3, 16, 16).requires_grad_()
    network.features(pixels, 1)[0].sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 0


def test_files_are_checked(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = random_state()
    del state["features.28.bias"]
    state["features.0.weight"] = torch.zeros(64, 1, 3, 3)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"features\.0\.weight of shape \(64, 1, 3, 3\).*lacks features\.28"):
        VGG16(VGG16Config(weights=str(tmp_path / "other.safetensors")))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingWeightsError, match=r"checkpoints/vgg16-397923af\.pth"):
        VGG16()
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "vgg16-397923af.pth").symlink_to(weights)
    assert VGG16().weights_digest == VGG16(VGG16Config(weights=str(weights))).weights_digest
