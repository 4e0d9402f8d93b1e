"""Shards of documents: what is in them, that a kill costs nothing, and that tokens made on the fly are the same."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from mmlm.data.document_sequences import DocumentSequences
from mmlm.data.document_shards import DocumentRows, DocumentShardHeader, DocumentShards
from mmlm.data.picture_indices import IndicesOnTheFly
from mmlm.data.shards import ShardError, ShardHeader, load_shards, read_header
from mmlm.data.tokenization import open_shards, tokenize
from mmlm.documents.base import DocumentSourceConfig
from mmlm.processing import MultimodalProcessor
from mmlm.recipes.mixture import DocumentLimits, MixtureMember
from visual_tokenizer import VisualTokenizer
from visual_tokenizer.errors import UserError
from visual_tokenizer.registry import ConfigError

COUNT = 60


def line(number: int) -> dict[str, Any]:
    """Every 10th document has a picture that is none, every 15th is too short, the others have 0 … 3 pictures."""
    if number % 15 == 4:
        return {"id": str(number), "text": "x"}
    images = [f"{(number + place) % 12}.png" for place in range(number % 4)]
    if number % 10 == 7:
        images = [*images[:1], "broken.png", *images[1:]]
    text = f"a red dog {number}" + "".join(f"<image> at night {place}" for place in range(len(images)))
    return {"id": str(number), "text": text, "images": images}


@pytest.fixture
def member(write_jsonl: Any) -> Callable[..., MixtureMember]:
    file = write_jsonl("shards.jsonl", [line(number) for number in range(COUNT)])

    def make(**fields: Any) -> MixtureMember:
        own = {"type": "chat_jsonl", "files": str(file), "heldout_fraction": 0.0}
        own |= {name: fields.pop(name) for name in ("missing_pictures", "max_unreadable_fraction") if name in fields}
        limits = DocumentLimits(min_characters=2, **fields.pop("limits", {}))
        return MixtureMember(documents=DocumentSourceConfig.family.config(own), limits=limits, **fields)

    return make


def tokenize_documents(
    processor: MultimodalProcessor, member: MixtureMember, split: str, folder: Path, **options: Any
) -> ShardHeader:
    return tokenize(DocumentShards(processor, member, split, folder), **options)


def sequences(processor: MultimodalProcessor, member: MixtureMember, folder: Path, **fields: Any) -> DocumentSequences:
    source = DocumentSourceConfig.family.build(member.documents)
    return DocumentSequences(DocumentRows(load_shards(folder)), processor.layout, source, **fields)


def test_sequences_are_the_documents(
    processor: MultimodalProcessor, member: Callable[..., MixtureMember], picture_bytes, tmp_path: Path
) -> None:
    header = tokenize_documents(processor, member(), "train", tmp_path / "train", batch_size=8)
    assert header.count == COUNT - 4
    assert header.skipped_by_reason == {"text of # characters, min_characters is #": 4}
    assert set(header.skipped) == {"4", "19", "34", "49"}
    assert header.changed == {"pictures left out because they are missing or unreadable": 6}
    rows = sequences(processor, member(), tmp_path / "train", shuffle=False)
    items = rows.__getitems__(range(len(rows)))
    assert rows.lengths(range(len(rows))).tolist() == [len(item["input_ids"]) for item in items]
    layout, blocks = processor.layout, {}
    for number in range(12):
        picture = Image.open(io.BytesIO(picture_bytes(number))).convert("RGB")
        blocks[f"{number}.png"] = processor.image_block(processor.encode_images([picture])[0])
    kept = iter(items)
    for number in range(COUNT):
        entry = line(number)
        if "images" not in entry:
            continue
        item = next(kept)
        parts: list[Any] = [layout.bos_ids]
        texts = entry["text"].split("<image>")
        for text, image in zip(texts, [*entry["images"], None], strict=True):
            parts += [layout.text_ids(text), blocks.get(image, [])]
        wanted = layout.join(*parts, [layout.eos_id])
        assert item["input_ids"].tolist() == wanted.tolist()
        assert item["labels"].tolist() == [-100, *wanted[1:].tolist()]
        is_visual = processor.vocabulary.is_visual(wanted).numpy()
        structure = layout.is_picture_token(wanted).numpy() & ~is_visual
        assert ((item["token_kinds"] == 1) == is_visual).all()
        assert (item["token_kinds"][structure] == 2).all()
        assert (item["token_kinds"] == 0).sum() == sum(len(layout.text_ids(text)) for text in texts)
        found = layout.find_blocks(wanted)
        assert len(found) == sum(image in blocks for image in entry["images"])


def test_what_a_missing_picture_takes_with_it(
    processor: MultimodalProcessor, member: Callable[..., MixtureMember], tmp_path: Path
) -> None:
    strict = member(missing_pictures="drop_document")
    header = tokenize_documents(processor, strict, "train", tmp_path / "strict")
    assert header.count == COUNT - 10
    assert header.skipped_by_reason["a picture is missing or unreadable"] == 6
    with pytest.raises(UserError, match="max_unreadable_fraction is 0"):
        tokenize_documents(processor, member(max_unreadable_fraction=0.0), "train", tmp_path / "none", batch_size=COUNT)


@pytest.mark.parametrize("variant", ["plain", "cut", "workers"])
def test_on_the_fly_equals_shards(
    variant: str, processor: MultimodalProcessor, member: Callable[..., MixtureMember], tmp_path: Path
) -> None:
    limits = {"max_tokens": 45, "max_pictures": 2} if variant == "cut" else {}
    stored, fly = member(limits=limits), member(limits=limits, tokenization="on_the_fly")
    workers = 2 if variant == "workers" else 0
    tokenize_documents(processor, stored, "train", tmp_path / "stored", batch_size=8, loader_workers=workers)
    encode = processor.codec.encode  # type: ignore[union-attr]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processor.codec, "encode", None)  # nothing is encoded beforehand
        tokenize_documents(processor, fly, "train", tmp_path / "fly", batch_size=8)
    expected = sequences(processor, stored, tmp_path / "stored", seed=3)
    found = sequences(processor, fly, tmp_path / "fly", seed=3)
    assert not found.rows.indices.lengths.any(), "there are no tokens of pictures on the disk"
    shards = DocumentShards(processor, fly, "train", tmp_path / "fly")
    found.indices = IndicesOnTheFly(shards, found.rows, threads=workers)
    positions = [*range(0, 130, 3), 5, 5]
    for one, other in zip(expected.__getitems__(positions), found.__getitems__(positions), strict=True):
        assert all((one[name] == other[name]).all() for name in ("input_ids", "labels", "token_kinds"))
    assert (expected.lengths(positions) == found.lengths(positions)).all()
    assert encode == processor.codec.encode  # type: ignore[union-attr]
    if variant == "cut":
        assert max(expected.lengths(range(60))) <= 45
        assert read_header(tmp_path / "fly", DocumentShardHeader).changed["pictures left out above max_tokens"] > 0


def test_documents_that_change_after_they_were_counted_are_found_out(
    processor: MultimodalProcessor, member: Callable[..., MixtureMember], write_jsonl: Any, tmp_path: Path
) -> None:
    fly = member(tokenization="on_the_fly")
    tokenize_documents(processor, fly, "train", tmp_path / "fly")
    write_jsonl("shards.jsonl", [line(number) for number in range(1, COUNT)])
    rows = sequences(processor, fly, tmp_path / "fly", shuffle=False)
    rows.indices = IndicesOnTheFly(DocumentShards(processor, fly, "train", tmp_path / "fly"), rows.rows, threads=0)
    with pytest.raises(ShardError, match="changed since they were counted: 1 is now 2, with 2 pictures"):
        rows[1]


def test_a_stream_is_not_tokenized_on_the_fly(processor: MultimodalProcessor, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"t": ["a", "b"]}).save_to_disk(str(tmp_path / "set"))
    fields = {"type": "hf_documents", "path": str(tmp_path / "set"), "texts_column": "t", "streaming": True}
    config = DocumentSourceConfig.family.config({**fields, "heldout_fraction": 0.0})
    with pytest.raises(ConfigError, match="tokenization must be shards for a stream"):
        tokenize_documents(
            processor, MixtureMember(documents=config, tokenization="on_the_fly"), "train", tmp_path / "fly"
        )
    header = tokenize_documents(processor, MixtureMember(documents=config), "train", tmp_path / "train")
    assert header.count == 2


def test_kills_lose_and_repeat_nothing(
    processor: MultimodalProcessor,
    member: Callable[..., MixtureMember],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"batch_size": 4, "rows_per_shard": 8}
    tokenize_documents(processor, member(), "train", tmp_path / "whole", **options)
    encode, calls = VisualTokenizer.encode, 0

    def failing(self: VisualTokenizer, pixels: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls in (2, 6, 11, 12):
            raise KeyboardInterrupt
        return encode(self, pixels)

    monkeypatch.setattr(VisualTokenizer, "encode", failing)
    kills = 0
    while not (tmp_path / "killed").exists():
        try:
            tokenize_documents(processor, member(), "train", tmp_path / "killed", **options)
        except KeyboardInterrupt:
            kills += 1
            assert not (tmp_path / "killed").exists()
    assert kills == 4
    for name in ("header.json", "files.json"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert load_shards(tmp_path / "killed").to_list() == load_shards(tmp_path / "whole").to_list()
    keys = load_shards(tmp_path / "killed")["key"][:]
    assert keys == [str(number) for number in range(COUNT) if number % 15 != 4]
    assert not list(tmp_path.glob(".*"))


def test_damaged_shards_are_made_again(
    processor: MultimodalProcessor, member: Callable[..., MixtureMember], tmp_path: Path
) -> None:
    shards = DocumentShards(processor, member(), "train", tmp_path / "train")
    rows = open_shards(shards, batch_size=8)
    expected = rows.to_list()
    file = tmp_path / "train" / "pictures-00002.arrow"
    content = file.read_bytes()
    file.write_bytes(content[:-200] + bytes([content[-200] ^ 1]) + content[-199:])
    again = open_shards(shards, batch_size=8, verify=True)
    assert again.to_list() == expected
    assert file.read_bytes() == content


def test_other_limits_layouts_and_text_tokenizers_are_refused(
    processor: MultimodalProcessor, member: Callable[..., MixtureMember], tmp_path: Path
) -> None:
    def header(own: MixtureMember) -> ShardHeader:
        return DocumentShards(processor, own, "train", tmp_path / "train").header

    limited = member(limits={"max_tokens": 200})
    tokenize_documents(processor, limited, "train", tmp_path / "train")
    load_shards(tmp_path / "train", header(limited))
    for other, message in (
        (member(limits={"max_tokens": 100}), r"limits is \{'max_tokens': 200\}, expected \{'max_tokens': 100\}"),
        (member(limits={"max_tokens": 200, "max_pictures": 1}), r"limits is \{'max_pictures': None\}"),
        (member(limits={"max_tokens": 200}, tokenization="on_the_fly"), "tokenization is shards, expected on_the_fly"),
        (member(limits={"max_tokens": 200}, missing_pictures="drop_document"), "source is"),
    ):
        with pytest.raises(UserError, match=message):
            load_shards(tmp_path / "train", header(other))
    processor.tokenizer.chat_template = "{{ messages }}"
    with pytest.raises(UserError, match="text_tokenizer is"):
        load_shards(tmp_path / "train", header(limited))


def test_pairs_vary_from_epoch_to_epoch(
    processor: MultimodalProcessor, captioned_pictures: Path, tmp_path: Path
) -> None:
    inner = {"type": "image_folder", "folder": str(captioned_pictures), "heldout_fraction": 0.0}
    fields = {"type": "pictures", "source": inner, "image_to_text_fraction": 0.3, "caption_dropout": 0.3}
    own = MixtureMember(documents=DocumentSourceConfig.family.config({**fields, "loss_on_prompt": False}))
    tokenize_documents(processor, own, "train", tmp_path / "train")
    rows = sequences(processor, own, tmp_path / "train")
    items = rows.__getitems__(range(24 * 40))
    assert rows.lengths(range(24 * 40)).tolist() == [len(item["input_ids"]) for item in items]
    has_text = [bool((item["token_kinds"] == 0).any()) for item in items]
    text_first = [item["token_kinds"][1] == 0 for item in items]
    assert np.mean(has_text) == pytest.approx(1 - 0.7 * 0.3, abs=0.05)
    assert np.mean(text_first) == pytest.approx(0.7 * 0.7, abs=0.05)
    for item, starts_with_text in zip(items, text_first, strict=True):
        (block,) = processor.layout.find_blocks(item["input_ids"])
        trained = item["labels"] != -100
        if starts_with_text:
            assert trained[block.start : block.end].all()
            assert not trained[1 : block.start].any()
        elif block.end < len(item["input_ids"]) - 1:
            assert not trained[block.start : block.end].any()
            assert trained[block.end :].all()
    again = sequences(processor, own, tmp_path / "train")[777]
    assert (again["input_ids"] == items[777]["input_ids"]).all()


def test_a_set_without_documents_says_so(
    processor: MultimodalProcessor, member: Callable[..., MixtureMember], tmp_path: Path
) -> None:
    tokenize_documents(processor, member(limits={"max_characters": 2}), "train", tmp_path / "train")
    with pytest.raises(ShardError, match="there are no documents: the split is empty, or its limits leave nothing"):
        sequences(processor, member(), tmp_path / "train")


def test_several_codebooks(make_codec, text_tokenizer, make_model, member, picture_bytes, tmp_path: Path) -> None:
    import copy

    from mmlm.merging.merge import merge_vocabulary

    pair = {"type": "product", "groups": 2, "base": {"type": "fsq", "levels": [4, 4]}}
    codec = make_codec(quantizer=pair)
    processor = merge_vocabulary(make_model(len(text_tokenizer)), copy.deepcopy(text_tokenizer), codec)[1]
    books = processor.vocabulary.num_codebooks
    assert books == 2
    tokenize_documents(processor, member(), "train", tmp_path / "train")
    found = DocumentRows(load_shards(tmp_path / "train"))
    row = int(found.pictures.lengths.argmax())
    assert len(found.indices[row]) == found.pictures.lengths[row] * math.prod(processor.grid) * books
    item = sequences(processor, member(), tmp_path / "train", shuffle=False)[row]
    pictures = processor.decode_images(torch.from_numpy(item["input_ids"]))[0]
    assert len(pictures) == found.pictures.lengths[row]


def test_header_says_what_was_cut(
    processor: MultimodalProcessor, member: Callable[..., MixtureMember], tmp_path: Path, caplog: Any
) -> None:
    with caplog.at_level(logging.WARNING):
        tokenize_documents(processor, member(limits={"max_pictures": 1}), "train", tmp_path / "train")
    header = json.loads((tmp_path / "train" / "header.json").read_text())
    assert header["changed"]["pictures left out above max_pictures"] > 10
    assert header["limits"]["max_pictures"] == 1
    assert "pictures left out above max_pictures" in caplog.text
    assert dataclasses.asdict(read_header(tmp_path / "train", DocumentShardHeader)) == header
