"""Nearest neighbours and caption retrieval, by hand and against scikit-learn."""

from __future__ import annotations

import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch.nn import functional as F

from visual_tokenizer import retrieval
from visual_tokenizer.backbones.base import load_backbone
from visual_tokenizer.retrieval import (
    nearest_neighbours,
    retrieval_embedding,
    topk_caption_accuracy,
)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("chunk", [4, 1024])
def test_equals_scikit_learn(generator, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "CHUNK", chunk)
    queries, bank = torch.randn(11, 16, generator=generator), 3 * torch.randn(90, 16, generator=generator)
    similarities, indices = nearest_neighbours(queries, bank, 6)
    theirs = NearestNeighbors(n_neighbors=6, metric="cosine", algorithm="brute").fit(bank.numpy())
    distances, wanted = theirs.kneighbors(queries.numpy())
    assert indices.tolist() == wanted.tolist()
    torch.testing.assert_close(similarities, torch.from_numpy(1 - distances), rtol=1e-4, atol=1e-5)


def angle(*degrees: float) -> torch.Tensor:
    radians = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([radians.cos(), radians.sin()], dim=1)


@pytest.mark.parametrize("chunk", [1, 1024])
def test_caption_ranks_by_hand(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "CHUNK", chunk)
    bank_captions = ["apple", "pear", "apple", "plum", "fig"]
    bank = angle(0, 10, 20, 30, 40)
    generated, captions = angle(9, 9, 9, 9, 45, 0), ["pear", "apple", "plum", "fig", "fig", "cherry"]
    result = topk_caption_accuracy(generated, captions, bank, bank_captions, k=2)
    # At 9 degrees the order is pear, apple (0), apple (20), plum, fig.
    assert result.ranks.tolist() == [1, 2, 4, 5, 1, 0]
    assert result.accuracy == pytest.approx(3 / 6)
    assert result.absent == 1
    assert topk_caption_accuracy(generated, captions, bank, bank_captions, k=4).accuracy == pytest.approx(4 / 6)


def test_agrees_with_nearest_neighbours(generator) -> None:
    bank = torch.randn(60, 8, generator=generator)
    bank_captions = [f"caption {i % 20}" for i in range(60)]
    queries = bank[:30] + 1.2 * torch.randn(30, 8, generator=generator)
    captions = bank_captions[:30]
    _, neighbours = nearest_neighbours(queries, bank, 5)
    hits = [
        any(bank_captions[i] == caption for i in row)
        for row, caption in zip(neighbours.tolist(), captions, strict=True)
    ]
    result = topk_caption_accuracy(queries, captions, bank, bank_captions, k=5)
    assert 0.2 < result.accuracy < 0.95
    assert [0 < rank <= 5 for rank in result.ranks.tolist()] == hits
    assert result.accuracy == pytest.approx(sum(hits) / 30)


def test_equal_pictures_earn_no_credit() -> None:
    """A generator that always draws the same picture, judged by a network that sees no difference."""
    same = torch.ones(50, 4)
    captions = [f"caption {i}" for i in range(50)]
    assert topk_caption_accuracy(same, captions, same, captions, k=5).accuracy == 0


def test_captions_are_compared_as_they_are() -> None:
    result = topk_caption_accuracy(angle(0, 0), ["Apple", "apple "], angle(0), ["apple"], k=1)
    assert result.absent == 2


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"k must be 1\.\.3"):
        nearest_neighbours(angle(0), angle(1, 2, 3), 4)
    with pytest.raises(ValueError, match=r"k must be 1\.\.1"):
        topk_caption_accuracy(angle(0), ["a"], angle(0), ["a"])
    with pytest.raises(ValueError, match="one D"):
        nearest_neighbours(torch.zeros(1, 3), torch.zeros(1, 4), 1)
    with pytest.raises(ValueError, match="bank_captions must be one string a picture"):
        topk_caption_accuracy(angle(0), ["a"], angle(0, 1), ["a"], k=1)


def test_embedding_finds_spoiled_graphics(generator) -> None:
    """Flat coloured blobs, blurred, noisy and shifted, find their originals."""
    coarse = torch.rand(40, 3, 5, 5, generator=generator).round() * 2 - 1
    clean = F.interpolate(coarse, (64, 64), mode="nearest")
    spoiled = F.avg_pool2d(F.pad(clean.roll((2, -2), (2, 3)), (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    spoiled = spoiled + 0.1 * torch.randn(spoiled.shape, generator=generator)
    network = load_backbone("efficientnet_lite0")
    bank, queries = (retrieval_embedding(network, pixels, batch_size=16) for pixels in (clean, spoiled))
    assert bank.shape == (40, 1792)
    torch.testing.assert_close(bank.norm(dim=1), torch.ones(40))
    _, indices = nearest_neighbours(queries, bank, 1)
    assert (indices[:, 0] == torch.arange(40)).float().mean() > 0.95
