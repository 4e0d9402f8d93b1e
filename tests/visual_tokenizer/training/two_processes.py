"""Run by test_training.py under `accelerate launch`: trains, and writes what each process saw and holds."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from torch.nn.parallel import DistributedDataParallel

from visual_tokenizer.recipe import read_recipe
from visual_tokenizer.training.callbacks import Callback
from visual_tokenizer.training.recipe import TokenizerRecipe
from visual_tokenizer.training.trainer import TokenizerTrainer


class Seen(Callback):
    """Notes the pictures of every pass."""

    def on_start(self, trainer):
        self.indices = []
        original = trainer._next

        def note(batches):
            batch = original(batches)
            self.indices.append(batch["index"].tolist())
            return batch

        trainer._next = note


recipe, folder = read_recipe(TokenizerRecipe, sys.argv[1], {}), Path(sys.argv[2])
trainer = TokenizerTrainer(recipe)
seen = Seen()
trainer.callbacks.append(seen)
trainer.train()
state = trainer.unwrapped.state_dict()
digests = {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in state.items()}
report = {
    "processes": trainer.accelerator.num_processes,
    "is_wrapped": isinstance(trainer.objective, DistributedDataParallel),
    "indices": seen.indices,
    "digests": digests,
}
(folder / f"process-{trainer.accelerator.process_index}.json").write_text(json.dumps(report))
