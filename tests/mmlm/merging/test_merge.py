from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from mmlm.layouts.base import LayoutConfig
from mmlm.merging.merge import merge_vocabulary
from mmlm.merging.strip import strip_vocabulary
from mmlm.models.embeddings import row_statistics
from visual_tokenizer.errors import UserError


def tables(model: nn.Module) -> list[torch.Tensor]:
    return [model.get_input_embeddings().weight.data, model.get_output_embeddings().weight.data]


@pytest.mark.parametrize("tied", [True, False])
def test_old_rows_logits_and_sharing_stay(tied, make_model, text_tokenizer, codec) -> None:
    old = make_model(len(text_tokenizer), tied)
    before, length = copy.deepcopy(old), len(text_tokenizer)
    caller_config = old.config
    sibling = type(old)(caller_config)
    model, processor = merge_vocabulary(old, text_tokenizer, codec)
    assert model is old
    assert len(text_tokenizer) == length
    assert caller_config.vocab_size == sibling.config.vocab_size == length
    rows = length + 5 + 512
    assert model.config.vocab_size == model.vocab_size == len(processor.tokenizer) == rows
    assert model.model.config is model.config
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
    assert model.lm_head.out_features == model.get_input_embeddings().num_embeddings == rows
    for new, was in zip(tables(model), tables(before), strict=True):
        assert torch.equal(new[:length], was)
    prompt = torch.tensor([[1, 300, 301]])
    assert torch.equal(model(prompt).logits[..., :length], before(prompt).logits)
    processor.check_model(model)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("init", ["codebook", "random"])
def test_new_rows_vary_as_the_text_rows_do(init, tied, make_model, text_tokenizer, codec) -> None:
    model, processor = merge_vocabulary(
        make_model(len(text_tokenizer), tied), text_tokenizer, codec, embedding_init=init, head_spread=0.5
    )
    for table, spread in zip(tables(model), [0.5, 0.5] if tied else [1.0, 0.5], strict=True):
        rows = table[: len(text_tokenizer)], table[processor.vocabulary.visual_ids()]
        text, new = (row_statistics(part) for part in rows)
        tolerance = 1e-4 if init == "codebook" else 0.15
        assert (new.mean - text.mean).abs().max() < tolerance * text.std.max()
        wanted = text.mean.square().sum() + spread**2 * text.std.square().sum()
        assert rows[1].square().sum(1).mean() / wanted == pytest.approx(1, abs=1e-3 if init == "codebook" else 0.1)
        # the logits of any hidden state vary over the new rows as over the words
        hidden = torch.randn(48, 200, generator=torch.Generator().manual_seed(0))
        ratio = (rows[1] @ hidden).std(0) / (rows[0] @ hidden).std(0) / spread
        assert 0.6 < ratio.mean() < 1.1


def test_new_rows_follow_the_correlations_of_the_text_rows(make_model, text_tokenizer, codec) -> None:
    model = make_model(len(text_tokenizer))
    table = model.get_input_embeddings().weight.data
    table[:, 1] = 30 * table[:, 0] + table[:, 1]  # two large elements that cancel for a hidden state like this one
    hidden = torch.zeros(48)
    hidden[0], hidden[1] = -30, 1
    hidden += torch.randn(48, generator=torch.Generator().manual_seed(0))
    text = (table @ hidden).std()
    for init in ("codebook", "random"):
        grown, processor = merge_vocabulary(copy.deepcopy(model), text_tokenizer, codec, embedding_init=init)
        new = (tables(grown)[0][processor.vocabulary.visual_ids()] @ hidden).std()
        assert new < 1.5 * text


def test_codebook_rows_keep_neighbours_near(make_model, text_tokenizer, codec) -> None:
    model, processor = merge_vocabulary(make_model(len(text_tokenizer)), text_tokenizer, codec)
    rows = tables(model)[0][processor.vocabulary.visual_ids()]
    codes = codec.quantizer.indices_to_codes(torch.arange(512)[None])[0]
    between_rows, between_codes = torch.cdist(rows, rows).flatten(), torch.cdist(codes, codes).flatten()
    assert torch.corrcoef(torch.stack([between_rows, between_codes]))[0, 1] > 0.9
    assert rows.unique(dim=0).shape[0] == 512


def test_mean_rows_are_near_the_mean_but_differ(make_model, text_tokenizer, codec) -> None:
    model, processor = merge_vocabulary(make_model(len(text_tokenizer)), text_tokenizer, codec, embedding_init="mean")
    table = tables(model)[0]
    text = row_statistics(table[: len(text_tokenizer)])
    new = row_statistics(table[processor.vocabulary.visual_ids()])
    assert ((new.mean - text.mean) / text.std).abs().max() < 0.005
    assert (new.std / text.std).mean() == pytest.approx(0.01, rel=0.1)


def test_same_seed_same_rows(make_model, text_tokenizer, codec) -> None:
    first, second, other = (
        tables(merge_vocabulary(make_model(len(text_tokenizer)), text_tokenizer, codec, seed=seed)[0])[0]
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_spare_rows_and_padding_are_recorded_as_dead(make_model, text_tokenizer, codec) -> None:
    length = len(text_tokenizer)
    model, processor = merge_vocabulary(make_model(length + 7), text_tokenizer, codec, pad_to_multiple_of=64)
    rows = tables(model)[0].shape[0]
    assert rows % 64 == 0
    first = length + 7 + 5
    assert processor.vocabulary.start == first
    assert processor.dead_ids.tolist() == [*range(length, length + 7), *range(first + 512, rows)]
    names = processor.tokenizer.convert_ids_to_tokens([first, first + 511])
    assert names == ["<|visual_00000|>", "<|visual_00511|>"]


def test_a_tokenizer_longer_than_the_table_gets_its_rows(make_model, text_tokenizer, codec) -> None:
    length = len(text_tokenizer)
    model, processor = merge_vocabulary(make_model(length - 2, pad_token_id=None), text_tokenizer, codec)
    assert processor.vocabulary.start == length + 5
    assert tables(model)[0][length - 2 : length].abs().sum() > 0
    model, tokenizer = strip_vocabulary(model, processor)
    assert tables(model)[0].shape[0] == length - 2
    assert len(tokenizer) == length


def test_several_codebooks_get_a_range_each(make_model, make_codec, text_tokenizer) -> None:
    base = {"type": "vq", "codebook_size": 16, "code_dim": 4}
    residual = make_codec(quantizer={"type": "residual", "depth": 2, "base": base})
    model, processor = merge_vocabulary(make_model(len(text_tokenizer)), text_tokenizer, residual)
    visual = processor.vocabulary
    assert (visual.num_codebooks, visual.codebook_size, visual.size) == (2, 16, 32)
    for book, level in enumerate(residual.quantizer.levels):
        rows, codes = tables(model)[0][visual.visual_ids(book)], level.vectors
        pairs = torch.stack([torch.cdist(rows, rows).flatten(), torch.cdist(codes, codes).flatten()])
        assert torch.corrcoef(pairs)[0, 1] > 0.8
    block = processor.image_block(torch.zeros(4, 4, 2, dtype=torch.int64))
    assert visual.is_visual(block).sum() == 32


def test_a_head_bias_grows_with_the_head(make_model, text_tokenizer, codec) -> None:
    model = make_model(len(text_tokenizer), tied=False)
    model.lm_head.bias = nn.Parameter(torch.randn(len(text_tokenizer)))
    was = model.lm_head.bias.data.clone()
    model, processor = merge_vocabulary(model, text_tokenizer, codec)
    assert torch.equal(model.lm_head.bias.data[: len(was)], was)
    assert torch.allclose(model.lm_head.bias.data[len(was) :], was.mean().expand(517))
    assert model(torch.tensor([[1]])).logits.shape[-1] == len(processor.tokenizer)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layout", ["emu3", "chameleon"])
def test_strip_gives_everything_back(layout, tied, make_model, text_tokenizer, codec, captions) -> None:
    old = make_model(len(text_tokenizer) + 3, tied)
    before = copy.deepcopy(old)
    model, processor = merge_vocabulary(old, text_tokenizer, codec, layout, pad_to_multiple_of=32)
    model, tokenizer = strip_vocabulary(model, processor)
    assert model.config.to_dict() == before.config.to_dict()
    weights, was = model.state_dict(), before.state_dict()
    assert weights.keys() == was.keys()
    assert all(torch.equal(weights[name], was[name]) for name in was)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
    assert len(tokenizer) == len(text_tokenizer)
    stripped, original = (json.loads(t.backend_tokenizer.to_str()) for t in (tokenizer, text_tokenizer))
    assert stripped == original
    for text in [*captions, "<|visual_00000|> <s>"]:
        assert tokenizer(text).input_ids == text_tokenizer(text).input_ids
    _, processor = merge_vocabulary(model, tokenizer, codec, layout)
    assert processor.vocabulary.start >= len(text_tokenizer)


def test_strip_refuses_what_was_never_merged(make_model, text_tokenizer, codec) -> None:
    model, processor = merge_vocabulary(make_model(len(text_tokenizer)), text_tokenizer, codec)
    with pytest.raises(UserError, match="rows"):
        strip_vocabulary(make_model(len(text_tokenizer)), processor)
    processor.merge = None
    with pytest.raises(UserError):
        strip_vocabulary(model, processor)


def test_merged_model_is_an_ordinary_checkpoint(make_model, text_tokenizer, codec, tmp_path) -> None:
    model, processor = merge_vocabulary(make_model(len(text_tokenizer)), text_tokenizer, codec)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    assert type(loaded) is type(model)
    prompt = torch.tensor([[1, 300, len(tokenizer) - 1]])
    assert torch.equal(loaded(prompt).logits, model(prompt).logits)
    assert loaded.generate(prompt, max_new_tokens=2, do_sample=False).shape[1] <= 5


def test_wrong_arguments_are_refused_before_anything_changes(make_model, text_tokenizer, codec) -> None:
    model = make_model(len(text_tokenizer))

    def refused(error: type[Exception], match: str, **fields: object) -> None:
        with pytest.raises(error, match=match):
            merge_vocabulary(
                **{"language_model": model, "text_tokenizer": text_tokenizer, **fields},
                visual_tokenizer=codec,
            )
        assert model.config.vocab_size == model.lm_head.weight.shape[0] == len(text_tokenizer)

    refused(UserError, "Did you mean 'codebook'", embedding_init="codebok")
    refused(UserError, "pad_to_multiple_of", pad_to_multiple_of=0)
    refused(UserError, "head_spread", head_spread=2.0)
    refused(KeyError, "Did you mean 'emu3'", layout="emu")
    refused(UserError, "ordinary token", layout={"type": "emu3", "image_token": "▁a"})
    no_end = copy.deepcopy(text_tokenizer)
    no_end.eos_token = None
    refused(UserError, "eos_token", text_tokenizer=no_end)
    merged = merge_vocabulary(make_model(len(text_tokenizer)), text_tokenizer, codec)[1]
    refused(UserError, "merged before", text_tokenizer=merged.tokenizer)
    with torch.device("meta"):
        hollow = type(model)(model.config)
    with pytest.raises(UserError, match="meta"):
        merge_vocabulary(hollow, text_tokenizer, codec)


def test_layout_config_object_and_section_mean_the_same(make_model, text_tokenizer, codec) -> None:
    section = {"type": "emu3", "image_token": "<|picture|>"}
    as_config = LayoutConfig.family.config(section)
    made: list[dict[str, Any]] = [
        merge_vocabulary(make_model(len(text_tokenizer)), text_tokenizer, codec, layout)[1].to_dict()
        for layout in (section, as_config)
    ]
    assert made[0] == made[1]
    assert made[0]["layout"]["image_token"] == "<|picture|>"
