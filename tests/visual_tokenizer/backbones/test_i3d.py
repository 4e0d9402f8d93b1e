"""I3D on random weights: key layout of pytorch-i3d, "same" padding, and the embedding of FVD."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.backbones.base import resize_like_tensorflow
from visual_tokenizer.backbones.i3d import I3D, I3DConfig, _I3DLayers, _pad_same
from visual_tokenizer.errors import UserError


def random_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    with torch.device("meta"):
        empty = _I3DLayers().state_dict()
    state = {}
    for key, value in empty.items():
        if key.endswith("conv3d.weight"):
            state[key] = torch.randn(value.shape) * (2 / value[0].numel()) ** 0.5
        elif not key.endswith("num_batches_tracked"):
            state[key] = torch.rand(value.shape) + 0.5
    return state


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> I3D:
    path = tmp_path_factory.mktemp("i3d") / "rgb.pt"
    torch.save(random_state(), path)
    return I3D(I3DConfig(weights=str(path)))


def test_the_keys_are_those_of_the_published_file() -> None:
    """57 convolutions with BatchNorm and a classifier with bias: 12,697,264 parameters with 400 classes."""
    state = random_state()
    assert len([key for key in state if key.endswith("bn.weight")]) == 57
    wanted = {
        "Conv3d_1a_7x7.conv3d.weight": (64, 3, 7, 7, 7),
        "Conv3d_2b_1x1.bn.running_mean": (64,),
        "Mixed_3b.b1a.bn.weight": (96,),
        "Mixed_4d.b2b.conv3d.weight": (64, 24, 3, 3, 3),
        "Mixed_5c.b3b.conv3d.weight": (128, 832, 1, 1, 1),
        "logits.conv3d.weight": (400, 1024, 1, 1, 1),
        "logits.conv3d.bias": (400,),
    }
    assert {key: tuple(state[key].shape) for key in wanted} == wanted
    assert sum(value.numel() for key, value in state.items() if "running" not in key) == 12_697_264


def test_features_halve_as_tensorflow_does(network: I3D) -> None:
    maps = network.features(torch.rand(1, 3, 10, 33, 32))
    assert [tuple(level.shape[1:]) for level in maps] == [
        (64, 5, 17, 16),
        (192, 5, 9, 8),
        (480, 5, 5, 4),
        (832, 3, 3, 2),
        (1024, 2, 2, 1),
    ]


@pytest.mark.parametrize(("length", "width", "step"), [(10, 7, 2), (9, 7, 2), (5, 3, 1), (7, 2, 2), (8, 3, 2)])
def test_padding_is_tensorflows(length: int, width: int, step: int) -> None:
    """ceil(length / step) windows, the odd zero at the end."""
    padded = _pad_same(torch.ones(1, 1, length, 1, 1), (width, 1, 1), (step, 1, 1))[0, 0, :, 0, 0]
    assert (len(padded) - width) // step + 1 == -(-length // step)
    zeros = (padded == 0).nonzero().flatten().tolist()
    before = sum(place < length // 2 for place in zeros)
    assert before == len(zeros) // 2


def test_embedding_is_the_mean_of_the_logits_over_time(network: I3D) -> None:
    clips = torch.rand(1, 3, 17, 40, 30) * 2 - 1
    frames = torch.stack([resize_like_tensorflow(clips[:, :, frame], 224) for frame in range(17)], 2)
    last = network.features(frames)[-1]
    assert last.shape == (1, 1024, 3, 7, 7)
    state = random_state()
    weight, bias = state["logits.conv3d.weight"].flatten(1), state["logits.conv3d.bias"]
    windows = [last[:, :, start : start + 2].mean((2, 3, 4)) for start in range(2)]
    wanted = torch.stack([F.linear(window, weight, bias) for window in windows]).mean(0)
    found = network.embedding(clips)
    assert found.shape == (1, 400)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_wrong_clips_and_files_are_refused(network: I3D, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="9 frames or more for I3D, got 8"):
        network.embedding(torch.zeros(1, 3, 8, 32, 32))
    with pytest.raises(UserError, match="clips must be float"):
        network.embedding(torch.zeros(1, 3, 32, 32))
    torch.save({"logits.conv3d.bias": torch.zeros(600)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="Conv3d_1a_7x7"):
        I3D(I3DConfig(weights=str(tmp_path / "other.pt")))
