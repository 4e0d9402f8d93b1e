"""PSNR, SSIM and the perceptual distance against scikit-image, torchmetrics and the loss."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
import skimage.metrics
import torch
import torchmetrics.image
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from visual_tokenizer.errors import UserError
from visual_tokenizer.losses.perceptual import perceptual_distance
from visual_tokenizer.metrics.base import Metric, round_pixels, round_to_levels
from visual_tokenizer.metrics.ms_ssim import ms_ssim
from visual_tokenizer.metrics.perceptual_distance import PerceptualDistance, PerceptualDistanceConfig
from visual_tokenizer.metrics.psnr import PSNR, psnr
from visual_tokenizer.metrics.ssim import SSIM, ssim


def perceptual(layers: list[int]) -> PerceptualDistance:
    return PerceptualDistance(PerceptualDistanceConfig(layers=layers))


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor]:
    """Seven patches of a photograph, and worse and worse copies that leave [-1, 1]."""
    photograph = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1).float() / 127.5 - 1
    pixels = torch.stack([photograph[:, 40 * i : 40 * i + 48, 100:164] for i in range(7)])
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    return pixels, pixels + noise * torch.linspace(0.02, 0.5, 7)[:, None, None, None]


def as_uint8(pixels: Tensor) -> list[np.ndarray]:
    """What saving the pictures as PNG would hold, by another way than the code under test."""
    levels = np.clip(np.rint(127.5 * (pixels.double().numpy() + 1)), 0, 255).astype(np.uint8)
    return list(levels.transpose(0, 2, 3, 1))


def test_psnr_equals_scikit_image(pair: tuple[Tensor, Tensor]) -> None:
    wanted = [
        skimage.metrics.peak_signal_noise_ratio(a, b, data_range=255) for a, b in zip(*map(as_uint8, pair), strict=True)
    ]
    np.testing.assert_allclose(psnr(*pair).numpy(), wanted, rtol=1e-6)


def test_psnr_equals_torchmetrics(pair: tuple[Tensor, Tensor]) -> None:
    theirs = torchmetrics.image.PeakSignalNoiseRatio(data_range=255.0, dim=(1, 2, 3), reduction="elementwise_mean")
    theirs.update(round_to_levels(pair[1]), round_to_levels(pair[0]))
    metric = PSNR()
    metric.observe(*pair, torch.empty(0))
    assert metric.compute()["psnr_db"] == pytest.approx(theirs.compute().item(), rel=1e-5)


def test_ssim_equals_scikit_image(pair: tuple[Tensor, Tensor]) -> None:
    wanted = []
    for a, b in zip(*map(as_uint8, pair), strict=True):
        channels = []
        for c in range(3):
            _, maps = skimage.metrics.structural_similarity(
                a[..., c],
                b[..., c],
                data_range=255,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                full=True,
            )
            channels.append(maps[5:-5, 5:-5].mean())
        wanted.append(np.mean(channels))
    np.testing.assert_allclose(ssim(*pair).numpy(), wanted, rtol=1e-5)


def test_ssim_equals_the_inside_of_torchmetrics(pair: tuple[Tensor, Tensor]) -> None:
    """Their mean also covers the reflected border; their map lets us leave it out."""
    _, maps = structural_similarity_index_measure(
        *(round_to_levels(picture).double() for picture in pair),
        data_range=255.0,
        reduction="none",
        return_full_image=True,
    )
    torch.testing.assert_close(ssim(*pair), maps[..., 5:-5, 5:-5].mean((1, 2, 3)), rtol=1e-6, atol=0)
    assert torch.equal(ssim(pair[0], pair[0]), torch.ones(7, dtype=torch.float64))


def test_rounding_and_clamping_are_part_of_the_protocol() -> None:
    level = 1 / 127.5
    pixels = torch.full((1, 3, 16, 16), 100 * level - 1)
    assert psnr(pixels, pixels + 0.4 * level).item() == 100
    assert psnr(pixels, pixels + 0.6 * level).item() == pytest.approx(20 * np.log10(255))
    assert psnr(pixels + 5, torch.ones_like(pixels)).item() == 100
    assert round_to_levels(torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0])).tolist() == [0, 0, 128, 255, 255]


def test_nan_is_not_hidden(pair: tuple[Tensor, Tensor]) -> None:
    broken = pair[1].clone()
    broken[0, 0, 0, 0] = float("nan")
    for metric in (PSNR(), SSIM()):
        metric.observe(pair[0], broken, torch.empty(0))
        (value,) = metric.compute().values()
        assert np.isnan(value)


def test_perceptual_distance_is_the_losss_form_on_rounded_pictures(pair: tuple[Tensor, Tensor]) -> None:
    metric = perceptual([0, 2])
    metric.observe(*pair, torch.empty(0))
    wanted = perceptual_distance(metric.network, *map(round_pixels, pair), [0, 2], 64).mean()
    assert metric.compute() == {"perceptual_efficientnet_lite0": pytest.approx(wanted.item(), rel=1e-5)}


def test_perceptual_distance_ignores_autocast(pair: tuple[Tensor, Tensor]) -> None:
    plain, mixed = perceptual([0]), perceptual([0])
    plain.observe(pair[0][:1], pair[1][:1], torch.empty(0))
    with torch.autocast("cpu", torch.bfloat16):
        mixed.observe(pair[0][:1], pair[1][:1], torch.empty(0))
    assert plain.compute() == mixed.compute()


@pytest.mark.parametrize("make", [PSNR, SSIM, lambda: perceptual([1])])
def test_batches_do_not_matter(make, pair: tuple[Tensor, Tensor]) -> None:
    values = []
    for cuts in ([7], [1, 4, 2], [3, 3, 1]):
        metric: Metric = make()
        for pixels, reconstruction in zip(pair[0].split(cuts), pair[1].split(cuts), strict=True):
            metric.observe(pixels, reconstruction, torch.empty(0))
        values.append(metric.compute())
    for other in values[1:]:
        assert other == pytest.approx(values[0], rel=1e-6)


@pytest.mark.parametrize("make", [PSNR, SSIM, lambda: perceptual([1])])
def test_each_frame_of_a_clip_is_a_picture(make, pair: tuple[Tensor, Tensor]) -> None:
    clips, pictures = make(), make()
    a, b = (side[:6].unflatten(0, (2, 3)).transpose(1, 2) for side in pair)
    clips.observe(a, b, torch.zeros(2, 1, dtype=torch.int64))
    pictures.observe(pair[0][:6], pair[1][:6], torch.empty(0))
    assert clips.compute() == pytest.approx(pictures.compute(), rel=1e-6)


def test_ms_ssim_equals_the_inside_of_torchmetrics_scale_by_scale() -> None:
    """Maps by torchmetrics on each channel alone, borders left out; product by Wang et al., eq. 7, written out."""
    photograph = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)[None].float() / 127.5 - 1
    pixels = torch.cat([photograph[..., :177, :180], photograph[..., 200:377, 300:480]])
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    other = pixels + noise * torch.tensor([0.1, 0.6])[:, None, None, None]
    wanted = torch.zeros(2, dtype=torch.float64)
    for channel in range(3):
        a, b = (round_to_levels(picture)[:, channel : channel + 1].double() for picture in (pixels, other))
        product = torch.ones(2, dtype=torch.float64)
        for scale, exponent in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
            options = {"data_range": 255.0, "reduction": "none"}
            _, maps = structural_similarity_index_measure(b, a, return_full_image=True, **options)
            _, structure = structural_similarity_index_measure(b, a, return_contrast_sensitivity=True, **options)
            product *= (maps[..., 5:-5, 5:-5].mean((1, 2, 3)) if scale == 4 else structure) ** exponent
            a, b = halved(a), halved(b)
        wanted += product / 3
    torch.testing.assert_close(ms_ssim(pixels, other), wanted, rtol=1e-6, atol=0)
    assert 0.1 < wanted[1] < wanted[0] - 0.1 < 0.9
    assert torch.equal(ms_ssim(pixels, pixels), torch.ones(2, dtype=torch.float64))
    with pytest.raises(UserError, match="at least 176 x 176"):
        ms_ssim(pixels[..., :175], other[..., :175])


def halved(planes: Tensor) -> Tensor:
    """Mean of each 2 x 2 pixels; an odd last row or column is left out."""
    height, width = (side // 2 * 2 for side in planes.shape[-2:])
    return sum(planes[..., y:height:2, x:width:2] for y in (0, 1) for x in (0, 1)) / 4


def test_ms_ssim_of_opposite_structure_is_no_nan() -> None:
    stripes = torch.arange(176).fmod(2).mul(2).sub(1).expand(1, 3, 176, 176).contiguous()
    assert ms_ssim(stripes, -stripes).item() == 0


def test_no_data_and_wrong_shapes_are_errors(pair: tuple[Tensor, Tensor]) -> None:
    metric = PSNR()
    metric.observe(*pair, torch.empty(0))
    metric.reset()
    with pytest.raises(UserError, match="psnr_db"):
        metric.compute()
    with pytest.raises(ValueError, match="one shape"):
        metric.observe(pair[0], pair[1][:1], torch.empty(0))
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(pair[0][..., :10], pair[1][..., :10])
