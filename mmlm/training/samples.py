"""Pictures that a language model draws while it trains, and which of the logged values are its losses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from torch import nn

from mmlm.processing import MultimodalProcessor
from mmlm.recipes.training import SamplingSection
from visual_tokenizer.hf_training.log_files import SamplePictures
from visual_tokenizer.runs.folder import StepLog


class SampleGrids(SamplePictures):
    """Grids of pictures of fixed prompts.

    Args:
        processor: of the model.
        sampling: prompts, and how they are drawn.
        every_steps, output_dir: as of `SamplePictures`.
    """

    def __init__(
        self, processor: MultimodalProcessor, sampling: SamplingSection, every_steps: int, output_dir: str
    ) -> None:
        super().__init__(every_steps, output_dir)
        self.processor, self.sampling = processor, sampling

    def draw(self, model: nn.Module) -> Image.Image:
        """Return the grid of all prompts."""
        from mmlm.generation.grid import image_grid
        from mmlm.generation.images import generate_images

        sampling = self.sampling
        if self.processor.codec is not None:
            torch.nn.Module.to(self.processor.codec, next(model.parameters()).device)
        language_model: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        with _whole_tables(language_model):
            pictures = generate_images(
                language_model,
                self.processor,
                sampling.prompts,
                **sampling.defaults(),
                seed=sampling.seed,
            )
        return image_grid(pictures, sampling.prompts)


@contextmanager
def _whole_tables(model: Any) -> Iterator[None]:
    """Under ZeRO-3, gather table and head, whose sizes are checked before drawing; layers gather themselves."""
    weights = {id(part.weight): part.weight for part in (model.get_input_embeddings(), model.get_output_embeddings())}
    sharded = [weight for weight in weights.values() if hasattr(weight, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded):
        yield


def loss_curve(key: str) -> str | None:
    """Return the curve of a loss in nats a token, or None: of the mean over the run, z-loss, and all else.

    `loss_image` → `loss/image`, `eval_loss_image` → `loss/heldout_image`, `eval_loss` → `loss/heldout`.
    """
    if "loss" not in key or key == "train_loss" or "z_loss" in key:
        return None
    return key if key == "loss" else f"loss/{key.replace('eval_loss', 'heldout').replace('loss_', '')}"


def last_losses(output_dir: str | os.PathLike[str]) -> dict[str, float]:
    """Return the newest value of every loss in a run's `log.jsonl`."""
    found: dict[str, float] = {}
    for line in StepLog(Path(output_dir)).read():
        found |= {key: value for key, value in line.items() if loss_curve(key) is not None}
    return found
