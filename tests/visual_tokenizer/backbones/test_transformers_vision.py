"""transformers' own classes, tiny and random, seen through the backbone: features, pooled output, what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from visual_tokenizer.backbones.base import MissingWeightsError
from visual_tokenizer.backbones.transformers_vision import TransformersVision, TransformersVisionConfig
from visual_tokenizer.errors import UserError
from visual_tokenizer.metrics.base import MetricConfig

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
PICTURES = {"image_size": 24, "patch_size": 8}


def save(model: PreTrainedModel, folder: Path) -> TransformersVision:
    torch.manual_seed(0)
    model.eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    return TransformersVision(TransformersVisionConfig(weights=str(folder)))


def normalised(pixels: Tensor) -> Tensor:
    return ((pixels + 1) / 2 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.fixture
def pixels() -> Tensor:
    return torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_vit_with_a_pooler(tmp_path: Path, pixels: Tensor) -> None:
    model = ViTModel(ViTConfig(**SMALL, **PICTURES))
    network = save(model, tmp_path)
    with torch.no_grad():
        wanted = model(normalised(pixels), output_hidden_states=True)
        found = network.features(pixels)
    assert network.feature_dims == (16, 16, 16)
    for maps, hidden in zip(found, wanted.hidden_states[1:], strict=True):
        assert maps.shape == (2, 16, 3, 3)
        # Row 1, column 2 is patch 5, after the class token.
        torch.testing.assert_close(maps[:, :, 1, 2], hidden[:, 1 + 5])
    torch.testing.assert_close(network.embedding(pixels), wanted.pooler_output)
    assert (network.embedding_dim, network.embedding_size) == (16, 24)
    assert len(network.features(pixels, 2)) == 2


def test_a_pooler_that_was_never_trained_is_not_used(tmp_path: Path, pixels: Tensor) -> None:
    """Many ViTs are saved without one; transformers then draws a random one, other at every start."""
    model = ViTModel(ViTConfig(**SMALL, **PICTURES), add_pooling_layer=False)
    network = save(model, tmp_path)
    again = TransformersVision(TransformersVisionConfig(weights=str(tmp_path)))
    assert torch.equal(network.embedding(pixels), again.embedding(pixels))
    with torch.no_grad():
        wanted = model(normalised(pixels)).last_hidden_state[:, 0]
    torch.testing.assert_close(network.embedding(pixels), wanted)


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    save(ViTModel(ViTConfig(**SMALL, **PICTURES), add_pooling_layer=False), tmp_path)
    before = torch.get_rng_state()
    TransformersVision(TransformersVisionConfig(weights=str(tmp_path)))
    assert torch.equal(before, torch.get_rng_state())


def test_of_clip_the_part_that_sees(tmp_path: Path, pixels: Tensor) -> None:
    text = {**SMALL, "vocab_size": 20, "max_position_embeddings": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config={**SMALL, **PICTURES}))
    network = save(model, tmp_path)
    with torch.no_grad():
        wanted = model.vision_model(normalised(pixels)).pooler_output
    torch.testing.assert_close(network.embedding(pixels), wanted)
    assert network.features(pixels)[-1].shape == (2, 16, 3, 3)


def test_dinov2_and_resnet(tmp_path: Path, pixels: Tensor) -> None:
    model = Dinov2Model(Dinov2Config(**{**SMALL, "mlp_ratio": 2}, **PICTURES))
    network = save(model, tmp_path / "dino")
    with torch.no_grad():
        torch.testing.assert_close(network.embedding(pixels), model(normalised(pixels)).pooler_output)
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
    convolutional = ResNetModel(ResNetConfig(**sizes))
    network = save(convolutional, tmp_path / "resnet")
    assert (network.feature_dims, network.embedding_dim, network.embedding_size) == ((4, 8), 8, 224)
    large = torch.rand(1, 3, 224, 224) * 2 - 1
    with torch.no_grad():
        wanted = convolutional(normalised(large), output_hidden_states=True)
    torch.testing.assert_close(network.features(large)[1], wanted.hidden_states[-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(network.embedding(large), wanted.pooler_output.flatten(1), rtol=1e-4, atol=1e-4)


def test_metrics_and_gradients_run_on_it(tmp_path: Path) -> None:
    save(ViTModel(ViTConfig(**SMALL, **PICTURES)), tmp_path)
    pixels = torch.rand(4, 3, 40, 40) * 2 - 1
    for name, key in (("feature_distance", "FD-transformers_vision"), ("face_fidelity", "face_similarity")):
        section = {"type": name, "network": "transformers_vision", "network_weights": str(tmp_path)}
        metric = MetricConfig.family.build(section)
        metric.observe(pixels, pixels.flip(-1), torch.zeros(0))
        assert key in metric.compute()
        assert metric.protocol()["weights_digest"]
    section = {"type": "perceptual_distance", "network": "transformers_vision", "network_weights": str(tmp_path)}
    metric = MetricConfig.family.build(section)
    metric.observe(pixels, pixels, torch.zeros(0))
    assert metric.compute() == {"perceptual_transformers_vision": 0}
    network, leaf = metric.network, pixels.clone().requires_grad_()
    network.embedding(leaf).square().sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.parameters())


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(MissingWeightsError, match="hf download nobody/nothing --local-dir"):
        TransformersVision(TransformersVisionConfig(weights="nobody/nothing"))
    with pytest.raises(FileNotFoundError, match="there is no folder '/nowhere'"):
        TransformersVision(TransformersVisionConfig(weights="/nowhere"))
    with pytest.raises(MissingWeightsError, match="must name a folder"):
        TransformersVision()
    save(ViTModel(ViTConfig(**SMALL, **PICTURES)), tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(MissingWeightsError, match=r"preprocessor_config\.json"):
        TransformersVision(TransformersVisionConfig(weights=str(tmp_path)))


def test_a_checkpoint_without_some_blocks_is_refused(tmp_path: Path) -> None:
    save(ViTModel(ViTConfig(**SMALL, **PICTURES)), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(UserError, match=r"missing keys .*layers?\.3"):
        TransformersVision(TransformersVisionConfig(weights=str(tmp_path)))
