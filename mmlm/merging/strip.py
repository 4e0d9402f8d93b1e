"""Undo a merge: give back the language model and text tokenizer as they were."""

from __future__ import annotations

import copy
import json

from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmlm.models.embeddings import set_rows
from mmlm.processing import MultimodalProcessor
from visual_tokenizer.errors import UserError


def strip_vocabulary(
    model: PreTrainedModel, processor: MultimodalProcessor
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Take the merged rows and tokens away again.

    The model shrinks in place and is returned; what is left of its table and head stays bit for bit, so a model that
    was not trained since the merge is the old one. The processor's tokenizer is copied, not changed.

    Raises:
        UserError: the processor has no record of a merge, or the model's rows are not the processor's.
    """
    if processor.merge is None:
        raise UserError("the processor has no record of a merge: its vocabulary came with the model")
    processor.check_model(model)
    set_rows(model, processor.merge.text_rows)
    return model, _without_tokens_from(processor.tokenizer, processor.merge.text_length)


def _without_tokens_from(tokenizer: PreTrainedTokenizerBase, first: int) -> PreTrainedTokenizerBase:
    """Return a copy of `tokenizer` without added tokens of id `first` and above."""
    stripped = copy.deepcopy(tokenizer)
    fields = json.loads(stripped.backend_tokenizer.to_str())
    fields["added_tokens"] = [token for token in fields["added_tokens"] if token["id"] < first]
    stripped._tokenizer = Tokenizer.from_str(json.dumps(fields))
    return stripped
