"""Entry point: `accelerate launch -m visual_tokenizer.train --config recipes/tokenizer/RECIPE.yaml`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from visual_tokenizer.callbacks import DivergedError
from visual_tokenizer.checkpoints import CheckpointError
from visual_tokenizer.data.decoding import TooManyUnreadableError
from visual_tokenizer.data.sources.base import DataSourceError
from visual_tokenizer.encoders.base import ResolutionError
from visual_tokenizer.processes import FirstProcessError, Interrupted
from visual_tokenizer.recipe import parse_arguments, with_smoke
from visual_tokenizer.registry import ConfigError, UnknownPartError
from visual_tokenizer.run_folder import RunLockedError
from visual_tokenizer.training import TokenizerTrainer
from visual_tokenizer.training_recipe import TokenizerRecipe

PROGRAM = "python -m visual_tokenizer.train"

ABOUT = """\
Train a visual tokenizer. A run that was interrupted goes on when the same command is given again.

Examples:
  accelerate launch -m visual_tokenizer.train --config recipes/tokenizer/openmoji_cnn_fsq.yaml
  accelerate launch --config_file recipes/accelerate/multi_gpu.yaml -m visual_tokenizer.train --config RECIPE.yaml
  python -m visual_tokenizer.train --config RECIPE.yaml --quantizer.levels "[8,8,8,5,5]" --output_dir run/other
  python -m visual_tokenizer.train --config RECIPE.yaml --smoke true

Exit codes: 0 done; 2 something to be put right by you; 143 (SIGTERM) and 130 (SIGINT) stopped after a checkpoint."""

USER_ERRORS = (
    OSError,  # files that are not there, a full disk
    ConfigError,
    UnknownPartError,
    DataSourceError,
    ResolutionError,
    CheckpointError,
    RunLockedError,
    DivergedError,
    TooManyUnreadableError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train by the command line's recipe and return the exit code."""
    try:
        words = with_smoke(sys.argv[1:] if arguments is None else arguments)
        recipe = parse_arguments(TokenizerRecipe, words, program=PROGRAM, about=ABOUT)
        TokenizerTrainer(recipe).train()
    except FirstProcessError:
        return 2
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signum
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
