"""Merge a visual tokenizer's vocabulary into a causal language model and its text tokenizer."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from mmlm.backbones.gguf import detach_gguf
from mmlm.layouts.base import LayoutConfig
from mmlm.merge_record import MergeRecord
from mmlm.models.embeddings import (
    INITIALIZERS,
    RowFill,
    check_resizable,
    embedding_table,
    fill_random,
    is_tied,
    output_head,
    set_rows,
)
from mmlm.processing import MultimodalProcessor
from mmlm.text_tokenizer import token_id_of
from mmlm.vocabulary import VisualVocabulary
from visual_tokenizer import VisualTokenizer, VisualTokenizerImageProcessor
from visual_tokenizer.errors import UserError
from visual_tokenizer.registry import closest


@dataclass
class _Plan:
    """Which ids the new tokens get."""

    fillers: list[str]
    layout_tokens: list[str]
    vocabulary: VisualVocabulary
    rows: int


def merge_vocabulary(
    language_model: PreTrainedModel,
    text_tokenizer: PreTrainedTokenizerBase,
    visual_tokenizer: VisualTokenizer,
    layout: str | Mapping[str, Any] | LayoutConfig = "emu3",
    embedding_init: str = "codebook",
    pad_to_multiple_of: int | None = None,
    seed: int = 0,
    image_processor: VisualTokenizerImageProcessor | None = None,
    head_spread: float = 0.5,
) -> tuple[PreTrainedModel, MultimodalProcessor]:
    """Add visual and structural tokens to a text tokenizer and rows for them to a language model.

    The model is grown in place, as `resize_token_embeddings` does, and returned; its old rows stay bit for bit. The
    text tokenizer and the config object are copied, never changed. New ids start after the larger of the table's rows
    and the tokenizer's length: structural tokens first, then one range of ids for each codebook.

    Args:
        language_model: any causal LM with float weights in memory; a head tied to the table stays tied.
        text_tokenizer: the model's fast tokenizer, with an EOS token.
        visual_tokenizer: gives the codebook; kept by the processor as `codec`.
        layout: how a picture sits in a sequence: a layout's name or `{"type": name, **fields}`.
        embedding_init: rows of visual tokens, around the mean text row. "codebook": the code vectors through
            a random map; "random": Gaussian; both vary as the text rows do, see `RowFill`. "mean": noise of 0.01
            of the text rows' standard deviation. Structural tokens are always "random".
        head_spread: standard deviation of new rows of the head, and of a table tied to it, as a share of the
            text rows'; a table that stands alone has 1. At the default no new row wins over the words of a
            language model that was not trained on yet: it goes on writing what it wrote. With 1 some do.
        pad_to_multiple_of: round the number of rows up; the spare ones are recorded as dead.
        seed: of the random map and noise.
        image_processor: picture → pixels; by default resize and centre crop to the visual tokenizer's image_size.

    Raises:
        UserError: unknown `embedding_init`, a slow tokenizer or one that was merged before, quantized or absent
            embeddings, or pictures of different numbers of tokens in a layout that writes no size.
        ConfigError: an unknown field of the layout. UnknownPartError: an unknown layout.
    """
    _check_arguments(text_tokenizer, embedding_init, pad_to_multiple_of, head_spread)
    check_resizable(language_model)
    grid = visual_tokenizer.token_grid()
    section = {"type": layout} if isinstance(layout, str) else layout
    config: LayoutConfig = LayoutConfig.family.config(section)
    config = config.for_lengths(grid[0]) if visual_tokenizer.has_variable_length else config.for_grid(grid)
    table_rows = embedding_table(language_model).weight.shape[0]
    text_length = max(len(text_tokenizer), 1 + max(text_tokenizer.get_vocab().values()))
    tokenizer = copy.deepcopy(text_tokenizer)
    plan = _plan(tokenizer, config, visual_tokenizer, table_rows, text_length, pad_to_multiple_of)
    _add_tokens(tokenizer, plan)

    generator = torch.Generator().manual_seed(seed)
    set_rows(language_model, plan.rows)
    detach_gguf(language_model)
    text_rows = min(table_rows, text_length)
    _fill_new_rows(
        language_model, visual_tokenizer, plan, embedding_init, generator, text_rows, table_rows, head_spread
    )

    visual = plan.vocabulary
    dead = [(text_length, table_rows), (visual.stop, plan.rows)]
    record = MergeRecord(
        text_rows=table_rows,
        text_length=text_length,
        rows=plan.rows,
        dead_ranges=[[start, stop] for start, stop in dead if stop > start],
        embedding_init=embedding_init,
        pad_to_multiple_of=pad_to_multiple_of,
        seed=seed,
        head_spread=head_spread,
    )
    processor = MultimodalProcessor(
        image_processor=image_processor or VisualTokenizerImageProcessor(size=visual_tokenizer.config.image_size),
        tokenizer=tokenizer,
        layout=config,
        vocabulary=visual,
        merge=record,
        codec=visual_tokenizer,
    )
    return language_model, processor


def _check_arguments(
    tokenizer: PreTrainedTokenizerBase, embedding_init: str, pad_to_multiple_of: int | None, head_spread: float
) -> None:
    if embedding_init not in INITIALIZERS:
        known = sorted(INITIALIZERS)
        raise UserError(
            f"embedding_init must be one of {', '.join(known)}, got {embedding_init!r}.{closest(embedding_init, known)}"
        )
    if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
        raise UserError(f"pad_to_multiple_of must be 1 or more, or None, got {pad_to_multiple_of}")
    if not 0 < head_spread <= 1:
        raise UserError(f"head_spread must be in (0, 1], got {head_spread}")
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} has no fast backend: user text could not be kept from being tokens"
        )
    if tokenizer.eos_token_id is None:
        raise UserError("the text tokenizer has no eos_token: set one, every sequence ends with it")


def _plan(
    tokenizer: PreTrainedTokenizerBase,
    config: LayoutConfig,
    visual_tokenizer: VisualTokenizer,
    table_rows: int,
    text_length: int,
    multiple: int | None,
) -> _Plan:
    new = [name for name in config.structural_tokens() if token_id_of(tokenizer, name) is None]
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    for name in config.structural_tokens():
        if name not in new and name not in special:
            raise UserError(
                f"{name!r} is an ordinary token of the text tokenizer: user text could write it. "
                f"Choose another name for it in the layout '{config.type}'"
            )
    base = max(table_rows, text_length)
    vocabulary = VisualVocabulary(
        start=base + len(new),
        size=visual_tokenizer.codebook_size,
        num_codebooks=visual_tokenizer.num_codebooks,
    )
    first = vocabulary.token_names()[0]
    if token_id_of(tokenizer, first) is not None:
        raise UserError(f"the text tokenizer holds {first} already: it was merged before; strip it first")
    fillers = [f"<|reserved_{token_id:05d}|>" for token_id in range(text_length, base)]
    multiple = multiple or 1
    return _Plan(fillers, new, vocabulary, math.ceil(vocabulary.stop / multiple) * multiple)


def _add_tokens(tokenizer: PreTrainedTokenizerBase, plan: _Plan) -> None:
    """Add all new tokens, as special ones so that user text never parses as them, and check their ids."""
    names = [*plan.fillers, *plan.layout_tokens, *plan.vocabulary.token_names()]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    got = (token_id_of(tokenizer, names[0]), token_id_of(tokenizer, names[-1]))
    wanted = (plan.vocabulary.stop - len(names), plan.vocabulary.stop - 1)
    if got != wanted:
        raise UserError(f"the text tokenizer gave its new tokens the ids {got}, expected {wanted}")


@torch.no_grad()
def _fill_new_rows(
    model: PreTrainedModel,
    visual_tokenizer: VisualTokenizer,
    plan: _Plan,
    embedding_init: str,
    generator: torch.Generator,
    text_rows: int,
    table_rows: int,
    head_spread: float,
) -> None:
    """Write every row from `table_rows` on, in the table and, where it stands alone, in the head."""
    visual = plan.vocabulary
    device = visual_tokenizer.device

    def token_vectors(indices: torch.Tensor) -> torch.Tensor:
        return visual_tokenizer.quantizer.token_vectors(indices.to(device))

    table, head = embedding_table(model).weight, output_head(model)
    tables = [(table, head_spread)] if is_tied(model) else [(table, 1.0), (head.weight, head_spread)]
    start_state = generator.get_state()
    for rows, spread in tables:
        generator.set_state(start_state)  # the same mixture of words in table and head
        fill = RowFill(
            text=rows[:text_rows],
            spread=spread,
            token_vectors=token_vectors,
            num_codebooks=visual.num_codebooks,
            codebook_size=visual.codebook_size,
            generator=generator,
        )
        INITIALIZERS[embedding_init](rows[visual.start : visual.stop], fill)
        fill_random(rows[table_rows : visual.start], fill)
        rows[visual.stop :] = fill.statistics.mean
    bias = getattr(head, "bias", None)
    if bias is not None:
        bias[table_rows:] = bias[:text_rows].mean()
