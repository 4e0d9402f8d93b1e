from __future__ import annotations

import torch

import mmlm.measures.base as module


def test_pairs_of_both_splits(make_subject):
    subject = make_subject()
    assert subject.splits == ["train", "heldout"]
    train, heldout = subject.pairs("train"), subject.pairs("heldout")
    assert train.captions == [f"a {color} box" for color in ("lime", "white", "orange", "cyan", "pink", "gray")]
    assert len(heldout) == 4  # there are no more
    assert heldout.captions[0] == "a red car"
    assert train.indices.shape == (6, 4, 4)
    assert torch.equal(train.indices, subject.processor.encode_images(train.images))
    assert make_subject(split="all").splits == ["all"]
    assert len(subject.bank.captions) == 12


def test_drawings_are_made_once(make_subject, monkeypatch):
    calls = []

    def draw(model, processor, prompts, **settings):
        calls.append((list(prompts), settings))
        return ["drawing"] * len(prompts)

    monkeypatch.setattr(module, "generate_images", draw)
    subject = make_subject(seed=3)
    assert subject.drawings("train") == subject.drawings("train") == ["drawing"] * 6
    ((prompts, settings),) = calls
    assert prompts == subject.pairs("train").captions
    assert (settings["seed"], settings["batch_size"], settings["guidance_scale"]) == (3, 4, 1.0)


def test_only_the_first_pictures_are_looked_through(make_subject):
    subject = make_subject(max_pictures=5)
    assert len(subject.bank.captions) == len(subject.pairs("train")) == 5
