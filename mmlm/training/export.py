"""final/: the trained model as an ordinary checkpoint, with processor, recipe and model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import Trainer

from mmlm.processing import MultimodalProcessor
from mmlm.recipes.training import LMRecipe
from mmlm.training.lora import merge_lora
from mmlm.training.samples import last_losses
from visual_tokenizer.data.sources.base import SourceConfig
from visual_tokenizer.recipe import provenance, save_recipe
from visual_tokenizer.runs.files import whole_folder

FINAL_NAME = "final"
ADAPTER_NAME = "adapter"


def save_final(trainer: Trainer, processor: MultimodalProcessor, recipe: LMRecipe, facts: dict[str, Any]) -> Path:
    """Write `final/` below the output folder, whole or not at all; every process calls this.

    Full training: the weights, gathered from all shards. LoRA: the weights with the adapter merged, and the
    adapter itself in `final/adapter`.

    Args:
        trainer: after training.
        processor: goes beside the weights.
        recipe: what was trained.
        facts: further lines of the model card, by name.
    """
    import torch

    target = Path(recipe.output_dir) / FINAL_NAME
    state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.args.should_save:
        with whole_folder(target, existing="replace") as folder:
            model = trainer.accelerator.unwrap_model(trainer.model)
            if isinstance(model, PeftModel):
                model.save_pretrained(str(folder / ADAPTER_NAME), state_dict=state_dict)
                dtype = getattr(torch, recipe.training.parameter_dtype)
                merge_lora(recipe.model, folder / ADAPTER_NAME, dtype, recipe.lora).save_pretrained(folder)
            else:
                model.save_pretrained(folder, state_dict=state_dict)
            processor.sampling = recipe.sampling.defaults()
            processor.save_pretrained(folder)
            save_recipe(recipe, folder)
            (folder / "README.md").write_text(model_card(processor, recipe, facts), encoding="utf-8")
    trainer.accelerator.wait_for_everyone()
    return target


def _data(recipe: LMRecipe) -> tuple[str, str]:
    """Return what the model was trained on, and what its licences ask to be named."""
    if recipe.data.source is not None:
        kind = recipe.data.source.type
        return kind, SourceConfig.family.get(kind).attribution
    members = recipe.data.mixture
    total = sum(member.weight for member in members)
    shares = [f"{member.weight / total:.0%} {member.documents.type}" for member in members]
    named = [member.documents.attribution for member in members if member.documents.attribution]
    return ", ".join(shares), " ".join(dict.fromkeys(named))


def model_card(processor: MultimodalProcessor, recipe: LMRecipe, facts: dict[str, Any]) -> str:
    """Return README.md: how to use the model, and what it was made from."""
    data, attributions = _data(recipe)
    made = provenance()
    lines = {
        "Merged model it started from": recipe.model,
        "Training": f"LoRA of rank {recipe.lora.rank}" if recipe.lora.rank else "all weights",
        "Data": f"{data}, split {recipe.data.train_split}",
        "Attribution of the data": attributions,
        "Layout": processor.layout.config.type,
        "Visual tokens": f"{processor.vocabulary.size} ({processor.vocabulary.num_codebooks} codebook(s))",
        "Visual tokenizer (SHA-256)": processor.codec_hash,
        **facts,
        **{f"Last {name}": f"{value:.4f}" for name, value in last_losses(recipe.output_dir).items()},
        "Git revision": made["git_revision"],
        "Versions": ", ".join(f"{name} {version}" for name, version in made["versions"].items()),
    }
    listed = "\n".join(f"- {name}: {value}" for name, value in lines.items() if value not in (None, ""))
    return f"""---
library_name: transformers
pipeline_tag: text-to-image
tags: [multimodal, discrete-visual-tokens]
---
# Multimodal language model

A causal language model whose vocabulary holds visual tokens: it writes text and draws pictures.

```python
from mmlm import MultimodalProcessor, generate_images
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(folder)
processor = MultimodalProcessor.from_pretrained(folder)
generate_images(model, processor, ["{recipe.sampling.prompts[0]}"])[0].save("picture.png")
```

{listed}

The recipe is in `recipe.yaml`.
"""
