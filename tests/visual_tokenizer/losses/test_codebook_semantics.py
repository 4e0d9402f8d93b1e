"""FQGAN's disentanglement, ImageFolder's contrast and GigaTok's alignment against their formulas."""

from __future__ import annotations

import math
from unittest import mock

import pytest
import torch
from torch.nn import functional as F

from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig
from visual_tokenizer.backbones.base import load_backbone
from visual_tokenizer.losses.base import LossConfig
from visual_tokenizer.training.objective import Objective

PATCH = {"type": "patch", "patch_size": 8, "width": 8}


@pytest.fixture(autouse=True)
def same_draws() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def given(codes, present=None):
    return mock.Mock(codes=codes, present=present)


def batch_of():
    return {"pixels": torch.rand(3, 3, 32, 32) * 2 - 1}


@pytest.mark.parametrize("groups", [2, 3])
def test_disentanglement_is_the_mean_squared_cosine_of_pairs(groups):
    loss = LossConfig.family.build({"type": "disentanglement", "groups": groups})
    codes = torch.randn(2, 5, 12, requires_grad=True)
    terms = []
    for row in codes.flatten(0, 1):
        parts = row.chunk(groups)
        terms += [
            (one @ other / (one.norm() * other.norm())) ** 2 for i, one in enumerate(parts) for other in parts[i + 1 :]
        ]
    value = loss(given(codes), {})
    torch.testing.assert_close(value, torch.stack(terms).mean())
    value.backward()
    assert codes.grad.abs().sum() > 0
    alike = torch.randn(2, 5, 4)
    assert loss(given(torch.cat([alike] * groups, 2)), {}).item() == pytest.approx(1)
    with pytest.raises(ValueError, match="groups must divide the code's 11 channels"):
        loss(given(torch.randn(2, 5, 11)), {})
    with pytest.raises(ValueError, match="groups must be 2 or more"):
        LossConfig.family.build({"type": "disentanglement", "groups": 1})


def test_absent_tokens_don_t_count():
    loss = LossConfig.family.build({"type": "disentanglement"})
    codes, present = torch.randn(2, 4, 6), torch.tensor([[True] * 4, [True, False, False, False]])
    codes[~present] = 0
    kept = codes[present][None]
    torch.testing.assert_close(loss(given(codes, present), {}), loss(given(kept), {}))


def test_it_equals_the_term_within_multi_head():
    """FQGAN's code has one form; ours two places for it."""
    from visual_tokenizer.quantizers.multi_head import _mean_squared_cosine

    codes = torch.randn(2, 5, 12)
    loss = LossConfig.family.build({"type": "disentanglement"})
    torch.testing.assert_close(loss(given(codes), {}), _mean_squared_cosine(list(codes.chunk(2, dim=2))))


def test_the_contrast_with_the_embedding_is_clips():
    loss = LossConfig.family.build(
        {"type": "embedding_contrastive", "channels": [1, 4], "size": 32, "temperature": 0.2}
    )
    codes, batch = torch.randn(3, 5, 6, requires_grad=True), batch_of()
    ours = codes[:, :, 1:4].mean(1)
    theirs = loss.projection(load_backbone("efficientnet_lite0").embedding(batch["pixels"], 32))
    scores = [[(a @ b / (a.norm() * b.norm()) / 0.2).item() for b in theirs] for a in ours]
    total = 0.0
    for i in range(3):
        row = sum(math.exp(scores[i][j]) for j in range(3))
        column = sum(math.exp(scores[j][i]) for j in range(3))
        total -= (2 * scores[i][i] - math.log(row) - math.log(column)) / 2 / 3
    value = loss(given(codes), batch)
    assert value.item() == pytest.approx(total, rel=1e-4)
    value.backward()
    assert (codes.grad.abs().sum((0, 1)) > 0).tolist() == [False, True, True, True, False, False]
    with pytest.raises(ValueError, match="temperature must be above 0"):
        LossConfig.family.build({"type": "embedding_contrastive", "temperature": 0.0})


def q_former(depth: int = 2) -> VisualTokenizer:
    sizes = {"num_latents": 4, "width": 8, "heads": 2}
    encoder = {"type": "q_former", "depth": 1, **sizes, "patches": PATCH}
    decoder = {"type": "q_former", "depth": depth, "grid_size": 4, **sizes, "patches": PATCH}
    quantizer = {"type": "vq", "codebook_size": 16, "code_dim": 4}
    return VisualTokenizer(VisualTokenizerConfig(image_size=32, encoder=encoder, quantizer=quantizer, decoder=decoder))


def alignment(**fields):
    return LossConfig.family.build({"type": "decoder_alignment", "decoder_width": 8, "block": 1, "level": 2, **fields})


def test_the_decoders_block_is_compared_place_by_place_with_the_teacher():
    model, loss, batch = q_former(), alignment(), batch_of()
    objective = Objective(model, {"decoder_alignment": loss}).train()
    seen = []
    model.decoder.blocks[0].register_forward_hook(lambda _m, _i, output: seen.append(output))
    value = objective(batch).reconstruction
    target = load_backbone("efficientnet_lite0").features(batch["pixels"], 3)[2]  # 4 × 4 at 32 pixels
    predicted = loss.head(seen[0])
    terms = [
        1 - F.cosine_similarity(predicted[picture, 4 * row + column], target[picture, :, row, column], dim=0)
        for picture in range(3)
        for row in range(4)
        for column in range(4)
    ]
    torch.testing.assert_close(value, torch.stack(terms).mean(), atol=1e-5, rtol=1e-5)
    value.backward()
    reached = {name.split(".")[1] for name, p in model.decoder.blocks.named_parameters(prefix="") if p.grad is not None}
    assert model.decoder.blocks[0].feed_forward.expand.weight.grad.abs().sum() > 0
    assert model.decoder.blocks[1].feed_forward.expand.weight.grad is None
    assert model.encoder.query_projection.weight.grad.abs().sum() > 0
    assert reached


def test_a_decoder_without_that_block_is_refused():
    with pytest.raises(ValueError, match="block must be one of the decoder's, which has 2 blocks, got 3"):
        Objective(q_former(), {"decoder_alignment": alignment(block=3)})
    with pytest.raises(ValueError, match="level must be given, got null"):
        alignment(level=None)
    with pytest.raises(ValueError, match=r"decoder_width must be 8.* got 12 and 16 places"):
        Objective(q_former(), {"decoder_alignment": alignment(decoder_width=12)}).train()(batch_of())
