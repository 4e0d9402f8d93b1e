"""Training that begins with another tokenizer's weights, or trains a part of a tokenizer only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from visual_tokenizer.errors import UserError
from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.quantizers.base import Quantizer
from visual_tokenizer.registry import ConfigError


def load_weights(tokenizer: VisualTokenizer, name: str) -> None:
    """Give `tokenizer` the weights of the trained one in folder (or of hub name) `name`.

    What is not architecture, such as the weights of a quantizer's losses, may differ.

    Raises:
        FileNotFoundError: there is no such folder.
        ConfigError: its architecture is another; the fields that differ are named.
    """
    other = VisualTokenizer.from_pretrained(name)
    try:
        _compare_constants(tokenizer, other)
        tokenizer.load_state_dict(other.state_dict())
    except (RuntimeError, ValueError) as error:
        there, here = other.config.to_dict(), tokenizer.config.to_dict()
        differences = []
        for section in ("encoder", "quantizer", "decoder"):
            differences += _differences(there[section], here[section], section)
        listed = "; ".join(differences) or str(error)
        raise ConfigError(f"initialize_from: {name} is a tokenizer of another architecture: {listed}") from error


def _compare_constants(tokenizer: VisualTokenizer, other: VisualTokenizer) -> None:
    """Raise ValueError where the quantizers differ in what no weight shows (an FSQ's levels)."""
    for attribute in ("codebook_size", "code_dim", "num_codebooks", "latent_grid"):
        if getattr(tokenizer.quantizer, attribute) != getattr(other.quantizer, attribute):
            raise UserError(f"another {attribute}")
    theirs = _constants(other)
    for name, value in _constants(tokenizer).items():
        if name not in theirs or not torch.equal(value.cpu(), theirs[name].cpu()):
            raise UserError(f"another {name}")


def _constants(tokenizer: VisualTokenizer) -> dict[str, torch.Tensor]:
    quantizers = [(name, part) for name, part in tokenizer.named_modules() if isinstance(part, Quantizer)]
    return {f"{name}.{key}": value for name, part in quantizers for key, value in part.derived_buffers().items()}


def _differences(there: Any, here: Any, where: str) -> list[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        keys = sorted({*there, *here})
        return [line for key in keys for line in _differences(there.get(key), here.get(key), f"{where}.{key}")]
    return [] if there == here else [f"{where}: {there!r} there, {here!r} here"]


def freeze_parts(tokenizer: VisualTokenizer, names: Sequence[str]) -> list[nn.Module]:
    """Take the parts called `names` out of training and return them; they must stay in evaluation mode.

    Nothing in them changes: no gradient, no optimizer state, no update of a codebook or running average.
    """
    parts = [tokenizer.get_submodule(name) for name in names]
    for part in parts:
        part.requires_grad_(False)
        part.eval()
    return parts


@torch.no_grad()
def copy_proxy(tokenizer: VisualTokenizer, proxy: VisualTokenizer) -> None:
    """Give the `proxy_codes` within `tokenizer`'s decoder the codes and the decoder of `proxy`.

    Args:
        tokenizer: its decoder is or holds a `proxy_codes` whose section `proxy` is `proxy`'s decoder section.
        proxy: a trained tokenizer with one index a position.

    Raises:
        ConfigError: there is no such decoder in `tokenizer`, or it is made for another proxy.
    """
    targets = [part for part in tokenizer.decoder.modules() if hasattr(part, "copy_proxy")]
    if not targets:
        raise ConfigError("the decoder holds no 'proxy_codes', which a proxy's weights are for")
    if proxy.num_codebooks != 1 or proxy.quantizer.latent_grid is not None:
        raise ConfigError("a proxy must have one index a position, each decoded by itself")
    for target in targets:
        wanted, section = target.config, proxy.config.decoder
        if wanted.proxy.to_dict() != section or wanted.codebook_size != proxy.codebook_size:
            raise ConfigError(
                f"proxy_codes is made for {wanted.codebook_size} codes and the decoder {wanted.proxy.to_dict()}, the "
                f"proxy has {proxy.codebook_size} and {section}"
            )
        device = next(proxy.parameters()).device
        indices = torch.arange(proxy.codebook_size, device=device).unsqueeze(1)
        codes = proxy.from_codes(proxy.quantizer.indices_to_codes(indices).to(proxy.dtype))
        target.copy_proxy(codes.squeeze(1), proxy.decoder)
