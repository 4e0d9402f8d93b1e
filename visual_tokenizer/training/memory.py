"""Memory for time: activations inside blocks are computed again on the way back.

Paper: Training Deep Nets with Sublinear Memory Cost (Chen et al., 2016), arXiv:1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.registry import ConfigError

STACKS = ("layers", "blocks")
"""Names under which encoders and decoders keep their sequence of blocks."""


def checkpoint_blocks(tokenizer: VisualTokenizer) -> int:
    """Keep only the inputs of the blocks of encoder and decoder for the way back; return how many blocks.

    The results are the same, dropout included.

    Raises:
        ConfigError: neither encoder nor decoder has a stack of blocks.
    """
    blocks = [block for part in (tokenizer.encoder, tokenizer.decoder) for block in _blocks(part)]
    if not blocks:
        names = f"{type(tokenizer.encoder).__name__} and {type(tokenizer.decoder).__name__}"
        raise ConfigError(f"gradient_checkpointing must be false for {names}: they have no stack of blocks")
    for block in blocks:
        block.forward = _checkpointed(block.forward)  # type: ignore[method-assign]
    return len(blocks)


def _blocks(module: nn.Module) -> list[nn.Module]:
    """Return the members of the outermost stacks within `module`."""
    found: list[nn.Module] = []
    for name, child in module.named_children():
        if name in STACKS and isinstance(child, nn.Sequential | nn.ModuleList):
            found += list(child)
        else:
            found += _blocks(child)
    return found


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **keywords: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **keywords)
        return checkpoint(forward, *arguments, use_reentrant=False, **keywords)

    return run


_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(tensor: Tensor) -> Tensor:
    """Return `tensor` channels-last if it has the four dimensions of pictures or the five of clips, else as it is."""
    layout = _LAYOUTS.get(tensor.ndim)
    return tensor if layout is None else tensor.contiguous(memory_format=layout)


def lay_out_channels_last(module: nn.Module) -> None:
    """Lay out the kernels of two- and three-dimensional convolutions so, in place."""
    for parameter in module.parameters():
        parameter.data = channels_last(parameter.data)
