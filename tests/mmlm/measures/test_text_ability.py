from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from mmlm.measures.text_ability import TextAbility, visual_rows
from mmlm.text_tokenizer import train_text_tokenizer
from visual_tokenizer.errors import UserError

TEXT = "a red apple near the sea, a blue car under the roof and a yellow house in the rain at night. " * 6


@pytest.fixture(scope="module")
def files(tmp_path_factory, make_model, text_tokenizer):
    """The language model before the merge, and a text."""
    folder = tmp_path_factory.mktemp("text")
    make_model(len(text_tokenizer)).save_pretrained(folder / "before")
    text_tokenizer.save_pretrained(folder / "before")
    (folder / "english.txt").write_text(TEXT, encoding="utf-8")
    return folder


def ability(files, **fields):
    reference = {"type": "pretrained", "path": str(files / "before")}
    config = {"text_file": str(files / "english.txt"), "reference_model": reference, "window": 64, "stride": 32}
    return TextAbility.Config.family.build({"type": "text_ability", **config, **fields})


def test_merging_alone_changes_nothing_but_the_softmax(make_subject, files):
    subject = make_subject()
    found = ability(files).measure(subject).values
    reference, merged = found["reference"], found["merged"]
    assert merged["perplexity_without_visual_rows"] == pytest.approx(reference["perplexity"], rel=1e-5)
    assert found["change_percent_without_visual_rows"] == pytest.approx(0, abs=1e-3)
    # New rows take their share of the softmax: the perplexity over the whole vocabulary is higher.
    assert found["change_percent"] > 0
    assert found["change_percent"] == pytest.approx(100 * (merged["perplexity"] / reference["perplexity"] - 1))
    assert found["tokens"] == len(subject.processor.text_ids(TEXT)) - 1
    assert found["bytes"] == len(TEXT)


@torch.no_grad()
def test_one_window_is_the_models_own_loss(make_subject, files):
    subject = make_subject()
    ids = torch.tensor(subject.processor.text_ids(TEXT))
    found = ability(files, reference_model=None, window=2048, stride=512).measure(subject).values
    wanted = F.cross_entropy(subject.model(ids[None]).logits[0, :-1], ids[1:])
    assert found["merged"]["loss"] == pytest.approx(float(wanted), rel=1e-5)
    assert found["merged"]["perplexity"] == pytest.approx(math.exp(float(wanted)), rel=1e-5)
    assert "reference" not in found


def test_the_rows_of_the_merge_are_the_visual_ones(merged):
    _, processor = merged
    rows = visual_rows(processor)
    assert rows[0] == processor.merge.text_rows
    assert rows[-1] == processor.merge.rows - 1
    assert set(processor.vocabulary.visual_ids().tolist()) < set(rows.tolist())


def test_wrong_files_models_and_fields(make_subject, files, tmp_path, captions):
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "short.txt").write_text("", encoding="utf-8")
    for name, message in (
        ("none.txt", "readable UTF-8 file"),
        ("latin.txt", "readable UTF-8 file"),
        ("short.txt", "0 token"),
    ):
        with pytest.raises(UserError, match=message):
            ability(files, text_file=str(tmp_path / name)).measure(make_subject())
    with pytest.raises(ValueError, match="window must be at most"):
        ability(files, window=5000, stride=10).measure(make_subject())
    with pytest.raises(ValueError, match="stride must be in 1 … window - 1 = 63, got 64"):
        ability(files, stride=64)
    with pytest.raises(ValueError, match="window must be 2 or more, got 1"):
        ability(files, window=1)
    other = tmp_path / "other"
    AutoModelForCausalLM.from_pretrained(files / "before").save_pretrained(other)
    train_text_tokenizer(captions, 300, tmp_path / "pieces").save_pretrained(other)
    with pytest.raises(UserError, match="give the language model from which the merged one was made"):
        ability(files, reference_model={"type": "pretrained", "path": str(other)}).measure(make_subject())
