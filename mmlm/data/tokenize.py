"""Tokenize pictures, or the documents of a mixture, once: `accelerate launch -m mmlm.data.tokenize --config RECIPE`.

The work is divided into units that do not depend on the number of processes (`ShardPlan`); each becomes a shard file
that is there as a whole or not at all. A run that was killed goes on, with any number of processes, when the same
command is given again. `mmlm.train` does the same by itself where shards are missing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from mmlm.data.sets import tokenize_sets
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
    tokenize_sets(recipe.model, recipe.data, with_heldout=bool(recipe.training.evaluate_every_steps))
    leave_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
