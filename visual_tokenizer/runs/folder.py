"""The folder of a run: one run at a time (`run.lock`), and one line a logged step (`log.jsonl`)."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from visual_tokenizer.errors import UserError
from visual_tokenizer.runs.files import beside, remove_unfinished, save_text, whole_file

REFRESH_SECONDS = 30
STALE_SECONDS = 300
WRITTEN_BY_HOLDER = r"final|log\.jsonl|recipe\.yaml"
"""Names in a run's folder that only the run writes; what a killed run left of them goes with its lock."""


class RunLock:
    """Holds `run.lock` (process id, host) in a folder while a run writes there.

    A lock is stale, and taken over, when its process is dead; of a process on another host that is known from the
    file's time, which a living run renews every 30 s, once it is 5 minutes old.

    Raises:
        UserError: the run that holds the lock is alive.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run.lock"
        self._text = json.dumps(
            {
                "pid": os.getpid(),
                "started": _start_of(os.getpid()),
                "host": socket.gethostname(),
                "id": uuid.uuid4().hex,
            }
        )
        while not self._create():
            self._remove_if_stale()
        remove_unfinished(folder, WRITTEN_BY_HOLDER)
        self._released = threading.Event()
        threading.Thread(target=self._renew, daemon=True).start()

    def _create(self) -> bool:
        try:
            with whole_file(self.path, overwrite=False) as unfinished:
                unfinished.write_text(self._text, encoding="utf-8")
        except FileExistsError:
            return False
        return True

    def _remove_if_stale(self) -> None:
        try:
            text, age = self.path.read_text(encoding="utf-8"), time.time() - self.path.stat().st_mtime
        except FileNotFoundError:
            return
        if _is_alive(text, age):
            holder = json.loads(text)
            raise UserError(
                f"{self.path.parent} is in use by process {holder['pid']} on {holder['host']}. Give this run another "
                f"output_dir, or wait for that one to end."
            )
        # Moved before it is removed: of two processes that find it stale only one can move it.
        aside = beside(self.path)
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return
        if aside.read_text(encoding="utf-8") != text:  # another process was faster, and this is its lock
            os.link(aside, self.path)
        aside.unlink()

    def _renew(self) -> None:
        while not self._released.wait(REFRESH_SECONDS):
            try:
                os.utime(self.path)
            except OSError:
                return

    def release(self) -> None:
        """Release the lock; one that another process took over stays."""
        self._released.set()
        try:
            if self.path.read_text(encoding="utf-8") == self._text:
                self.path.unlink()
        except FileNotFoundError:
            pass


def _is_alive(text: str, age_seconds: float) -> bool:
    try:
        holder = json.loads(text)
        pid, started, host = int(holder["pid"]), holder["started"], holder["host"]
    except (ValueError, KeyError, TypeError):
        return False
    if host != socket.gethostname():
        return age_seconds < STALE_SECONDS
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return started == _start_of(pid)


def _start_of(pid: int) -> str | None:
    """Return the kernel's start time of a process, which tells it from a later one with its number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


class StepLog:
    """`log.jsonl`: one JSON object a line, each with `step`; a step that is trained again replaces its lines."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.jsonl"

    def read(self) -> list[dict[str, Any]]:
        """Return all complete lines."""
        if not self.path.is_file():
            return []
        entries = []
        for line in self.path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # a run was killed while it wrote this line, or the disk lost it
                continue
            if isinstance(entry, dict) and isinstance(entry.get("step"), int):
                entries.append(entry)
        return entries

    def truncate(self, step: int) -> None:
        """Drop what was logged after `step`."""
        kept = [entry for entry in self.read() if entry["step"] <= step]
        save_text("".join(json.dumps(entry) + "\n" for entry in kept), self.path)

    def append(self, step: int, values: dict[str, Any]) -> None:
        """Write one line."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
