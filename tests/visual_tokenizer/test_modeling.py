import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig
from visual_tokenizer.encoders.base import ResolutionError
from visual_tokenizer.errors import IndexOutOfRangeError, UserError
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.runs.saved_models import CheckpointMismatchError

CNN = {
    "type": "cnn",
    "channels": 8,
    "channel_multipliers": [1, 2],
    "blocks_per_level": 1,
    "attention_resolutions": [],
    "latent_channels": 8,
    "groups": 4,
}
PATCH = {"type": "patch", "patch_size": 4, "width": 16}
QUERY = {"type": "latent_query", "num_latents": 6, "width": 16, "depth": 1, "heads": 2}
ARCHITECTURES = {
    "cnn": ({"encoder": CNN, "decoder": CNN}, (8, 8)),
    "cnn with attention and oblong patches": (
        {
            "encoder": {**CNN, "patch_size": [2, 4], "attention_resolutions": [4]},
            "decoder": {**CNN, "patch_size": [2, 4], "attention_resolutions": [4]},
        },
        (4, 2),
    ),
    "patch": ({"encoder": PATCH, "decoder": PATCH}, (4, 4)),
    "latent_query on patches": (
        {"encoder": {**QUERY, "patches": PATCH}, "decoder": {**QUERY, "grid_size": 4, "patches": PATCH}},
        (6,),
    ),
    "latent_query on cnn": (
        {"encoder": {**QUERY, "patches": CNN}, "decoder": {**QUERY, "grid_size": 8, "patches": CNN}},
        (6,),
    ),
}
QUANTIZERS = {
    "fsq": {"type": "fsq", "levels": [3, 4]},
    "vq": {"type": "vq", "codebook_size": 16, "code_dim": 4, "initializer": {"type": "kmeans"}},
}


def build(architecture="cnn", quantizer="fsq", **fields):
    torch.manual_seed(0)
    sections = ARCHITECTURES[architecture][0]
    config = VisualTokenizerConfig(image_size=16, quantizer=QUANTIZERS[quantizer], **{**sections, **fields})
    return VisualTokenizer(config)


def pictures(batch=2, height=16, width=16):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_whole_way(architecture, quantizer, tmp_path):
    tokenizer, grid = build(architecture, quantizer), ARCHITECTURES[architecture][1]
    output = tokenizer.train()(pictures())
    assert output.pixels.shape == (2, 3, 16, 16)
    (output.pixels.square().mean() + sum(output.losses.values(), torch.zeros(()))).backward()
    without = [n for n, p in tokenizer.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    tokenizer.eval()
    indices = tokenizer.encode(pictures())
    assert indices.shape == (2, *grid)
    assert tokenizer.token_grid() == grid
    decoded = tokenizer.decode(indices)
    torch.testing.assert_close(decoded, tokenizer(pictures()).pixels.clamp(-1, 1))
    tokenizer.save_pretrained(tmp_path)
    for loader in (VisualTokenizer, AutoModel):
        loaded = loader.from_pretrained(tmp_path)
        assert not loaded.training
        assert torch.equal(loaded.encode(pictures()), indices)
        assert torch.equal(loaded.decode(indices), decoded)
    assert not list(tmp_path.glob("*.bin"))


def test_other_sizes_and_oblong_pictures():
    tokenizer = build().eval()
    indices = tokenizer.encode(pictures(1, 8, 24))
    assert indices.shape == (1, 4, 12) == (1, *tokenizer.token_grid(8, 24))
    assert tokenizer.decode(indices).shape == (1, 3, 8, 24)


def test_a_latent_reads_the_whole_picture():
    tokenizer = build("latent_query on patches").eval()
    changed = pictures()
    changed[:, :, -1, -1] += 0.5
    difference = (tokenizer.latents(changed) - tokenizer.latents(pictures())).abs().amax(dim=(0, 2))
    assert (difference > 0).all()


@pytest.mark.parametrize(
    ("architecture", "height", "width", "message"),
    [
        ("cnn", 15, 16, "height must be a multiple of 2"),
        ("cnn", 1, 16, "height must be a multiple of 2"),
        ("patch", 16, 18, "height must be a multiple of 4 and width of 4"),
        ("latent_query on patches", 16, 20, "takes 16 × 16 pixels only"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(architecture, height, width, message):
    with pytest.raises(ResolutionError, match=message):
        build(architecture).encode(pictures(1, height, width))


def test_bad_pixels_and_indices_are_refused():
    tokenizer = build()
    for wrong in (torch.zeros(3, 16, 16), torch.zeros(1, 1, 16, 16), torch.zeros(1, 3, 16, 16, dtype=torch.uint8)):
        with pytest.raises(UserError, match=r"float \(B, 3, H, W\)"):
            tokenizer.encode(wrong)
    with pytest.raises(IndexOutOfRangeError, match="index 12 is out of range"):
        tokenizer.decode(torch.full((1, 8, 8), 12))
    with pytest.raises(ResolutionError, match=r"indices must be \(B, 8, 8\)"):
        tokenizer.decode(torch.zeros(1, 64, dtype=torch.int64))


def test_bad_configs_are_refused():
    with pytest.raises(ConfigError, match=r"unknown key 'imagesize'.*'image_size'"):
        VisualTokenizerConfig(imagesize=3)
    with pytest.raises(ConfigError, match="image_size must be an integer of 1 or more"):
        VisualTokenizerConfig(image_size=0)
    with pytest.raises(ConfigError, match=r"encoders\.cnn: unknown key 'chanels'.*'channels'"):
        VisualTokenizerConfig(encoder={"type": "cnn", "chanels": 3})
    with pytest.raises(ConfigError, match="groups must divide"):
        VisualTokenizerConfig(encoder={"type": "cnn", "channels": 9})


def test_config_holds_every_field_and_round_trips(tmp_path):
    config = VisualTokenizerConfig()
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["quantizer"] == {
        "type": "fsq",
        "levels": [8, 5, 5, 5],
        "grid": "published",
        "index_order": "first_fastest",
        "epsilon": 1e-3,
        "noise": 0.0,
    }
    assert written["encoder"]["channel_multipliers"] == [1, 1, 2, 2, 4]
    assert VisualTokenizerConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_weights_of_another_architecture_are_refused(tmp_path):
    build().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["something.else"] = weights.pop("to_codes.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointMismatchError, match=r"1 missing keys \(to_codes.weight.*1 unexpected keys"):
        VisualTokenizer.from_pretrained(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere', where a visual tokenizer should be"):
        VisualTokenizer.from_pretrained(str(tmp_path / "nowhere"))


def test_a_pickle_is_never_loaded(tmp_path):
    tokenizer = build()
    tokenizer.config.save_pretrained(tmp_path)
    torch.save(tokenizer.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        VisualTokenizer.from_pretrained(tmp_path)
