"""Pictures whose classes and captions are known to be in their tokens, or known not to be."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.semantics.base import SemanticData, TokenizedPictures

CLASSES = ("animals", "flags", "food")
CODES = 12
TEXT = 10


def embed(texts: Sequence[str]) -> Tensor:
    """Sentences to unit vectors: the sum of a random vector for each word."""
    vectors = []
    for text in texts:
        words = [torch.Generator().manual_seed(zlib.crc32(word.encode())) for word in text.split()]
        vectors.append(sum((torch.randn(TEXT, generator=word) for word in words), torch.zeros(TEXT)))
    return F.normalize(torch.stack(vectors), dim=1)


def pictures(count: int, seed: int) -> TokenizedPictures:
    """Picture i is of class i mod 3 and its caption is a number; a class has four codes of its own."""
    draw = torch.Generator().manual_seed(seed)
    classes = torch.arange(count) % 3
    indices = (4 * classes[:, None] + torch.randint(4, (count, 5), generator=draw)).to(torch.int32)[..., None]
    captions = [f"number {seed} {row}" for row in range(count)]
    texts = embed(captions)
    mixing = torch.randn(TEXT, 6 + TEXT, generator=torch.Generator().manual_seed(9))
    codes = texts @ mixing + 8 * F.pad(F.one_hot(classes).float(), (0, 3 + TEXT))
    noise = torch.randn(count, 7, generator=draw)
    return TokenizedPictures(
        codes=codes,
        indices=indices,
        features=torch.cat([F.one_hot(classes).float() * 9 + noise[:, :3], noise[:, 3:]], dim=1),
        texts=texts,
        labels=[CLASSES[number] for number in classes.tolist()],
        captions=captions,
    )


@pytest.fixture
def meaningful() -> SemanticData:
    """Codes, tokens and teacher tell the class; the codes hold the caption too."""
    return SemanticData(pictures(120, 1), pictures(90, 2), CODES, embed)


@pytest.fixture
def shuffle() -> Callable[[SemanticData], SemanticData]:
    """Give the same tokens to other classes and captions."""

    def shuffled(data: SemanticData) -> SemanticData:
        parts = []
        for number, part in enumerate((data.train, data.heldout)):
            order = torch.randperm(len(part), generator=torch.Generator().manual_seed(number + 5)).tolist()
            told = part.select(order)
            parts.append(
                TokenizedPictures(part.codes, part.indices, part.features, told.texts, told.labels, told.captions)
            )
        return SemanticData(*parts, data.codebook_size, data.text_encoder)

    return shuffled
