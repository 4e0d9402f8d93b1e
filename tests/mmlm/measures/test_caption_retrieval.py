"""Ranks of captions where the likelihoods are known, and that the model's own do not depend on batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mmlm.measures.caption_retrieval as module
from mmlm.measures.caption_retrieval import (
    CaptionRetrieval,
    CaptionRetrievalConfig,
    candidates,
    ranks_of_first,
    retrieval,
)


def test_ranks_count_what_scores_as_much_or_more():
    scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0], [0.0, 5.0, 4.0]])
    assert ranks_of_first(scores).tolist() == [1, 2, 3]
    found = retrieval(torch.tensor([1, 2, 3, 6]))
    assert found == {"recall_at_1": 0.25, "recall_at_5": 0.75, "mean_reciprocal_rank": (1 + 1 / 2 + 1 / 3 + 1 / 6) / 4}


def test_candidates_hold_the_right_caption_first_and_each_once():
    names = [str(number) for number in range(20)]
    chosen = candidates(names, ["7", "7", "0"], 5, seed=0)
    assert chosen.shape == (3, 5)
    assert chosen[:, 0].tolist() == [7, 7, 0]
    assert all(len(set(row)) == 5 for row in chosen.tolist())
    assert chosen[0].tolist() != chosen[1].tolist()
    assert torch.equal(chosen, candidates(names, ["7", "7", "0"], 5, seed=0))
    assert not torch.equal(chosen, candidates(names, ["7", "7", "0"], 5, seed=1))
    assert candidates(names, ["3"], 99, seed=0).shape == (1, 20)


def fake_likelihoods(subject, split, offsets):
    """Stand in for the model: log p(caption | picture) is -3 for a picture's own caption, else -4 + its offset.

    Without a picture a caption has its offset alone.
    """
    layout, pairs = subject.processor.layout, subject.pairs(split)
    own = dict(zip(pairs.captions, pairs.indices, strict=True))
    texts = {tuple([*layout.text_ids(caption), layout.eos_id]): caption for caption in pairs.captions}

    def likelihoods(model, beginning, continuations, pad_id, batch_size):
        names = [texts.get(tuple(one.tolist())) for one in continuations]
        blocks = layout.find_blocks(beginning)
        if not blocks:
            return torch.tensor([offsets[name] for name in names], dtype=torch.float64)
        indices = layout.block_indices(beginning, blocks[0])
        return torch.tensor(
            [offsets[name] + (-3.0 if torch.equal(own[name], indices) else -4.0) for name in names],
            dtype=torch.float64,
        )

    return likelihoods


def test_a_model_that_knows_finds_every_caption_and_a_prior_misleads(make_subject, monkeypatch):
    subject = make_subject()
    pairs = subject.pairs("train")
    subject._pairs["train"] = replace(pairs, indices=torch.arange(6 * 16).view(6, 4, 4) // 6)  # no two alike
    captions = pairs.captions
    offsets = dict.fromkeys(captions, 0.0) | {captions[0]: 9.0}
    monkeypatch.setattr(type(subject), "splits", ["train"])
    monkeypatch.setattr(module, "continuation_log_likelihoods", fake_likelihoods(subject, "train", offsets))
    findings = CaptionRetrieval(CaptionRetrievalConfig()).measure(subject)
    found = findings.values["train"]
    assert (found["candidates"], found["pictures"]) == (6, 6)
    # The caption that is likely in itself wins everywhere, so the others' captions come second.
    assert found["caption_given_picture"]["recall_at_1"] == pytest.approx(1 / 6)
    assert found["caption_given_picture"]["mean_reciprocal_rank"] == pytest.approx((1 + 5 / 2) / 6)
    assert found["prior_free"] == {"recall_at_1": 1.0, "recall_at_5": 1.0, "mean_reciprocal_rank": 1.0}
    assert found["chance"]["recall_at_1"] == pytest.approx(1 / 6)
    assert found["chance"]["recall_at_5"] == pytest.approx(5 / 6)
    assert any("N = 6" in label for label, _ in findings.rows)


def test_the_models_own_ranks_do_not_depend_on_the_batch(make_subject):
    measure = CaptionRetrieval(CaptionRetrievalConfig(candidates=4, by_picture=True))
    one, many = (measure.measure(make_subject(batch_size=size)).values for size in (1, 64))
    assert one == many
    assert set(one) == {"train", "heldout"}
    assert set(one["train"]) == {
        "candidates", "pictures", "caption_given_picture", "prior_free", "picture_given_caption", "chance",
    }  # fmt: skip


@torch.no_grad()
def test_pictures_are_as_likely_as_alone(make_subject):
    subject = make_subject()
    pairs, processor = subject.pairs("train"), subject.processor
    found = CaptionRetrieval(CaptionRetrievalConfig(by_picture=True))._by_picture(subject, pairs, pairs.captions)
    for picture, caption in ((0, 0), (2, 1), (5, 4)):
        ids = processor.caption_to_image(pairs.captions[caption], pairs.indices[picture])[:-1]
        start = len(processor.prompt_for_image(pairs.captions[caption]))
        scores = subject.model(ids[None]).logits[0].double().log_softmax(-1)
        wanted = scores[start - 1 : -1].gather(1, ids[start:, None]).sum()
        assert float(found[picture, caption]) == pytest.approx(float(wanted), rel=1e-5)
