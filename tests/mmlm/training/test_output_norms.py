"""The norm of the last layer's output is that of the hidden state before the final norm, by kind of token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from mmlm.losses.modality_loss import shift_left
from mmlm.recipes.training import LMRecipe
from mmlm.training.build import build_trainer, load_processor, run_arguments
from mmlm.training.output_norms import final_norm
from mmlm.vocabulary import KINDS
from visual_tokenizer.runs.folder import StepLog


@pytest.mark.parametrize("rank", [0, 2])
def test_norms_are_logged_by_the_kind_that_is_predicted(
    rank: int, recipe_fields: dict[str, Any], tmp_path: Path, make_recipe: Callable[..., LMRecipe]
) -> None:
    recipe = make_recipe(recipe_fields, training__max_steps=1, lora={"rank": rank})
    trainer = build_trainer(recipe, load_processor(recipe.model), run_arguments(recipe))
    batch = trainer.data_collator([trainer.train_dataset[position] for position in range(4)])
    inner = trainer.model.get_base_model() if rank else trainer.model
    seen: list[torch.Tensor] = []
    hook = inner.model.layers[-1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        inner(input_ids=batch["input_ids"])
    hook.remove()
    norms = seen[0].norm(dim=-1)
    kinds, labels = shift_left(batch["token_kinds"], -1), shift_left(batch["labels"], -100)
    trainer.train()
    line = StepLog(tmp_path / "run").read()[0]
    for number, kind in enumerate(KINDS):
        expected = norms[(kinds == number) & (labels >= 0)].mean()
        assert line[f"output_norm_{kind}"] == pytest.approx(float(expected), rel=1e-5)


def test_the_final_norm_is_found_by_its_place() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2))
    assert final_norm(model) is model.transformer.ln_f
    assert final_norm(torch.nn.Linear(2, 2)) is None
