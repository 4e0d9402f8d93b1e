"""Both losses between codes and captions against their formulas, and two real processes against one."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from visual_tokenizer.losses.base import LossConfig
from visual_tokenizer.outputs import TokenizerOutput
from visual_tokenizer.text_encoders.base import TextEncoder, TextEncoderConfig

FIELDS = {"channels": [1, 5], "width": 8, "embedding_dim": 6}
WORDS = ["apple", "house", "cat", "sun"]
NAMES = ["contrastive", "sigmoid_contrastive"]


class Letters(TextEncoder):
    """How often each letter occurs: an encoder that needs no weights."""

    embedding_dim = 26

    def __init__(self) -> None:
        super().__init__(TextEncoderConfig())

    def forward(self, texts):
        return torch.tensor([[text.count(chr(97 + letter)) for letter in range(26)] for text in texts]).float()


def build(name, **fields):
    torch.manual_seed(0)
    with mock.patch.object(TextEncoderConfig.family, "build", return_value=Letters()):
        return LossConfig.family.build({"type": name, **FIELDS, **fields})


def output_of(codes):
    blank = torch.zeros(codes.shape[0], 3, 4, 4)
    return TokenizerOutput(pixels=blank, raw=blank, indices=torch.zeros(1), latents=codes, codes=codes)


def codes_of():
    return torch.randn(4, 3, 7, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("position", [None, -1])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_formula_pair_by_pair(name, position):
    loss, codes = build(name, position=position), codes_of().requires_grad_()
    pooled = codes[:, :, 1:5].mean(1) if position is None else codes[:, -1, 1:5]
    ours, theirs = loss.picture_head(pooled), loss.text_head(Letters()(WORDS))
    cosine = [[(a @ b / (a.norm() * b.norm())).item() for b in theirs] for a in ours]
    total = 0.0
    for i in range(4):
        if name == "contrastive":
            row = [math.exp(cosine[i][j] / 0.07) for j in range(4)]
            column = [math.exp(cosine[j][i] / 0.07) for j in range(4)]
            total -= (math.log(row[i] / sum(row)) + math.log(column[i] / sum(column))) / 2 / 4
        else:
            total += sum(math.log1p(math.exp((-1 if i == j else 1) * (10 * cosine[i][j] - 10))) for j in range(4)) / 4
    value = loss(output_of(codes), {"caption": WORDS})
    assert value.item() == pytest.approx(total, rel=1e-4)
    value.backward()
    assert (codes.grad.abs().sum((0, 1)) > 0).tolist() == [False, True, True, True, True, False, False]
    assert all(parameter.grad.abs().sum() > 0 for parameter in loss.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_pictures_of_their_own_captions_lose_least(name):
    loss, codes = build(name), torch.nn.Parameter(codes_of())
    optimizer = torch.optim.Adam([codes, *loss.parameters()], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss(output_of(codes), {"caption": WORDS}).backward()
        optimizer.step()
    with torch.no_grad():
        own, others = (loss(output_of(codes), {"caption": words}) for words in (WORDS, WORDS[1:] + WORDS[:1]))
    assert own < 0.2 * others


@pytest.mark.parametrize("batch", [{}, {"caption": WORDS[:3]}])
def test_a_caption_a_picture_is_needed(batch):
    with pytest.raises(ValueError, match="one `caption` a picture, 4, got"):
        build("contrastive")(output_of(codes_of()), batch)


def test_wrong_fields_are_refused():
    for fields, message in (
        ({"temperature": 0.0}, "temperature"),
        ({"channels": [3, 1]}, "channels"),
        ({"width": 0}, "w"),
    ):
        with pytest.raises(ValueError, match=message):
            build("contrastive", **fields)
    with pytest.raises(ValueError, match="scale must be above 0"):
        build("sigmoid_contrastive", scale=0.0)
    with pytest.raises(ValueError, match="position must be one of 3 tokens, got 3"):
        build("contrastive", position=3)(output_of(codes_of()), {"caption": WORDS})


def gradients(name, rows):
    """Gradients as DDP takes them, the mean over ranks, and the loss."""
    loss = build(name)
    value = loss(output_of(codes_of()[rows]), {"caption": WORDS[rows]})
    value.backward()
    found = {key: parameter.grad for key, parameter in loss.named_parameters()}
    if dist.is_initialized():
        for gradient in found.values():
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
    return {**found, "loss": value.detach()}


def test_two_processes_equal_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [subprocess.Popen([sys.executable, __file__, str(rank), port, str(tmp_path)]) for rank in (0, 1)]
    assert [rank.wait(timeout=240) for rank in ranks] == [0, 0]
    for rank in (0, 1):
        both = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name in NAMES:
            for key, value in gradients(name, slice(None)).items():
                torch.testing.assert_close(both[name][key], value, atol=1e-6, rtol=1e-4, msg=f"{name} {key}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank = int(sys.argv[1])
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[2])
    dist.init_process_group("gloo", rank=rank, world_size=2)
    rows = slice(2 * rank, 2 * rank + 2)
    torch.save({name: gradients(name, rows) for name in NAMES}, f"{sys.argv[3]}/{rank}.pt")
    dist.destroy_process_group()
