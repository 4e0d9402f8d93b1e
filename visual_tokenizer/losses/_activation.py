"""What a part of the tokenizer gave in the pass that is judged, for losses that look between its ends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from visual_tokenizer.errors import UserError


class Activation:
    """The latest output of a module that was computed for a gradient; evaluations pass by."""

    def __init__(self) -> None:
        self._kept: list[Any] = []

    def watch(self, module: nn.Module) -> None:
        """Keep what `module` gives from now on."""
        kept = self._kept  # not self: whoever copies the module would copy what holds this

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if torch.is_grad_enabled():
                kept.clear()
                kept.append(output)

        module.register_forward_hook(keep)

    def take(self) -> Tensor:
        """Return the output and forget it.

        Raises:
            RuntimeError: nothing was computed since, or the module was never watched.
            ValueError: the output is not a tensor, as that of an encoder of variable length.
        """
        if not self._kept:
            raise RuntimeError("this loss looks into the tokenizer: build an Objective of both, run with gradients")
        output = self._kept.pop()
        if not isinstance(output, Tensor):
            raise UserError("this loss is for tokenizers of equally many tokens a picture")
        return output
