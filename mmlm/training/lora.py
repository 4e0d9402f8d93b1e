"""LoRA and DoRA on a merged model, quantized or not: adapters on the linear layers, the new vocabulary rows in full."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from mmlm.layouts.base import Layout
from mmlm.models.loading import load_causal_lm
from mmlm.recipes.training import LoraSection
from visual_tokenizer.registry import ConfigError

ALL_LINEAR = "all-linear"


def new_rows(layout: Layout) -> list[int]:
    """Return the ids of visual and structural tokens, sorted."""
    visual = torch.cat([layout.vocabulary.visual_ids(book) for book in range(layout.vocabulary.num_codebooks)])
    return sorted({*visual.tolist(), *layout.structural_ids.values()})


def add_lora(model: PreTrainedModel, section: LoraSection, layout: Layout) -> PeftModel:
    """Return the model with adapters; its own weights are frozen but for the rows of visual and structural tokens.

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
        use_dora=section.dora,
        trainable_token_indices=trained,
    )
    return get_peft_model(model, config)


def quantization_config(section: LoraSection, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """Return how the frozen linear layers are quantized as they are read, or None.

    nf4 quantizes its constants too. Packed weights are kept in tensors of `dtype`, which FSDP can shard.

    Args:
        section: of the recipe.
        dtype: of the products.
    """
    if section.quantization is None:
        return None
    if section.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=section.quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
    )


def check_quantization(section: LoraSection) -> None:
    """Raise `ConfigError` if this machine cannot do what `section.quantization` asks for."""
    if section.quantization is None:
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"lora.quantization: {section.quantization} needs the package bitsandbytes, which is not installed: "
            "pip install 'mmlm[quantization]', or set lora.quantization to null"
        )
    if not torch.cuda.is_available():
        raise ConfigError(
            f"lora.quantization: {section.quantization} needs a CUDA device, and there is none: set it to null"
        )


def load_quantized(folder: str | os.PathLike[str], section: LoraSection, dtype: torch.dtype) -> PreTrainedModel:
    """Load a model with its linear layers, but the head, quantized, on this process's device."""
    check_quantization(section)
    return load_causal_lm(
        folder,
        dtype=dtype,
        quantization_config=quantization_config(section, dtype),
        device_map={"": torch.cuda.current_device()},
    )


def merge_lora(
    base_folder: str | os.PathLike[str], adapter_folder: Path, dtype: torch.dtype, section: LoraSection
) -> PreTrainedModel:
    """Return the base model with a saved adapter merged into its weights, an ordinary model on the CPU.

    It is read anew, so that it does not matter how the run had sharded it. A quantized base is quantized again and
    turned back into floats before: the adapter was trained beside those weights, not beside the original ones.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # the run is over: under ZeRO-3 this model would be sharded too
    base: PreTrainedModel
    if section.quantization is None:
        base = load_causal_lm(base_folder, dtype=dtype)
    else:
        base = load_quantized(base_folder, section, dtype).dequantize()
        nn.Module.to(base, device="cpu", dtype=dtype)
    merged: nn.Module = PeftModel.from_pretrained(base, str(adapter_folder)).merge_and_unload()
    assert isinstance(merged, PreTrainedModel)
    return merged
