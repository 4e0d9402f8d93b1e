import torch
from PIL import Image
from safetensors.torch import load_file

from visual_tokenizer import build_quantizer, features


def folder_of_pictures(tmp_path, count=5):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (64, 64), (40 * number, 90, 255 - 40 * number)).save(folder / f"{number}.png")
    return ["--data.source.type", "image_folder", "--data.source.folder", str(folder)]


def test_features_are_those_of_the_network_and_start_a_codebook(tmp_path, capsys):
    output = tmp_path / "out" / "features.safetensors"
    words = [*folder_of_pictures(tmp_path), "--split", "all", "--output", str(output), "--level", "2"]
    assert features.main([*words, "--max_features", "40", "--image_size", "64"]) == 0
    found = load_file(output)["features"]
    assert f"wrote {found.shape[0]} features of {found.shape[1]} channels" in capsys.readouterr().out
    from visual_tokenizer.backbones.base import load_backbone

    network = load_backbone("efficientnet_lite0")
    assert found.shape == (40, network.feature_dims[2])
    pixels = torch.tensor([0.0, 90.0, 255.0]).view(1, 3, 1, 1).expand(1, 3, 64, 64) / 127.5 - 1
    expected = network.features(pixels, 3)[2].flatten(2).mT[0]
    distances = torch.cdist(found[:8], expected, compute_mode="donot_use_mm_for_euclid_dist")
    assert distances.min(dim=1).values.max() < 1e-3 * expected.norm(dim=1).mean()

    quantizer = build_quantizer(
        "vq", codebook_size=8, code_dim=4, initializer={"type": "features", "path": str(output), "samples": 100}
    )
    quantizer(torch.randn(1, 100, 4))
    assert quantizer.codes_set == 8


def test_wrong_requests_are_named(tmp_path, capsys):
    words = [*folder_of_pictures(tmp_path), "--split", "all", "--output", str(tmp_path / "f.safetensors")]
    assert features.main([*words, "--level", "99"]) == 2
    assert "layers must be different numbers" in capsys.readouterr().err
    assert features.main([*words, "--max_features", "1"]) == 2
    assert "max_features must be 2 or more, got 1" in capsys.readouterr().err
    assert not (tmp_path / "f.safetensors").exists()
