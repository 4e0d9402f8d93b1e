"""Pictures of as many tokens as they need, from the tokenizer to the language model and back."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM

from mmlm import MultimodalProcessor, generate_images, merge_vocabulary
from mmlm.data.collating import SequenceCollator
from mmlm.data.document_sequences import DocumentSequences
from mmlm.data.document_shards import DocumentShards
from mmlm.data.packing import PackedSequences
from mmlm.data.pair_shards import PairShards
from mmlm.data.tokenization import open_shards, tokenize
from mmlm.documents.base import DocumentSourceConfig
from mmlm.documents.pictures import PicturesConfig
from mmlm.generation.block_grammar import BlockGrammar
from mmlm.generation.captions import describe_images
from mmlm.generation.images import generate_indices
from mmlm.generation.interleaved import generate_interleaved
from mmlm.recipes.mixture import MixtureMember
from mmlm.recipes.sampling import PictureSampling
from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig
from visual_tokenizer.data.sources.base import SourceConfig
from visual_tokenizer.errors import UserError
from visual_tokenizer.outputs import ABSENT, own_tokens

SHAPE = {"width": 16, "depth": 1, "heads": 2, "patches": {"type": "patch", "patch_size": 8, "width": 16}}
QUANTIZERS = {
    1: {"type": "vq", "codebook_size": 32, "code_dim": 4},
    2: {"type": "product", "base": {"type": "vq", "codebook_size": 32, "code_dim": 4}},
}


def build(books: int = 1) -> VisualTokenizer:
    """Return a tokenizer of 1 to 16 tokens for 32 pixels, whose selector is sure of what it does, whatever that is."""
    torch.manual_seed(0)
    sections = {
        "encoder": {"type": "lavit", **SHAPE},
        "quantizer": QUANTIZERS[books],
        "decoder": {"type": "lavit", "num_latents": 16, "grid_size": 4, **SHAPE},
    }
    codec = VisualTokenizer(VisualTokenizerConfig(image_size=32, **sections)).eval()
    selector = codec.encoder.selector
    with torch.no_grad():
        for layer in (selector.mixing[0], *selector.head[::2]):
            layer.weight.mul_(4)
        pixels = torch.rand(32, 3, 4, 4).mul(2).sub(1).repeat_interleave(8, 2).repeat_interleave(8, 3)
        logits = selector.logits(codec.encoder.decide(pixels)[0])
        selector.head[-1].bias.sub_(logits.mean())
    return codec


def pictures(count: int) -> list[Image.Image]:
    """Draw pictures of 4 × 4 squares of 8 pixels."""
    levels = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return [Image.fromarray(one).resize((32, 32), Image.Resampling.NEAREST) for one in levels]


@pytest.fixture(scope="module", params=[1, 2], ids=["one codebook", "two codebooks"])
def merged(request, make_model, text_tokenizer):
    model = make_model(len(text_tokenizer), max_position_embeddings=256)
    return merge_vocabulary(model, text_tokenizer, build(request.param), layout="sequence")


@pytest.fixture(scope="module")
def loaded(merged, tmp_path_factory):
    """Model and processor, by way of the disk."""
    folder = tmp_path_factory.mktemp("merged")
    for part in merged:
        part.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval(), MultimodalProcessor.from_pretrained(folder)


def test_the_layout_takes_every_length(merged):
    _, processor = merged
    assert (processor.layout.config.min_length, processor.layout.config.max_length) == (1, 16)
    assert processor.grids == [(length,) for length in range(1, 17)]
    assert processor.grid == (16,)


def test_a_layout_that_writes_no_size_is_refused(make_model, text_tokenizer):
    with pytest.raises(UserError, match=r"chameleon.*1 to 16 tokens"):
        merge_vocabulary(make_model(len(text_tokenizer)), text_tokenizer, build(), layout="chameleon")


def test_emu3_writes_each_length(make_model, text_tokenizer):
    model, processor = merge_vocabulary(
        make_model(len(text_tokenizer), max_position_embeddings=256), text_tokenizer, build(), layout="emu3"
    )
    indices = processor.encode_images(pictures(6))
    for row, own in zip(indices, own_tokens(indices), strict=True):
        (block,) = processor.layout.find_blocks(processor.caption_to_image("a dog", row))
        assert block.grid == (len(own),)
    drawn = generate_indices(model, processor, ["a red dog"] * 3, PictureSampling(temperature=3.0))
    assert processor.codec.decode(drawn).shape == (3, 3, 32, 32)


def test_blocks_hold_each_pictures_own_tokens_and_come_back(merged, loaded):
    _, processor = loaded
    indices = processor.encode_images(pictures(12))
    assert torch.equal(indices, merged[1].encode_images(pictures(12)))
    own = own_tokens(indices)
    assert len({len(one) for one in own}) > 1
    sequences = [processor.caption_to_image("a red dog", one) for one in indices]
    for sequence, one in zip(sequences, own, strict=True):
        (block,) = processor.layout.find_blocks(sequence)
        assert torch.equal(processor.layout.block_indices(sequence, block), one)
    again = [images[0] for images in processor.decode_images(sequences)]
    for first, second in zip(again, processor.decode_indices(indices), strict=True):
        difference = np.abs(np.asarray(first, np.int64) - np.asarray(second, np.int64))
        assert difference.max() <= 1  # the sums of a batch may round otherwise


def test_a_batch_of_texts_and_pictures(loaded):
    model, processor = loaded
    given = pictures(4)
    batch = processor(
        text=["a <image> dog", "<image> or <image>", "<image>"],
        images=[given[:1], given[1:3], given[3:]],
        padding=True,
        return_tensors="pt",
    )
    lengths = [len(one) * processor.vocabulary.num_codebooks for one in own_tokens(processor.encode_images(given))]
    visual = processor.vocabulary.is_visual(batch["input_ids"]).sum(1).tolist()
    assert visual == [lengths[0], lengths[1] + lengths[2], lengths[3]]
    assert torch.isfinite(model(**batch).logits).all()


def test_shards_pairs_and_packed_rows_hold_each_pictures_own_length(loaded, captioned_pictures, tmp_path):
    _, processor = loaded
    source = SourceConfig.family.config({"type": "image_folder", "folder": str(captioned_pictures)})
    documents = PicturesConfig(source=source, image_to_text_fraction=0.5, caption_dropout=0.0)
    shards = PairShards(processor, MixtureMember(documents=documents), "all", tmp_path / "shards")
    rows = open_shards(shards, batch_size=5)
    images = [Image.open(captioned_pictures / f"{key}".split("/")[-1]) for key in rows["key"]]
    own = own_tokens(processor.encode_images(images))
    assert rows["grid"][:] == [[len(one)] for one in own]
    assert [row for row in rows["indices"][:]] == [one.flatten().tolist() for one in own]
    assert len({len(one) for one in own}) > 1

    pairs = DocumentSequences(shards.rows(rows), processor.layout, shards.source)
    items = pairs.__getitems__(range(len(pairs)))
    assert pairs.lengths(range(len(pairs))).tolist() == [len(item["input_ids"]) for item in items]
    batch = SequenceCollator(pad_id=processor.layout.eos_id)(items)
    found = processor.decode_images(batch["input_ids"])
    assert all(len(pictures) == 1 and pictures[0].size == (32, 32) for pictures in found)
    packed = PackedSequences(pairs, 96)
    assert sum(len(processor.layout.find_blocks(packed[row]["input_ids"])) for row in range(3)) > 3


def test_documents_hold_pictures_of_their_own_length(loaded, tmp_path):
    _, processor = loaded
    for number, picture in enumerate(pictures(6)):
        picture.save(tmp_path / f"{number}.png")
    lines = [{"text": "a <image><image> dog", "images": [f"{n}.png", f"{n + 1}.png"]} for n in range(5)]
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    fields = {"type": "chat_jsonl", "files": str(tmp_path / "lines.jsonl"), "heldout_fraction": 0.0}
    documents = DocumentSourceConfig.family.config(fields)
    shards = DocumentShards(processor, MixtureMember(documents=documents), "all", tmp_path / "shards")
    rows = shards.rows(open_shards(shards, batch_size=3))
    items = DocumentSequences(rows, processor.layout, shards.source, shuffle=False).__getitems__(range(5))
    own = own_tokens(processor.encode_images(pictures(6)))
    for number, item in enumerate(items):
        ids = torch.from_numpy(item["input_ids"])
        found = [processor.layout.block_indices(ids, block) for block in processor.layout.find_blocks(ids)]
        assert [one.tolist() for one in found] == [one.tolist() for one in own[number : number + 2]]
    assert rows.lengths.tolist() == [len(item["input_ids"]) for item in items]
    fly = MixtureMember(documents=documents, tokenization="on_the_fly")
    with pytest.raises(UserError, match="tokenization must be shards where a picture has as many tokens as it needs"):
        tokenize(DocumentShards(processor, fly, "all", tmp_path / "fly"))


def test_drawn_pictures_are_of_the_length_that_the_model_chooses(loaded):
    model, processor = loaded
    prompts = ["a red dog", "a black car at night", ""] * 4
    settings = {"sampling": PictureSampling(temperature=5.0, guidance_scale=2.0), "seed": 3}
    drawn = generate_indices(model, processor, prompts, **settings)
    assert drawn.shape[:2] == (12, 16)
    lengths = [len(one) for one in own_tokens(drawn)]
    assert len(set(lengths)) > 1
    assert torch.isfinite(processor.codec.decode(drawn)).all()
    alone = generate_indices(model, processor, prompts[:1], **settings)
    assert torch.equal(alone[0], drawn[0])
    fixed = generate_indices(model, processor, prompts[:2], grid=(5,), **settings)
    assert fixed.shape[:2] == (2, 5)
    assert bool((fixed != ABSENT).all())


@pytest.mark.parametrize("temperature", [0.0, 100.0])
def test_pictures_always_decode(loaded, temperature):
    seen = []
    images = generate_images(
        *loaded,
        ["a red dog"] * 6,
        seed=list(range(6)),
        temperature=temperature,
        on_rows=lambda image, tokens, number: seen.append((number, tokens)),
        rows_per_preview=2,
    )
    assert [image.size for image in images] == [(32, 32)] * 6
    assert all(tokens % 2 == 0 for _, tokens in seen)


def test_a_length_is_drawn_as_the_model_scores_it(loaded):
    """The end comes where its score among the visual tokens' says so: at temperature 0, by hand."""
    model, processor = loaded
    layout, vocabulary = processor.layout, processor.vocabulary
    (drawn,) = own_tokens(
        generate_indices(model, processor, ["a dog"], PictureSampling(temperature=0.0, guidance_scale=1.0))
    )
    ids = processor.layout.join(layout.bos_ids, layout.text_ids("a dog"), [layout.start_id])
    grammar = BlockGrammar(layout, processor.grids)
    place, block = grammar.advance(grammar.start, layout.start_id), [layout.start_id]
    while slots := grammar.slots(place):
        allowed = torch.cat([vocabulary.visual_ids(-1 - s) if s < 0 else torch.tensor([s]) for s in slots])
        with torch.no_grad():
            scores = model(input_ids=ids[None]).logits[0, -1, allowed]
        block.append(int(allowed[scores.argmax()]))
        ids, place = torch.cat([ids, torch.tensor(block[-1:])]), grammar.advance(place, block[-1])
    assert torch.equal(layout.block(drawn), torch.tensor(block))


def test_pictures_are_described_and_answers_are_mixed(loaded):
    model, processor = loaded
    alone = [describe_images(model, processor, [one], max_new_tokens=4)[0] for one in pictures(3)]
    assert describe_images(model, processor, pictures(3), max_new_tokens=4) == alone
    prompt = [*pictures(2), "and now"]
    pieces = list(
        generate_interleaved(
            model, processor, prompt, open_image=True, max_images=2, max_new_tokens=60, temperature=4.0, seed=1
        )
    )
    drawn = [piece for piece in pieces if isinstance(piece, Image.Image)]
    assert drawn
    assert all(image.size == (32, 32) for image in drawn)


def test_a_tokenizer_of_fixed_length_is_drawn_as_ever(make_codec, make_model, text_tokenizer):
    codec = make_codec()
    model, processor = merge_vocabulary(
        make_model(len(text_tokenizer), max_position_embeddings=256), text_tokenizer, copy.deepcopy(codec)
    )
    assert processor.grids == [(4, 4)]
    assert generate_indices(model, processor, ["a dog"]).shape == (1, 4, 4)
