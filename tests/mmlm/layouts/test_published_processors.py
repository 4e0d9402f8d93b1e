"""The same ids as transformers' processors give, but for their placeholders, which their models fill."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AddedToken, PreTrainedTokenizerFast
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil
from transformers.models.chameleon.processing_chameleon import ChameleonProcessor
from transformers.models.emu3.image_processing_emu3 import Emu3ImageProcessor
from transformers.models.emu3.processing_emu3 import Emu3Processor

from mmlm.layouts import chameleon, emu3
from mmlm.processing import MultimodalProcessor
from mmlm.vocabulary import VisualVocabulary
from visual_tokenizer import VisualTokenizerImageProcessor

TEXTS = ["a red cat sits on the mat", "Two dogs. No 12 of 7!", "the cat saw 34 * 20 dogs", "USER: what is this?"]
CODES = 512


def published_tokenizer(names: list[str], bos: str, eos: str, pad: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(TEXTS * 3, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in [bos, eos, pad, *names]])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=pad)


def letters(index: int) -> str:
    return "IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(index)) + "Z"


@pytest.fixture(scope="module")
def ours_chameleon(make_codec):
    shuffled = torch.randperm(CODES, generator=torch.Generator().manual_seed(0)).tolist()
    names = [letters(index) for index in shuffled]  # the id order is not the index order
    names += ["<racm3:break>", "<eoss>", "<image>", "<reserved08706>"]
    tokenizer = published_tokenizer(names, "<s>", "</s>", "<pad>")
    tokenizer.sep_token = "<reserved08706>"
    backend: Any = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    table = chameleon.published_table(tokenizer.get_vocab())
    return MultimodalProcessor(
        VisualTokenizerImageProcessor(size=32),
        tokenizer,
        layout={"type": "chameleon", "height": 4, "width": 4},
        vocabulary=VisualVocabulary(table=table),
        codec=make_codec(),
    )


def test_chameleon_ids_of_text_and_pictures(ours_chameleon) -> None:
    ours, tokenizer = ours_chameleon, ours_chameleon.tokenizer
    for index in (0, 12, 511):
        assert tokenizer.convert_ids_to_tokens(int(ours.vocabulary.visual_ids()[index])) == letters(index)
    small = ChameleonImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    theirs = ChameleonProcessor(small, tokenizer, image_seq_length=16)
    images = [Image.new("RGB", (40, 33), color) for color in ("red", "green", "blue")]
    texts = ["a red cat<image> sits on<image>", "<image>what is this?", "no pictures 12"]
    nested = [images[:2], images[2:], []]
    for completion in (True, False):
        wanted = [
            theirs(text=text, images=part or None, return_for_text_completion=completion)["input_ids"][0]
            for text, part in zip(texts, nested, strict=True)
        ]
        got = ours(text=texts, images=nested, end_turn=not completion)["input_ids"]
        placeholder = tokenizer.convert_tokens_to_ids("<image>")
        for mine, other in zip(got, wanted, strict=True):
            ids = torch.tensor(mine)
            assert (
                ids.masked_fill(ours.vocabulary.is_visual(ids), placeholder).tolist() == torch.as_tensor(other).tolist()
            )


def test_chameleon_visual_ids_are_their_models_mapping(ours_chameleon) -> None:
    from transformers.models.chameleon.modeling_chameleon import ChameleonImageVocabularyMapping

    mapping = ChameleonImageVocabularyMapping(ours_chameleon.tokenizer.get_vocab())
    indices = torch.arange(CODES)
    assert torch.equal(ours_chameleon.vocabulary.indices_to_ids(indices), mapping.convert_img2bpe(indices).long())


@pytest.fixture(scope="module")
def ours_emu3(make_codec):
    marks = ["<|image start|>", "<|image end|>", "<|image token|>", "<|extra_200|>", "<|extra_201|>", "<image>"]
    names = marks + [f"<|visual token {index:06d}|>" for index in range(CODES)]
    tokenizer = published_tokenizer(names, "<|extra_203|>", "<|extra_204|>", "<|endoftext|>")
    places = {"image_token": 5, "boi_token": 0, "eoi_token": 1, "image_wrapper_token": 2, "eof_token": 4}
    for name, place in places.items():
        setattr(tokenizer, name, marks[place])
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(marks[place]))
    return MultimodalProcessor(
        VisualTokenizerImageProcessor(size=32),
        tokenizer,
        layout={"type": "emu3"},
        vocabulary=VisualVocabulary(table=emu3.published_table(tokenizer.get_vocab())),
        codec=make_codec(),
    )


def test_emu3_ids_of_text_and_pictures(ours_emu3) -> None:
    ours, tokenizer = ours_emu3, ours_emu3.tokenizer
    theirs = Emu3Processor(Emu3ImageProcessor(min_pixels=32 * 32, max_pixels=32 * 32), tokenizer)
    images = [Image.new("RGB", (32, 32), color) for color in ("red", "green", "blue")]
    texts = ["a red cat<image> sits on<image>", "USER: <image>what is this? ASSISTANT:"]
    nested = [images[:2], images[2:]]
    wanted = [theirs(text=text, images=part)["input_ids"][0] for text, part in zip(texts, nested, strict=True)]
    got = ours(text=texts, images=nested)["input_ids"]
    placeholder, end_of_row = tokenizer.convert_tokens_to_ids(["<image>", "<|extra_200|>"])
    for mine, other in zip(got, wanted, strict=True):
        ids = torch.tensor(mine)
        # their model writes visual tokens and row ends where the placeholders are
        filled = ours.vocabulary.is_visual(ids) | (ids == end_of_row)
        assert ids.masked_fill(filled, placeholder).tolist() == torch.as_tensor(other).tolist()


def test_emu3_visual_ids_and_row_ends_are_their_models_mapping(ours_emu3) -> None:
    from transformers.models.emu3.modeling_emu3 import Emu3ImageVocabularyMapping

    mapping: Any = Emu3ImageVocabularyMapping(ours_emu3.tokenizer.get_vocab())
    indices = torch.randint(CODES, (3, 5))
    rows = mapping.convert_img2bpe(indices).flatten().tolist()
    assert ours_emu3.layout.body((3, 5)).shape == (3 * 6 + 2,)
    assert ours_emu3.image_block(indices)[-len(rows) - 2 : -2].tolist() == rows


@pytest.mark.parametrize("ratio", ["1:1", "4:3", "9:16", "21:9"])
@pytest.mark.parametrize("area", [518_400, 262_144])
def test_emu3_prompts_for_generation(ours_emu3, ratio, area) -> None:
    theirs = Emu3Processor(Emu3ImageProcessor(), ours_emu3.tokenizer)
    caption = "a red cat"
    wanted = theirs(text=caption, return_for_image_generation=True, ratio=ratio, image_area=area)
    grid = wanted["image_sizes"][0]
    assert ours_emu3.prompt_for_image(caption, grid).tolist() == list(wanted["input_ids"][0])


def test_wrong_names_are_refused() -> None:
    with pytest.raises(ValueError, match="0 … 0"):
        emu3.published_table({"<|visual token 000001|>": 3})
    assert emu3.published_table({"<|visual token 000001|>": 3, "<|visual token 000000|>": 9, "x": 1}) == [9, 3]
