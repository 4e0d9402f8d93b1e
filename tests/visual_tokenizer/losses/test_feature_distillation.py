"""The distillation of features against its formula, which gradients it gives, and that it can be learned."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig
from visual_tokenizer.backbones.base import load_backbone
from visual_tokenizer.losses.base import LossConfig
from visual_tokenizer.outputs import TokenizerOutput
from visual_tokenizer.training.objective import Objective

FIELDS = {"type": "feature_distillation", "channels": [0, 4], "width": 16, "heads": 2, "depth": 1}
PATCH = {"type": "patch", "patch_size": 8, "width": 16}


@pytest.fixture(autouse=True)
def same_draws() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def loss_of(**fields):
    return LossConfig.family.build({**FIELDS, **fields})


def pictures(count: int = 2, size: int = 64) -> Tensor:
    return F.interpolate(torch.rand(count, 3, 8, 8) * 2 - 1, (size, size), mode="bilinear")


def output_of(codes: Tensor, *grid: int) -> TokenizerOutput:
    indices = torch.zeros(codes.shape[0], *grid, dtype=torch.int64)
    blank = torch.zeros(codes.shape[0], 3, 8, 8)
    return TokenizerOutput(pixels=blank, raw=blank, indices=indices, latents=codes, codes=codes)


@pytest.mark.parametrize("indices", [(4, 4), (4, 4, 3)], ids=["one index", "three indices"])
def test_each_token_is_compared_with_the_teacher_at_its_place(indices):
    loss, pixels, codes = loss_of(level=3), pictures(), torch.randn(2, 16, 4)
    target = load_backbone("efficientnet_lite0").features(pixels, 4)[3]  # 4 × 4 at 64 pixels
    predicted = loss.predict(codes, (4, 4))
    terms = []
    for picture in range(2):
        for row in range(4):
            for column in range(4):
                ours, theirs = predicted[picture, 4 * row + column], target[picture, :, row, column]
                terms.append(1 - ours @ theirs / (ours.norm() * theirs.norm()))
    value = loss(output_of(codes, *indices), {"pixels": pixels})
    torch.testing.assert_close(value, torch.stack(terms).mean(), atol=1e-5, rtol=1e-5)


def test_a_teacher_of_another_grid_is_brought_to_that_of_the_tokens():
    loss, pixels, codes = loss_of(level=3), pictures(), torch.randn(2, 4, 4)
    target = load_backbone("efficientnet_lite0").features(pixels, 4)[3]
    wanted = F.interpolate(target, (2, 2), mode="bilinear", antialias=True).flatten(2).transpose(1, 2)
    expected = 1 - F.cosine_similarity(loss.predict(codes, (2, 2)), wanted, dim=2).mean()
    torch.testing.assert_close(loss(output_of(codes, 2, 2), {"pixels": pixels}), expected)


@pytest.mark.parametrize(("level", "grid"), [(None, (2, 2)), (None, (4,)), (3, (4,)), (3, (21, 2))])
def test_without_a_grid_or_a_level_the_means_are_compared(level, grid):
    loss, pixels, codes = loss_of(level=level), pictures(), torch.randn(2, 4, 4)
    teacher = load_backbone("efficientnet_lite0")
    target = teacher.embedding(pixels) if level is None else teacher.features(pixels, 4)[3].mean((2, 3))
    predicted = loss.predict(codes, (2, 2) if grid == (2, 2) else (1, 4)).mean(1)
    expected = 1 - F.cosine_similarity(predicted, target, dim=1).mean()
    torch.testing.assert_close(loss(output_of(codes, *grid), {"pixels": pixels}), expected)


def test_the_teacher_sees_pictures_of_its_size():
    loss, pixels, codes = loss_of(level=3, size=128), pictures(), torch.randn(2, 64, 4)
    assert loss.target({"pixels": pixels}).shape == (2, 112, 8, 8)
    assert torch.isfinite(loss(output_of(codes, 8, 8), {"pixels": pixels}))


def test_channels_outside_the_slice_get_no_gradient_and_those_inside_do():
    codes = torch.randn(2, 16, 10, requires_grad=True)
    loss_of(channels=[3, 7], level=3)(output_of(codes, 4, 4), {"pixels": pictures()}).backward()
    reached = codes.grad.abs().sum((0, 1)) > 0
    assert reached.tolist() == [False] * 3 + [True] * 4 + [False] * 3


def test_without_blocks_tokens_do_not_see_one_another():
    one, other = torch.randn(1, 4, 4), torch.randn(1, 4, 4)
    other[:, 1:] = one[:, 1:]
    for depth, same in ((0, True), (1, False)):
        loss = loss_of(depth=depth)
        first, second = loss.predict(one, (2, 2)), loss.predict(other, (2, 2))
        assert torch.allclose(first[:, 1:], second[:, 1:], atol=1e-6) is same
        assert not torch.allclose(first[:, 0], second[:, 0], atol=1e-6)


def test_positions_tell_equal_codes_apart():
    predicted = loss_of().predict(torch.zeros(1, 4, 4), (2, 2))[0]
    assert torch.pdist(predicted).min() > 1e-3


def test_the_teacher_is_neither_trained_nor_saved_but_moves_along():
    loss = loss_of()
    owned = {name.split(".")[0] for name in loss.state_dict()}
    assert owned == {"projection", "transformer", "head"} == {name.split(".")[0] for name, _ in loss.named_parameters()}
    moved = copy.deepcopy(loss).double()
    assert next(moved.network.parameters()).dtype == torch.float64


def test_it_is_learned_and_reaches_the_encoder_through_the_codes():
    quantizer = {"type": "vq", "codebook_size": 16, "code_dim": 4, "normalize": True}
    decoder = {"type": "probe", "code_channels": 4, "decoder": PATCH}
    config = VisualTokenizerConfig(image_size=32, encoder=PATCH, quantizer=quantizer, decoder=decoder)
    objective = Objective(VisualTokenizer(config), {"feature_distillation": loss_of(level=2)}).train()
    batch = {"pixels": pictures(4, 32)}
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=5e-3)
    values = []
    for step in range(30):
        output = objective(batch)
        values.append(float(output.reconstruction.detach()))
        optimizer.zero_grad()
        output.reconstruction.backward()  # without the quantizer's own losses
        if step == 0:
            assert all(p.grad.abs().sum() > 0 for p in objective.tokenizer.encoder.parameters())
        optimizer.step()
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": [4, 4]}, "channels must be growing"),
        ({"channels": [0]}, "channels must hold 2"),
        ({"level": 5}, "0..4"),
        ({"level": -6}, "0..4"),
        ({"weights": "file.pth"}, "weights must be null"),
        ({"size": 16}, "size must be 32 or more"),
        ({"depth": -1}, "depth must be 0 or more"),
        ({"heads": 0}, "heads must be 1 or more"),
        ({"width": 18}, "width must be 1 or more and a multiple of 4, got 18"),
        ({"width": 16, "heads": 3}, r"width must be a multiple of heads \(3\), got 16"),
        ({"network": "i3d"}, "i3d|I3D|I3d"),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        loss_of(**fields)


def test_a_slice_that_the_code_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"channels must end at 3 .*got \[0, 4\]"):
        loss_of()(output_of(torch.randn(2, 4, 3), 2, 2), {"pixels": pictures()})
