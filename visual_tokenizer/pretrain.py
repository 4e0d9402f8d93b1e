"""Entry point: `accelerate launch -m visual_tokenizer.pretrain --config RECIPE --tokenizer DIR`."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import TrainingArguments, set_seed

from visual_tokenizer.data.batches import Share
from visual_tokenizer.data.sources.base import SourceConfig
from visual_tokenizer.errors import Interrupted, program
from visual_tokenizer.hf_training.arguments import training_arguments
from visual_tokenizer.hf_training.checkpoints import find_checkpoint, step_of
from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.pretraining.batches import HeldoutPictures, MaskedBatches
from visual_tokenizer.pretraining.beit import beit_config, build_beit
from visual_tokenizer.pretraining.evaluation import masking_of, pictures_of
from visual_tokenizer.pretraining.export import save_final
from visual_tokenizer.pretraining.recipe import PretrainingRecipe
from visual_tokenizer.pretraining.samples import PredictedSamples
from visual_tokenizer.pretraining.targets import TokenTargets, check_token_grid
from visual_tokenizer.pretraining.trainer import MaskedImageTrainer
from visual_tokenizer.probe import measure, show
from visual_tokenizer.recipe import parse_arguments, save_recipe, with_smoke
from visual_tokenizer.runs.folder import RunLock
from visual_tokenizer.runs.processes import leave_process_group

PROGRAM = "python -m visual_tokenizer.pretrain"

ABOUT = """\
Pre-train a vision transformer to predict a frozen visual tokenizer's indices where patches are hidden (BEiT). The
result, in OUTPUT_DIR/final, is an ordinary BEiT of transformers. A run that was interrupted goes on from its newest
complete checkpoint when the same command is given again. SIGTERM and SIGINT end a run after its step, with a
checkpoint.

Examples:
  one GPU, or a CPU
    python -m visual_tokenizer.pretrain --config recipes/pretraining/openmoji_beit.yaml --tokenizer DIR
  eight GPUs
    accelerate launch --multi_gpu --num_processes 8 -m visual_tokenizer.pretrain \\
        --config recipes/pretraining/paper/beit_base.yaml --tokenizer DIR
  BEiT v2's second head
    python -m visual_tokenizer.pretrain --config recipes/pretraining/openmoji_beit.yaml --tokenizer DIR \\
        --patch_aggregation "{layer: 4, head_layers: 2}"
  a few steps, to see that everything is there
    python -m visual_tokenizer.pretrain --config RECIPE.yaml --tokenizer DIR --smoke true"""


def run_arguments(recipe: PretrainingRecipe) -> TrainingArguments:
    """Return the arguments of a run; make them after the tokenizer, which would be sharded under ZeRO-3."""
    optimizer = recipe.optimizer
    return training_arguments(
        recipe.output_dir,
        optimizer,
        recipe.training,
        schedule="constant_with_warmup" if optimizer.schedule == "constant" else optimizer.schedule,
        ignore_data_skip=True,  # MaskedBatches begin at the step from which the run goes on
        label_names=["bool_masked_pos"],
    )


def build_trainer(
    recipe: PretrainingRecipe, tokenizer: VisualTokenizer, args: TrainingArguments, first_step: int
) -> MaskedImageTrainer:
    """Make data, model and trainer of a run that goes on from `first_step`."""
    training, masking = recipe.training, masking_of(recipe)
    size = args.per_device_train_batch_size
    batches = MaskedBatches(
        SourceConfig.family.build(recipe.data.source),
        recipe.data,
        masking,
        image_size=recipe.image_size,
        seed=training.seed,
        share=Share(args.process_index, args.world_size, training.gradient_accumulation_steps, size),
        first_step=first_step,
        steps=training.max_steps,
    )
    heldout = HeldoutPictures(pictures_of(recipe, "heldout", training.max_evaluation_pictures), masking)
    targets = TokenTargets(tokenizer, recipe.tokenizer_image_size or tokenizer.config.image_size)
    shown = heldout.spread(training.sample_pictures)
    samples = PredictedSamples(targets, *shown, recipe.patch_grid, training.sample_every_steps, recipe.output_dir)
    set_seed(training.seed)
    return MaskedImageTrainer(
        build_beit(recipe, beit_config(recipe, tokenizer)),
        args,
        targets=targets,
        batches=batches,
        heldout=heldout,
        keep_checkpoints=training.keep_checkpoints,
        samples=samples,
    )


def pretrain(recipe: PretrainingRecipe) -> Path:
    """Run a recipe and return the folder of the trained model; every process calls this.

    Raises:
        UserError: its tokens are not one to a patch.
        ConfigError, DataSourceError, …: what a user can get wrong, each with field, value and rule.
        Interrupted: SIGTERM or SIGINT; a checkpoint was written.
    """
    # Before the arguments: under ZeRO-3 they shard whatever is loaded.
    tokenizer = VisualTokenizer.from_pretrained(recipe.tokenizer, dtype=torch.float32)
    size = recipe.tokenizer_image_size or tokenizer.config.image_size
    check_token_grid(tokenizer, recipe.image_size, recipe.model.patch_size, size)
    args = run_arguments(recipe)
    lock = RunLock(Path(recipe.output_dir)) if args.process_index == 0 else None
    try:
        checkpoint = find_checkpoint(recipe.output_dir, recipe.training.resume)
        if args.process_index == 0:
            save_recipe(recipe, recipe.output_dir)
        trainer = build_trainer(recipe, tokenizer, args, step_of(checkpoint))
        trainer.train(resume_from_checkpoint=checkpoint)
        return save_final(trainer, tokenizer, recipe)
    finally:
        if lock is not None:
            lock.release()


@program(PROGRAM)
def main(arguments: Sequence[str]) -> int:
    """Pre-train by the command line's recipe, measure, and return the exit code."""
    is_first = int(os.environ.get("RANK", "0")) == 0
    logging.basicConfig(level=logging.INFO if is_first else logging.ERROR, format="%(message)s")
    words = with_smoke(arguments)
    recipe = parse_arguments(PretrainingRecipe, words, program=PROGRAM, about=ABOUT)
    try:
        final = pretrain(recipe)
    except Interrupted:
        leave_process_group()
        raise
    if is_first:
        print(f"saved {final}")
        show(measure(final, recipe, final / "probe.json")["metrics"])
    leave_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
