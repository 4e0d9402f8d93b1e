"""Perplexity over windows, of models whose likelihoods are known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmlm.scores.text_perplexity import text_losses, windows


class Bigrams(nn.Module):
    """A causal LM whose logits follow from the last token alone."""

    device = torch.device("cpu")

    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, input_ids, use_cache, logits_to_keep):
        assert not self.training
        return SimpleNamespace(logits=self.table[input_ids][:, -logits_to_keep:])


class Counts(Bigrams):
    """Gives id 0 the logit n where n tokens are visible: the loss tells how long the context was."""

    def forward(self, input_ids, use_cache, logits_to_keep):
        seen = torch.arange(1, input_ids.shape[1] + 1, dtype=torch.float32)
        logits = torch.zeros(1, len(seen), 2)
        logits[0, :, 0] = seen
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])


@pytest.mark.parametrize(("tokens", "length", "stride"), [(2, 2, 1), (17, 4, 1), (17, 4, 3), (100, 32, 16), (5, 64, 8)])
def test_windows_predict_each_token_but_the_first_once(tokens, length, stride):
    found = windows(tokens, length, stride)
    predicted = [place for start, stop, first in found for place in range(first, stop)]
    assert predicted == list(range(1, tokens))
    assert all(stop - start <= length and first > start for start, stop, first in found)
    later = [first - start for start, _, first in found[1:]]
    assert all(context == length - stride for context in later)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 8, 4), "2 tokens or more"),
        ((9, 1, 1), "length must be 2 or more, got 1"),
        ((9, 8, 8), "stride must be in 1 … length - 1 = 7, got 8"),
        ((9, 8, 0), "stride must be in 1 … length - 1 = 7, got 0"),
    ],
)
def test_wrong_windows_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        windows(*arguments)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
    ids = torch.arange(40) % 7
    found = text_losses(Bigrams(torch.zeros(10, 10)), ids, 8, 4, excluded=torch.tensor([7, 9]))
    assert found.tokens == 39
    assert found.perplexity == pytest.approx(10)
    assert found.perplexity_of_words == pytest.approx(8)


def test_a_bigram_model_has_its_closed_form_whatever_the_windows():
    table = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(0, 5, (301,), generator=torch.Generator().manual_seed(1))
    wanted = -table.double().log_softmax(1)[ids[:-1], ids[1:]].mean().item()
    words = -table[:, :5].double().log_softmax(1)[ids[:-1], ids[1:]].mean().item()
    for length, stride in [(2, 1), (16, 5), (64, 32), (512, 256)]:
        found = text_losses(Bigrams(table), ids.tolist(), length, stride, excluded=torch.tensor([5]))
        assert found.loss == pytest.approx(wanted, rel=1e-6)
        assert found.loss_of_words == pytest.approx(words, rel=1e-6)
        assert found.perplexity == pytest.approx(math.exp(found.loss))


def test_later_windows_see_length_minus_stride_tokens_before_what_they_predict():
    # 12 tokens, windows of 6, 2 apart: contexts 1 … 5, then 4 and 5 in each of the three later windows.
    found = text_losses(Counts(torch.zeros(1)), torch.zeros(12, dtype=torch.int64), 6, 2)
    contexts = [1, 2, 3, 4, 5] + [4, 5] * 3
    assert found.loss == pytest.approx(sum(math.log1p(math.exp(-n)) for n in contexts) / 11, rel=1e-5)


def test_nothing_is_excluded_that_the_text_holds():
    with pytest.raises(ValueError, match="ids that are to be excluded"):
        text_losses(Bigrams(torch.zeros(4, 4)), [0, 1, 2], 8, 4, excluded=torch.tensor([2]))


def test_without_exclusions_both_losses_are_one():
    found = text_losses(Bigrams(torch.eye(4)), [0, 1, 2, 3, 3], 8, 4)
    assert found.loss == found.loss_of_words
