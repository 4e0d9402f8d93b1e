"""One call of transformers' `generate` under known conditions: eval mode, no stray defaults, left padding."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from mmlm.generation.sampling import GenerationError


@contextlib.contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Put modules in eval mode, and each of their parts back as it was."""
    states = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, was_training in states:
            part.training = was_training


@contextlib.contextmanager
def generation_defaults(model: nn.Module, config: GenerationConfig) -> Iterator[None]:
    """Make `config` the model's generation config for a while, also beneath a wrapper such as PEFT's.

    `generate` takes what a call leaves open from the model's own config: a repetition penalty in a folder's
    `generation_config.json` would distort pictures.
    """
    holders = [(part, vars(part)["generation_config"]) for part in model.modules() if "generation_config" in vars(part)]
    for part, _ in holders:
        vars(part)["generation_config"] = config
    try:
        yield
    finally:
        for part, own in holders:
            vars(part)["generation_config"] = own


def pad_left(sequences: Sequence[Tensor], fill: int) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask, (B, L) int64 each, of B sequences of ids filled up at the left."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad(list(sequences), batch_first=True, padding_value=float(fill), padding_side="left")
    ones = [torch.ones_like(sequence) for sequence in sequences]
    return ids, pad(ones, batch_first=True, padding_value=0, padding_side="left")


def check_length(model: PreTrainedModel, tokens: int) -> None:
    """Raise `GenerationError` if a sequence of `tokens` is longer than the model's positions."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        raise GenerationError(
            f"prompt and result have {tokens} tokens, but the model has {limit} positions (max_position_embeddings)"
        )


@torch.no_grad()
def continue_sequences(
    model: Any,
    prompts: Sequence[Tensor],
    processors: Sequence[LogitsProcessor],
    max_new_tokens: int,
    pad_id: int,
    eos_id: int | None = None,
) -> Tensor:
    """Return the new tokens (B, T) int64 of B prompts, T <= `max_new_tokens`, with a key-value cache.

    The most likely token is taken at each step after `processors`, in their order, have changed the scores.

    Args:
        model: a causal LM in eval mode.
        prompts: ids (l,) int64 of each row; shorter ones are padded at the left and masked.
        processors: logits processors; they count steps from the longest prompt's length.
        max_new_tokens: most tokens to be added, 1 or more.
        pad_id: fills short prompts and what follows EOS.
        eos_id: ends a row; None: every row gets `max_new_tokens`.

    Raises:
        GenerationError: the model has too few positions.
    """
    ids, mask = pad_left(prompts, pad_id)
    check_length(model, ids.shape[1] + max_new_tokens)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=pad_id,
        eos_token_id=eos_id,
    )
    with generation_defaults(model, config):
        result = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            logits_processor=LogitsProcessorList(processors),
        )
    return result[:, ids.shape[1] :]
