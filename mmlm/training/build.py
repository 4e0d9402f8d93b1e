"""A recipe becomes data, model and trainer, and is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import disable_fsdp_ram_efficient_loading
from peft import prepare_model_for_kbit_training
from torch.utils.data import Dataset
from transformers import TrainingArguments, set_seed

from mmlm.data.collating import SequenceCollator
from mmlm.data.packing import PackedSequences
from mmlm.data.sets import heldout_sequences, place_codec, training_sequences
from mmlm.models.loading import load_causal_lm
from mmlm.processing import MultimodalProcessor
from mmlm.recipes.training import LMRecipe
from mmlm.training.export import save_final
from mmlm.training.freezing import FreezeSchedule
from mmlm.training.lora import add_lora, check_quantization, load_quantized, new_rows
from mmlm.training.samples import SampleGrids
from mmlm.training.trainer import UnifiedTrainer
from visual_tokenizer.hf_training.arguments import total_sequences, total_steps, training_arguments
from visual_tokenizer.hf_training.checkpoints import find_checkpoint
from visual_tokenizer.recipe import save_recipe
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.runs.folder import RunLock
from visual_tokenizer.runs.saved_models import loading


def load_processor(folder: str) -> MultimodalProcessor:
    """Load a merged model's processor with its visual tokenizer."""
    return MultimodalProcessor.from_pretrained(folder)


def run_arguments(recipe: LMRecipe) -> TrainingArguments:
    """Return the arguments of a run; make them before the model, see `training_arguments`."""
    return training_arguments(
        recipe.output_dir,
        recipe.optimizer,
        recipe.training,
        schedule=recipe.optimizer.schedule,
        schedule_options=recipe.optimizer.schedule_options,
        adam_epsilon=recipe.optimizer.epsilon,
        dataloader_num_workers=recipe.data.loader_workers,
        label_names=["labels"],
    )


def load_model(recipe: LMRecipe, processor: MultimodalProcessor) -> Any:
    """Load the language model, with adapters if the recipe says so."""
    dtype = getattr(torch, recipe.training.parameter_dtype)
    if recipe.lora.rank:  # accelerate would tie the emptied model anew, and peft has wrapped the table it looks for
        disable_fsdp_ram_efficient_loading()
    model: Any
    if recipe.lora.quantization is None:
        model = load_causal_lm(recipe.model, "merged model", dtype=dtype)
    else:
        model = prepare_model_for_kbit_training(
            load_quantized(recipe.model, recipe.lora, dtype),
            use_gradient_checkpointing=recipe.training.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
    with loading(recipe.model, "merged model"):
        processor.check_model(model)
    if recipe.lora.rank:
        return add_lora(model, recipe.lora, processor.layout)
    return model


def longest_sequence(recipe: LMRecipe, config: Any) -> int | None:
    """Return the most tokens of a sequence, or of a packed row: data.max_length, or the positions of a model's config,
    or None.

    Raises:
        ConfigError: `max_length` is more than the positions, or is missing where neither says it.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    wanted = recipe.data.max_length
    if wanted is None:
        if positions is None and recipe.data.packing:
            raise ConfigError("data.max_length must be given: the model's config names no max_position_embeddings")
        return positions
    if positions is not None and wanted > positions:
        raise ConfigError(
            f"data.max_length must be at most the model's max_position_embeddings = {positions}, got {wanted}"
        )
    return wanted


def build_trainer(recipe: LMRecipe, processor: MultimodalProcessor, args: TrainingArguments) -> UnifiedTrainer:
    """Make data, model and trainer.

    Raises:
        ShardError, UserError, ConfigError: see there.
    """
    data, training = recipe.data, recipe.training
    sequences = training_sequences(processor, recipe)
    heldout = heldout_sequences(processor, recipe) if training.evaluate_every_steps else None
    if place_codec(processor, recipe, args.device):
        args.dataloader_num_workers = 0
    set_seed(training.seed)
    model = load_model(recipe, processor)
    longest = longest_sequence(recipe, model.config)
    for part in [sequences, *([heldout] if heldout is not None else [])]:
        if longest is not None:
            part.check_length(longest)
    rows: Dataset
    if data.packing:
        assert longest is not None
        rows = PackedSequences(
            sequences, longest, data.packing_buffer, seed=training.seed, count=total_sequences(training, len(sequences))
        )
        args.max_steps = training.max_steps or max(1, rows.full_rows() // training.batch_size)
        rows.length = args.max_steps * training.batch_size
    else:
        args.max_steps = total_steps(training, len(sequences))
        sequences.length = args.max_steps * training.batch_size
        rows = sequences
    tokenizer = processor.tokenizer
    pad_id = processor.layout.eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return UnifiedTrainer(
        model,
        args,
        rows,
        token_weights=recipe.loss.weights(),
        z_loss=recipe.loss.z_loss,
        peak_tflops=training.peak_tflops,
        keep_checkpoints=training.keep_checkpoints,
        freeze=FreezeSchedule(model, training.freeze, new_rows(processor.layout)),
        eval_dataset=heldout,
        data_collator=SequenceCollator(pad_id, data.pad_to_multiple_of),
        samples=SampleGrids(processor, recipe.sampling, training.sample_every_steps, recipe.output_dir),
    )


def train(recipe: LMRecipe) -> Path:
    """Run a recipe and return the folder of the trained model; every process calls this.

    Raises:
        ConfigError, ShardError, …: what a user can get wrong, each with field, value and rule.
        Interrupted: SIGTERM or SIGINT; a checkpoint was written.
    """
    check_quantization(recipe.lora)
    processor = load_processor(recipe.model)  # before the arguments: under ZeRO-3 they shard whatever is loaded
    args = run_arguments(recipe)
    lock = RunLock(Path(recipe.output_dir)) if args.process_index == 0 else None
    try:
        if args.process_index == 0:
            save_recipe(recipe, recipe.output_dir)
        trainer = build_trainer(recipe, processor, args)
        checkpoint = find_checkpoint(recipe.output_dir, recipe.training.resume)
        trainer.train(resume_from_checkpoint=checkpoint)
        unit = "Packed rows" if recipe.data.packing else "Sequences"
        facts = {"Steps": trainer.state.global_step, f"{unit} a step": recipe.training.batch_size}
        return save_final(trainer, processor, recipe, facts)
    finally:
        if lock is not None:
            lock.release()
