"""Folders, saved data sets and Parquet files, each with good and bad pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from encoded_pictures import bad_pictures, picture_bytes

from visual_tokenizer.data.sources.base import DataSourceError, Source, SourceConfig, hash_fraction
from visual_tokenizer.errors import UserError
from visual_tokenizer.registry import ConfigError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")


def build(**section: Any) -> Source:
    return SourceConfig.family.build(section)


def shade(number: int) -> bytes:
    return picture_bytes((number, 0, 0))


def write_folder(folder: Path, count: int, bad: dict[str, bytes] | None = None) -> Path:
    (folder / "sub").mkdir(parents=True)
    for number in range(count):
        where = folder / "sub" if number % 2 else folder
        (where / f"{number:03d}.png").write_bytes(shade(number))
    for name, content in (bad or {}).items():
        (folder / name).write_bytes(content)
    (folder / "notes.md").write_text("no picture")
    return folder


def write_table(rows: int, image: str = "image", **columns: list[Any]) -> datasets.Dataset:
    pictures = [{"bytes": shade(number), "path": None} for number in range(rows)]
    return datasets.Dataset.from_dict({image: pictures, **columns})


def test_folder_reads_all_subfolders_with_captions(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures", 4)
    lines = [{"file_name": "000.png", "caption": "zero"}, {"file_name": "sub/001.png", "text": "one"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = build(type="image_folder", folder=str(folder)).load("all")
    assert [(row["key"], row["caption"], row["image"].getpixel((0, 0))[0]) for row in rows] == [
        ("000.png", "zero", 0),
        ("002.png", "", 2),
        ("sub/001.png", "one", 1),
        ("sub/003.png", "", 3),
    ]


def test_folder_takes_the_named_caption_column(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures", 1)
    (folder / "captions.jsonl").write_text(json.dumps({"file_name": "000.png", "caption": "no", "title": "yes"}))
    section = {"type": "image_folder", "folder": str(folder), "metadata_file": "captions.jsonl"}
    assert build(**section, caption_column="title").load("all")[0]["caption"] == "yes"
    with pytest.raises(DataSourceError, match=r"line 1: no key 'titel' .* file_name, caption, title"):
        build(**section, caption_column="titel").load("all")


@pytest.mark.parametrize(("line", "message"), [("{", "not JSON"), ('{"caption": "x"}', "the key 'file_name'")])
def test_folder_names_the_bad_metadata_line(tmp_path: Path, line: str, message: str) -> None:
    folder = write_folder(tmp_path / "pictures", 1)
    (folder / "metadata.jsonl").write_text('{"file_name": "000.png", "caption": ""}\n' + line)
    with pytest.raises(DataSourceError, match=rf"metadata.jsonl, line 2: .*{message}"):
        build(type="image_folder", folder=str(folder)).load("all")


def test_folder_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataSourceError, match="there is no folder"):
        build(type="image_folder", folder=str(tmp_path / "none")).load("all")
    with pytest.raises(DataSourceError, match="no picture below"):
        build(type="image_folder", folder=str(tmp_path)).load("all")
    with pytest.raises(ConfigError, match="unknown key 'foldr'"):
        build(type="image_folder", foldr=str(tmp_path))


def test_bad_pictures_are_replaced_by_the_next_readable_and_counted(tmp_path: Path) -> None:
    bad = {f"010-{name}": content for name, content in bad_pictures().items()}
    folder = write_folder(tmp_path / "pictures", 41, bad)
    source = build(type="image_folder", folder=str(folder))
    rows = source.load("all")
    keys = [row["key"] for row in rows]
    assert len(keys) == 45
    named = rows.with_format(None)["key"][:]
    for wanted, got in zip(named, keys, strict=True):
        assert got == ("010.png" if wanted in bad else wanted)
    assert set(source.report.reasons) == set(bad)
    assert "max_pixels" in source.report.reasons["010-huge.png"]
    assert [row["key"] for row in rows] == keys, "a second pass must be the same"


def test_a_replacement_stays_in_its_split_also_in_a_shuffled_selection(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures", 40, {"011.png": b""})
    source = build(type="image_folder", folder=str(folder), heldout_fraction=0.4)
    for split in ("train", "heldout"):
        rows = source.load(split)
        expected = set(rows.with_format(None)["key"][:]) - {"011.png"}
        assert {row["key"] for row in rows.shuffle(seed=0)} == expected


def test_the_last_picture_is_replaced_by_the_first(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures", 3, {"zzz.png": b""})
    rows = build(type="image_folder", folder=str(folder)).load("all")
    assert rows[len(rows) - 2]["key"] == "sub/001.png"
    assert rows[len(rows) - 1]["key"] == "000.png"


def test_mostly_bad_folders_abort_and_small_ones_do_not_loop_forever(tmp_path: Path) -> None:
    large = write_folder(tmp_path / "large", 2, {f"bad{n:02d}.png": b"x" for n in range(40)})
    with pytest.raises(UserError, match=r"max_unreadable_fraction is 0\.5"):
        list(build(type="image_folder", folder=str(large)).load("all"))
    small = write_folder(tmp_path / "small", 0, {"bad.png": b"x"})
    with pytest.raises(UserError, match="none of the 1 pictures"):
        build(type="image_folder", folder=str(small)).load("all")[0]


def test_the_split_follows_the_hash_of_the_key(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures", 60)
    source = build(type="image_folder", folder=str(folder), heldout_fraction=0.3)
    heldout = source.load("heldout").with_format(None)["key"][:]
    train = source.load("train").with_format(None)["key"][:]
    assert len(train) + len(heldout) == 60
    assert all(hash_fraction(key) < 0.3 for key in heldout)
    assert all(hash_fraction(key) >= 0.3 for key in train)
    with pytest.raises(DataSourceError, match="split must be one of train, heldout, all"):
        source.load("validation")


def test_an_own_heldout_part_is_used_as_it_is(tmp_path: Path) -> None:
    train, heldout = write_folder(tmp_path / "a", 7), write_folder(tmp_path / "b", 3)
    source = build(type="image_folder", folder=str(train), heldout_folder=str(heldout))
    assert [len(source.load(split)) for split in ("train", "heldout", "all")] == [7, 3, 10]


def test_saved_data_sets_of_any_column_type(tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=["cat", "dog"])
    table = write_table(4, image="picture", label=[0, 1, 1, -1], texts=[["a", "b"]] * 4, id=["w", "x", "y", "z"])
    table = table.cast_column("label", label).cast_column("picture", datasets.Image())
    table.save_to_disk(str(tmp_path / "saved"))
    section = {"type": "hf_dataset", "path": str(tmp_path / "saved"), "image_column": "picture"}
    rows = build(**section, caption_column="label", key_column="id").load("all")
    assert [(row["key"], row["caption"]) for row in rows] == [
        ("w", "cat"),
        ("x", "dog"),
        ("y", "dog"),
        ("z", ""),
    ]
    assert rows[3]["image"].getpixel((0, 0)) == (3, 0, 0)
    rows = build(**section, caption_column="texts").load("all")
    assert (rows[2]["caption"], rows[2]["key"]) == ("a", "000000002")
    assert build(**section, caption_column=None).load("all")[0]["caption"] == ""
    with pytest.raises(DataSourceError, match=r"caption_column is 'caption', but the columns are picture, label"):
        build(**section).load("all")


def test_saved_splits_and_streaming(tmp_path: Path) -> None:
    splits = {"train": write_table(30, caption=["t"] * 30), "test": write_table(3, caption=["h"] * 3)}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    section = {"type": "hf_dataset", "path": str(tmp_path / "saved")}
    source = build(**section, heldout_split="test")
    assert {row["caption"] for row in source.load("heldout")} == {"h"}
    assert len(source.load("train")) == 30
    stream = build(**section, streaming=True, heldout_fraction=0.3)
    keys = {split: {row["key"] for row in stream.load(split)} for split in ("train", "heldout", "all")}
    assert keys["train"] | keys["heldout"] == keys["all"]
    assert not keys["train"] & keys["heldout"]
    assert len(keys["all"]) == 30
    with pytest.raises(DataSourceError, match=r"no split 'valid'; there are train, test"):
        build(**section, split="valid").load("all")


def test_a_folder_of_data_files(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    write_table(5, caption=list("abcde")).to_parquet(str(folder / "train.parquet"))
    rows = build(type="hf_dataset", path=str(folder)).load("all")
    assert [row["caption"] for row in rows] == list("abcde")


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_with_structs_or_plain_bytes(tmp_path: Path, streaming: bool) -> None:
    write_table(3, text=list("abc")).to_parquet(str(tmp_path / "part-0.parquet"))
    broken = [{"bytes": content, "path": None} for content in (shade(3), b"", shade(5))]
    datasets.Dataset.from_dict({"image": broken, "text": list("def")}).to_parquet(str(tmp_path / "part-1.parquet"))
    section = {"type": "parquet", "caption_column": "text", "streaming": streaming}
    source = build(**section, files=str(tmp_path / "part-{0..1}.parquet"))
    samples = [(row["caption"], row["image"].getpixel((0, 0))[0]) for row in source.load("all")]
    good = [("a", 0), ("b", 1), ("c", 2), ("d", 3), ("f", 5)]
    assert samples == (good if streaming else [*good[:4], good[4], good[4]])
    assert source.report.unreadable == 1
    plain = datasets.Dataset.from_dict({"image": [shade(7)], "text": ["g"]})
    plain.to_parquet(str(tmp_path / "plain.parquet"))
    row = next(iter(build(**section, files=str(tmp_path / "pl*.parquet")).load("all")))
    assert (row["caption"], row["image"].getpixel((0, 0))[0]) == ("g", 7)


def test_parquet_names_files_that_are_not_there(tmp_path: Path) -> None:
    write_table(1, caption=["a"]).to_parquet(str(tmp_path / "part-0.parquet"))
    with pytest.raises(DataSourceError, match=r"parquet: no file matches .*part-1.parquet"):
        build(type="parquet", files=str(tmp_path / "part-{0..1}.parquet")).load("all")
    with pytest.raises(DataSourceError, match=r"no file matches .*\*\.pq"):
        build(type="parquet", files=str(tmp_path / "*.pq")).load("all")
