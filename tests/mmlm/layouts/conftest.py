"""A tokenizer in which every ASCII character is its own id, with the published structural names."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

from mmlm.layouts.base import Layout, LayoutConfig
from mmlm.vocabulary import VisualVocabulary

VISUAL = 150
NAMES = ["<|image start|>", "<|image end|>", "<|image token|>", "<|extra_200|>", "<|extra_201|>"]
NAMES += ["<racm3:break>", "<eoss>", "<img>", "</img>", "<|delay|>"]


@pytest.fixture(scope="session")
def ascii_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(vocab={chr(code): code for code in range(128)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    names = [*NAMES, *(f"<gap {number}>" for number in range(VISUAL - 130 - len(NAMES)))]
    names += [f"<|visual_{index:05d}|>" for index in range(128)]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    assert tokenizer.convert_tokens_to_ids("<|visual_00000|>") == VISUAL
    return tokenizer


@pytest.fixture(scope="session")
def build(ascii_tokenizer: PreTrainedTokenizerFast) -> Callable[..., Layout]:
    """Return a function of (section, grid, codebooks) that gives a layout with 16 codes a codebook from id 150."""

    def make(section: dict, grid: tuple[int, ...] = (2, 3), books: int = 1) -> Layout:
        vocabulary = VisualVocabulary(start=VISUAL, size=16, num_codebooks=books)
        config = LayoutConfig.family.config(section).for_grid(grid)
        return LayoutConfig.family.build(config, tokenizer=ascii_tokenizer, vocabulary=vocabulary)

    return make
