"""Scores of captions against closed forms, an independent program and their papers' rules."""

from __future__ import annotations

import builtins
import math

import pytest

from mmlm.scores.bleu import MissingPackageError, bleu
from mmlm.scores.cider_d import cider_d
from mmlm.scores.rouge_l import longest_common_subsequence, rouge_l
from mmlm.scores.words import ngrams, words


def test_words_are_lower_case_and_without_punctuation():
    assert words("A red-faced cat, isn't it? 2 of 3!") == ["a", "red-faced", "cat", "isn't", "it", "2", "of", "3"]
    assert words("  …") == []


def test_runs_of_words():
    assert ngrams(["a", "b", "a", "b"], 2) == {("a", "b"): 2, ("b", "a"): 1}
    assert not ngrams(["a"], 2)


# CIDEr-D


def test_equal_captions_of_four_words_or_more_get_ten():
    texts = ["red fish swim in water", "two dogs run over grass", "an old green car stops"]
    assert cider_d(texts, [[text] for text in texts]) == pytest.approx([10.0] * 3)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_of_captions_of_fewer_words_only_the_runs_that_are_there_agree(count):
    texts = [" ".join(f"{name}{place}" for place in range(count)) for name in "abc"]
    assert cider_d(texts, [[text] for text in texts]) == pytest.approx([10.0 * count / 4] * 3)


def test_a_repeated_word_is_clipped_and_a_longer_caption_is_punished():
    # Of n = 1 the caption's vector is (3 r) and the reference's (r); clipped, their product is r² / (3 r · r).
    found = cider_d(["cat cat cat", "dog"], [["cat"], ["dog"]])
    assert found[0] == pytest.approx(10 / 4 * (1 / 3) * math.exp(-(2**2) / (2 * 6**2)))
    assert found[1] == pytest.approx(10 / 4)


def test_words_count_by_how_rare_they_are():
    # "the" is in all references and weighs nothing; "cat" in one of 4, "big" in two of 4.
    references = [["the big cat"], ["the big dog"], ["the sun"], ["the moon"]]
    one = cider_d(["cat", "x", "y", "z"], references)[0]
    cat, big = math.log(4), math.log(2)
    unigrams = cat * cat / (cat * math.hypot(cat, big))
    assert one == pytest.approx(10 / 4 * unigrams * math.exp(-(2**2) / (2 * 6**2)))
    assert cider_d(["the", "x", "y", "z"], references)[0] == 0


def test_words_that_no_reference_holds_make_the_caption_longer():
    references = [["cat"], ["dog"]]
    rarity = math.log(2)
    found = cider_d(["cat zebra", "dog"], references)[0]
    cosine = rarity * rarity / (math.hypot(rarity, rarity) * rarity)
    assert found == pytest.approx(10 / 4 * cosine * math.exp(-1 / (2 * 6**2)))


def test_several_references_are_averaged():
    both = cider_d(["cat", "sun"], [["cat", "dog"], ["sun"]])[0]
    assert both == pytest.approx(cider_d(["cat", "sun"], [["cat"], ["sun"]])[0] / 2)


def test_empty_captions_get_nothing_and_one_picture_alone_has_no_rarity():
    assert cider_d(["", "dog"], [["cat"], ["dog"]])[0] == 0
    assert cider_d(["cat"], [["cat"]]) == [0.0]


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="each of the 2 captions, got 1"):
        cider_d(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="1 of them empty"):
        cider_d(["a", "b"], [["a"], []])


# ROUGE-L


def test_longest_common_subsequence():
    assert longest_common_subsequence("police killed the gunman".split(), "police kill the gunman".split()) == 3
    assert longest_common_subsequence(list("abcbdab"), list("bdcaba")) == 4
    assert longest_common_subsequence([], ["a"]) == 0


def test_rouge_l_is_the_f_measure_of_the_paper():
    # Lin (2004), section 3.1: "police kill the gunman" against "police killed the gunman" shares 3 of 4 words.
    assert rouge_l("police kill the gunman", ["police killed the gunman"]) == pytest.approx(0.75)
    precision, recall, beta = 2 / 2, 2 / 4, 1.2
    wanted = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    assert rouge_l("the gunman", ["police killed the gunman"]) == pytest.approx(wanted)
    assert rouge_l("a cat", ["dog", "a cat"]) == 1
    assert rouge_l("", ["dog"]) == 0
    with pytest.raises(ValueError, match="one text or more"):
        rouge_l("a", [])


# BLEU


def test_bleu_against_its_closed_form():
    pytest.importorskip("sacrebleu")
    assert bleu(["a red cat sits here"], [["A red cat sits here"]])[0] == pytest.approx(100)
    value, signature = bleu(["the the the the the the the"], [["the cat is on the mat"]], longest=1)
    assert value == pytest.approx(100 * 2 / 7)  # the example of Papineni et al., section 2.1, clipped
    assert "case:lc" in signature
    short, _ = bleu(["a red"], [["a red cat sits"]], longest=1)
    assert short == pytest.approx(100 * math.exp(1 - 4 / 2))  # precision 1, brevity penalty
    several, _ = bleu(["a cat", "a dog"], [["a cat"], ["the wolf", "a dog"]], longest=1)
    assert several == pytest.approx(100)


def test_bleu_says_what_is_missing(monkeypatch):
    found = builtins.__import__

    def missing(name, *arguments, **keywords):
        if name.startswith("sacrebleu"):
            raise ImportError(name)
        return found(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingPackageError, match="pip install sacrebleu"):
        bleu(["a"], [["a"]])
