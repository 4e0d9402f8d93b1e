"""A language model takes the tokens of any quantizer: merge, encode, draw, decode."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from mmlm import generate_images, merge_vocabulary
from visual_tokenizer import list_quantizers

SMALL = {"type": "vq", "codebook_size": 16, "code_dim": 4}
SECTIONS = {
    "bsq": {"codebook_size": 64},
    "dual": {"codebook_size": 32, "semantic_dim": 4, "pixel_dim": 2},
    "fsq": {"levels": [4, 4]},
    "gumbel": {"codebook_size": 32, "code_dim": 4},
    "hierarchical": {"top": SMALL, "bottom": SMALL, "grid": [4, 4], "code_dim": 8},
    "lfq": {"codebook_size": 64},
    "multi_head": {"base": SMALL, "code_dim": 8},
    "multi_scale": {"base": SMALL | {"update": {"type": "gradient"}}, "scales": [1, 2, 4]},
    "product": {"base": SMALL},
    "relaxed_binary": {"codebook_size": 64},
    "residual": {"base": SMALL, "depth": 2},
    "vq": SMALL,
}


@pytest.mark.parametrize("name", list_quantizers())
def test_merge_encode_draw_and_decode(name, make_codec, make_model, text_tokenizer) -> None:
    codec = make_codec(quantizer={"type": name, **SECTIONS[name]})
    model, processor = merge_vocabulary(
        make_model(len(text_tokenizer), max_position_embeddings=256), text_tokenizer, codec
    )
    assert processor.vocabulary.size == codec.codebook_size * codec.num_codebooks
    picture = Image.new("RGB", (32, 32), (200, 30, 90))
    batch = processor(text=["a <image> dog"], images=[[picture]], return_tensors="pt")
    ids = batch["input_ids"][0]
    indices = codec.encode(processor.image_processor(picture, return_tensors="pt")["pixel_values"])
    assert processor.vocabulary.is_visual(ids).sum() == indices.numel()
    with torch.no_grad():
        assert torch.isfinite(model(ids[None]).logits).all()
    (drawn,) = generate_images(model, processor, ["a red dog"], temperature=1.5, seed=1)
    assert drawn.size == (32, 32)
