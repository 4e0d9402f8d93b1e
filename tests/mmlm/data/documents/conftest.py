"""Pictures on the disk, documents of them in every form, and a merged tiny model with room for a document."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import PartialState
from PIL import Image

from mmlm.documents.base import DocumentSource, DocumentSourceConfig
from mmlm.merging.merge import merge_vocabulary
from mmlm.processing import MultimodalProcessor

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML with a BOS of its own."""


@pytest.fixture(autouse=True)
def _state() -> None:
    PartialState(cpu=True)


@pytest.fixture(scope="session")
def picture_bytes() -> Callable[[int], bytes]:
    """Return a function that gives a PNG of 4 × 4 random colours, 32 pixels wide."""

    def make(number: int) -> bytes:
        squares = np.random.default_rng(1000 + number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(squares).resize((32, 32), Image.Resampling.NEAREST).save(file, format="PNG")
        return file.getvalue()

    return make


@pytest.fixture(scope="session")
def pictures_folder(picture_bytes: Callable[[int], bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 pictures, 0.png … 11.png; broken.png is none."""
    folder = tmp_path_factory.mktemp("document_pictures")
    for number in range(12):
        (folder / f"{number}.png").write_bytes(picture_bytes(number))
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def write_jsonl(pictures_folder: Path) -> Callable[..., Path]:
    """Return a function that writes lines to a file beside the pictures."""
    written: list[Path] = []

    def write(name: str, lines: list[Any]) -> Path:
        file = pictures_folder / name
        file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
        written.append(file)
        return file

    yield write
    for file in written:
        file.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def build_source() -> Callable[..., DocumentSource]:
    """Build a source that holds nothing out."""

    def build(kind: str, **fields: Any) -> DocumentSource:
        return DocumentSourceConfig.family.build({"type": kind, "heldout_fraction": 0.0, **fields})

    return build


@pytest.fixture(scope="session")
def documents_folder(codec, text_tokenizer, make_model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged tiny Llama of 256 positions in Emu3's layout."""
    folder = tmp_path_factory.mktemp("merged_for_documents")
    model = make_model(len(text_tokenizer), max_position_embeddings=256)
    model, processor = merge_vocabulary(model, copy.deepcopy(text_tokenizer), copy.deepcopy(codec))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def processor(documents_folder: Path) -> MultimodalProcessor:
    return MultimodalProcessor.from_pretrained(documents_folder)


@pytest.fixture
def chat_processor(codec, text_tokenizer, make_model) -> MultimodalProcessor:
    """Of a model whose text tokenizer has ChatML's marks and template."""
    tokenizer = copy.deepcopy(text_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = TEMPLATE
    model = make_model(len(tokenizer), max_position_embeddings=256)
    return merge_vocabulary(model, tokenizer, copy.deepcopy(codec))[1]
