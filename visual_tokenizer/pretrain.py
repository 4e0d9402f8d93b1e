"""Entry point: `accelerate launch -m visual_tokenizer.pretrain --config RECIPE --tokenizer DIR`."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from visual_tokenizer.errors import Interrupted, program
from visual_tokenizer.pretraining.build import pretrain
from visual_tokenizer.pretraining.evaluation import measure, show
from visual_tokenizer.pretraining.recipe import PretrainingRecipe
from visual_tokenizer.recipe import parse_arguments, with_smoke
from visual_tokenizer.runs.processes import leave_process_group

PROGRAM = "python -m visual_tokenizer.pretrain"

ABOUT = """\
Pre-train a vision transformer to predict a frozen visual tokenizer's indices where patches are hidden (BEiT). The
result, in OUTPUT_DIR/final, is an ordinary BEiT of transformers. A run that was interrupted goes on from its newest
complete checkpoint when the same command is given again. SIGTERM and SIGINT end a run after its step, with a
checkpoint.

Examples:
  one GPU, or a CPU
    python -m visual_tokenizer.pretrain --config recipes/pretraining/openmoji_beit.yaml --tokenizer DIR
  eight GPUs
    accelerate launch --multi_gpu --num_processes 8 -m visual_tokenizer.pretrain \\
        --config recipes/pretraining/paper/beit_base.yaml --tokenizer DIR
  BEiT v2's second head
    python -m visual_tokenizer.pretrain --config recipes/pretraining/openmoji_beit.yaml --tokenizer DIR \\
        --patch_aggregation "{layer: 4, head_layers: 2}"
  a few steps, to see that everything is there
    python -m visual_tokenizer.pretrain --config RECIPE.yaml --tokenizer DIR --smoke true"""


@program(PROGRAM)
def main(arguments: Sequence[str]) -> int:
    """Pre-train by the command line's recipe, measure, and return the exit code."""
    is_first = int(os.environ.get("RANK", "0")) == 0
    logging.basicConfig(level=logging.INFO if is_first else logging.ERROR, format="%(message)s")
    words = with_smoke(arguments)
    recipe = parse_arguments(PretrainingRecipe, words, program=PROGRAM, about=ABOUT)
    try:
        final = pretrain(recipe)
    except Interrupted:
        leave_process_group()
        raise
    if is_first:
        print(f"saved {final}")
        show(measure(final, recipe, final / "probe.json")["metrics"])
    leave_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
