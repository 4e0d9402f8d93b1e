"""A small merged model with pictures of coloured boxes, some held out, as the subject of measures."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from mmlm.measures.base import Subject
from mmlm.merging.merge import merge_vocabulary
from visual_tokenizer.data.sources.base import SourceConfig

COLORS = ["red", "lime", "blue", "white", "black", "orange", "purple", "cyan", "gold", "pink", "navy", "gray"]


@pytest.fixture(scope="package")
def merged(make_codec, make_model, text_tokenizer):
    torch.set_num_threads(1)
    codec = make_codec(quantizer={"type": "fsq", "levels": [4, 4]})
    return merge_vocabulary(make_model(len(text_tokenizer)), text_tokenizer, codec, pad_to_multiple_of=64)


@pytest.fixture(scope="package")
def source(tmp_path_factory):
    """Twelve pictures for training, of which four are in the held-out folder too, under other captions."""
    root = tmp_path_factory.mktemp("boxes")
    for part, colors, noun in (("train", COLORS, "box"), ("heldout", COLORS[:4], "car")):
        (root / part).mkdir()
        lines = []
        for number, color in enumerate(colors):
            picture = Image.new("RGB", (40, 40), "brown")
            picture.paste(color, (number * 2, 4, 20 + number * 2, 36))
            picture.save(root / part / f"{number:02d}.png")
            lines.append(json.dumps({"file_name": f"{number:02d}.png", "caption": f"a {color} {noun}"}))
        (root / part / "metadata.jsonl").write_text("\n".join(lines))
    section = {
        "type": "image_folder",
        "folder": str(root / "train"),
        "heldout_folder": str(root / "heldout"),
    }
    return SourceConfig.family.config(section)


@pytest.fixture
def make_subject(merged, source):
    def make(**settings):
        fields = {"num_pairs": 6, "batch_size": 4, "sampling": {"guidance_scale": 1.0}, **settings}
        return Subject(*merged, SourceConfig.family.build(source), **fields)

    return make
