"""LoRA on a merged model: adapters on the linear layers, and the new vocabulary rows trained in full."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from mmlm.layouts.base import Layout
from mmlm.lm_recipe import LoraSection

ALL_LINEAR = "all-linear"


def new_rows(layout: Layout) -> list[int]:
    """Return the ids of visual and structural tokens, sorted."""
    visual = torch.cat([layout.vocabulary.visual_ids(book) for book in range(layout.vocabulary.num_codebooks)])
    return sorted({*visual.tolist(), *layout.structural_ids.values()})


def add_lora(model: PreTrainedModel, section: LoraSection, layout: Layout) -> PeftModel:
    """Return the model with adapters; its own weights are frozen but for the rows of visual and structural
    tokens.

    A tied head follows the table; the rows of an untied head are trained by themselves.
    """
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    rows = new_rows(layout)
    trained = {names[id(table)]: rows}
    if head is not None and head.weight is not table.weight:
        trained[names[id(head)]] = rows
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=section.rank,
        lora_alpha=section.alpha,  # type: ignore[arg-type]
        lora_dropout=section.dropout,
        target_modules=section.target_modules or ALL_LINEAR,
        trainable_token_indices=trained,
    )
    return get_peft_model(model, config)


def merge_lora(base_folder: str | os.PathLike[str], adapter_folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Return the base model with a saved adapter merged into its weights, an ordinary model on the CPU.

    It is read anew, so that it does not matter how the run had sharded it.
    """
    from transformers import AutoModelForCausalLM
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # the run is over: under ZeRO-3 this model would be sharded too
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=dtype)
    merged: nn.Module = PeftModel.from_pretrained(base, str(adapter_folder)).merge_and_unload()
    assert isinstance(merged, PreTrainedModel)
    return merged
