"""Every measure on pictures whose meaning is known: perfect where it is in the tokens, chance where it is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from visual_tokenizer.outputs import ABSENT
from visual_tokenizer.semantics.base import SemanticData, SemanticMeasureConfig, TokenizedPictures

NAMES = SemanticMeasureConfig.family.names()
OF_CLASSES = ["knn", "linear_probe"]


def measure(name: str, data: SemanticData, **fields: object) -> dict[str, float]:
    return SemanticMeasureConfig.family.build({"type": name, **fields}, seed=0).measure(data)


def test_the_measures_are_found() -> None:
    wanted = ["knn", "linear_probe", "mutual_information", "purity", "text_retrieval", "zero_shot"]
    assert sorted(NAMES) == wanted


@pytest.mark.parametrize("name", OF_CLASSES)
def test_separable_classes_are_told_apart(name: str, meaningful: SemanticData) -> None:
    values = measure(name, meaningful)
    prefix = {"knn": "knn", "linear_probe": "linear"}[name]
    assert values == {
        f"{prefix}_accuracy_chance": pytest.approx(1 / 3),
        f"{prefix}_accuracy_codes": 1,
        f"{prefix}_accuracy_tokens": 1,
        f"{prefix}_accuracy_teacher": 1,
    }


@pytest.mark.parametrize("name", OF_CLASSES)
def test_shuffled_classes_are_guessed(name: str, meaningful: SemanticData, shuffle) -> None:
    values = measure(name, shuffle(meaningful))
    spread = 3 * (1 / 3 * 2 / 3 / 90) ** 0.5
    for view in ("codes", "tokens", "teacher"):
        (value,) = (found for key, found in values.items() if key.endswith(view))
        assert value == pytest.approx(1 / 3, abs=spread)


def test_codes_of_one_class_are_pure(meaningful: SemanticData, shuffle) -> None:
    assert measure("purity", meaningful)["purity_tokens"] == 1
    # Three classes are log(3) nats of the log(12) that the codes have.
    share = 2 * torch.tensor(3.0).log() / (torch.tensor(12.0).log() + torch.tensor(3.0).log())
    found = measure("mutual_information", meaningful)["mutual_information_tokens"]
    assert found == pytest.approx(share.item(), rel=0.01)
    for name in ("purity", "mutual_information"):
        values = measure(name, shuffle(meaningful), shuffles=50)
        assert values[f"{name}_tokens"] == pytest.approx(values[f"{name}_chance"], abs=0.02)
    assert measure("purity", meaningful)["purity_chance"] < 0.5


def test_captions_that_are_in_the_codes_are_found(meaningful: SemanticData, shuffle) -> None:
    values = measure("text_retrieval", meaningful)
    assert values["text_to_image_r1_codes"] == values["image_to_text_r1_codes"] == 1
    assert values["text_to_image_r5_chance"] == pytest.approx(5 / 90)
    recalls = [
        values[f"{direction}_r{k}_codes"] for direction in ("text_to_image", "image_to_text") for k in (1, 5, 10)
    ]
    assert values["mean_recall_codes"] == pytest.approx(sum(recalls) / 6)
    assert values["mean_recall_chance"] == pytest.approx((1 + 5 + 10) / 90 / 3)
    guessed = measure("text_retrieval", shuffle(meaningful))
    for direction in ("text_to_image", "image_to_text"):
        assert guessed[f"{direction}_r5_codes"] < 5 / 90 + 3 * (5 / 90 * 85 / 90 / 90) ** 0.5
        assert values[f"{direction}_r1_codes"] <= values[f"{direction}_r5_codes"] <= values[f"{direction}_r10_codes"]


def test_names_of_classes_are_found_where_codes_lie_in_the_space_of_texts(meaningful: SemanticData, shuffle) -> None:
    """Captions say the class in other words than the prompt; codes are a linear image of the captions."""

    def told(part: TokenizedPictures) -> TokenizedPictures:
        captions = [f"{label} {row}" for row, label in enumerate(part.labels)]
        texts = meaningful.text_encoder(captions)
        return replace(part, captions=captions, texts=texts, codes=F.pad(2 * texts, (0, 1)))

    data = replace(meaningful, train=told(meaningful.train), heldout=told(meaningful.heldout))
    values = measure("zero_shot", data, prompt="{}")
    assert values["zero_shot_accuracy_codes"] > 0.9
    assert measure("zero_shot", shuffle(data), prompt="{}")["zero_shot_accuracy_codes"] < 0.5
    with pytest.raises(ValueError, match=r"prompt must hold \{\}, where the class is put, got 'a thing'"):
        SemanticMeasureConfig.family.config({"type": "zero_shot", "prompt": "a thing"})


@pytest.mark.parametrize("name", NAMES)
def test_absent_tokens_do_not_count(name: str, meaningful: SemanticData) -> None:
    """Behind each picture's own tokens stand absent ones, as many as it likes; a picture may have one token only."""

    def shortened(part: TokenizedPictures, behind: int) -> TokenizedPictures:
        indices = part.indices.clone()
        lengths = 1 + torch.arange(len(part)) % 5
        indices[torch.arange(5)[None] >= lengths[:, None]] = ABSENT
        return replace(part, indices=F.pad(indices, (0, 0, 0, behind), value=ABSENT))

    few, many = (
        replace(meaningful, **{split: shortened(getattr(meaningful, split), n) for split in ("train", "heldout")})
        for n in (0, 7)
    )
    assert measure(name, few) == measure(name, many)
    if name in ("purity", "knn"):
        key = {"purity": "purity_tokens", "knn": "knn_accuracy_tokens"}[name]
        assert measure(name, few)[key] == 1


@pytest.mark.parametrize("name", NAMES)
def test_two_codebooks_stand_side_by_side(name: str, meaningful: SemanticData) -> None:
    """The same index means another code in each codebook, so the second may undo the first for no measure."""

    def doubled(part: TokenizedPictures) -> TokenizedPictures:
        return replace(part, indices=torch.cat([part.indices, (part.indices + 4) % 12], dim=2))

    data = replace(meaningful, train=doubled(meaningful.train), heldout=doubled(meaningful.heldout))
    once, twice = measure(name, meaningful), measure(name, data)
    for key, value in once.items():
        if not key.endswith("chance"):
            assert twice[key] == pytest.approx(value, abs=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_the_protocol_says_what_is_measured(name: str) -> None:
    measure = SemanticMeasureConfig.family.build({"type": name})
    assert measure.protocol()["type"] == name
    assert len(measure.protocol()["measures"]) > 20
    assert measure.needs


@pytest.mark.parametrize("name", NAMES)
def test_measuring_again_gives_the_same(name: str, meaningful: SemanticData) -> None:
    torch.manual_seed(3)
    first = measure(name, meaningful)
    torch.manual_seed(4)
    assert measure(name, replace(meaningful)) == first


def test_a_class_that_was_never_seen_is_wrong(meaningful: SemanticData) -> None:
    heldout = replace(meaningful.heldout, labels=["ships", *meaningful.heldout.labels[1:]])
    values = measure("knn", replace(meaningful, heldout=heldout))
    assert values["knn_accuracy_codes"] == pytest.approx(89 / 90)
    assert measure("purity", replace(meaningful, heldout=heldout))["purity_tokens"] == 1


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"type": "knn", "neighbours": 0}, "neighbours must be 1 or more, got 0"),
        ({"type": "linear_probe", "strengths": [1, 0.1]}, r"strengths must be growing, got \[1.0, 0.1\]"),
        ({"type": "linear_probe", "validation_fraction": 1}, r"validation_fraction must be in \(0, 1\), got 1"),
        ({"type": "text_retrieval", "ranks": []}, r"ranks must hold 1 or more items, got \[\]"),
        ({"type": "purity", "shuffles": 0}, "shuffles must be 1 or more, got 0"),
        ({"type": "mutual_information", "shuffles": 0}, "shuffles must be 1 or more, got 0"),
    ],
)
def test_wrong_fields_are_named(section: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SemanticMeasureConfig.family.config(section)
