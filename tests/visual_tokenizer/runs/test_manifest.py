"""A checkpoint is whole if its files are as the manifest says, in the formats of today and of older runs."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from visual_tokenizer.runs.manifest import (
    MANIFEST,
    CheckpointError,
    list_numbered,
    newest_whole,
    read_facts,
    verify_manifest,
    write_manifest,
)

NAME = re.compile(r"checkpoint-(\d+)")


def checkpoint(folder: Path, step: int = 4) -> Path:
    """A checkpoint as DeepSpeed writes it, without a manifest."""
    path = folder / f"checkpoint-{step}"
    (path / "global_step4").mkdir(parents=True)
    (path / "global_step4" / "states.pt").write_bytes(b"states")
    (path / "model.safetensors").write_bytes(b"weights")
    (path / "latest").write_text("global_step4")
    return path


def test_sizes_and_digests_of_every_file_and_the_facts(tmp_path):
    folder = checkpoint(tmp_path)
    write_manifest(folder, sharding="zero-2", processes=2)
    verify_manifest(folder)
    assert read_facts(folder) == {"sharding": "zero-2", "processes": 2}
    found = json.loads((folder / MANIFEST).read_text())
    assert list(found) == ["sharding", "processes", "files"]
    assert list(found["files"]) == ["global_step4/states.pt", "model.safetensors"]
    digest = hashlib.sha256(b"weights").hexdigest()
    assert found["files"]["model.safetensors"] == {"size": 7, "sha256": digest}
    (folder / "latest").write_text("")  # DeepSpeed's note is written again
    (folder / "universal").mkdir()  # made of the checkpoint when it is resumed
    (folder / "universal" / "more").touch()
    verify_manifest(folder)


def test_the_format_is_as_it_was(tmp_path):
    (tmp_path / "b").write_bytes(b"")
    (tmp_path / "a").write_bytes(b"abc")
    write_manifest(tmp_path, step=7)
    digests = [
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ]
    files = {name: {"size": size, "sha256": digest} for name, size, digest in zip("ab", (3, 0), digests, strict=True)}
    assert (tmp_path / MANIFEST).read_text() == json.dumps({"step": 7, "files": files}, indent=1)


@pytest.mark.parametrize("name", ["model.safetensors", "global_step4/states.pt"])
def test_damage_is_named(tmp_path, name):
    folder = checkpoint(tmp_path)
    write_manifest(folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + b"!")
    verify_manifest(folder, contents=False)
    with pytest.raises(CheckpointError, match=rf"checkpoint-4/{name} is not as it was written"):
        verify_manifest(folder)
    (folder / name).write_bytes(content[:-1])
    for contents in (True, False):
        with pytest.raises(CheckpointError, match=rf"{name} has {len(content) - 1} bytes, the manifest says"):
            verify_manifest(folder, contents=contents)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"checkpoint-4/{name} is missing"):
        verify_manifest(folder)


def test_checkpoints_with_sizes_alone_are_verified_as_far_as_they_say(tmp_path):
    folder = checkpoint(tmp_path)
    old = {
        "facts": {"sharding": "none", "processes": 1},
        "sizes": {"global_step4/states.pt": 6, "model.safetensors": 7},
    }
    (folder / MANIFEST).write_text(json.dumps(old, indent=1))
    verify_manifest(folder)
    assert read_facts(folder) == old["facts"]
    (folder / MANIFEST).write_text(json.dumps({"sizes": old["sizes"]}))  # before there were facts
    assert read_facts(folder) == {}
    (folder / "model.safetensors").write_bytes(b"weight")
    with pytest.raises(CheckpointError, match=r"model\.safetensors has 6 bytes, the manifest says 7"):
        verify_manifest(folder)


def test_checkpoints_with_a_marker_alone_count_as_whole(tmp_path):
    folder = checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"checkpoint-4/manifest\.json is missing"):
        verify_manifest(folder)
    (folder / "complete").touch()
    verify_manifest(folder)
    assert read_facts(folder) == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"sizes": []}',
        '{"files": {"a": 1}}',
        '{"files": {"a": {"size": 1}}}',
        '{"sizes": {"model.safetensors": "x"}}',
        b"\xff\xfe",
    ],
)
def test_a_manifest_that_cannot_be_read_is_named(tmp_path, text):
    folder = checkpoint(tmp_path)
    (folder / "complete").touch()  # counts only where there is no manifest
    (folder / MANIFEST).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=r"checkpoint-4/manifest\.json can't be read"):
        verify_manifest(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "global_step4/../../outside"])
def test_a_manifest_cannot_point_outside_its_folder(tmp_path, name):
    folder = checkpoint(tmp_path)
    (tmp_path / "outside").write_bytes(b"x")
    (folder / MANIFEST).write_text(json.dumps({"sizes": {name: 1}}))
    with pytest.raises(CheckpointError, match="is missing"):
        verify_manifest(folder)


def test_the_newest_whole_one_and_why_later_ones_are_passed_over(tmp_path):
    for step in (2, 10, 9):
        write_manifest(checkpoint(tmp_path, step))
    checkpoint(tmp_path, 11)
    (tmp_path / "checkpoint-of-mine").mkdir()
    (tmp_path / "checkpoint-3").touch()
    found = list_numbered(tmp_path, NAME)
    assert [path.name for path in found] == ["checkpoint-2", "checkpoint-9", "checkpoint-10", "checkpoint-11"]
    (found[2] / "model.safetensors").write_bytes(b"Weights")
    newest, complaints = newest_whole(found)
    assert newest == found[1]
    assert [complaint.partition(" ")[0] for complaint in complaints] == [
        "checkpoint-11/manifest.json",
        "checkpoint-10/model.safetensors",
    ]
    assert newest_whole(found[3:])[0] is None
    assert newest_whole([]) == (None, [])
    assert list_numbered(tmp_path / "nothing", NAME) == []
