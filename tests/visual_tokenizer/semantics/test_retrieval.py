"""Caption retrieval, by hand and against scikit-learn's neighbours."""

from __future__ import annotations

import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch.nn import functional as F

from visual_tokenizer.backbones.base import load_backbone
from visual_tokenizer.semantics import text_retrieval
from visual_tokenizer.semantics.text_retrieval import caption_ranks, retrieval_embedding


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def nearest(queries: torch.Tensor, bank: torch.Tensor, k: int) -> torch.Tensor:
    """Numbers of the k most cosine-similar, (Q, k), the best first."""
    found = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(bank.numpy())
    return torch.from_numpy(found.kneighbors(queries.numpy(), return_distance=False))


def angle(*degrees: float) -> torch.Tensor:
    radians = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([radians.cos(), radians.sin()], dim=1)


@pytest.mark.parametrize("chunk", [1, 1024])
def test_caption_ranks_by_hand(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_retrieval, "CHUNK", chunk)
    bank_captions = ["apple", "pear", "apple", "plum", "fig"]
    bank = angle(0, 10, 20, 30, 40)
    generated, captions = angle(9, 9, 9, 9, 45, 0), ["pear", "apple", "plum", "fig", "fig", "cherry"]
    ranks = caption_ranks(generated, captions, bank, bank_captions)
    # At 9 degrees the order is pear, apple (0), apple (20), plum, fig.
    assert ranks.tolist() == [1, 2, 4, 5, 1, 0]


@pytest.mark.parametrize("chunk", [4, 1024])
def test_agrees_with_scikit_learn(generator, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_retrieval, "CHUNK", chunk)
    bank = torch.randn(60, 8, generator=generator)
    bank_captions = [f"caption {i % 20}" for i in range(60)]
    queries = bank[:30] + 1.2 * torch.randn(30, 8, generator=generator)
    captions = bank_captions[:30]
    neighbours = nearest(queries, bank, 5)
    hits = [
        any(bank_captions[i] == caption for i in row)
        for row, caption in zip(neighbours.tolist(), captions, strict=True)
    ]
    ranks = caption_ranks(queries, captions, bank, bank_captions)
    assert [0 < rank <= 5 for rank in ranks.tolist()] == hits
    assert 0.2 < sum(hits) / 30 < 0.95


def test_equal_pictures_earn_no_credit() -> None:
    """A generator that always draws the same picture, judged by a network that sees no difference."""
    same = torch.ones(50, 4)
    captions = [f"caption {i}" for i in range(50)]
    assert caption_ranks(same, captions, same, captions).tolist() == [50] * 50


def test_captions_are_compared_as_they_are() -> None:
    assert caption_ranks(angle(0, 0), ["Apple", "apple "], angle(0), ["apple"]).tolist() == [0, 0]


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="one D"):
        caption_ranks(torch.zeros(1, 3), ["a"], torch.zeros(1, 4), ["a"])
    with pytest.raises(ValueError, match="bank_captions must be one string a picture"):
        caption_ranks(angle(0), ["a"], angle(0, 1), ["a"])


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
    assert (nearest(queries, bank, 1)[:, 0] == torch.arange(40)).float().mean() > 0.95
