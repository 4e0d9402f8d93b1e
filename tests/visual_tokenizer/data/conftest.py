"""Fixtures of the data tests."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def openmoji_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a cache folder that all tests share, so that the drawings are rasterised once."""
    return str(tmp_path_factory.mktemp("openmoji"))
