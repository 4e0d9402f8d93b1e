"""A small text model of transformers, with a tokenizer of whole words, in a folder."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = ["[PAD]", "[UNK]", "a", "red", "green", "apple", "house", "cat", "dog", "sun"]


def save_tokenizer(folder, **special):
    rules = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    rules.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=rules, unk_token="[UNK]", **special).save_pretrained(folder)


@pytest.fixture(scope="session")
def small_bert(tmp_path_factory) -> str:
    """The folder of a BERT of 8 channels and 12 positions."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=12, **shape)).save_pretrained(folder)
    save_tokenizer(folder, pad_token="[PAD]")
    return str(folder)
