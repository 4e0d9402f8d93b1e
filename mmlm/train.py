"""Train a merged language model on pairs: `accelerate launch -m mmlm.train --config RECIPE`."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from mmlm.recipes.training import LMRecipe
from mmlm.training.build import train
from visual_tokenizer.errors import Interrupted, program
from visual_tokenizer.recipe import parse_arguments, with_smoke
from visual_tokenizer.runs.processes import leave_process_group

logger = logging.getLogger(__name__)

PROGRAM = "accelerate launch -m mmlm.train"
ABOUT = """Train a merged language model on captions and pictures, or on documents.

Pictures are tokenized first if their shards are not there. A run that was interrupted goes on from its
newest complete checkpoint when the same command is given again, also with another number of processes.
SIGTERM and SIGINT end a run after its step, with a checkpoint. The result is in OUTPUT_DIR/final.

Examples:
  one GPU, or a CPU
    python -m mmlm.train --config recipes/lm/openmoji_llama.yaml
  a few fields changed
    python -m mmlm.train --config recipes/lm/openmoji_llama.yaml \\
        --training.max_steps 500 --optimizer.learning_rate 1e-4
  a few steps, to see that everything is there
    python -m mmlm.train --config recipes/lm/openmoji_llama.yaml --smoke true
  eight GPUs (also two processes on a CPU, with --num_processes 2)
    accelerate launch --multi_gpu --num_processes 8 -m mmlm.train --config recipes/lm/openmoji_llama.yaml
  eight GPUs, DeepSpeed ZeRO-3
    accelerate launch --use_deepspeed --num_processes 8 \\
        --deepspeed_config_file recipes/deepspeed/zero3.json \\
        -m mmlm.train --config recipes/lm/openmoji_llama.yaml --training.mixed_precision bf16
  eight GPUs, PyTorch's FSDP2
    accelerate launch --config_file recipes/accelerate/fsdp2.yaml --num_processes 8 \\
        -m mmlm.train --config recipes/lm/openmoji_llama.yaml --training.mixed_precision bf16
  two processes on a CPU, DeepSpeed ZeRO-2
    DS_ACCELERATOR=cpu accelerate launch --use_deepspeed --num_processes 2 \\
        --deepspeed_config_file recipes/deepspeed/zero2.json \\
        -m mmlm.train --config recipes/lm/openmoji_llama.yaml

Exit codes: 0 done; 2 usage or input error; 143 (SIGTERM) and 130 (SIGINT) stopped after a checkpoint. They
are those of each process; a launcher of several may end with 1 instead."""


@program(PROGRAM)
def main(arguments: Sequence[str]) -> int:
    """Train by the command line's recipe and return the exit code."""
    level = logging.INFO if int(os.environ.get("RANK", "0")) == 0 else logging.ERROR
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    recipe = parse_arguments(LMRecipe, with_smoke(arguments), program=PROGRAM, about=ABOUT)
    try:
        logger.info("the trained model is in %s", train(recipe))
    except Interrupted:
        leave_process_group()
        raise
    leave_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
