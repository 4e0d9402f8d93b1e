from __future__ import annotations

import math

import pytest
import torch

from mmlm.measures.perplexity import Perplexity, PerplexityConfig
from mmlm.scores.likelihood import kinds_of


@torch.no_grad()
def test_both_directions_against_each_sequence_alone(make_subject):
    subject = make_subject()
    found = Perplexity(PerplexityConfig()).measure(subject).values
    pairs, processor = subject.pairs("heldout"), subject.processor
    sums, counts = [0.0] * 3, [0] * 3
    for caption, indices in zip(pairs.captions, pairs.indices, strict=True):
        ids = processor.image_to_caption(indices, caption)
        scores = subject.model(ids[None]).logits[0, :-1].double().log_softmax(-1)
        kinds = kinds_of(processor.layout, ids)
        for row, token, kind in zip(scores, ids[1:].tolist(), kinds[1:].tolist(), strict=True):
            sums[kind] -= float(row[token])
            counts[kind] += 1
    assert found["heldout"]["pairs"] == 4
    for place, name in enumerate(("text", "image", "structure")):
        one = found["heldout"]["picture_to_caption"][name]
        assert one["tokens"] == counts[place]
        assert one["loss"] == pytest.approx(sums[place] / counts[place], rel=1e-5)
        assert one["perplexity"] == pytest.approx(math.exp(one["loss"]))
    drawing, describing = (found["train"][name] for name in ("caption_to_picture", "picture_to_caption"))
    assert drawing["image"]["tokens"] == describing["image"]["tokens"] == 6 * 16
    assert drawing["image"]["loss"] != describing["image"]["loss"]


def test_the_batch_does_not_matter(make_subject):
    one, many = (
        Perplexity(PerplexityConfig()).measure(make_subject(batch_size=size)).values["train"] for size in (1, 6)
    )
    for direction in ("caption_to_picture", "picture_to_caption"):
        for kind in ("text", "image", "structure"):
            assert one[direction][kind]["loss"] == pytest.approx(many[direction][kind]["loss"], rel=1e-5)
