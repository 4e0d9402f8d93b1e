"""transformers' text models as frozen encoders, against transformers itself; nothing is downloaded."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import BertModel, CLIPConfig, CLIPModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel, T5Model

from visual_tokenizer.backbones.base import MissingWeightsError
from visual_tokenizer.text_encoders.base import TextEncoderConfig

TEXTS = ["a red apple", "a cat", "sun"]
IDS = [[2, 3, 5], [2, 7], [9]]


def build(**fields):
    return TextEncoderConfig.family.build({"type": "transformers_text", **fields})


def save_words(folder):
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "a", "red", "green", "apple", "b", "cat"])}
    rules = Tokenizer(models.WordLevel({**words, "sun": 9}, unk_token="[UNK]"))
    rules.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=rules, unk_token="[UNK]", eos_token="[PAD]").save_pretrained(folder)


def test_the_embedding_is_the_mean_over_the_words(small_bert):
    encoder, model = build(weights=small_bert), BertModel.from_pretrained(small_bert).eval()
    found = encoder(TEXTS)
    assert found.shape == (3, encoder.embedding_dim) == (3, 8)
    assert not found.requires_grad
    for row, ids in zip(found, IDS, strict=True):  # each alone, without padding
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-4)


def test_clip_gives_its_projected_embedding(tmp_path):
    text = {"vocab_size": 12, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "eos_token_id": 9}
    vision = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
    heads = {"num_attention_heads": 2}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config={**text, **heads}, vision_config={**vision, **heads}, projection_dim=6))
    model.eval().save_pretrained(tmp_path)
    save_words(tmp_path)
    ids = torch.tensor([[2, 3, 5, 9]])
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=torch.zeros(1, 3, 16, 16)).text_embeds
    encoder = build(weights=str(tmp_path))
    assert encoder.embedding_dim == 6
    torch.testing.assert_close(F.normalize(encoder(["a red apple sun"]), dim=1), expected, atol=1e-5, rtol=1e-4)


def test_of_two_halves_the_encoder_is_used(tmp_path):
    torch.manual_seed(0)
    model = T5Model(T5Config(vocab_size=12, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)).eval()
    model.save_pretrained(tmp_path)
    save_words(tmp_path)
    with torch.no_grad():
        half = T5EncoderModel.from_pretrained(tmp_path).eval()
        expected = half(input_ids=torch.tensor([[2, 7]])).last_hidden_state.mean(1)
    torch.testing.assert_close(build(weights=str(tmp_path))(["a cat"]), expected, atol=1e-5, rtol=1e-4)


def test_long_texts_are_cut(small_bert):
    encoder = build(weights=small_bert, max_length=3)
    torch.testing.assert_close(encoder(["a red apple house cat"]), encoder(["a red apple"]))
    assert torch.isfinite(build(weights=small_bert)(["cat " * 40])).all()  # the model has 12 positions


def test_it_stays_frozen(small_bert):
    encoder = build(weights=small_bert).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_what_is_missing_is_said(small_bert, tmp_path):
    with pytest.raises(MissingWeightsError, match="must name a folder or a model of the hub"):
        build()
    with pytest.raises(FileNotFoundError, match="no folder"):
        build(weights=str(tmp_path / "none"))
    with pytest.raises(MissingWeightsError, match="hf download"):
        build(weights=str(tmp_path))
    with pytest.raises(ValueError, match="max_length must be 2 or more"):
        build(weights=small_bert, max_length=1)
