"""The one boundary between what a user can put right and what is a fault of ours.

Whatever a user can cause raises a `UserError` whose message names the field or file, the value and the rule. A program
ends with that one line and exit code 2; every other exception keeps its traceback.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

USER_ERROR_EXIT_CODE = 2


class UserError(ValueError):
    """A usage or input error: the message names the field or file, the value and the rule."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user named is not there."""


class MissingWeightsError(MissingFileError):
    """The weights of a frozen network are not on this machine; the message says what to install."""


class IndexOutOfRangeError(UserError, IndexError):
    """An index is negative, or not below the size of the codebook or vocabulary."""


class DivergedError(UserError, FloatingPointError):
    """The loss of a training became NaN or infinite."""


class FirstProcessError(RuntimeError):
    """The first process failed at something it does for all; it reports the error itself."""


class Interrupted(RuntimeError):
    """A signal asked the run to stop, and it did so after a checkpoint."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(signum, step)
        self.signum = signum
        self.step = step

    def __str__(self) -> str:
        name = signal.Signals(self.signum).name
        return f"stopped by {name} after a checkpoint of step {self.step}; the same command goes on from there"


@contextmanager
def exit_on_user_error(program: str) -> Iterator[None]:
    """End the process with one line on stderr and exit code 2 where the user has something to put right.

    That is a `UserError`, or an `OSError`: a full disk, a folder without permission, a name the hub doesn't know.
    A run that a signal stopped after a checkpoint ends with 128 + the signal's number.
    """
    try:
        yield
    except FirstProcessError as error:
        raise SystemExit(USER_ERROR_EXIT_CODE) from error
    except Interrupted as stop:
        _say(program, str(stop))
        raise SystemExit(128 + stop.signum) from stop
    except BrokenPipeError as error:  # whoever read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(128 + signal.SIGPIPE) from error
    except (UserError, OSError) as error:
        _end(program, error)


def program(name: str) -> Callable[[Callable[[Sequence[str]], int]], Callable[..., int]]:
    """Decorate a program's `main(arguments) -> exit code` with the boundary of `exit_on_user_error`.

    Args:
        name: what stands before the line of an error, without the launcher.
    """

    def decorate(main: Callable[[Sequence[str]], int]) -> Callable[..., int]:
        @functools.wraps(main)
        def guarded(arguments: Sequence[str] | None = None) -> int:
            try:
                with exit_on_user_error(name.rpartition("-m ")[2]):
                    return main(sys.argv[1:] if arguments is None else arguments)
            except SystemExit as end:
                if end.__cause__ is None:  # --help
                    raise
                return int(end.code or 0)

        return guarded

    return decorate


def _end(program: str, error: Exception) -> NoReturn:
    lines = str(error).splitlines()
    if lines and lines[0].startswith("Caught ") and "Original Traceback" in str(error):  # from a loader's worker
        lines = [lines[-1].partition(": ")[2] or lines[-1]]
    _say(program, "error: " + " ".join(" ".join(lines).split()))
    raise SystemExit(USER_ERROR_EXIT_CODE) from error


def _say(program: str, line: str) -> None:
    rank = os.environ.get("RANK", "0")
    where = "" if rank == "0" else f" (process {rank})"
    print(f"{program}{where}: {line}", file=sys.stderr)
