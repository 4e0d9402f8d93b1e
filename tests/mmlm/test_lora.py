"""LoRA: what is frozen, what is trained, and what is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from mmlm.lm_recipe import LMRecipe
from mmlm.merge import merge_vocabulary
from mmlm.processing import MultimodalProcessor
from mmlm.train import train


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
