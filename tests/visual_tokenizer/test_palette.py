import pytest
import torch
from PIL import Image

from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig, VisualTokenizerImageProcessor, palette
from visual_tokenizer.registry import ConfigError

COLOURS = torch.tensor([[250, 10, 10], [10, 250, 10], [10, 10, 250], [240, 240, 240]], dtype=torch.uint8)


@pytest.fixture
def pictures(tmp_path):
    """Pictures of four colours, so that the best palette of four is known."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(8):
        chosen = COLOURS[torch.randint(4, (8, 8), generator=generator)]
        Image.fromarray(chosen.numpy()).save(folder / f"{number}.png")
    return folder


def test_a_palette_is_the_pictures_own_colours_and_loses_nothing(pictures, tmp_path, capsys):
    words = ["--output", str(tmp_path / "palette"), "--colours", "4", "--image_size", "8"]
    words += ["--data.source.type", "image_folder", "--data.source.folder", str(pictures)]
    words += ["--data.source.heldout_fraction", "0"]
    assert palette.main(words) == 0
    assert "4 colours" in capsys.readouterr().out
    tokenizer = VisualTokenizer.from_pretrained(tmp_path / "palette")
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == 4 * 3
    found = ((tokenizer.quantizer.vectors + 1) * 127.5).round().to(torch.uint8)
    assert set(map(tuple, found.tolist())) == set(map(tuple, COLOURS.tolist()))
    processor = VisualTokenizerImageProcessor.from_pretrained(tmp_path / "palette")
    with Image.open(pictures / "0.png") as picture:
        pixels = processor(picture, return_tensors="pt")["pixel_values"]
    indices = tokenizer.encode(pixels)
    assert indices.shape == (1, 8, 8)
    torch.testing.assert_close(tokenizer.decode(indices), pixels, atol=1e-4, rtol=0)


def test_pixels_need_codes_of_three_channels():
    section = {"type": "pixels"}
    with pytest.raises(ConfigError, match="code_dim must be 3, got 4"):
        VisualTokenizer(
            VisualTokenizerConfig(image_size=8, encoder=section, quantizer={"type": "fsq", "levels": [4, 4, 4, 4]})
        )


def test_nonsense_is_refused(tmp_path, capsys):
    assert palette.main(["--output", str(tmp_path), "--colours", "1"]) == 2
    assert "colours must be 2 or more, got 1" in capsys.readouterr().err
