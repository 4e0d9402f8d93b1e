from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlm.vocabulary import VisualVocabulary
from visual_tokenizer.errors import IndexOutOfRangeError


@st.composite
def vocabularies(draw: st.DrawFn) -> VisualVocabulary:
    size, books = draw(st.integers(1, 40)), draw(st.integers(1, 3))
    if draw(st.booleans()):
        return VisualVocabulary(start=draw(st.integers(0, 1000)), size=size, num_codebooks=books)
    ids = draw(st.lists(st.integers(0, 500), min_size=size * books, max_size=size * books, unique=True))
    return VisualVocabulary(table=torch.tensor(ids).view(books, size))


@settings(deadline=None, max_examples=100)
@given(vocabularies())
def test_map_is_a_bijection_and_survives_json(vocabulary: VisualVocabulary) -> None:
    books, size = vocabulary.num_codebooks, vocabulary.codebook_size
    indices = torch.arange(size)[:, None].expand(size, books)
    indices = indices if books > 1 else indices[:, 0]
    ids = vocabulary.indices_to_ids(indices)
    assert ids.unique().numel() == size * books == vocabulary.size
    assert torch.equal(vocabulary.ids_to_indices(ids), indices)
    every = torch.arange(max(0, vocabulary.start - 3), vocabulary.stop + 3)
    assert set(every[vocabulary.is_visual(every)].tolist()) == set(ids.flatten().tolist())
    for book in range(books):
        of_book = vocabulary.visual_ids(book)
        assert torch.equal(of_book, ids if books == 1 else ids[:, book])
        assert (vocabulary.codebook_of(of_book) == book).all()
    again = VisualVocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict())))
    assert again == vocabulary
    assert torch.equal(again.indices_to_ids(indices), ids)


def test_ids_of_a_range_are_start_plus_codebook_plus_index() -> None:
    vocabulary = VisualVocabulary(start=100, size=10, num_codebooks=2)
    assert vocabulary.indices_to_ids(torch.tensor([[[3, 4]]])).tolist() == [[[103, 114]]]


def test_explicit_table_keeps_an_order_that_is_not_the_ids_order() -> None:
    vocabulary = VisualVocabulary(table=[7, 3, 9])
    assert vocabulary.indices_to_ids(torch.tensor([[0, 1, 2]], dtype=torch.int32)).tolist() == [[7, 3, 9]]
    assert vocabulary.ids_to_indices(torch.tensor([3, 9, 7])).tolist() == [1, 2, 0]
    assert vocabulary.is_visual(torch.tensor([3, 4, 10**6, -1])).tolist() == [True, False, False, False]


@pytest.mark.parametrize("vocabulary", [VisualVocabulary(start=5, size=4), VisualVocabulary(table=[5, 8, 6, 7])])
def test_out_of_range_names_value_and_rule(vocabulary: VisualVocabulary) -> None:
    for wrong in (-1, 4):
        with pytest.raises(IndexOutOfRangeError, match=rf"index {wrong} .*\[0, 4\)"):
            vocabulary.indices_to_ids(torch.tensor([0, wrong]))
    for wrong in (4, 9, -1):
        with pytest.raises(IndexOutOfRangeError, match=rf"id {wrong} .*\[5, 9\)"):
            vocabulary.ids_to_indices(torch.tensor([5, wrong]))
    with pytest.raises(IndexOutOfRangeError, match="float32"):
        vocabulary.indices_to_ids(torch.tensor([0.0]))


def test_codebooks_must_stand_in_their_places() -> None:
    vocabulary = VisualVocabulary(start=0, size=4, num_codebooks=2)
    with pytest.raises(IndexOutOfRangeError, match="another codebook"):
        vocabulary.ids_to_indices(torch.tensor([[5, 1]]))
    with pytest.raises(IndexOutOfRangeError, match="2 codebooks"):
        vocabulary.indices_to_ids(torch.tensor([1, 2, 3]))


@pytest.mark.parametrize(
    "fields", [{"table": [1, 1]}, {"table": [-1, 0]}, {"start": 0}, {"start": 0, "size": 1, "table": [1]}, {}]
)
def test_wrong_definitions_are_refused(fields: dict) -> None:
    with pytest.raises(ValueError):
        VisualVocabulary(**fields)


def test_names_are_padded_to_five_digits_or_more() -> None:
    assert VisualVocabulary(start=0, size=2).token_names() == ["<|visual_00000|>", "<|visual_00001|>"]
    assert VisualVocabulary(start=0, size=2**18).token_names()[-1] == "<|visual_262143|>"
