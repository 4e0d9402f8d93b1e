from __future__ import annotations

import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from mmlm.data.collating import SequenceCollator
from mmlm.data.document_sequences import DocumentSequences
from mmlm.data.pair_shards import PairRows, encode_captions
from mmlm.data.shards import ShardError
from mmlm.documents.pictures import Pictures, PicturesConfig
from mmlm.layouts.base import Layout, LayoutConfig
from mmlm.merging.merge import merge_vocabulary
from mmlm.processing import MultimodalProcessor
from mmlm.vocabulary import IMAGE, STRUCTURE, TEXT, VisualVocabulary
from visual_tokenizer.data.sources.base import SourceConfig
from visual_tokenizer.errors import UserError

INDICES = np.random.default_rng(0).integers(0, 512, (50, 16))
CAPTIONS = [f"a red apple number {number}" * (1 + number % 3) for number in range(49)] + ["<|visual_00001|> <s>"]


@pytest.fixture(scope="module")
def processor(merged_folder: Path) -> MultimodalProcessor:
    return MultimodalProcessor.from_pretrained(merged_folder)


def shards() -> datasets.Dataset:
    columns = {
        "key": [str(number) for number in range(50)],
        "caption": CAPTIONS,
        "indices": INDICES.astype(np.uint16),
        "grid": [[4, 4]] * 50,
    }
    return datasets.Dataset.from_dict(columns)


def sequences(
    rows: datasets.Dataset, layout: Layout, seed: int = 0, shuffle: bool = False, **fields: object
) -> DocumentSequences:
    source = SourceConfig.family.config({"type": "openmoji"})  # it is not read
    config = PicturesConfig(source=source, **{"image_to_text_fraction": 0.0, "caption_dropout": 0.0, **fields})
    return DocumentSequences(PairRows(rows, layout), layout, Pictures(config), seed=seed, shuffle=shuffle)


def pairs(processor: MultimodalProcessor, **fields: object) -> DocumentSequences:
    return sequences(shards(), processor.layout, **fields)


def test_sequences_are_those_of_every_layout(text_tokenizer: object, codec: object, make_model: object) -> None:
    names = [name for name in LayoutConfig.family.names() if 2 in LayoutConfig.family.get(name).Config.ranks]
    assert len(names) >= 3
    for name in names:
        layout = merge_vocabulary(make_model(len(text_tokenizer)), text_tokenizer, codec, layout=name)[1].layout
        drawn = sequences(shards(), layout)
        told = sequences(shards(), layout, image_to_text_fraction=1.0)
        blank = sequences(shards(), layout, caption_dropout=1.0)
        for row in (0, 1, 2, 49):
            block = layout.block(torch.from_numpy(INDICES[row]).view(4, 4))
            assert drawn[row]["input_ids"].tolist() == layout.caption_to_image(CAPTIONS[row], block).tolist()
            assert told[row]["input_ids"].tolist() == layout.image_to_caption(block, CAPTIONS[row]).tolist()
            prompt = layout.prompt_for_image(None, (4, 4)).tolist()
            assert blank[row]["input_ids"].tolist()[: len(prompt)] == prompt


def test_several_codebooks_stand_side_by_side(processor: MultimodalProcessor) -> None:
    vocabulary = VisualVocabulary(start=processor.vocabulary.start, size=64, num_codebooks=2)
    layout = LayoutConfig.family.build(processor.layout.config, tokenizer=processor.tokenizer, vocabulary=vocabulary)
    indices = np.random.default_rng(0).integers(0, 64, (1, 32))
    rows = datasets.Dataset.from_dict({"caption": ["x"], "indices": indices, "grid": [[4, 4]]})
    sequence = sequences(rows, layout)[0]["input_ids"]
    block = layout.block(torch.from_numpy(indices[0]).view(4, 4, 2))
    assert sequence.tolist() == layout.caption_to_image("x", block).tolist()


def test_captions_are_encoded_as_user_text(processor: MultimodalProcessor) -> None:
    column = encode_captions(processor.layout, CAPTIONS, 1000)
    for row, caption in enumerate(CAPTIONS):
        assert column[row].tolist() == processor.text_ids(caption)
    assert not processor.vocabulary.is_visual(torch.from_numpy(column[49])).any()
    assert max(encode_captions(processor.layout, CAPTIONS, 3).lengths) == 3


def test_kinds_and_labels(processor: MultimodalProcessor) -> None:
    item = pairs(processor)[0]
    ids = torch.from_numpy(item["input_ids"])
    assert (torch.from_numpy(item["token_kinds"] == IMAGE) == processor.vocabulary.is_visual(ids)).all()
    text = len(processor.text_ids(CAPTIONS[0]))
    assert (item["token_kinds"] == TEXT).sum() == text
    assert item["token_kinds"][-1] == STRUCTURE, "EOS"
    assert item["labels"][0] == -100, "nothing predicts BOS"
    assert (item["labels"][1:] == item["input_ids"][1:]).all()


@pytest.mark.parametrize(("fraction", "masked"), [(0.0, TEXT), (1.0, IMAGE)])
def test_the_prompt_is_masked_if_asked(processor: MultimodalProcessor, fraction: float, masked: int) -> None:
    item = pairs(processor, loss_on_prompt=False, image_to_text_fraction=fraction)[0]
    assert (item["labels"][item["token_kinds"] == masked] == -100).all()
    other = TEXT if masked == IMAGE else IMAGE
    assert (item["labels"][item["token_kinds"] == other] >= 0).all()
    assert item["labels"][-1] == processor.layout.eos_id


def test_an_item_depends_on_seed_epoch_and_index_alone(processor: MultimodalProcessor) -> None:
    options = {"image_to_text_fraction": 0.3, "caption_dropout": 0.3, "seed": 5}
    first = pairs(processor, shuffle=True, **options)
    second = pairs(processor, shuffle=True, **options)
    for position in (199, 0, 77, 150):
        assert (first[position]["input_ids"] == second[position]["input_ids"]).all()
    batch = second.__getitems__([3, 60, 4])
    assert (batch[1]["input_ids"] == first[60]["input_ids"]).all()
    other = pairs(processor, shuffle=True, **{**options, "seed": 6})
    assert any(len(first[p]["input_ids"]) != len(other[p]["input_ids"]) for p in range(50))


def test_every_epoch_holds_every_picture_once_in_another_order(processor: MultimodalProcessor) -> None:
    rows = pairs(processor, shuffle=True)
    epochs = [[rows.row_of(position) for position in range(50 * epoch, 50 * epoch + 50)] for epoch in range(3)]
    for number, epoch in enumerate(epochs):
        assert {number} == {one for one, _ in epoch}
        assert sorted(row for _, row in epoch) == list(range(50))
    assert [row for _, row in epochs[0]] != [row for _, row in epochs[1]]


def test_shares_are_those_asked_for(processor: MultimodalProcessor) -> None:
    rows = pairs(processor, image_to_text_fraction=0.25, caption_dropout=0.2)
    items = rows.__getitems__(range(4000))
    describes = [item["token_kinds"][-2] == TEXT for item in items]
    blank = [not (item["token_kinds"] == TEXT).any() for item in items]
    assert np.mean(describes) == pytest.approx(0.25, abs=0.03)
    assert np.mean(blank) == pytest.approx(0.75 * 0.2, abs=0.03)
    again = {tuple(items[p]["input_ids"]) for p in range(0, 4000, 50)}
    assert len(again) == 3, "one picture comes in all three forms over the epochs"


def test_collator_pads_on_the_right(processor: MultimodalProcessor) -> None:
    rows = pairs(processor)
    items = [rows[0], rows[2]]
    batch = SequenceCollator(pad_id=3, pad_to_multiple_of=16)(items)
    assert batch["input_ids"].shape[1] % 16 == 0
    short = len(items[0]["input_ids"])
    assert (batch["input_ids"][0, short:] == 3).all()
    assert (batch["labels"][0, short:] == -100).all()
    assert (batch["token_kinds"][0, short:] == -1).all()
    assert (batch["input_ids"][0, :short].numpy() == items[0]["input_ids"]).all()
    assert SequenceCollator(pad_id=3)(items)["input_ids"].shape[1] == len(items[1]["input_ids"])


def test_too_long_and_empty_are_refused(processor: MultimodalProcessor) -> None:
    rows = pairs(processor)
    longest = max(len(rows[row]["input_ids"]) for row in range(50))
    assert rows.longest() == longest
    rows.check_length(longest)
    with pytest.raises(UserError, match=f"{longest} tokens, more than the {longest - 1} of"):
        rows.check_length(longest - 1)
    with pytest.raises(ShardError, match="empty"):
        sequences(shards().select([]), processor.layout)


def test_sequences_are_made_fast(processor: MultimodalProcessor) -> None:
    rows = pairs(processor, shuffle=True, image_to_text_fraction=0.2, caption_dropout=0.1)
    collate = SequenceCollator(pad_id=3)
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        for first in range(0, 3200, 64):
            collate(rows.__getitems__(range(first, first + 64)))
        best = min(best, time.process_time() - start)
    assert 3200 / best > 5000, f"{3200 / best:.0f} sequences a second"
