"""Entry point: `accelerate launch -m visual_tokenizer.train --config recipes/tokenizer/RECIPE.yaml`."""

from __future__ import annotations

from collections.abc import Sequence

from visual_tokenizer.errors import program
from visual_tokenizer.recipe import parse_arguments, with_smoke
from visual_tokenizer.training.recipe import TokenizerRecipe
from visual_tokenizer.training.trainer import TokenizerTrainer

PROGRAM = "python -m visual_tokenizer.train"

ABOUT = """\
Train a visual tokenizer. A run that was interrupted goes on when the same command is given again.

Examples:
  accelerate launch -m visual_tokenizer.train --config recipes/tokenizer/openmoji_cnn_fsq.yaml
  accelerate launch --config_file recipes/accelerate/multi_gpu.yaml -m visual_tokenizer.train --config RECIPE.yaml
  python -m visual_tokenizer.train --config RECIPE.yaml --quantizer.levels "[8,8,8,5,5]" --output_dir run/other
  python -m visual_tokenizer.train --config RECIPE.yaml --smoke true

Exit codes: 0 done; 2 usage or input error; 143 (SIGTERM) and 130 (SIGINT) stopped after a checkpoint."""


@program(PROGRAM)
def main(arguments: Sequence[str]) -> int:
    """Train by the command line's recipe and return the exit code."""
    words = with_smoke(arguments)
    recipe = parse_arguments(TokenizerRecipe, words, program=PROGRAM, about=ABOUT)
    TokenizerTrainer(recipe).train()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
