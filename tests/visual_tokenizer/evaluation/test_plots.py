from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from visual_tokenizer.evaluation import plots
from visual_tokenizer.evaluation.plots import GAP, plot_codebook, plot_losses, reconstruction_grid, save_picture


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


def test_of_a_clip_the_first_middle_and_last_frame_are_shown_in_one_row():
    clips = torch.linspace(-1, 1, 2 * 5).view(2, 1, 5, 1, 1).expand(2, 3, 5, 4, 6)
    grid = np.asarray(reconstruction_grid(clips, -clips, columns=5))
    shown = [(clip, frame) for clip in range(2) for frame in (0, 2, 4)]
    assert grid.shape[1] == GAP + 3 * (6 + GAP)  # two clips of three frames do not fit into five columns
    for position, (clip, frame) in enumerate(shown):
        row, column = divmod(position, 3)
        top, left = GAP + row * (2 * (4 + GAP) + GAP), GAP + column * (6 + GAP)
        value = float(clips[clip, 0, frame, 0, 0])
        assert grid[top, left, 0] == round((value + 1) * 127.5)
        assert grid[top + 4 + GAP, left, 0] == round((1 - value) * 127.5)
    still = reconstruction_grid(clips[:, :, :1], clips[:, :, :1])
    assert still.size == reconstruction_grid(clips[:, :, 0], clips[:, :, 0]).size


def test_the_discriminators_side_is_drawn_in_panels_of_its_own(tmp_path, monkeypatch):
    panels = []
    monkeypatch.setattr(
        plots, "_plot", lambda entries, names, path, ylabels, **_: panels.append(dict(zip(ylabels, names, strict=True)))
    )
    plain = {"step": 1, "loss": 2.0, "loss/l2": 1.5}
    plot_losses([plain], tmp_path / "a.png")
    other = {"loss/adversarial": -0.5, "loss/discriminator": 1.0, "discriminator/accuracy": 0.5}
    plot_losses([plain | other], tmp_path / "b.png")
    assert panels[0] == {"loss": ["loss", "loss/l2"]}
    assert panels[1] == {
        "loss": ["loss", "loss/l2"],
        "adversarial losses": ["loss/adversarial", "loss/discriminator"],
        "accuracy of the discriminator": ["discriminator/accuracy"],
    }
