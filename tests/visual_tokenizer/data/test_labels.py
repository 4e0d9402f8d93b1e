"""The classes that sources give: columns of samples, and of batches."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from encoded_pictures import picture_bytes

from visual_tokenizer.data.batches import DataSection, PictureSet
from visual_tokenizer.data.emoji_groups import group_and_subgroup
from visual_tokenizer.data.loading import PixelDataset, collate
from visual_tokenizer.data.openmoji import drawings_with_names
from visual_tokenizer.data.sources.base import DataSourceError, Source, SourceConfig


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")


def build(**section: Any) -> Source:
    return SourceConfig.family.build(section)


def labels(source: Source, cache_megabytes: float = 100) -> list[dict[str, str]]:
    pictures = PictureSet(source, "all", DataSection(cache_megabytes=cache_megabytes), image_size=8, max_pictures=None)
    return [found for batch in pictures.batches(3) for found in batch["labels"]]


def test_emoji_have_unicodes_groups() -> None:
    assert group_and_subgroup("1F34E") == ("Food & Drink", "food-fruit")
    assert group_and_subgroup("1F44D-1F3FB") == group_and_subgroup("1F44D") == ("People & Body", "hand-fingers-closed")
    assert group_and_subgroup("0023-FE0F-20E3") == ("Symbols", "keycap")
    assert group_and_subgroup("1F3FB") == ("Component", "skin-tone")
    assert group_and_subgroup("0041") == ("", "")


def test_every_drawing_has_a_group() -> None:
    found = Counter(group_and_subgroup(file.stem) for file in drawings_with_names(skin_tones=True))
    assert ("", "") not in found
    assert len({group for group, _ in found}) in (9, 10)  # with skin tones as drawings of their own
    assert len(found) > 90


def test_openmoji_gives_both(openmoji_cache: str) -> None:
    source = build(type="openmoji", resolution=16, cache_dir=openmoji_cache, heldout_fraction=0.01)
    assert source.label_columns == ("group", "subgroup")
    row = source.load("heldout")[0]
    assert row["group"] == group_and_subgroup(row["key"])[0]
    assert row["subgroup"] == group_and_subgroup(row["key"])[1]


def write_pictures(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture_bytes((number, 0, 0)))


@pytest.mark.parametrize("megabytes", [0, 100])
def test_folders_and_metadata_name_the_class(tmp_path: Path, megabytes: float) -> None:
    write_pictures(tmp_path, ["a.png", "cats/b.png", "cats/c.png", "x/dogs/d.png"])
    (tmp_path / "metadata.jsonl").write_text(
        json.dumps({"file_name": "cats/c.png", "label": "lion"}) + "\n" + json.dumps({"file_name": "a.png"})
    )
    source = build(type="image_folder", folder=str(tmp_path))
    assert labels(source, megabytes) == [{"label": ""}, {"label": "cats"}, {"label": "lion"}, {"label": "dogs"}]
    other = build(type="image_folder", folder=str(tmp_path), label_column="breed")
    assert labels(other)[2] == {"label": "cats"}


@pytest.mark.parametrize("streaming", [False, True])
def test_tables_have_a_column_of_classes(tmp_path: Path, streaming: bool) -> None:
    pictures = [{"bytes": picture_bytes((number, 0, 0)), "path": None} for number in range(4)]
    table = datasets.Dataset.from_dict({"image": pictures, "caption": list("abcd"), "kind": [0, 1, 1, -1]})
    table.cast_column("kind", datasets.ClassLabel(names=["cat", "dog"])).save_to_disk(str(tmp_path / "saved"))
    section = {"type": "hf_dataset", "path": str(tmp_path / "saved"), "streaming": streaming}
    source = build(**section, label_column="kind")
    assert labels(source) == [{"label": "cat"}, {"label": "dog"}, {"label": "dog"}, {"label": ""}]
    assert build(**section).label_columns == ()
    assert labels(build(**section))[0] == {}
    with pytest.raises(DataSourceError, match="label_column is 'kinds', but the columns are image, caption, kind"):
        build(**section, label_column="kinds").load("all")
    table.to_parquet(str(tmp_path / "table.parquet"))
    files = {"type": "parquet", "files": str(tmp_path / "table.parquet"), "streaming": streaming}
    assert labels(build(**files, label_column="kind"))[1] == {"label": "1"}


def test_shards_have_a_key_of_classes(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (
            ("x.png", picture_bytes((1, 2, 3))),
            ("x.json", json.dumps({"caption": "c", "kind": 7}).encode()),
            ("y.png", picture_bytes((4, 5, 6))),
            ("y.txt", b"words"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    source = build(type="webdataset", shards=str(tmp_path / "a.tar"), label_key="kind")
    assert [(row["caption"], row["label"]) for row in source.load("all")] == [("c", "7"), ("words", "")]
    assert labels(source) == [{"label": "7"}, {"label": ""}]
    assert build(type="webdataset", shards=str(tmp_path / "a.tar")).label_columns == ()


def test_a_replaced_picture_brings_its_class(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a/1.png", "b/2.png", "c/3.png"])
    (tmp_path / "b" / "2.png").write_bytes(b"broken")
    rows = build(type="image_folder", folder=str(tmp_path)).load("all")
    data = PixelDataset(rows, 8, cache_megabytes=0)
    assert collate([data[1]])["labels"] == [{"label": "c"}]
    assert torch.equal(data[1]["pixels"], data[2]["pixels"])
