"""What a merge did, kept in `processor_config.json`, and whether model and codec still are those of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from mmlm.models.embeddings import embedding_table, output_head
from mmlm.vocabulary import VisualVocabulary
from visual_tokenizer import VisualTokenizer
from visual_tokenizer.errors import UserError

VOLATILE_CONFIG_KEYS = ("_name_or_path", "architectures", "dtype", "transformers_version", "torch_dtype")


@dataclass
class MergeRecord:
    """What `merge_vocabulary` did; enough to undo it."""

    text_rows: int
    """Rows of the language model's table before the merge."""
    text_length: int
    """Ids of the text tokenizer before the merge: 0 … text_length - 1."""
    rows: int
    """Rows of the table and the head now."""
    dead_ranges: list[list[int]] = field(default_factory=list)
    """Ranges [start, stop) of ids that stand for nothing: never to be sampled."""
    embedding_init: str = "codebook"
    """How the rows of visual tokens were filled."""
    pad_to_multiple_of: int | None = None
    """What the number of rows was rounded up to a multiple of."""
    seed: int = 0
    """Seed of the fill."""
    head_spread: float = 0.5
    """Standard deviation of the head's new rows as a share of the text rows'."""


def tokenizer_hash(codec: VisualTokenizer) -> str:
    """Return the SHA-256 of a visual tokenizer's architecture and weights, in hexadecimal."""
    config = {key: value for key, value in codec.config.to_dict().items() if key not in VOLATILE_CONFIG_KEYS}
    if not config.get("num_frames"):
        config.pop("num_frames", None)  # tokenizers of pictures were merged before there were clips
    digest = hashlib.sha256(json.dumps(_with_former_names(config), sort_keys=True, default=str).encode())
    for name, value in sorted(codec.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _with_former_names(value: Any) -> Any:
    """Return a config with the names that its fields had when the first models were merged."""
    if isinstance(value, dict):
        former = {"weights": "network_weights"} if value.get("type") == "backbone" else {}
        return {former.get(name, name): _with_former_names(item) for name, item in value.items()}
    return [_with_former_names(item) for item in value] if isinstance(value, list) else value


def check_rows(model: PreTrainedModel, rows: int, exact: bool) -> None:
    """Raise `UserError` unless table, head and config have `rows` rows, or more if not `exact`."""
    table, head = embedding_table(model).weight, output_head(model).weight
    sizes = {  # ZeRO-3 keeps the whole shape beside what it shards
        "input embedding": getattr(table, "ds_shape", table.shape)[0],
        "head": getattr(head, "ds_shape", head.shape)[0],
        "config.vocab_size": model.config.get_text_config().vocab_size,
    }
    for name, found in sizes.items():
        if found < rows or (exact and found != rows):
            raise UserError(
                f"the model's {name} has {found} rows, the processor's vocabulary needs "
                f"{'' if exact else 'at least '}{rows}: load model and processor from the same folder"
            )


def check_codec(codec: VisualTokenizer, vocabulary: VisualVocabulary, expected_hash: str | None) -> str:
    """Return the hash of `codec`.

    Raises:
        UserError: other codebooks than the vocabulary's, or another hash than `expected_hash`.
    """
    ours, theirs = vocabulary, (codec.codebook_size, codec.num_codebooks)
    if theirs != (ours.codebook_size, ours.num_codebooks):
        raise UserError(
            f"the vocabulary has {ours.num_codebooks} codebook(s) of {ours.codebook_size} codes, "
            f"the visual tokenizer {theirs[1]} of {theirs[0]}: use that of the merge"
        )
    found = tokenizer_hash(codec)
    if expected_hash is not None and found != expected_hash:
        raise UserError(
            f"the visual tokenizer has the hash {found}, that of the merge {expected_hash}: "
            "its indices mean other pictures to the language model. Put back the tokenizer of the merge, "
            "in its own dtype, or strip the vocabulary and merge and train again"
        )
    return found
