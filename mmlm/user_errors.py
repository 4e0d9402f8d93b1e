"""Errors of the user end a program with one line and exit code 2, not with a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

USER_ERROR_EXIT_CODE = 2
OUR_PACKAGES = ("mmlm", "visual_tokenizer")


@contextmanager
def exit_on_user_error(program: str) -> Iterator[None]:
    """Print an error of our own as one line, on the first rank, and exit with 2.

    Ours are the error types that our packages define, and any `ValueError` or `FileNotFoundError` that their
    code raises itself. What comes out of other libraries keeps its traceback.
    """
    try:
        yield
    except Exception as error:
        if not _is_ours(error):
            raise
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(USER_ERROR_EXIT_CODE) from error


def _is_ours(error: Exception) -> bool:
    if type(error).__module__.split(".")[0] in OUR_PACKAGES:
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    raised_by_us = module == "__main__" or module.split(".")[0] in OUR_PACKAGES
    return raised_by_us and isinstance(error, (ValueError, FileNotFoundError))
