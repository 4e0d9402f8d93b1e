"""Stages at the beginning of a training in which only a part of the weights moves.

Gradients of what stands still are set to zero before they are reduced, clipped or seen by the optimizer, and weight
decay is off as long as anything stands still: AdamW then leaves those elements as they are, bit for bit. Flags
(`requires_grad`) could not freeze single rows, and DDP, ZeRO and FSDP lay out their buffers once, by the flags found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmlm.recipes.stage import NEW_ROWS, FreezeStage
from visual_tokenizer.registry import ConfigError

TRAINED_ROWS = "trainable_tokens_"
"""In the names of what peft keeps of rows that are trained beside frozen ones."""
WRAPPERS = ("module.", "_orig_mod.", "_checkpoint_wrapped_module.")
"""What wrappers add to the names of parameters."""


class FreezeSchedule(TrainerCallback):
    """Freezes what each stage does not name, and gives the optimizer its weight decay back after the last.

    Args:
        model: as it is before it is wrapped.
        stages: in order; after the last one everything is trained.
        rows: of the vocabulary, that `new_rows` stands for.

    Raises:
        ConfigError: a stage names nothing that the model has.
    """

    def __init__(self, model: nn.Module, stages: Sequence[FreezeStage], rows: Sequence[int]) -> None:
        self.stages, self.rows = list(stages), torch.tensor(rows)
        self.weight_decays: list[float] = []
        """Of the optimizer's groups, once all is trained."""
        self._current: FreezeStage | None = None
        self._hooks: list[Any] = []
        self._masks: dict[Any, Tensor] = {}
        some: Any = model
        tables = {
            id(weight)
            for part in (some.get_input_embeddings(), some.get_output_embeddings())
            if part is not None
            for weight in part.parameters()
        }
        self._in_table = {plain_name(name) for name, weight in model.named_parameters() if id(weight) in tables}
        names = [plain_name(name) for name, weight in model.named_parameters() if weight.requires_grad]
        for stage in self.stages:
            for pattern in stage.train:
                if pattern != NEW_ROWS and not any(fnmatchcase(name, pattern) for name in names):
                    raise ConfigError(
                        f"training.freeze: train must name new_rows or trained weights of the model, got {pattern!r}, "
                        f"which is none of {', '.join(names[:3])} …"
                    )

    def stage_at(self, step: int) -> FreezeStage | None:
        """Return the stage in which the step after so many steps is; None: everything is trained."""
        return next((stage for stage in self.stages if step < stage.until_step), None)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        """Watch the gradients; FSDP2's, which appear without autograd, are masked by `mask_sharded`."""
        if model is None or self.stage_at(state.global_step) is None:
            return
        self._hooks = [
            weight.register_hook(self._masking(plain_name(name)))
            for name, weight in model.named_parameters()
            if weight.requires_grad and not isinstance(weight, DTensor)
        ]

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        """Enter the stage of the step that begins."""
        self._current = self.stage_at(state.global_step)
        if self._current is None:
            while self._hooks:
                self._hooks.pop().remove()
        groups = optimizer.param_groups
        decays = self.weight_decays if len(self.weight_decays) == len(groups) else [args.weight_decay] * len(groups)
        for group, decay in zip(groups, decays, strict=True):
            group["weight_decay"] = 0.0 if self._current is not None else decay

    def _masking(self, name: str) -> Callable[[Tensor], Tensor | None]:
        def mask(gradient: Tensor) -> Tensor | None:
            share = self.share(name, gradient)
            return None if share is None else gradient * share

        return mask

    def mask_sharded(self, model: nn.Module) -> None:
        """Mask gradients that stand in shards of a parameter."""
        if self._current is None:
            return
        for name, weight in model.named_parameters():
            if isinstance(weight.grad, DTensor):
                share = self.share(plain_name(name), weight.grad)
                if share is not None:
                    weight.grad.mul_(share)

    def share(self, name: str, gradient: Tensor) -> Tensor | float | None:
        """Return what to multiply a parameter's gradient by: 0 or 1, a number or for each row; None: 1."""
        stage = self._current
        if stage is None or any(fnmatchcase(name, pattern) for pattern in stage.train if pattern != NEW_ROWS):
            return None
        if NEW_ROWS not in stage.train:
            return 0.0
        if TRAINED_ROWS in name:
            return None
        if name not in self._in_table:
            return 0.0
        key = (name, gradient.dtype)
        if key not in self._masks:
            mask = torch.zeros(gradient.shape[0], *[1] * (gradient.dim() - 1), dtype=gradient.dtype)
            mask[self.rows] = 1
            mask = mask.to(gradient.device)
            if isinstance(gradient, DTensor):
                mask = distribute_tensor(mask, gradient.device_mesh, gradient.placements)
            self._masks[key] = mask
        return self._masks[key]


def plain_name(name: str) -> str:
    """Return a parameter's name without what wrappers add to it."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name
