"""Training in one process: the loss, the logs, and what a run leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from mmlm.data.collating import SequenceCollator
from mmlm.losses.modality_loss import TokenWeights, shift_left
from mmlm.processing import MultimodalProcessor
from mmlm.recipes.training import LMRecipe
from mmlm.training.build import build_trainer, load_processor, run_arguments, train
from visual_tokenizer.errors import DivergedError, UserError
from visual_tokenizer.hf_training.checkpoints import list_checkpoints
from visual_tokenizer.recipe import read_recipe
from visual_tokenizer.runs.folder import StepLog
from visual_tokenizer.runs.manifest import newest_whole


def test_loss_is_the_weighted_mean_over_the_tokens_and_equals_transformers(
    recipe_fields: dict[str, Any], tmp_path: Path, make_recipe: Callable[..., LMRecipe]
) -> None:
    recipe = make_recipe(recipe_fields)
    trainer = build_trainer(recipe, load_processor(recipe.model), run_arguments(recipe))
    batch = SequenceCollator(pad_id=3)([trainer.train_dataset[position] for position in range(4)])
    model = trainer.model.eval()
    plain = model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
    assert torch.allclose(trainer.compute_loss(model, dict(batch)), plain, rtol=1e-5)

    trainer.token_weights = TokenWeights({"text": 2.0, "image": 1.0, "structure": 0.0})
    targets, kinds = shift_left(batch["labels"], -100), shift_left(batch["token_kinds"], -1)
    logits = model(input_ids=batch["input_ids"]).logits
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    weights = torch.zeros_like(losses)
    weights[(kinds == 0) & (targets >= 0)] = 2.0
    weights[(kinds == 1) & (targets >= 0)] = 1.0
    expected = (losses * weights).sum() / weights.sum()
    assert torch.allclose(trainer.compute_loss(model, dict(batch)), expected, rtol=1e-5)

    trainer.head_loss.z_loss = 0.01
    normalizers = logits.exp().sum(2).log()
    expected = (weights * (losses + 0.01 * normalizers**2)).sum() / weights.sum()
    assert torch.allclose(trainer.compute_loss(model, dict(batch)), expected, rtol=1e-5)


def test_padding_does_not_change_the_loss(recipe_fields: dict[str, Any], make_recipe: Callable[..., LMRecipe]) -> None:
    recipe = make_recipe(recipe_fields)
    trainer = build_trainer(recipe, load_processor(recipe.model), run_arguments(recipe))
    items = [trainer.train_dataset[position] for position in range(4)]
    model = trainer.model.eval()
    tight, wide = (trainer.compute_loss(model, SequenceCollator(3, multiple)(items)) for multiple in (1, 64))
    assert torch.allclose(tight, wide, rtol=1e-5)


def test_accumulation_gives_the_same_run(
    recipe_fields: dict[str, Any], tmp_path: Path, make_recipe: Callable[..., LMRecipe], losses_of: Callable[..., Any]
) -> None:
    """Parts have unequal numbers of tokens, so a mean of means would differ."""
    whole = make_recipe(recipe_fields, output_dir=str(tmp_path / "whole"))
    parts = make_recipe(recipe_fields, output_dir=str(tmp_path / "parts"), training__gradient_accumulation_steps=4)
    for recipe in (whole, parts):
        train(recipe)
    for (_, one), (_, other) in zip(losses_of(tmp_path / "whole"), losses_of(tmp_path / "parts"), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_a_run_learns_and_leaves_an_ordinary_checkpoint(
    recipe_fields: dict[str, Any], tmp_path: Path, make_recipe: Callable[..., LMRecipe]
) -> None:
    recipe = make_recipe(
        recipe_fields,
        training__max_steps=30,
        training__sample_every_steps=15,
        training__evaluate_every_steps=15,
        training__checkpoint_every_steps=10,
        training__peak_tflops=0.5,
        loss__z_loss=1e-4,
        sampling__prompts=["a red apple", "a blue car"],
    )
    final = train(recipe)
    run = tmp_path / "run"
    assert final == run / "final"
    lines = StepLog(run).read()
    first, last = lines[0], [line for line in lines if "loss_image" in line][-1]
    assert last["loss"] < first["loss"] - 0.5
    for name in ("loss_image", "loss_text", "loss_structure"):
        assert 0 < last[name] < 10
    assert last["tokens_per_second"] > 0
    assert last["z_loss"] > 0
    assert last["mfu"] == pytest.approx(last["model_tflops_per_second"] / 0.5)
    evaluation = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in evaluation] == [15, 30]
    assert evaluation[1]["eval_loss_image"] < evaluation[0]["eval_loss_image"]
    assert (run / "plots" / "loss.png").stat().st_size > 1000
    assert sorted(path.name for path in (run / "samples").iterdir()) == [
        "step-00000015.png",
        "step-00000030.png",
    ]
    assert [path.name for path in list_checkpoints(run)] == ["checkpoint-20", "checkpoint-30"]
    assert not list(run.glob(".*")), "nothing unfinished is left"
    assert not (run / "run.lock").exists()

    model = AutoModelForCausalLM.from_pretrained(final)
    processor = MultimodalProcessor.from_pretrained(final)
    processor.check_model(model)
    assert type(model) is LlamaForCausalLM
    newest = AutoModelForCausalLM.from_pretrained(run / "checkpoint-30")
    ids = torch.arange(40)[None]
    assert torch.equal(model(ids).logits, newest(ids).logits)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    card = (final / "README.md").read_text()
    assert processor.codec_hash in card
    assert "image_folder" in card
    assert read_recipe(LMRecipe, final / "recipe.yaml", {}) == recipe


def test_sampling_does_not_disturb_the_run(
    recipe_fields: dict[str, Any], tmp_path: Path, make_recipe: Callable[..., LMRecipe], losses_of: Callable[..., Any]
) -> None:
    fields = {**recipe_fields, "sampling.prompts": ["a red apple"]}
    train(make_recipe(fields, output_dir=str(tmp_path / "plain")))
    train(make_recipe(fields, output_dir=str(tmp_path / "drawing"), training__sample_every_steps=2))
    assert losses_of(tmp_path / "plain") == losses_of(tmp_path / "drawing")


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoints(
    recipe_fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_recipe: Callable[..., LMRecipe]
) -> None:
    recipe = make_recipe(recipe_fields, training__checkpoint_every_steps=2)
    trainer = build_trainer(recipe, load_processor(recipe.model), run_arguments(recipe))
    taken = trainer.compute_loss

    def broken(model: Any, inputs: Any, **options: Any) -> Any:
        if trainer.state.global_step == 3:
            with torch.no_grad():
                next(model.parameters()).fill_(float("nan"))
        return taken(model, inputs, **options)

    monkeypatch.setattr(trainer, "compute_loss", broken)
    with pytest.raises(DivergedError, match=r"not finite: lower optimizer\.learning_rate"):
        trainer.train()
    assert newest_whole(list_checkpoints(tmp_path / "run"))[0].name == "checkpoint-2"


def test_fsdp_is_never_silently_left_out(
    recipe_fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch, make_recipe: Callable[..., LMRecipe]
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    recipe = make_recipe(recipe_fields)
    with pytest.raises(UserError, match=r"FSDP was asked for, but .* on the CPU"):
        build_trainer(recipe, load_processor(recipe.model), run_arguments(recipe))
