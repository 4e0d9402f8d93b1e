"""The fields that the section `training` of every recipe has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from visual_tokenizer.fields.decoding import ConfigError
from visual_tokenizer.fields.ranges import Section

RESUME_AUTO, RESUME_NEVER = "auto", "never"


@dataclass(kw_only=True)
class RunSection(Section):
    """How long, how precisely, and what is written when."""

    former_values: ClassVar[Mapping[str, Mapping[Any, Any]]] = {"resume": {True: RESUME_AUTO, False: RESUME_NEVER}}

    max_steps: Annotated[int, Ge(1)] | None = None
    """Optimizer steps."""

    batch_size: Annotated[int, Ge(1)] = 64
    """Pictures or sequences of one optimizer step, over all processes and accumulated passes."""

    gradient_accumulation_steps: Annotated[int, Ge(1)] = 1
    """Forward and backward passes a step, each on its share of batch_size."""

    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Autocast of the forward pass; overrides the launcher's. Quantizers compute in float32 in any case."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    compile: bool = False
    """Compile what is trained with torch.compile."""

    seed: Annotated[int, Ge(0)] = 0
    """Seed of weights, sample order, augmentation and whatever else is drawn."""

    log_every_steps: Annotated[int, Ge(1)] = 20
    """Steps between lines of log.jsonl, whose values are means over these steps."""

    sample_every_steps: Annotated[int, Ge(0)] = 0
    """Steps between pictures in samples/; 0 for none but the last."""

    evaluate_every_steps: Annotated[int, Ge(0)] = 0
    """Steps between measurements on what is held out; 0 for none but the last."""

    checkpoint_every_steps: Annotated[int, Ge(1)] = 1000
    """Steps between checkpoints."""

    keep_checkpoints: Annotated[int, Ge(1)] = 2
    """Newest complete checkpoints that are kept."""

    report_to: list[str] = field(default_factory=list)
    """Trackers beside log.jsonl: tensorboard, wandb, …"""

    resume: str = RESUME_AUTO
    """auto: go on from the newest complete checkpoint in output_dir, if there is one; never: refuse a folder that has
    one; or the folder of a checkpoint."""

    def per_device_batch_size(self, processes: int) -> int:
        """Return the rows of one forward pass on one process, pictures or sequences.

        ConfigError where the batch does not divide so.
        """
        parts = processes * self.gradient_accumulation_steps
        if self.batch_size % parts:
            raise ConfigError(
                "training.batch_size must be a multiple of processes × training.gradient_accumulation_steps = "
                f"{processes} × {self.gradient_accumulation_steps} = {parts}, got {self.batch_size}"
            )
        return self.batch_size // parts
