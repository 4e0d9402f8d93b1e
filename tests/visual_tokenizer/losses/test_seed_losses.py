"""SEED's three losses against their formulas, whose gradients reach what, and that a code knows no later query."""

from __future__ import annotations

import math
from unittest import mock

import pytest
import torch
from torch.nn import functional as F

from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig
from visual_tokenizer.backbones.base import load_backbone
from visual_tokenizer.losses.base import LossConfig
from visual_tokenizer.text_encoders.base import TextEncoder, TextEncoderConfig
from visual_tokenizer.training.objective import Objective

WORDS = ["apple", "house", "cat"]
CODES = {"code_dim": 4, "width": 16, "depth": 1, "heads": 2}
SECTIONS = {
    "causal_contrastive": {"channels": [0, 16], "width": 8, "embedding_dim": 6},
    "causal_reconstruction": CODES,
    "embedding_reconstruction": {**CODES, "size": 32},
}


class Letters(TextEncoder):
    """How often each letter occurs: an encoder that needs no weights."""

    embedding_dim = 26

    def __init__(self) -> None:
        super().__init__(TextEncoderConfig())

    def forward(self, texts):
        return torch.tensor([[text.count(chr(97 + letter)) for letter in range(26)] for text in texts]).float()


@pytest.fixture(autouse=True)
def same_draws() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def tokenizer() -> VisualTokenizer:
    patch = {"type": "patch", "patch_size": 8, "width": 8}
    encoder = {"type": "causal_q_former", "num_latents": 5, "width": 16, "depth": 2, "heads": 2, "patches": patch}
    quantizer = {"type": "vq", "codebook_size": 16, "code_dim": 4}
    drawn = {
        "type": "latent_query",
        "num_latents": 5,
        "grid_size": 4,
        "width": 8,
        "depth": 1,
        "heads": 2,
        "patches": patch,
    }
    decoder = {"type": "probe", "code_channels": 4, "decoder": drawn}
    return VisualTokenizer(VisualTokenizerConfig(image_size=32, encoder=encoder, quantizer=quantizer, decoder=decoder))


def loss_of(name: str, **fields):
    with mock.patch.object(TextEncoderConfig.family, "build", return_value=Letters()):
        return LossConfig.family.build({"type": name, **SECTIONS[name], **fields})


def objective_of(name: str, **fields) -> Objective:
    return Objective(tokenizer(), {name: loss_of(name, **fields)}).train()


def batch_of():
    return {"pixels": torch.rand(3, 3, 32, 32) * 2 - 1, "caption": WORDS}


def term(objective: Objective, batch) -> torch.Tensor:
    return objective(batch).reconstruction


def test_the_last_query_is_contrasted_before_it_is_quantized():
    objective, batch = objective_of("causal_contrastive"), batch_of()
    loss, last = objective.losses["causal_contrastive"], objective.tokenizer.encoder(batch["pixels"])[:, -1]
    ours, theirs = loss.picture_head(last), loss.text_head(Letters()(WORDS))
    scores = [[(a @ b / (a.norm() * b.norm()) / 0.07).item() for b in theirs] for a in ours]
    total = 0.0
    for i in range(3):
        row = sum(math.exp(scores[i][j]) for j in range(3))
        column = sum(math.exp(scores[j][i]) for j in range(3))
        total -= (2 * scores[i][i] - math.log(row) - math.log(column)) / 2 / 3
    value = term(objective, batch)
    assert value.item() == pytest.approx(total, rel=1e-4)
    value.backward()
    assert objective.tokenizer.encoder.queries.grad.abs().sum() > 0
    assert objective.tokenizer.to_codes.weight.grad is None or not objective.tokenizer.to_codes.weight.grad.any()


def test_the_cosine_with_what_the_encoder_gave_is_the_loss_and_teaches_codes_alone():
    objective, batch = objective_of("causal_reconstruction"), batch_of()
    objective.tokenizer.eval()
    loss, wanted = objective.losses["causal_reconstruction"], objective.tokenizer.encoder(batch["pixels"])
    predicted = loss.predict(objective.tokenizer(batch["pixels"]).codes)
    terms = [
        1 - p @ w / (p.norm() * w.norm()) for p, w in zip(predicted.flatten(0, 1), wanted.flatten(0, 1), strict=True)
    ]
    torch.testing.assert_close(term(objective, batch), torch.stack(terms).mean(), atol=1e-5, rtol=1e-5)
    loss.latents._kept.append(torch.randn(3, 5, 16, requires_grad=True))
    latents = loss.latents._kept[0]
    codes = torch.randn(3, 5, 4, requires_grad=True)
    loss(mock.Mock(codes=codes), batch).backward()
    assert latents.grad is None
    assert codes.grad.abs().sum() > 0


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_embedding_is_regressed_by_squared_error(weight):
    loss, batch = loss_of("embedding_reconstruction", cosine_weight=weight), batch_of()
    teacher = load_backbone("efficientnet_lite0").embedding(batch["pixels"], 32)
    teacher = teacher / teacher.norm(dim=1, keepdim=True) * math.sqrt(1280)
    codes = torch.randn(3, 5, 4, requires_grad=True)
    predicted = loss.predict(codes)
    wanted = ((predicted - teacher) ** 2).mean() + weight * (1 - F.cosine_similarity(predicted, teacher, dim=1).mean())
    value = loss(mock.Mock(codes=codes, present=None), batch)
    torch.testing.assert_close(value, wanted, atol=1e-4, rtol=1e-5)
    value.backward()
    assert (codes.grad.abs().sum(2) > 0).all()  # every code counts


@torch.no_grad()
def test_a_code_changes_neither_with_later_queries_nor_with_what_is_done_to_later_latents():
    model, pixels = tokenizer().eval(), torch.rand(2, 3, 32, 32) * 2 - 1
    model.quantizer.codebook.mul_(0.05)  # codes near enough for a change to be seen
    before = model.quantizer(model.latents(pixels))
    model.encoder.queries[:, 3:] += 5 * torch.randn_like(model.encoder.queries[:, 3:])
    latents = model.latents(pixels)
    after = model.quantizer(latents)
    assert torch.equal(after.indices[:, :3], before.indices[:, :3])
    torch.testing.assert_close(after.codes[:, :3], before.codes[:, :3])
    latents[:, 4] += 100
    assert torch.equal(model.quantizer(latents).indices[:, :4], after.indices[:, :4])
    assert not torch.equal(model.latents(pixels)[:, 3], before.codes[:, 3])


def test_pixels_teach_neither_codes_nor_encoder_through_the_probe():
    objective = Objective(tokenizer(), {"l1": LossConfig.family.build({"type": "l1"})}).train()
    objective(batch_of()).reconstruction.backward()
    assert all(p.grad is None or not p.grad.any() for p in objective.tokenizer.encoder.parameters())
    assert objective.tokenizer.decoder.projection.weight.grad.abs().sum() > 0


def test_evaluations_and_copies_leave_nothing_behind():
    objective, batch = objective_of("causal_reconstruction"), batch_of()
    with torch.no_grad():
        objective.tokenizer(batch["pixels"])
    loss = objective.losses["causal_reconstruction"]
    with pytest.raises(RuntimeError, match="build an Objective of both"):
        loss.latents.take()
    first = term(objective, batch)
    assert loss.latents._kept == []
    assert torch.isfinite(first)


def test_it_is_compiled_with_the_encoder():
    objective, batch = objective_of("causal_reconstruction"), batch_of()
    objective.tokenizer.eval()
    plain = term(objective, batch)
    torch._dynamo.reset()
    objective.tokenizer.encoder.compile(backend="eager")
    torch.testing.assert_close(term(objective, batch), plain)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("causal_contrastive", {"temperature": 0.0}, "temperature must be in"),
        ("causal_reconstruction", {"width": 18}, "width must be .*a multiple of 4"),
        ("causal_reconstruction", {"width": 20, "heads": 8}, "width must be a multiple of heads"),
        ("causal_reconstruction", {"depth": 0}, "depth must be 1 or more"),
        ("embedding_reconstruction", {"level": 3}, "level must be null"),
        ("embedding_reconstruction", {"cosine_weight": -1.0}, "cosine_weight must be 0 or more"),
    ],
)
def test_wrong_fields_are_refused(name, fields, message):
    with pytest.raises(ValueError, match=message):
        loss_of(name, **fields)


def test_sizes_that_are_not_the_tokenizers_are_refused():
    with pytest.raises(ValueError, match=r"width must be 16 \(the encoder's\) .* got 20 and 4"):
        term(objective_of("causal_reconstruction", width=20), batch_of())
    with pytest.raises(ValueError, match=r"code_dim must be 4 .*got 3"):
        term(objective_of("embedding_reconstruction", code_dim=3), batch_of())
