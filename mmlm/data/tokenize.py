"""Tokenize pictures, or the documents of a mixture, once: `accelerate launch -m mmlm.data.tokenize --config RECIPE`.

The work is divided into units that do not depend on the number of processes (`ShardPlan`); each becomes a shard file
that is there as a whole or not at all. A run that was killed goes on, with any number of processes, when the same
command is given again. `mmlm.train` does the same by itself where shards are missing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import torch
from accelerate import PartialState

from mmlm.data.sets import open_set, sets_of
from mmlm.processing import MultimodalProcessor
from mmlm.recipes.training import LMRecipe
from visual_tokenizer.errors import program
from visual_tokenizer.recipe import parse_arguments
from visual_tokenizer.runs.processes import leave_process_group

PROGRAM = "accelerate launch -m mmlm.data.tokenize"
ABOUT = """Tokenize the pictures, or documents, of a recipe's data section to shards; the processes share the work.

A run that was killed goes on when the command is given again, also with another number of processes. On finished
shards the command verifies their checksums and makes damaged ones again.

Examples:
  accelerate launch -m mmlm.data.tokenize --config recipes/lm/openmoji_llama.yaml
  accelerate launch --num_processes 8 -m mmlm.data.tokenize --config recipes/lm/openmoji_llama.yaml \\
      --data.tokenize_batch_size 256 --data.loader_workers 8"""


@program(PROGRAM)
def main(arguments: Sequence[str]) -> int:
    """Tokenize the splits that a recipe names, or verify what is there; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    recipe = parse_arguments(LMRecipe, arguments, program=PROGRAM, about=ABOUT)
    processor = MultimodalProcessor.from_pretrained(recipe.model)
    is_launched = int(os.environ.get("LOCAL_RANK", -1)) >= 0  # only a launcher sets it
    on_cpu = not torch.accelerator.is_available()
    state = PartialState(**({"cpu": True, "backend": "gloo"} if on_cpu and is_launched else {"cpu": on_cpu}))
    data = recipe.data
    for is_heldout in (False, True) if recipe.training.evaluate_every_steps else (False,):
        for one in sets_of(processor, data, is_heldout=is_heldout):
            state.print(f"{one.folder}: {len(open_set(one, data, verify=True))} {one.items}")
    leave_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
