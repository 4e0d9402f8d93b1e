"""`load_published` and `save_published`: the way of weights from and to published layouts."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from visual_tokenizer.convert.reading import read_weights
from visual_tokenizer.convert.sources.base import PublishedSource, PublishedSourceConfig
from visual_tokenizer.errors import UserError
from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.quantizers.base import Quantizer


class MissingDecoderWarning(UserWarning):
    """The weights hold no decoder, so the tokenizer encodes only."""


def build_source(source: str, **fields: Any) -> PublishedSource:
    """Return the source of that name.

    Raises:
        UnknownPartError: no source of that name; the message lists what there is.
        ConfigError: a field that the source doesn't have, or a wrong value.
    """
    built: PublishedSource = PublishedSourceConfig.family.build({"type": source, **fields})
    return built


def load_published(weights: Any, source: str, *, decoder: Any = None, **fields: Any) -> VisualTokenizer:
    """Build the tokenizer that published weights belong to.

    The architecture is read off the weights; what they don't say (the nominal size of pictures) comes from the
    `config.json` beside them, from the module's config, or is the published model's.

    Args:
        weights: a folder, a file (safetensors, or a torch file that holds tensors only), a state dict, or a module;
            weights of a whole multimodal model do as well, only the tokenizer's are read.
        source: the published model's name: chameleon, dalle, emu3, ibq, janus, llamagen, open_magvit2, titok, vqgan.
        decoder: weights of the decoder where they are published by themselves, in any of those forms: for chameleon
            (transformers' class has no decoder; the original `vqgan.ckpt` has) and dalle (`decoder.pkl`).
        fields: of the source's config, such as `image_size`.

    Returns:
        The tokenizer in eval mode, float32, on the CPU. Without a decoder its `decode` raises an error that says so.

    Raises:
        FileNotFoundError: no such file or folder.
        UserError: a file holds no tensors, or pickled objects (nothing is ever unpickled but tensors); or the weights
            are not those of this source, whose names are listed.
    """
    chosen = build_source(source, **fields)
    found = read_weights(weights)
    try:
        published = chosen.own(found.tensors)
        if decoder is not None:
            published = chosen.join(published, read_weights(decoder).tensors)
        config = chosen.describe(published, chosen.image_size(found.settings), found.settings)
        tokenizer = VisualTokenizer(config)
        _fill(tokenizer, chosen.read(published, config), source)
    except UserError as error:
        if found.name not in str(error):
            error.args = (f"{found.name}: {error}",)
        raise
    except (LookupError, TypeError, ValueError, RuntimeError) as error:  # read off weights that are not the source's
        raise UserError(f"{found.name}: the weights are not those of '{source}': {error}") from error
    if config.decoder["type"] == "absent":
        warnings.warn(
            f"{found.name} holds no decoder: the tokenizer encodes, and its decode raises UserError. "
            "Give the decoder's weights as `decoder=` (or --decoder)",
            MissingDecoderWarning,
            stacklevel=2,
        )
    return tokenizer.eval()


def save_published(tokenizer: VisualTokenizer, source: str, **fields: Any) -> dict[str, Tensor]:
    """Return the weights in a published layout: the inverse of `load_published`, bit for bit.

    Args:
        tokenizer: of an architecture that the layout has a place for.
        source: as in `load_published`. Of sources with several layouts it is transformers' (emu3, janus, chameleon).
        fields: of the source's config.

    Raises:
        UserError: another architecture.
    """
    chosen = build_source(source, **fields)
    try:
        return chosen.write(tokenizer.state_dict(), tokenizer.config)
    except KeyError as error:
        raise UserError(f"the layout of '{source}' has no place for this tokenizer: it lacks {error}") from error


def _fill(tokenizer: VisualTokenizer, weights: dict[str, Tensor], source: str) -> None:
    """Load `weights`, and insist that nothing but the quantizer's bookkeeping keeps its first value."""
    state = tokenizer.state_dict()
    learned = {name for name, _ in tokenizer.named_parameters()} | {
        f"{at}.{name}" if at else name
        for at, module in tokenizer.named_modules()
        if not isinstance(module, Quantizer) and not at.startswith("quantizer.")
        for name, _ in module.named_buffers(recurse=False)
        if f"{at}.{name}" in state
    }
    missing, unexpected = sorted(learned - set(weights)), sorted(set(weights) - set(state))
    wrong = [
        f"{name} {tuple(weight.shape)} instead of {tuple(state[name].shape)}"
        for name, weight in weights.items()
        if name in state and weight.shape != state[name].shape
    ]
    if missing or unexpected or wrong:
        raise UserError(
            f"source '{source}': the weights do not fit the architecture: missing {missing[:4]}, unexpected "
            f"{unexpected[:4]}, of another shape {wrong[:4]}"
        )
    with torch.no_grad():
        tokenizer.load_state_dict({**state, **weights})
