from __future__ import annotations

import pytest

import mmlm.measures.caption_quality as module
from mmlm.measures.caption_quality import CaptionQuality, CaptionQualityConfig, scores

pytest.importorskip("sacrebleu")


def test_references_written_word_for_word_get_full_marks(make_subject, monkeypatch):
    texts = {"train": None, "heldout": None}
    subject = make_subject()
    for split in texts:
        texts[split] = subject.pairs(split).captions
    monkeypatch.setattr(
        module,
        "describe_images",
        lambda model, processor, images, **_: texts["train" if len(images) == 6 else "heldout"],
    )
    findings = CaptionQuality(CaptionQualityConfig()).measure(subject)
    found = findings.values["train"]
    assert (found["bleu_1"], found["rouge_l"], found["exact"], found["pictures"]) == (pytest.approx(100), 1, 1, 6)
    assert found["cider_d"] == pytest.approx(7.5)  # three words: runs of four there are none
    assert found["captions"][0] == {
        "key": subject.pairs("train").keys[0],
        "written": "a lime box",
        "reference": "a lime box",
    }
    assert set(findings.sheets) == {"captions_train", "captions_heldout"}


def test_scores_of_known_captions():
    found = scores(["a red box", "sun"], [["a red box"], ["moon"]])
    assert found["bleu_1"] == pytest.approx(100 * 3 / 4)
    assert found["rouge_l"] == found["exact"] == 0.5
    assert "version" in found["bleu_signature"]


def test_the_model_itself_writes_something_for_each_picture(make_subject):
    findings = CaptionQuality(CaptionQualityConfig(max_new_tokens=4)).measure(make_subject())
    assert len(findings.values["heldout"]["captions"]) == 4
    with pytest.raises(ValueError, match="max_new_tokens must be 1 or more, got 0"):
        CaptionQualityConfig(max_new_tokens=0)
