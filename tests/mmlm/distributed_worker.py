"""One process of `test_distributed.py`: trains by a recipe and writes down what it saw."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from accelerate.utils import parse_flag_from_env
from safetensors.torch import save_file

from mmlm.recipes.training import LMRecipe
from mmlm.training.build import build_trainer, load_processor, run_arguments
from mmlm.training.export import save_final
from visual_tokenizer.hf_training.checkpoints import find_checkpoint
from visual_tokenizer.recipe import read_recipe


def let_fsdp_use_the_cpu() -> None:
    """Have accelerate take FSDP's way: it does so for accelerators only, though `fully_shard` runs on gloo too."""
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def main(recipe_file: str) -> None:
    torch.set_num_threads(1)
    recipe = read_recipe(LMRecipe, recipe_file, {})
    processor = load_processor(recipe.model)
    args = run_arguments(recipe)
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        let_fsdp_use_the_cpu()
    trainer = build_trainer(recipe, processor, args)
    seen: list[torch.Tensor] = []
    compute_loss = trainer.compute_loss

    def recording(model: Any, inputs: Any, **options: Any) -> Any:
        if model.training:
            seen.append(torch.nn.functional.pad(inputs["input_ids"], (0, 100 - inputs["input_ids"].shape[1])))
        return compute_loss(model, inputs, **options)

    trainer.compute_loss = recording  # type: ignore[method-assign]
    checkpoint = find_checkpoint(recipe.output_dir, recipe.training.resume)
    trainer.train(resume_from_checkpoint=checkpoint)
    model = trainer.model_wrapped
    model.eval()  # DeepSpeed's engine returns nothing
    with torch.no_grad():
        logits = model(input_ids=torch.arange(40)[None], use_cache=False).logits
    save_final(trainer, processor, recipe, {})
    facts = {
        "processes": torch.tensor(trainer.accelerator.num_processes),
        "zero_stage": torch.tensor(
            trainer.accelerator.deepspeed_config["zero_optimization"]["stage"] if trainer.is_deepspeed_enabled else 0
        ),
        "input_ids": torch.cat(seen),
        "logits": logits.float().contiguous(),
        "logits_needed": torch.tensor(list(trainer.head_loss._reasons.values()) != [None]),
        "resumed": torch.tensor(checkpoint is not None),
    }
    save_file(facts, Path(recipe.output_dir) / f"rank-{args.process_index}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
