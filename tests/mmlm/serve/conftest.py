"""A tiny merged model behind the application."""

from __future__ import annotations

import pytest
import torch

from mmlm.merging.folder import load_merged
from mmlm.serve.engine import Engine
from mmlm.serve.limits import Limits

LIMITS = Limits(
    images_per_request=3,
    new_tokens=60,
    prompt_characters=200,
    prompt_images=2,
    image_bytes=20_000,
    image_pixels=64 * 64,
    body_bytes=100_000,
    waiting_requests=2,
)


@pytest.fixture(scope="session")
def merged(merged_folder):
    """Model and processor of the folder."""
    torch.set_num_threads(1)
    return load_merged(merged_folder, "cpu")


@pytest.fixture
def engine(merged) -> Engine:
    """An engine that is not started yet."""
    return Engine(*merged, LIMITS)


@pytest.fixture
def client(engine):
    """A client of the running application."""
    pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
    from fastapi.testclient import TestClient

    from mmlm.serve.app import build_app

    with TestClient(build_app(engine, "tiny")) as client:
        yield client
