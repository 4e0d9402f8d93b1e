"""`python -m visual_tokenizer.convert`: from a published file to a folder that loads."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

from visual_tokenizer import VisualTokenizer
from visual_tokenizer.convert.__main__ import main
from visual_tokenizer.processing import VisualTokenizerImageProcessor

SMALL = {"base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1, "embed_dim": 8, "latent_channels": 16}


def test_a_folder_becomes_a_tokenizer_with_its_preprocessing(tmp_path, capsys):
    torch.manual_seed(0)
    model = JanusVQVAE(JanusVQVAEConfig(**SMALL, num_embeddings=64, num_patches=8)).eval()
    model.save_pretrained(tmp_path / "published")
    out = tmp_path / "converted"
    assert main(["--source", "janus", "--input", str(tmp_path / "published"), "--output", str(out)]) == 0
    assert f"saved {out}" in capsys.readouterr().out

    tokenizer = VisualTokenizer.from_pretrained(out)
    processor = VisualTokenizerImageProcessor.from_pretrained(out)
    assert tokenizer.config.image_size == 16
    assert processor.resample == Image.Resampling.BICUBIC
    picture = Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 50).convert("RGB")
    pixels = processor(picture, return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 16, 16)
    assert torch.equal(tokenizer.encode(pixels).flatten(), model.encode(pixels).image_tokens)
    card = (out / "README.md").read_text()
    assert "Janus (Wu et al., 2024)" in card
    assert "64 (8 × 8) at 16 pixels" in card
    assert "holds no decoder" not in card


def test_chameleon_with_and_without_its_decoder(tmp_path, capsys):
    model = ChameleonVQVAE(ChameleonVQVAEConfig(**SMALL, num_embeddings=64, resolution=32)).eval()
    save_file(model.state_dict(), tmp_path / "vq.safetensors")
    out = tmp_path / "converted"
    words = ["--source", "chameleon", "--input", str(tmp_path / "vq.safetensors"), "--image_size", "32"]
    assert main([*words, "--output", str(out)]) == 0
    assert "warning: " in capsys.readouterr().err
    assert json.loads((out / "preprocessor_config.json").read_text())["size"] == {"height": 32, "width": 32}
    assert json.loads((out / "preprocessor_config.json").read_text())["resample"] == Image.Resampling.LANCZOS
    assert "hold no decoder" in (out / "README.md").read_text()
    assert VisualTokenizer.from_pretrained(out).encode(torch.zeros(1, 3, 32, 32)).shape == (1, 16, 16)

    assert main([*words, "--decoder", str(tmp_path / "vq.safetensors"), "--output", str(out)]) == 2
    assert "no decoder.conv_in.weight" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--source", "vqgan"], "input"),
        (["--source", "nothing", "--input", "x", "--output", "y"], "no part 'nothing'"),
        (["--source", "vqgan", "--input", "/nowhere/x.ckpt", "--output", "y"], "there is no folder or file"),
        (["--source", "vqgan", "--input", "x", "--output", "y", "--options.normalise", "true"], "unknown key"),
    ],
)
def test_what_is_wrong_is_said(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_pickles_are_refused(tmp_path, capsys):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "model.ckpt")
    assert main(["--source", "vqgan", "--input", str(tmp_path / "model.ckpt"), "--output", str(tmp_path / "o")]) == 2
    assert "pickled objects" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
