"""Grow and shrink the embedding table and head of a causal language model, and fill the new rows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from visual_tokenizer.errors import UserError

CHUNK_ROWS = 8192
MEAN_NOISE = 0.01
MIXED_ROWS = 64
MIXTURE_ELEMENTS = 2**24


@dataclass
class RowStatistics:
    """Mean and standard deviation of a table's rows, element by element: each (D,) float32."""

    mean: Tensor
    std: Tensor


@dataclass
class RowFill:
    """What new rows are made from.

    New rows vary as the text rows do: every direction in which they differ is a random mixture of centred text rows,
    so that for any hidden state their logits have the variance of the text's logits times `spread` squared. Rows
    that only had the text's variance element by element would not: a hidden state is large in a few elements, in
    which trained rows cancel, and untrained rows would win over every word.
    """

    text: Tensor
    """The text rows (R, D)."""
    spread: float
    """Standard deviation of the new rows as a share of the text rows'."""
    token_vectors: Callable[[Tensor], Tensor]
    """Indices (1, n) or (1, n, num_codebooks) → a vector for each token (1, n, C): its code, where tokens have one."""
    num_codebooks: int
    codebook_size: int
    generator: torch.Generator

    def __post_init__(self) -> None:
        self.statistics = row_statistics(self.text)


@torch.no_grad()
def row_statistics(table: Tensor) -> RowStatistics:
    """Return the statistics of the rows of `table` (R, D), in float64 by chunks so that no copy is made."""
    total = torch.zeros(table.shape[1], dtype=torch.float64, device=table.device)
    squares = torch.zeros_like(total)
    for part in table.split(CHUNK_ROWS):
        total += part.double().sum(0)
    mean = total / table.shape[0]
    for part in table.split(CHUNK_ROWS):
        squares += (part.double() - mean).square().sum(0)
    return RowStatistics(mean.float(), (squares / table.shape[0]).sqrt().float())


def fill_random(rows: Tensor, fill: RowFill) -> None:
    """Write the mean text row plus, for each row, its own Gaussian mixture of 64 centred text rows."""
    mean, text = fill.statistics.mean, fill.text
    for part in rows.split(max(1, MIXTURE_ELEMENTS // (MIXED_ROWS * rows.shape[1]))):
        chosen = torch.randint(text.shape[0], (len(part), MIXED_ROWS), generator=fill.generator)
        weights = torch.randn(len(part), 1, MIXED_ROWS, generator=fill.generator) / MIXED_ROWS**0.5
        mixed = weights.to(text.device) @ (text[chosen.to(text.device)].float() - mean)
        part.copy_(mean + fill.spread * mixed[:, 0])


def fill_mean(rows: Tensor, fill: RowFill) -> None:
    """Write the mean text row plus Gaussian noise of 0.01 of the text rows' standard deviation in each element."""
    statistics = fill.statistics
    for part in rows.split(CHUNK_ROWS):
        noise = torch.randn(part.shape, generator=fill.generator).to(part.device)
        part.copy_(statistics.mean + MEAN_NOISE * statistics.std * noise)


def fill_codebook(rows: Tensor, fill: RowFill) -> None:
    """Write the mean text row plus each code's centred vector through a random linear map.

    The map sends every dimension of the codes to a Gaussian mixture of all centred text rows, so codes that are near
    stay near; one factor gives each codebook exactly `spread` squared times the text rows' total variance.
    """
    for codebook, part in enumerate(rows.split(fill.codebook_size)):
        _fill_one_codebook(part, codebook, fill)


def _fill_one_codebook(rows: Tensor, codebook: int, fill: RowFill) -> None:
    def codes_of(start: int) -> Tensor:
        indices = torch.arange(start, min(start + CHUNK_ROWS, fill.codebook_size))
        if fill.num_codebooks > 1:  # the other codebooks stand still: centring takes their part away
            several = torch.zeros(len(indices), fill.num_codebooks, dtype=torch.int64)
            several[:, codebook] = indices
            indices = several
        return fill.token_vectors(indices[None])[0].double().cpu()

    starts = range(0, fill.codebook_size, CHUNK_ROWS)
    mean = torch.stack([codes_of(start).sum(0) for start in starts]).sum(0) / fill.codebook_size
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for start in starts:
        centred = codes_of(start) - mean
        covariance += centred.T @ centred / fill.codebook_size
    directions = _text_mixtures(len(mean), fill).double().cpu()
    variance = float((directions * (covariance @ directions)).sum())
    if variance <= 0:
        fill_random(rows, fill)  # codes that are all alike say nothing
        return
    wanted = float(fill.statistics.std.double().square().sum())
    directions *= fill.spread * (wanted / variance) ** 0.5
    for start in starts:
        varied = ((codes_of(start) - mean) @ directions).float().to(rows.device)
        rows[start : start + CHUNK_ROWS].copy_(fill.statistics.mean + varied)


def _text_mixtures(count: int, fill: RowFill) -> Tensor:
    """Return `count` Gaussian mixtures of all centred text rows, (count, D) float32."""
    mixed = torch.zeros(count, fill.text.shape[1], device=fill.text.device)
    for part in fill.text.split(CHUNK_ROWS):
        weights = torch.randn(count, len(part), generator=fill.generator).to(part.device)
        mixed += weights @ (part.float() - fill.statistics.mean)
    return mixed / fill.text.shape[0] ** 0.5


INITIALIZERS: dict[str, Callable[[Tensor, RowFill], None]] = {
    "codebook": fill_codebook,
    "mean": fill_mean,
    "random": fill_random,
}


def embedding_table(model: PreTrainedModel) -> Any:
    """Return the input embedding, a module with `weight` (rows, C)."""
    return model.get_input_embeddings()


def output_head(model: PreTrainedModel) -> Any:
    """Return the output head, a module with `weight` (rows, C)."""
    return model.get_output_embeddings()


def check_resizable(model: PreTrainedModel) -> None:
    """Raise `UserError` unless table and head are float tensors in memory with equally many rows."""
    table = embedding_table(model)
    head = output_head(model)
    if table is None or head is None:
        raise UserError(f"{type(model).__name__} has no input embedding or no output head: give a causal LM")
    for name, module in (("input embedding", table), ("head", head)):
        weight = module.weight
        if weight.is_meta or weight.numel() == 0:
            raise UserError(f"the {name} is not in memory (meta device or ZeRO-3): merge before distributing")
        if not weight.is_floating_point():
            raise UserError(f"the {name} is quantized ({weight.dtype}): merge a float model, then quantize it")
    if table.weight.shape[0] != head.weight.shape[0]:
        raise UserError(
            f"the input embedding has {table.weight.shape[0]} rows, the head {head.weight.shape[0]}: they must be equal"
        )


def is_tied(model: PreTrainedModel) -> bool:
    """Return whether the head is the embedding table itself."""
    return output_head(model).weight is embedding_table(model).weight


@torch.no_grad()
def resized(parameter: nn.Parameter, rows: int) -> nn.Parameter:
    """Return a parameter with `rows` rows: the old ones bit for bit, new ones zero."""
    old = parameter.detach()
    new = old.new_zeros(rows, *old.shape[1:])
    kept = min(rows, old.shape[0])
    new[:kept] = old[:kept]
    return nn.Parameter(new, requires_grad=parameter.requires_grad)


def set_rows(model: PreTrainedModel, rows: int) -> None:
    """Give table and head `rows` rows in place, tied as before, and the model its own config that says so.

    The config is copied first: another model that shares the object keeps its size.
    """
    table, head = embedding_table(model), output_head(model)
    tied, old_rows = is_tied(model), table.weight.shape[0]
    table.weight = resized(table.weight, rows)
    table.num_embeddings = rows
    head.weight = table.weight if tied else resized(head.weight, rows)
    if getattr(head, "bias", None) is not None:
        head.bias = resized(head.bias, rows)
    if hasattr(head, "out_features"):
        head.out_features = rows
    copies: dict[int, Any] = {}
    config = copy.deepcopy(model.config, copies)
    module: Any
    for module in model.modules():
        held = getattr(module, "config", None)
        if held is not None and id(held) in copies:
            module.config = copies[id(held)]
        if getattr(module, "vocab_size", None) == old_rows:
            module.vocab_size = rows
    model.config = config
    config.get_text_config().vocab_size = rows
