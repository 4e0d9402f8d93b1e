"""Tar shards: pairing, hostile members, damage."""

from __future__ import annotations

import gzip
import io
import json
import logging
import tarfile
from pathlib import Path
from typing import Any

import pytest
from encoded_pictures import picture_bytes, truncated_jpeg

from visual_tokenizer.data.sources.base import DataSourceError, Source, SourceConfig


def build(shards: str, **section: Any) -> Source:
    return SourceConfig.family.build({"type": "webdataset", "shards": shards, **section})


def write_shard(file: Path, members: list[tuple[str, bytes]], links: list[tarfile.TarInfo] | None = None) -> None:
    with tarfile.open(file, "w") as tar:
        for link in links or []:
            tar.addfile(link)
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def members(start: int, stop: int) -> list[tuple[str, bytes]]:
    return [
        member
        for number in range(start, stop)
        for member in (
            (f"{number:04d}.png", picture_bytes((number, 0, 0))),
            (f"{number:04d}.txt", f"picture {number}\n".encode()),
        )
    ]


def test_pairs_of_picture_and_caption(tmp_path: Path) -> None:
    entries = [
        *members(0, 2),
        ("a/b.x.json", b"ignored: its stem is a/b, its extension x.json"),
        ("c.JPG", picture_bytes(kind="JPEG")),
        ("c.json", json.dumps({"caption": "from json", "title": "other"}).encode()),
        ("d.webp", picture_bytes(kind="WEBP")),
        ("e.txt", b"no picture"),
        ("f.png", picture_bytes()),
        ("f.json", b"{broken"),
    ]
    write_shard(tmp_path / "s.tar", entries)
    samples = {row["key"]: row["caption"] for row in build(str(tmp_path / "s.tar")).load("all")}
    assert samples == {"0000": "picture 0", "0001": "picture 1", "c": "from json", "d": "", "f": ""}
    titled = build(str(tmp_path / "s.tar"), caption_key="title").load("all")
    assert {row["key"]: row["caption"] for row in titled}["c"] == "other"


def test_nothing_in_a_shard_is_written_to_the_disk(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    links = []
    for name, kind, target in (
        ("l.png", tarfile.SYMTYPE, "/etc/passwd"),
        ("h.png", tarfile.LNKTYPE, "../x.png"),
    ):
        link = tarfile.TarInfo(name)
        link.type, link.linkname = kind, target
        links.append(link)
    device = tarfile.TarInfo("dev.png")
    device.type = tarfile.CHRTYPE
    entries = [
        ("../x.png", picture_bytes()),
        (str(tmp_path / "absolute.png"), picture_bytes()),
        *members(0, 1),
    ]
    write_shard(folder / "s.tar", entries, [*links, device])
    before = sorted(tmp_path.rglob("*"))
    keys = [row["key"] for row in build(str(folder / "s.tar")).load("all")]
    assert keys == ["../x", str(tmp_path / "absolute"), "0000"]
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_pictures_are_left_out_and_counted(tmp_path: Path) -> None:
    entries = [
        *members(0, 3),
        ("bad.jpg", truncated_jpeg()),
        ("bad.txt", b"cut"),
        ("none.png", b""),
        *members(3, 5),
    ]
    write_shard(tmp_path / "s.tar", entries)
    source = build(str(tmp_path / "s.tar"))
    assert [row["key"] for row in source.load("all")] == ["0000", "0001", "0002", "0003", "0004"]
    assert set(source.report.reasons) == {"bad", "none"}
    assert (source.report.tried, source.report.unreadable) == (7, 2)


@pytest.mark.parametrize("in_header", [True, False])
def test_a_cut_shard_gives_what_is_whole_and_the_next_shard_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, in_header: bool
) -> None:
    write_shard(tmp_path / "s-0.tar", members(0, 4))
    write_shard(tmp_path / "s-1.tar", members(4, 6))
    content = (tmp_path / "s-0.tar").read_bytes()
    (tmp_path / "s-0.tar").write_bytes(content[: 512 * (6 if in_header else 7) + 20])
    (tmp_path / "s-2.tar").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        keys = [row["key"] for row in build(str(tmp_path / "s-{0..2}.tar")).load("all")]
    assert keys[-2:] == ["0004", "0005"]
    assert keys[0] == "0000"
    assert "0003" not in keys
    # a tar that ends between two members cannot be told from a whole one
    assert in_header or any("s-0.tar" in record.getMessage() for record in caplog.records)
    assert any("s-2.tar" in record.getMessage() for record in caplog.records)


def test_a_member_too_large_to_be_a_picture_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("bomb.png")
        info.size = 10_000_000
        tar.addfile(info, io.BytesIO(bytes(info.size)))
        for name, content in members(0, 1):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (tmp_path / "s.tar.gz").write_bytes(gzip.compress(buffer.getvalue()))
    with caplog.at_level(logging.WARNING):
        keys = [row["key"] for row in build(str(tmp_path / "s.tar.gz"), max_pixels=1_000_000).load("all")]
    assert keys == ["0000"]
    assert any("bomb.png of 10000000 bytes" in record.getMessage() for record in caplog.records)


def test_duplicate_members_keep_the_first(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.tar", [("a.png", picture_bytes((1, 0, 0))), ("a.png", picture_bytes((2, 0, 0)))])
    rows = list(build(str(tmp_path / "s.tar")).load("all"))
    assert [row["image"].getpixel((0, 0))[0] for row in rows] == [1]


def test_split_by_hash_own_heldout_and_shards(tmp_path: Path) -> None:
    for shard in range(4):
        write_shard(tmp_path / f"s-{shard}.tar", members(10 * shard, 10 * shard + 10))
    source = build(str(tmp_path / "s-*.tar"), heldout_fraction=0.3)
    keys = {split: [row["key"] for row in source.load(split)] for split in ("train", "heldout", "all")}
    assert sorted(keys["train"] + keys["heldout"]) == keys["all"]
    assert 4 < len(keys["heldout"]) < 20
    own = build(str(tmp_path / "s-{0..2}.tar"), heldout_shards=str(tmp_path / "s-3.tar"))
    assert [row["key"] for row in own.load("heldout")] == [f"{number:04d}" for number in range(30, 40)]
    assert len(list(own.load("train"))) == 30
    rows = source.load("all")
    assert rows.num_shards == 4
    assert [row["key"] for row in rows.shard(4, 2)] == [f"{number:04d}" for number in range(20, 30)]


def test_missing_shards_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataSourceError, match=r"webdataset: no file matches .*s-1.tar"):
        build(str(tmp_path / "s-1.tar")).load("all")
