"""Parts of other people: folders named in `VISUAL_TOKENIZER_PLUGINS`, which mirror this project."""

from __future__ import annotations

import os
from pathlib import Path

PLUGINS_VARIABLE = "VISUAL_TOKENIZER_PLUGINS"


def plugin_folders() -> list[Path]:
    """Return the folders of `VISUAL_TOKENIZER_PLUGINS` that exist."""
    named = os.environ.get(PLUGINS_VARIABLE, "").split(os.pathsep)
    return [Path(folder) for folder in named if folder and Path(folder).is_dir()]
