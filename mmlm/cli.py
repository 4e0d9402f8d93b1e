"""Entry point of the program `mmlm`."""

from __future__ import annotations

from mmlm.commands import drawing, measuring, merging, planning, serving  # noqa: F401 - each registers its commands
from mmlm.commands.registration import app

if __name__ == "__main__":
    app()
