"""Files and folders are there as a whole or as they were, whatever happens while they are written."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import resource
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from visual_tokenizer.errors import MissingFileError, UserError
from visual_tokenizer.runs import files
from visual_tokenizer.runs.files import (
    beside,
    discard,
    file_sha256,
    move_folder,
    remove_unfinished,
    require_folder,
    require_free,
    save_json,
    save_text,
    sync_tree,
    whole_file,
    whole_folder,
)
from visual_tokenizer.runs.folder import RunLock

ROOT = Path(__file__).parents[3]
KILLED = 9


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def in_child(action: Callable[[], Any]) -> int:
    """Run `action` in a copy of this process and return its exit code; 1 if it raised."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(line: int, action: Callable[[], Any]) -> bool:
    """Run `action` in a child that ends without a word before it runs the given line, counted as they are run.

    Lines of this file's blocks, of `runs/files.py` and of `shutil` count. Returns whether so many were run.
    """
    traced, seen = {files.__file__, shutil.__file__, __file__}, 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal seen
        if frame.f_code.co_filename not in traced:
            return None
        seen += event == "line"
        if event == "line" and seen == line:
            os._exit(KILLED)
        return trace

    def run() -> None:
        sys.settrace(trace)
        action()
        sys.settrace(None)

    code = in_child(run)
    assert code in (0, KILLED)
    return code == KILLED


def write_file(target: Path, mark: str) -> None:
    with whole_file(target) as unfinished:
        with open(unfinished, "w") as file:
            file.write(mark * 1000)
            file.flush()
            file.write(mark * 1000)


def read_file(target: Path) -> str:
    content = target.read_text()
    assert content == content[0] * 2000
    return content[0]


def write_folder(target: Path, mark: str) -> None:
    with whole_folder(target, existing="replace") as unfinished:
        (unfinished / "below").mkdir()
        (unfinished / "below" / "one").write_text(mark)
        (unfinished / "two").write_text(mark)
        (unfinished / f"only-{mark}").write_text(mark)


def read_folder(target: Path) -> str:
    marks = {path.read_text() for path in target.rglob("*") if path.is_file()}
    assert len(marks) == 1
    mark = marks.pop()
    assert names(target) == ["below", f"only-{mark}", "two"]
    return mark


KINDS = pytest.mark.parametrize(("write", "read"), [(write_file, read_file), (write_folder, read_folder)])


@KINDS
def test_a_kill_before_any_line_leaves_the_old_or_the_new_as_a_whole(tmp_path, write, read):
    target, found, line = tmp_path / "target", [], 0
    while True:
        write(target, "a")
        line += 1
        was_killed = killed_at(line, lambda: write(target, "b"))
        found.append(read(target))
        remove_unfinished(tmp_path, "target")
        assert names(tmp_path) == ["target"]
        if not was_killed:
            break
    assert len(found) > 15, "many points were tried"
    assert found == sorted(found), "once the new is there, it stays"
    assert found[-1] == "b"


@KINDS
def test_a_kill_before_there_was_anything_leaves_nothing_or_the_whole(tmp_path, write, read):
    line, was_killed = 0, True
    while was_killed:
        line += 1
        folder = tmp_path / str(line)
        was_killed = killed_at(line, lambda folder=folder: write(folder / "target", "b"))
        if (folder / "target").exists():
            assert read(folder / "target") == "b"
        remove_unfinished(folder, "target")
        assert not folder.exists() or names(folder) in ([], ["target"])
    assert read(folder / "target") == "b"


@KINDS
@pytest.mark.parametrize("function", ["fsync", "replace", "rename"])
def test_an_error_of_the_system_leaves_the_old_and_nothing_beside_it(tmp_path, monkeypatch, write, read, function):
    write(tmp_path / "target", "a")

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, function, full)
    monkeypatch.setattr(files, "_exchange_at_once", lambda *_: False)
    unused = (write, function) in ((write_file, "rename"), (write_folder, "replace"))
    if unused:
        write(tmp_path / "target", "b")
    else:
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path / "target", "b")
    monkeypatch.undo()
    assert read(tmp_path / "target") == ("b" if unused else "a")
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize("context", [whole_file, lambda path: whole_folder(path, existing="replace")])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_block_leaves_the_old_and_nothing_beside_it(tmp_path, context, error):
    save_text("old", tmp_path / "target" / "content")
    place = tmp_path / "target" / "content" if context is whole_file else tmp_path / "target"

    def fail():
        with context(place) as unfinished:
            (unfinished / "half" if unfinished.is_dir() else unfinished).write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == ["target"]
    assert names(tmp_path / "target") == ["content"]
    assert (tmp_path / "target" / "content").read_text() == "old"


def test_a_file_that_does_not_fit_leaves_the_old(tmp_path):
    """A limit on the size of a file fails in the middle of a write, as a full disk does."""
    save_text("old", tmp_path / "file")

    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(OSError):
            save_text("new" * 10_000, tmp_path / "file")
        with pytest.raises(OSError):
            write_folder(tmp_path / "folder", "new" * 10_000)

    assert in_child(write) == 0
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


@KINDS
def test_of_many_writers_at_once_a_reader_sees_only_whole_ones(tmp_path, write, read):
    write(tmp_path / "target", "a")
    marks = [chr(ord("b") + number) for number in range(8)]

    def write_often(mark: str) -> None:
        for _ in range(10):
            write(tmp_path / "target", mark)

    seen = set()
    with ThreadPoolExecutor(len(marks)) as threads:
        jobs = [threads.submit(write_often, mark) for mark in marks]
        while not all(job.done() for job in jobs):
            if write is write_file:  # a folder's files are read one by one, it may be replaced between two of them
                seen.add(read(tmp_path / "target"))
            assert (tmp_path / "target").exists()
    for job in jobs:
        job.result()
    assert seen <= {"a", *marks}
    assert read(tmp_path / "target") in marks
    assert names(tmp_path) == ["target"]


def test_of_several_first_writers_one_wins(tmp_path):
    def write(number: int) -> bool:
        try:
            with whole_file(tmp_path / "target", overwrite=False) as unfinished:
                unfinished.write_text(str(number))
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(write, range(8)))
    assert won.count(True) == 1
    assert (tmp_path / "target").read_text() == str(won.index(True))
    assert names(tmp_path) == ["target"]


def test_a_folder_that_is_there_is_refused_replaced_or_filled(tmp_path):
    write_folder(tmp_path / "target", "a")
    with pytest.raises(UserError, match="target' exists and is not empty"), whole_folder(tmp_path / "target"):
        raise AssertionError("not reached")
    with whole_folder(tmp_path / "target", existing="fill") as unfinished:
        (unfinished / "below").mkdir()
        (unfinished / "below" / "one").write_text("new")
        (unfinished / "deep" / "er").mkdir(parents=True)
        (unfinished / "deep" / "er" / "three").write_text("new")
    assert names(tmp_path / "target") == ["below", "deep", "only-a", "two"]
    assert [(tmp_path / "target" / name).read_text() for name in ("below/one", "deep/er/three", "two")] == [
        "new",
        "new",
        "a",
    ]
    write_folder(tmp_path / "target", "b")
    assert read_folder(tmp_path / "target") == "b"
    (tmp_path / "empty").mkdir()
    with whole_folder(tmp_path / "empty") as unfinished:
        (unfinished / "one").touch()
    assert names(tmp_path / "empty") == ["one"]
    assert names(tmp_path) == ["empty", "target"]


def test_a_folder_that_came_into_being_meanwhile_is_not_overwritten(tmp_path):
    def write() -> None:
        with whole_folder(tmp_path / "target"):
            write_folder(tmp_path / "target", "a")

    with pytest.raises(OSError):
        write()
    assert read_folder(tmp_path / "target") == "a"
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize("at_once", [True, False])
def test_folders_swap_names_with_and_without_the_systems_help(tmp_path, monkeypatch, at_once):
    if at_once and not hasattr(__import__("ctypes").CDLL(None), "renameat2"):
        pytest.skip("no renameat2 here")
    if not at_once:
        monkeypatch.setattr(files, "_exchange_at_once", lambda *_: False)
    write_folder(tmp_path / "target", "a")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_folder(tmp_path / "target", "b")
    assert read_folder(tmp_path / "target") == "b"
    write_folder(tmp_path / "link", "c")  # the link is replaced, not what it leads to
    assert (read_folder(tmp_path / "link"), read_folder(tmp_path / "target")) == ("c", "b")
    assert names(tmp_path) == ["link", "target"]


def test_only_leftovers_of_the_given_names_are_removed(tmp_path):
    old = tmp_path / f"step-00000002.tmp-{'a' * 32}"
    new, file = beside(tmp_path / "step-00000003"), beside(tmp_path / "log.jsonl")
    for folder in (old, new, tmp_path / "step-00000004"):
        (folder / "below").mkdir(parents=True)
    file.touch()
    others = [beside(tmp_path / "notes").name, "step-00000002.tmp-mine", f"step-2.{'a' * 32}", "step-00000004"]
    for name in others:
        (tmp_path / name).mkdir(exist_ok=True)
    remove_unfinished(tmp_path, r"step-\d{8}|log\.jsonl")
    assert names(tmp_path) == sorted(others)
    remove_unfinished(tmp_path / "nothing", ".*")


def test_what_a_killed_run_left_goes_when_the_next_one_takes_the_folder(tmp_path):
    (beside(tmp_path / "final") / "below").mkdir(parents=True)
    beside(tmp_path / "log.jsonl").touch()
    (tmp_path / "final").mkdir()
    lock = RunLock(tmp_path)
    assert names(tmp_path) == ["final", "run.lock"]
    lock.release()


def test_folders_are_moved_and_discarded(tmp_path):
    write_folder(tmp_path / "one", "a")
    write_folder(tmp_path / "other", "b")
    with pytest.raises(OSError):
        move_folder(tmp_path / "one", tmp_path / "other")
    move_folder(tmp_path / "one", tmp_path / "third")
    assert read_folder(tmp_path / "third") == "a"
    discard(tmp_path / "other")
    assert names(tmp_path) == ["third"]


def test_text_json_digests_and_links(tmp_path):
    save_text("ä\n", tmp_path / "deep" / "text")
    assert (tmp_path / "deep" / "text").read_bytes() == "ä\n".encode()
    save_json({"a": ["ü"]}, tmp_path / "deep" / "json")
    assert (tmp_path / "deep" / "json").read_bytes() == '{\n  "a": [\n    "ü"\n  ]\n}'.encode()
    content = os.urandom(files.BLOCK_BYTES + 7)
    (tmp_path / "large").write_bytes(content)
    assert file_sha256(tmp_path / "large") == hashlib.sha256(content).hexdigest()
    (tmp_path / "deep" / "nowhere").symlink_to("gone")
    sync_tree(tmp_path)


def test_paths_and_names_on_the_hub(tmp_path):
    require_folder("owner/name", "a model")
    require_folder(tmp_path, "a model")
    for name in (tmp_path / "gone", "./gone", "a/b/c"):
        with pytest.raises(MissingFileError, match="where a model should be"):
            require_folder(name, "a model")
    require_free(tmp_path)
    require_free(tmp_path / "gone")
    (tmp_path / "file").touch()
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="exists and is not empty"):
            require_free(taken)


def test_nothing_else_renames_or_makes_up_names_beside():
    """Whole-file writes have one implementation; whoever needs another kind of write adds it there."""
    pattern = re.compile(r"uuid4\(\)\.hex|\bos\.(replace|rename|renames|link)\(|\.rename\(")
    allowed = {
        ("mmlm/serve/app.py", "uuid4().hex"),  # the id of a reply
        ("benchmarks/pretokenize.py", "os.link("),  # many pictures out of a few
    }
    found = {
        (path.relative_to(ROOT).as_posix(), match[0])
        for package in ("visual_tokenizer", "mmlm", "benchmarks")
        for path in (ROOT / package).rglob("*.py")
        if ROOT / "visual_tokenizer/runs" not in path.parents
        for match in pattern.finditer(path.read_text(encoding="utf-8"))
    }
    assert found == allowed
