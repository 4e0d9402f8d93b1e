"""A tiny CLIP with random weights, saved and loaded as a published one is."""

from __future__ import annotations

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

import mmlm.measures.base as subjects
from mmlm.measures.image_text_score import ImageTextScore, ImageTextScoreConfig
from mmlm.scores.image_text_model import load_image_text_model
from visual_tokenizer.backbones.base import MissingWeightsError
from visual_tokenizer.errors import UserError

WORDS = ["[PAD]", "[UNK]", "a", "red", "lime", "box", "car", "white", "blue", "[END]"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    heads = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**heads, "vocab_size": len(WORDS), "max_position_embeddings": 12}
    text |= {"bos_token_id": 9, "eos_token_id": 9, "pad_token_id": 0}
    torch.manual_seed(0)
    vision = {**heads, "image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)).save_pretrained(folder)
    rules = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    rules.pre_tokenizer = pre_tokenizers.Whitespace()
    rules.post_processor = processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 9)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rules, unk_token="[UNK]", eos_token="[END]", pad_token="[PAD]", model_max_length=12
    )
    pictures = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    sizes = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    CLIPProcessor(pictures(**sizes), tokenizer).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_scores_are_the_models_own_cosines(make_subject, clip, monkeypatch):
    subject = make_subject(batch_size=4)
    monkeypatch.setattr(type(subject), "splits", ["train"])
    pairs = subject.pairs("train")
    monkeypatch.setattr(subjects, "generate_images", lambda *_, **__: list(pairs.images))
    found = ImageTextScore(ImageTextScoreConfig(weights=str(clip))).measure(subject).values["train"]
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    wanted = []
    for caption, image in zip(pairs.captions, pairs.images, strict=True):
        batch = processor(text=[caption], images=[image], return_tensors="pt", padding="max_length")
        both = model(**batch)
        wanted.append(float(F.cosine_similarity(both.image_embeds, both.text_embeds)))
    assert found["originals"] == pytest.approx(sum(wanted) / 6, abs=1e-5)
    assert found["drawings"] == pytest.approx(found["originals"])
    assert found["other_originals"] != pytest.approx(found["originals"], abs=1e-6)
    assert found["pictures"] == 6


def test_what_is_missing_is_said(clip, tmp_path):
    with pytest.raises(FileNotFoundError):
        load_image_text_model(str(tmp_path / "nowhere"))
    with pytest.raises(MissingWeightsError, match="hf download openai/clip-vit-base-patch32"):
        load_image_text_model(str(tmp_path))
    text = transformers.BertConfig(
        vocab_size=10, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.BertModel(text).save_pretrained(tmp_path)
    CLIPProcessor.from_pretrained(clip).tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="must name a model of pictures and texts"):
        load_image_text_model(str(tmp_path))
