"""Names that mean a folder on this machine or a repository on the hub."""

from __future__ import annotations

import os

from visual_tokenizer.errors import MissingFileError


def require_folder(name: object, what: str) -> None:
    """Refuse a local path that does not exist, before it is taken for the name of a repository.

    Args:
        name: a path, or `owner/name` on the hub.
        what: what should be there, for the message.

    Raises:
        FileNotFoundError: `name` can only be a path (absolute, relative with a dot, or of several parts) and is none.
    """
    text = os.fspath(name) if isinstance(name, (str, os.PathLike)) else ""
    is_path = os.path.isabs(text) or text.startswith((".", "~")) or text.count("/") > 1 or isinstance(name, os.PathLike)
    if is_path and not os.path.exists(text):
        raise MissingFileError(f"there is no folder '{text}', where {what} should be")
