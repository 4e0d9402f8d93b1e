"""A pretrained vision transformer as an encoder: what it begins with, what of it learns, and that it is saved whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model, SiglipVisionConfig, SiglipVisionModel

from visual_tokenizer import VisualTokenizer
from visual_tokenizer.encoders.base import EncoderConfig
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.training.trainer import TokenizerTrainer

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
PICTURES = {"image_size": 16, "patch_size": 4}


def clip() -> CLIPModel:
    text = {**SMALL, "vocab_size": 20, "max_position_embeddings": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config={**SMALL, **PICTURES}))


MODELS = {
    "clip": clip,
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**SMALL, **PICTURES)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SMALL, **PICTURES)),
}


def save(kind: str, folder: Path):
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    return model


def normalised(pixels: Tensor) -> Tensor:
    return ((pixels + 1) / 2 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.mark.parametrize("kind", list(MODELS))
def test_it_begins_as_the_model_and_only_what_counts_learns(kind, tmp_path):
    model = save(kind, tmp_path)
    encoder = EncoderConfig.family.build({"type": "transformers_vision", "weights": str(tmp_path)}, image_size=16)
    encoder.read_weights()
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    seen = getattr(model, "vision_model", model)
    wanted = seen(pixel_values=normalised(pixels)).last_hidden_state[:, -16:]
    torch.testing.assert_close(encoder.eval()(pixels), wanted)
    encoder.train()(pixels).square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)
    idle = [name for name, p in encoder.named_parameters() if not p.requires_grad]
    assert all(any(word in name for word in ("pool", "head", "post_layernorm", "mask_token")) for name in idle)
    larger = EncoderConfig.family.build({"type": "transformers_vision", "weights": str(tmp_path)}, image_size=40)
    assert larger(torch.zeros(1, 3, 40, 40)).shape == (1, 16, 16)


def test_a_frozen_one_stays_what_it_was_and_the_saved_tokenizer_needs_no_folder(tiny_recipe, tmp_path):
    model = save("dinov2", tmp_path / "model")
    encoder = {"type": "transformers_vision", "weights": str(tmp_path / "model"), "trained": False}
    trainer = TokenizerTrainer(tiny_recipe(encoder=encoder, decoder={"type": "patch", "patch_size": 4, "width": 8}))
    final = trainer.train()
    (tmp_path / "model").rename(tmp_path / "gone")
    loaded = VisualTokenizer.from_pretrained(final)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.encoder.model.state_dict()[name], value), name
    assert not any(parameter.requires_grad for parameter in trainer.tokenizer.encoder.parameters())
    assert loaded.encode(torch.zeros(1, 3, 16, 16)).shape == (1, 4, 4)


def test_what_is_missing_is_said(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="`hf download nobody/nothing --local-dir FOLDER`"):
        tiny_recipe(encoder={"type": "transformers_vision", "weights": "nobody/nothing"})
    with pytest.raises(ConfigError, match="weights must name a folder or a model of the hub"):
        tiny_recipe(encoder={"type": "transformers_vision"})
    with pytest.raises(ConfigError, match="mean and std must be three numbers"):
        tiny_recipe(encoder={"type": "transformers_vision", "architecture": {"model_type": "vit"}})
