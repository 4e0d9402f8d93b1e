"""Run by test_adversarial_training.py under `accelerate launch`: trains, and writes what each process holds."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from torch.nn.parallel import DistributedDataParallel

from visual_tokenizer.recipe import read_recipe
from visual_tokenizer.training.recipe import TokenizerRecipe
from visual_tokenizer.training.trainer import TokenizerTrainer

recipe, folder = read_recipe(TokenizerRecipe, sys.argv[1], {}), Path(sys.argv[2])
trainer = TokenizerTrainer(recipe)
weights: list[float] = []
add = trainer.meter.add


def note(values):
    if "discriminator/adaptive_weight" in values:
        weights.append(float(values["discriminator/adaptive_weight"]))
    add(values)


trainer.meter.add = note
trainer.train()
state = trainer.unwrapped.state_dict() | trainer.adversarial.unwrapped.state_dict()
digests = {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in state.items()}
wrapped = (trainer.objective, trainer.adversarial.objective)
report = {
    "processes": trainer.accelerator.num_processes,
    "is_wrapped": all(isinstance(module, DistributedDataParallel) for module in wrapped),
    "weights": weights,
    "digests": digests,
}
(folder / f"process-{trainer.accelerator.process_index}.json").write_text(json.dumps(report))
