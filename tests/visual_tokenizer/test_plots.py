from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from visual_tokenizer.plots import GAP, plot_codebook, plot_losses, reconstruction_grid, save_picture


def test_each_original_is_above_its_reconstruction():
    pixels = torch.stack([torch.full((3, 4, 6), value) for value in (-1.0, 0.0, 1.0)])
    grid = np.asarray(reconstruction_grid(pixels, -pixels, columns=2)).astype(int)
    assert grid.shape == (GAP * 2 + 2 * (2 * (4 + GAP) + GAP) - GAP, GAP + 2 * (6 + GAP), 3)

    def shade(row, column, is_reconstruction):
        top = GAP + row * (2 * (4 + GAP) + GAP) + is_reconstruction * (4 + GAP)
        left = GAP + column * (6 + GAP)
        block = grid[top : top + 4, left : left + 6]
        assert block.min() == block.max()
        return block[0, 0, 0]

    assert (shade(0, 0, False), shade(0, 0, True)) == (0, 255)
    assert (shade(0, 1, False), shade(0, 1, True)) == (128, 128)
    assert (shade(1, 0, False), shade(1, 0, True)) == (255, 0)


def test_a_reconstruction_beyond_the_range_is_clamped():
    grid = np.asarray(reconstruction_grid(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 7.0)))
    assert (grid[GAP + 2 + GAP, GAP] == 255).all()


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (0, 3, 4, 4), (3, 4, 4)])
def test_what_is_no_batch_of_pictures_is_refused(shape):
    with pytest.raises(ValueError, match="one shape"):
        reconstruction_grid(torch.zeros(shape), torch.zeros(shape))


def test_plots_are_pictures_whatever_the_log_holds(tmp_path):
    entries = [
        {"step": 1, "loss": 2.0, "loss/l2": 1.5, "codebook/usage": 0.5, "codebook/perplexity": 7.0},
        {"step": 2, "heldout/codebook_usage": 0.4},
        {"step": 3, "loss": 0.0, "loss/l2": -0.5},
    ]
    for lines in (entries, [], entries[2:]):
        for plot in (plot_losses, plot_codebook):
            plot(lines, tmp_path / "plots" / "plot.png")
            with Image.open(tmp_path / "plots" / "plot.png") as picture:
                assert picture.format == "PNG"
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["plot.png"]


def test_a_picture_replaces_an_earlier_one(tmp_path):
    for shade in ("black", "white"):
        save_picture(Image.new("RGB", (2, 2), shade), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.getpixel((0, 0)) == (255, 255, 255)
