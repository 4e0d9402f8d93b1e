"""A language model takes the tokens of every semantic tokenizer as they are: merge, encode, draw, save and load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import visual_tokenizer
from mmlm import MultimodalProcessor, generate_images, merge_vocabulary
from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig
from visual_tokenizer.recipe import read_recipe
from visual_tokenizer.training.recipe import TokenizerRecipe

RECIPES = Path(visual_tokenizer.__file__).parents[1] / "recipes" / "tokenizer"
NAMES = (
    "clip_aligned",
    "fqgan",
    "imagefolder_semantic",
    "lavit",
    "peco",
    "q_former_aligned",
    "seed",
    "tokenflow",
    "vq_kd",
)


@pytest.mark.parametrize("name", NAMES)
def test_merge_encode_draw_and_load(name, make_model, text_tokenizer, tmp_path) -> None:
    torch.set_num_threads(1)
    path = RECIPES / f"openmoji_{name}.yaml"
    smoke = yaml.safe_load(path.read_text(encoding="utf-8"))["smoke"]
    recipe = read_recipe(TokenizerRecipe, path, smoke)
    torch.manual_seed(0)
    sections = {part: getattr(recipe, part).to_dict() for part in ("encoder", "quantizer", "decoder")}
    codec = VisualTokenizer(VisualTokenizerConfig(image_size=recipe.image_size, **sections)).eval()
    if codec.quantizer.samples_wanted:
        codec.quantizer.initialize(torch.randn(codec.quantizer.samples_wanted, codec.quantizer.code_dim))
    layout = "sequence" if len(codec.token_grid()) == 1 else "emu3"
    model, processor = merge_vocabulary(
        make_model(len(text_tokenizer), max_position_embeddings=512), text_tokenizer, codec, layout=layout
    )
    size = recipe.image_size
    picture = Image.linear_gradient("L").resize((size, size)).convert("RGB")
    ids = processor(text=["a <image> dog"], images=[[picture]], return_tensors="pt")["input_ids"][0]
    indices = codec.encode(processor.image_processor(picture, return_tensors="pt")["pixel_values"])
    assert processor.vocabulary.is_visual(ids).sum() == (indices >= 0).sum()
    drawn = generate_images(model, processor, ["a red dog"], temperature=1.5, seed=1)
    assert drawn[0].size == (size, size)

    processor.save_pretrained(tmp_path)
    loaded = MultimodalProcessor.from_pretrained(tmp_path)
    again = generate_images(model, loaded, ["a red dog"], temperature=1.5, seed=1)
    assert again[0].tobytes() == drawn[0].tobytes()
