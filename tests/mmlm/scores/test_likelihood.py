"""Likelihoods of continuations that share their beginning, against each sequence on its own."""

from __future__ import annotations

import pytest
import torch

from mmlm.generation.loop import evaluation_mode
from mmlm.merging.merge import merge_vocabulary
from mmlm.scores.likelihood import continuation_log_likelihoods, tally_by_kind, token_losses


@pytest.fixture(scope="module")
def merged(make_codec, make_model, text_tokenizer):
    codec = make_codec(quantizer={"type": "fsq", "levels": [4, 4]})
    return merge_vocabulary(make_model(len(text_tokenizer)), text_tokenizer, codec, pad_to_multiple_of=64)


@torch.no_grad()
def alone(model, beginning, continuation):
    """Return log p(continuation | beginning) from one pass over the whole sequence, without cache or padding."""
    logits = model(torch.cat([beginning, continuation])[None]).logits[0].double().log_softmax(-1)
    rows = logits[len(beginning) - 1 : -1]
    return float(rows.gather(1, continuation[:, None]).sum())


CONTINUATIONS = [torch.tensor(ids) for ids in ([5], [9, 8, 7, 6], [300, 5], [11, 12, 13, 14, 15, 16, 17])]


@pytest.mark.parametrize("beginning", [[1], [1, 40, 41, 42, 43]])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_each_continuation_is_as_likely_as_alone(merged, beginning, batch_size):
    model, processor = merged
    beginning = torch.tensor(beginning)
    found = continuation_log_likelihoods(model, beginning, CONTINUATIONS, processor.layout.eos_id, batch_size)
    wanted = [alone(model, beginning, one) for one in CONTINUATIONS]
    assert found.tolist() == pytest.approx(wanted, rel=1e-5)


def test_one_token_after_another_is_a_distribution(merged):
    model, processor = merged
    rows = model.config.vocab_size
    every = [torch.tensor([token]) for token in range(rows)]
    found = continuation_log_likelihoods(model, torch.tensor([1, 50, 51]), every, processor.layout.eos_id)
    assert float(found.exp().sum()) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(("beginning", "continuations"), [([], [[1]]), ([1], [[1], []])])
def test_nothing_has_no_likelihood(merged, beginning, continuations):
    wanted = [torch.tensor(one, dtype=torch.int64) for one in continuations]
    with pytest.raises(ValueError, match="1 token or more"):
        continuation_log_likelihoods(merged[0], torch.tensor(beginning, dtype=torch.int64), wanted, 0)


def test_losses_of_tokens_do_not_depend_on_the_batch(merged):
    model, processor = merged
    sequences = [torch.cat([torch.tensor([1]), one]) for one in CONTINUATIONS]
    with evaluation_mode(model):
        one, four = (list(token_losses(model, sequences, processor.layout.eos_id, size)) for size in (1, 4))
    for left, right, sequence in zip(one, four, sequences, strict=True):
        assert len(left) == len(sequence) - 1
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)
        assert float(left.sum()) == pytest.approx(-alone(model, sequence[:1], sequence[1:]), rel=1e-5)


def test_tokens_are_counted_by_kind(merged):
    model, processor = merged
    indices = torch.arange(16).view(4, 4)
    found = tally_by_kind(model, processor.layout, [processor.image_to_caption(indices, "a red dog")])
    assert found["image"].tokens == 16
    assert found["text"].tokens == len(processor.text_ids("a red dog"))
