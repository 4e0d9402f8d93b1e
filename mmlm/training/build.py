"""A recipe becomes data, model and trainer, and is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import disable_fsdp_ram_efficient_loading
from peft import prepare_model_for_kbit_training
from torch.utils.data import Dataset, Subset
from transformers import TrainingArguments, set_seed

from mmlm.data.collating import SequenceCollator
from mmlm.data.packing import PackedSequences, Sequences
from mmlm.data.sets import heldout_sequences, place_codec, tokenizes_on_the_fly, training_sequences
from mmlm.models.loading import load_causal_lm
from mmlm.processing import MultimodalProcessor
from mmlm.recipes.training import LMDataSection, LMRecipe, LMTrainingSection, LoraSection
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
        # Items made on the fly are made by the process that trains: loader processes could not use its device.
        dataloader_num_workers=0 if tokenizes_on_the_fly(recipe.data) else recipe.data.loader_workers,
        label_names=["labels"],
    )


def load_model(name: str, lora: LoraSection, training: LMTrainingSection, processor: MultimodalProcessor) -> Any:
    """Load the language model, with adapters if the section says so."""
    dtype = getattr(torch, training.parameter_dtype)
    if lora.rank:  # accelerate would tie the emptied model anew, and peft has wrapped the table it looks for
        disable_fsdp_ram_efficient_loading()
    model: Any
    if lora.quantization is None:
        model = load_causal_lm(name, "merged model", dtype=dtype)
    else:
        model = prepare_model_for_kbit_training(
            load_quantized(name, lora, dtype),
            use_gradient_checkpointing=training.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
    with loading(name, "merged model"):
        processor.check_model(model)
    return add_lora(model, lora, processor.layout) if lora.rank else model


def longest_sequence(data: LMDataSection, config: Any) -> int | None:
    """Return the most tokens of a sequence, or of a packed row: data.max_length, or the positions of a model's config,
    or None.

    Raises:
        ConfigError: `max_length` is more than the positions, or is missing where neither says it.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if data.max_length is None:
        if positions is None and data.packing:
            raise ConfigError("data.max_length must be given: the model's config names no max_position_embeddings")
        return positions
    if positions is not None and data.max_length > positions:
        raise ConfigError(
            f"data.max_length must be at most the model's max_position_embeddings = {positions}, got {data.max_length}"
        )
    return data.max_length


def training_rows(
    sequences: Sequences, data: LMDataSection, training: LMTrainingSection, longest: int | None
) -> tuple[Dataset, int]:
    """Return the rows of a run in the order in which it reads them, and its optimizer steps.

    Args:
        sequences: which go on for ever.
        data: whether they are packed.
        training: how long the run is.
        longest: most tokens of a packed row.
    """
    if not data.packing:
        rows: Any = sequences
        steps = total_steps(training, len(sequences))
    else:
        assert longest is not None
        count = total_sequences(training, len(sequences))
        rows = PackedSequences(sequences, longest, data.packing_buffer, seed=training.seed, count=count)
        steps = training.max_steps or max(1, rows.full_rows() // training.batch_size)
    return Subset(rows, range(steps * training.batch_size)), steps


def build_trainer(recipe: LMRecipe, processor: MultimodalProcessor, args: TrainingArguments) -> UnifiedTrainer:
    """Make data, model and trainer.

    Raises:
        UserError: shards, lengths or sections that do not fit together.
    """
    data, training = recipe.data, recipe.training
    # Data first: on several processes the first tokenizes, and nothing else should wait in memory meanwhile.
    sequences = training_sequences(processor, data, seed=training.seed, batch_size=training.batch_size)
    heldout = heldout_sequences(processor, data, seed=training.seed) if training.evaluate_every_steps else None
    if tokenizes_on_the_fly(data):
        place_codec(processor, args.device)
    # After the data, which draws random numbers: new rows and adapters are the same on every process and when resumed.
    set_seed(training.seed)
    model = load_model(recipe.model, recipe.lora, training, processor)
    longest = longest_sequence(data, model.config)
    if longest is not None:  # refused here, by name, and not after hours by an index out of range
        for part in (sequences, heldout):
            if part is not None:
                part.check_length(longest)
    rows, steps = training_rows(sequences, data, training, longest)
    tokenizer = processor.tokenizer
    pad_id = processor.layout.eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return UnifiedTrainer(
        model,
        args,
        rows,
        max_steps=steps,
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
    """Run a recipe and return the folder of the trained model; every process calls this."""
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
