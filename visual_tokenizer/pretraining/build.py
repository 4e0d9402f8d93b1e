"""A recipe of pre-training becomes a trainer, and is run."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import TrainingArguments, set_seed

from visual_tokenizer.data.batches import Share
from visual_tokenizer.data.sources.base import SourceConfig
from visual_tokenizer.hf_training.arguments import training_arguments
from visual_tokenizer.hf_training.checkpoints import find_checkpoint, step_of
from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.pretraining.batches import HeldoutPictures, MaskedBatches
from visual_tokenizer.pretraining.beit import beit_config, build_beit
from visual_tokenizer.pretraining.evaluation import build_masking, pictures_of
from visual_tokenizer.pretraining.export import save_final
from visual_tokenizer.pretraining.recipe import PretrainingRecipe
from visual_tokenizer.pretraining.samples import PredictedSamples
from visual_tokenizer.pretraining.targets import TokenTargets, check_token_grid
from visual_tokenizer.pretraining.trainer import MaskedImageTrainer
from visual_tokenizer.recipe import save_recipe
from visual_tokenizer.runs.folder import RunLock


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
    training = recipe.training
    masking = build_masking(recipe.masking, recipe.patch_grid, training.seed)
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
    heldout = HeldoutPictures(
        pictures_of(recipe.data, recipe.image_size, "heldout", training.max_evaluation_pictures), masking
    )
    targets = TokenTargets(tokenizer, recipe.tokenizer_image_size or tokenizer.config.image_size)
    shown = heldout.spread(training.sample_pictures)
    samples = PredictedSamples(targets, *shown, recipe.patch_grid, training.sample_every_steps, recipe.output_dir)
    set_seed(training.seed)
    return MaskedImageTrainer(
        build_beit(beit_config(recipe.model, recipe.image_size, tokenizer), recipe.patch_aggregation),
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
