"""Text tokenizers: encoding that never parses control tokens, and training one from captions."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable
from pathlib import Path

from transformers import LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from visual_tokenizer.errors import UserError

BYTE_PIECES = 256
CONTROL_PIECES = 4


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of `text` as plain text: no BOS or EOS, and literal control or visual tokens stay text.

    Visual and structural tokens are added as special tokens, so `split_special_tokens` covers them all.
    """
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def token_id_of(tokenizer: PreTrainedTokenizerBase, name: str) -> int | None:
    """Return the id of the token called `name`, or None where there is none (never the unknown token)."""
    token_id = tokenizer.convert_tokens_to_ids(name)
    if not isinstance(token_id, int) or tokenizer.convert_ids_to_tokens(token_id) != name:
        return None
    return token_id


def train_text_tokenizer(captions: Iterable[str], vocab_size: int, folder: str | Path) -> PreTrainedTokenizerFast:
    """Train a SentencePiece BPE tokenizer with byte fallback, save it to `folder` and return it.

    Ids 0 … 3 are `<unk>`, `<s>`, `</s>`, `<pad>`; 256 byte pieces follow, so every text can be written. Text
    is not normalised and digits stand alone.

    Args:
        captions: the training text, one caption an item.
        vocab_size: pieces in all, more than 260; fewer come out when the captions do not hold so many.
        folder: where the files go; loadable with `AutoTokenizer.from_pretrained`.

    Raises:
        ValueError: `vocab_size` too small, or no captions.
    """
    import sentencepiece

    if vocab_size <= BYTE_PIECES + CONTROL_PIECES:
        raise UserError(f"vocab_size must be more than {BYTE_PIECES + CONTROL_PIECES}, got {vocab_size}")
    texts = [caption for caption in captions if caption.strip()]
    if not texts:
        raise UserError("captions must hold at least one text that is not blank")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            character_coverage=1.0,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"vocab_size={vocab_size} does not suit these {len(texts)} captions: {error}") from error
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "tokenizer.model").write_bytes(model.getvalue())
        tokenizer = LlamaTokenizer.from_pretrained(
            scratch, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
        )
        tokenizer.save_pretrained(folder)
    return LlamaTokenizer.from_pretrained(folder)
