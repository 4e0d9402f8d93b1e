"""LoRA: what is frozen, what is trained, and what is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from mmlm.merging.merge import merge_vocabulary
from mmlm.processing import MultimodalProcessor
from mmlm.recipes.training import LMRecipe, LoraSection
from mmlm.training.build import build_trainer, load_processor, run_arguments, train
from mmlm.training.export import save_final
from mmlm.training.lora import quantization_config
from mmlm.training.trainer import check_fsdp
from visual_tokenizer.errors import UserError
from visual_tokenizer.registry import ConfigError


@pytest.mark.parametrize("tied", [True, False])
def test_lora_trains_the_new_rows_and_merges_to_an_ordinary_model(
    tied: bool,
    recipe_fields: dict[str, Any],
    make_model: Any,
    text_tokenizer: Any,
    codec: Any,
    tmp_path: Path,
    make_recipe: Callable[..., LMRecipe],
) -> None:
    base = tmp_path / "base"
    if tied:
        base = Path(recipe_fields["model"])
    else:
        model, processor = merge_vocabulary(make_model(len(text_tokenizer), tied=False), text_tokenizer, codec)
        model.save_pretrained(base)
        processor.save_pretrained(base)
    recipe = make_recipe(recipe_fields, model=str(base), lora={"rank": 4, "alpha": 8.0}, training__sample_every_steps=6)
    final = train(recipe)
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (base, final))
    assert type(after) is LlamaForCausalLM
    assert (final / "adapter" / "adapter_model.safetensors").is_file()
    first = MultimodalProcessor.from_pretrained(final).vocabulary.start - 5
    for table in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(before, table)().weight, getattr(after, table)().weight
        assert torch.equal(old[:first], new[:first]), "text rows are frozen"
        assert not torch.equal(old[first:], new[first:]), "visual rows are trained"
    assert (after.get_output_embeddings().weight is after.get_input_embeddings().weight) is tied
    old, new = before.state_dict(), after.state_dict()
    layer = "model.layers.0.self_attn.q_proj.weight"
    assert torch.linalg.matrix_rank(new[layer] - old[layer], atol=1e-6) <= 4
    assert not torch.equal(new[layer], old[layer])
    assert torch.equal(new["model.norm.weight"], old["model.norm.weight"])


def test_a_lora_run_resumes_bit_for_bit(
    recipe_fields: dict[str, Any], tmp_path: Path, make_recipe: Callable[..., LMRecipe], losses_of: Callable[..., Any]
) -> None:
    recipe = make_recipe(recipe_fields, lora={"rank": 2, "dropout": 0.1})
    train(recipe)
    whole = losses_of(tmp_path / "run")
    (tmp_path / "run" / "checkpoint-6" / "manifest.json").unlink()
    train(recipe)
    assert losses_of(tmp_path / "run") == whole


@pytest.mark.parametrize("tied", [True, False])
def test_dora_merges_to_the_logits_of_the_adapted_model(
    tied: bool,
    recipe_fields: dict[str, Any],
    make_model: Any,
    text_tokenizer: Any,
    codec: Any,
    tmp_path: Path,
    make_recipe: Callable[..., LMRecipe],
) -> None:
    base = Path(recipe_fields["model"])
    if not tied:
        base = tmp_path / "base"
        model, processor = merge_vocabulary(make_model(len(text_tokenizer), tied=False), text_tokenizer, codec)
        model.save_pretrained(base)
        processor.save_pretrained(base)
    recipe = make_recipe(recipe_fields, model=str(base), lora={"rank": 2, "alpha": 8.0, "dora": True})
    trainer = build_trainer(recipe, load_processor(recipe.model), run_arguments(recipe))
    trained = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert any("lora_magnitude_vector" in name for name in trained)
    assert any("trainable_tokens_delta" in name for name in trained), "new rows are trained beside DoRA"
    trainer.train()
    final = save_final(trainer, load_processor(recipe.model), recipe, {})
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (base, final))
    ids = torch.arange(400, 440)[None]
    with torch.no_grad():
        adapted, merged, untrained = (model.eval()(input_ids=ids).logits for model in (trainer.model, after, before))
    assert torch.allclose(adapted, merged, atol=1e-5)
    assert not torch.allclose(adapted, untrained, atol=1e-2)
    layer = "model.layers.0.self_attn.q_proj.weight"
    update = after.state_dict()[layer] - before.state_dict()[layer]
    assert torch.linalg.matrix_rank(update, atol=1e-6) > 2, "lengths move too, so the update is of no low rank"


def test_quantization_is_configured_as_qlora_has_it() -> None:
    nf4 = quantization_config(LoraSection(rank=2, quantization="nf4"), torch.bfloat16)
    assert (nf4.load_in_4bit, nf4.bnb_4bit_quant_type, nf4.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert nf4.bnb_4bit_compute_dtype == nf4.bnb_4bit_quant_storage == torch.bfloat16
    int8 = quantization_config(LoraSection(rank=2, quantization="int8"), torch.bfloat16)
    assert (int8.load_in_8bit, int8.load_in_4bit) == (True, False)
    assert quantization_config(LoraSection(rank=2), torch.bfloat16) is None


def test_quantization_says_what_is_missing(
    recipe_fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch, make_recipe: Callable[..., LMRecipe]
) -> None:
    recipe = make_recipe(recipe_fields, lora={"rank": 2, "quantization": "nf4"})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"lora\.quantization: nf4 needs the package bitsandbytes.*pip install"):
        train(recipe)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="nf4 needs a CUDA device"):
        train(recipe)
    with pytest.raises(ConfigError, match=r"lora\.quantization must be one of nf4, int8 or null, got 'fp4'"):
        make_recipe(recipe_fields, lora={"rank": 2, "quantization": "fp4"})
    with pytest.raises(ConfigError, match=r"lora\.dora must be left out where rank is 0, got True"):
        make_recipe(recipe_fields, lora={"dora": True})


def test_fsdp_is_refused_where_it_cannot_shard(
    recipe_fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch, make_recipe: Callable[..., LMRecipe]
) -> None:
    """A tied table of which rows are trained is two to accelerate and one to PyTorch."""
    recipe = make_recipe(recipe_fields, lora={"rank": 2})
    trainer = build_trainer(recipe, load_processor(recipe.model), run_arguments(recipe))
    trainer.is_fsdp_enabled = True
    monkeypatch.setattr(type(trainer.accelerator.state), "fsdp_plugin", SimpleNamespace(fsdp_version=2), raising=False)
    with pytest.raises(UserError, match=r"lora\.rank must be 0 under FSDP2"):
        check_fsdp(trainer)
