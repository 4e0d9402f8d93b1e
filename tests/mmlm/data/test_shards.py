from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
from accelerate import PartialState
from PIL import Image

from mmlm.data.shards import RaggedColumn, ShardError, expected_header, load_shards, read_header
from mmlm.data.tokenization import tokenize
from mmlm.processing import MultimodalProcessor
from visual_tokenizer.data.sources.base import SourceConfig
from visual_tokenizer.errors import UserError


@pytest.fixture(autouse=True)
def _state() -> None:
    PartialState(cpu=True)


@pytest.fixture(scope="module")
def processor(merged_folder: Path) -> MultimodalProcessor:
    return MultimodalProcessor.from_pretrained(merged_folder)


@pytest.fixture
def source(captioned_pictures: Path) -> SourceConfig:
    return SourceConfig.family.config(
        {"type": "image_folder", "folder": str(captioned_pictures), "heldout_fraction": 0.0}
    )


def test_shards_hold_every_picture_in_order(
    pair_shards: Callable,
    processor: MultimodalProcessor,
    source: SourceConfig,
    captioned_pictures: Path,
    tmp_path: Path,
) -> None:
    header = tokenize(pair_shards(processor, source, tmp_path / "train"), batch_size=5)
    rows = load_shards(tmp_path / "train", expected_header(processor, source, "train"))
    assert header.count == len(rows) == 24
    assert header.codec_hash == processor.codec_hash
    names = sorted(path.name for path in captioned_pictures.glob("*.png"))
    assert rows["key"][:] == names
    lines = [json.loads(line) for line in (captioned_pictures / "metadata.jsonl").read_text().splitlines()]
    assert rows["caption"][:] == [line["text"] for line in lines]
    images = [Image.open(captioned_pictures / name) for name in names]
    assert torch.equal(torch.tensor(rows["indices"][:]).view(24, 4, 4), processor.encode_images(images))
    assert rows[0]["grid"] == [4, 4]
    assert len({tuple(one) for one in rows["indices"][:]}) > 10, (
        "the pictures must differ for this test to mean anything"
    )
    assert rows.features["indices"].feature.dtype == "uint16"
    assert not list(tmp_path.glob(".*")), "nothing unfinished is left"


def test_plain_datasets_reads_shards(
    pair_shards: Callable, processor: MultimodalProcessor, source: SourceConfig, tmp_path: Path
) -> None:
    tokenize(pair_shards(processor, source, tmp_path / "train"))
    assert len(datasets.load_from_disk(str(tmp_path / "train"))) == 24


def test_an_unreadable_picture_is_left_out_and_named(
    pair_shards: Callable, processor: MultimodalProcessor, captioned_pictures: Path, tmp_path: Path
) -> None:
    shutil.copytree(captioned_pictures, tmp_path / "pictures")
    (tmp_path / "pictures" / "03.png").write_bytes(b"no picture")
    fields = {"type": "image_folder", "folder": str(tmp_path / "pictures"), "heldout_fraction": 0.0}
    header = tokenize(pair_shards(processor, SourceConfig.family.config(fields), tmp_path / "train"))
    assert header.count == 23
    assert list(header.skipped) == ["03.png"]
    assert "03.png" not in load_shards(tmp_path / "train")["key"][:]


def test_another_tokenizer_is_refused(
    pair_shards: Callable, processor: MultimodalProcessor, source: SourceConfig, tmp_path: Path
) -> None:
    tokenize(pair_shards(processor, source, tmp_path / "train"))
    expected = dataclasses.replace(expected_header(processor, source, "train"), codec_hash="0" * 64)
    with pytest.raises(UserError, match=r"codec_hash is .*, expected 0000.*Delete the folder"):
        load_shards(tmp_path / "train", expected)
    other = dataclasses.replace(source, max_pixels=1000)
    with pytest.raises(UserError, match=r"source is \{'max_pixels': 50000000\}, expected \{'max_pixels': 1000\}"):
        load_shards(tmp_path / "train", expected_header(processor, other, "train"))


def test_missing_unfinished_and_cut_shards_are_refused(
    pair_shards: Callable, processor: MultimodalProcessor, source: SourceConfig, tmp_path: Path
) -> None:
    with pytest.raises(ShardError, match="no header"):
        load_shards(tmp_path / "nothing")
    tokenize(pair_shards(processor, source, tmp_path / "train"))
    with pytest.raises(ShardError, match="cannot be created: it already exists"):
        tokenize(pair_shards(processor, source, tmp_path / "train"))
    path = tmp_path / "train" / "header.json"
    path.write_text(path.read_text().replace('"count": 24', '"count": 25'))
    with pytest.raises(ShardError, match="24 pictures"):
        load_shards(tmp_path / "train")
    path.write_text("{")
    with pytest.raises(ShardError, match="damaged"):
        read_header(tmp_path / "train")


def test_what_an_interrupted_run_left_is_written_over(
    pair_shards: Callable, processor: MultimodalProcessor, source: SourceConfig, tmp_path: Path
) -> None:
    (tmp_path / ".train.unfinished").mkdir()
    (tmp_path / ".train.unfinished" / "pictures-00007-00000.arrow").write_bytes(b"junk")
    tokenize(pair_shards(processor, source, tmp_path / "train"))
    assert len(load_shards(tmp_path / "train")) == 24


def test_ragged_column_gives_rows_of_several_chunks() -> None:
    lists = [[1, 2], [], [3], [4, 5, 6]]
    rows = datasets.concatenate_datasets(
        [datasets.Dataset.from_dict({"values": lists[:2]}), datasets.Dataset.from_dict({"values": lists[2:]})]
    )
    for column in (RaggedColumn.of_column(rows, "values"), RaggedColumn.of_lists(lists)):
        assert [column[row].tolist() for row in range(4)] == lists
        assert len(column) == 4
        assert column.lengths.tolist() == [2, 0, 1, 3]
