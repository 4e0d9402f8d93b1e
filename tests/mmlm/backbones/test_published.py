from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    ChameleonForConditionalGeneration,
    LlamaForCausalLM,
)

from mmlm.backbones.base import LMBackboneConfig, load_published_lm
from mmlm.generation.images import generate_indices
from mmlm.merging.folder import load_merged
from mmlm.merging.recipe import MergeRecipe, merge_by_recipe
from mmlm.models.chameleon import ChameleonForCausalLM
from mmlm.processing import MultimodalProcessor
from mmlm.recipes.sampling import PictureSampling
from visual_tokenizer.convert import MissingDecoderWarning
from visual_tokenizer.errors import MissingFileError
from visual_tokenizer.registry import UnknownPartError


def load_chameleon(whole, tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MissingDecoderWarning)
        return load_published_lm(whole, "chameleon", text_tokenizer=tokenizer)


@pytest.fixture
def chameleon(whole_chameleon, chameleon_tokenizer):
    return load_chameleon(whole_chameleon, chameleon_tokenizer)


@pytest.fixture
def emu3(whole_emu3, emu3_tokenizer):
    return load_published_lm(whole_emu3, "emu3", text_tokenizer=emu3_tokenizer)


def ids_of(processor: MultimodalProcessor, samples: int = 3) -> torch.Tensor:
    return torch.randint(len(processor.tokenizer), (samples, 20), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_chameleon_has_the_text_logits_of_transformers_and_image_logits_too(chameleon, whole_chameleon) -> None:
    model, processor = chameleon
    ids = ids_of(processor)
    got, masked = model(ids).logits, whole_chameleon(ids).logits
    is_text = ~processor.vocabulary.is_visual(torch.arange(got.shape[-1]))
    assert torch.equal(got[..., is_text], masked[..., is_text])
    assert (masked[..., ~is_text] == torch.finfo(torch.float32).min).all()
    hidden = whole_chameleon.model(ids).last_hidden_state
    assert torch.equal(got, whole_chameleon.lm_head(hidden))
    wanted = F.cross_entropy(got[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert torch.allclose(model(ids, labels=ids).loss, wanted)
    assert whole_chameleon(ids, labels=ids).loss > 1e30  # why there is a class of our own


def test_chameleon_keeps_the_published_bijection(chameleon, whole_chameleon) -> None:
    _, processor = chameleon
    indices = torch.arange(16).view(4, 4)
    theirs = whole_chameleon.model.vocabulary_mapping.convert_img2bpe(indices).long()
    assert torch.equal(processor.image_block(indices)[1:-1], theirs.flatten())
    image = Image.new("RGB", (8, 8), (200, 30, 90))
    pixels = processor.image_processor([image], return_tensors="pt")["pixel_values"]
    tokens = whole_chameleon.model.get_image_tokens(pixels)[0].long()
    assert torch.equal(processor.image_block(processor.encode_images([image])[0])[1:-1], tokens)


def test_chameleon_learns_and_draws_pictures_and_loads_again(chameleon, tmp_path) -> None:
    model, processor = chameleon
    model = ChameleonForCausalLM(model.config).train()
    picture = torch.arange(16).view(4, 4)
    ids = processor.caption_to_image("hi", picture)[None]
    labels = ids.masked_fill(~processor.vocabulary.is_visual(ids), -100)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = model(ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 4
    assert losses[-1] < 0.3
    model.eval()
    drawn = generate_indices(
        model, processor, ["hi"], PictureSampling(guidance_scale=1.0, temperature=0.0), grid=processor.grid
    )
    assert torch.equal(drawn[0], picture)

    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is ChameleonForCausalLM
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    loaded = MultimodalProcessor.from_pretrained(tmp_path)
    assert loaded.vocabulary == processor.vocabulary
    loaded.check_model(again)
    # transformers' own class reads the folder as well, and no longer masks pictures; its image tokenizer is not there
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert type(stock) is ChameleonForConditionalGeneration
    with torch.no_grad():
        assert torch.equal(stock(ids).logits, model(ids).logits)


def test_chameleons_folder_loads_without_its_image_tokenizer(whole_chameleon, tmp_path) -> None:
    whole_chameleon.save_pretrained(tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    model, info = loaded
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not any("vqmodel" in name for name, _ in model.named_parameters())
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, whole_chameleon.lm_head(whole_chameleon.model(ids).last_hidden_state))


def test_weights_are_shared_not_copied(chameleon, whole_chameleon, emu3, whole_emu3) -> None:
    assert chameleon[0].lm_head.weight.data_ptr() == whole_chameleon.lm_head.weight.data_ptr()
    assert emu3[0].lm_head.weight.data_ptr() == whole_emu3.lm_head.weight.data_ptr()


@torch.no_grad()
def test_emu3_is_a_llama_bit_for_bit(emu3, whole_emu3, tmp_path) -> None:
    model, processor = emu3
    assert type(model) is LlamaForCausalLM
    ids = ids_of(processor)
    logits = whole_emu3(ids).logits
    assert torch.equal(model(ids).logits, logits)
    wanted = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert torch.allclose(model(ids, labels=ids).loss, wanted)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, loaded = load_merged(tmp_path, device="cpu")
    assert torch.equal(again(ids).logits, logits)
    assert again.config.rope_parameters["rope_theta"] == 1_000_000
    assert loaded.sampling["top_k"] == 2048


@torch.no_grad()
def test_emu3_reads_and_shows_pictures_as_transformers_does(emu3, whole_emu3) -> None:
    model, processor = emu3
    image = Image.effect_noise((16, 16), 80).convert("RGB")
    processor.image_processor.size = {"height": 16, "width": 16}
    pixels = processor.image_processor([image], return_tensors="pt")["pixel_values"]
    tokens = whole_emu3.model.get_image_tokens(pixels, torch.tensor([[16, 16]])).long()
    indices = processor.encode_images([image])
    block = processor.image_block(indices[0])
    height, width = indices.shape[1:]
    assert torch.equal(block[-2 - height * (width + 1) : -2], tokens)
    shown = whole_emu3.model.decode_image_tokens(
        torch.cat([tokens, torch.zeros(3, dtype=torch.int64)])[None], height=height, width=width
    )
    theirs = processor.image_processor.postprocess(shown.clamp(-1, 1))[0]
    ours = processor.decode_images(block)[0][0]
    difference = torch.tensor(list(ours.tobytes())) - torch.tensor(list(theirs.tobytes()))
    assert difference.abs().max() <= 1
    drawn = generate_indices(model, processor, ["a cat"], grid=(2, 3))
    assert processor.decode_indices(drawn)[0].size == (3 * 16 // width, 2 * 16 // height)


@torch.no_grad()
def test_emu3_clips_go_through_the_processor(emu3) -> None:
    _, processor = emu3
    processor.image_processor.size = {"height": 16, "width": 16}
    clip = [Image.new("RGB", (16, 16), (60 * n, 0, 0)) for n in range(4)]
    indices = processor.encode_clips([clip])
    assert indices.ndim == 4
    ids = processor.caption_to_image("red", indices[0])
    (found,) = processor.decode_images(ids)[0]
    assert len(found) == 4
    assert found[0].size == (16, 16)
    assert processor.layout.find_blocks(ids)[0].grid == tuple(indices.shape[1:])


def test_a_folder_becomes_a_merged_models_folder(whole_emu3, emu3_tokenizer, tmp_path) -> None:
    whole_emu3.save_pretrained(tmp_path / "published")
    emu3_tokenizer.save_pretrained(tmp_path / "published")
    section = LMBackboneConfig.family.config({"type": "emu3", "path": str(tmp_path / "published")})
    recipe = MergeRecipe(language_model=section, output=str(tmp_path / "out"))
    model, processor = load_merged(merge_by_recipe(recipe), device="cpu")
    ids = ids_of(processor)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, whole_emu3(ids).logits)
    assert json.loads((tmp_path / "out/config.json").read_text())["model_type"] == "llama"
    text_only, _ = LMBackboneConfig.family.build(section).load()
    assert type(text_only) is LlamaForCausalLM


def test_what_cannot_be_loaded(whole_emu3, tmp_path) -> None:
    with pytest.raises(MissingFileError, match="Emu3ForConditionalGeneration"):
        load_published_lm(tmp_path, "emu3")
    with pytest.raises(ValueError, match="text_tokenizer"):
        load_published_lm(whole_emu3, "emu3")
    with pytest.raises(UnknownPartError, match="without visual tokens"):
        load_published_lm(tmp_path, "pretrained")
