"""The Fréchet distance against torchmetrics, scipy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import skimage.data
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from visual_tokenizer.backbones.base import Backbone, BackboneConfig, load_backbone
from visual_tokenizer.errors import UserError
from visual_tokenizer.metrics.base import frechet_distance, round_to_levels
from visual_tokenizer.metrics.feature_distance import FeatureDistance


def describe(levels: Tensor) -> Tensor:
    """Eight smooth numbers a picture from (B, 3, 8, 8) levels 0..255."""
    means = nn.functional.adaptive_avg_pool2d(levels.float() / 255, 2).flatten(1)[:, :8]
    return torch.tanh(3 * means - 1)


class Small(Backbone):
    """Stands in for a pretrained network."""

    Config = BackboneConfig
    feature_dims = (8,)
    embedding_dim = 8
    embedding_size = 8

    def __init__(self) -> None:
        super().__init__(BackboneConfig())

    def embedding(self, pixels: Tensor, size: int | None = None) -> Tensor:
        return describe((pixels + 1) * 127.5)


class LevelsToFeatures(nn.Module):
    num_features = 8

    def forward(self, levels: Tensor) -> Tensor:
        return describe(levels)


def pictures(count: int, seed: int, bias: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randn(count, 3, 1, 1, generator=generator) * 0.5
    return (colours + 0.3 * torch.randn(count, 3, 8, 8, generator=generator) + bias).clamp(-1, 1)


def distance_in_batches(reference: Tensor, generated: Tensor, cuts: int) -> dict[str, float]:
    metric = FeatureDistance(network=Small())
    for is_reference, pixels in ((True, reference), (False, generated)):
        for part in pixels.split(cuts):
            metric.update(part, is_reference=is_reference)
    return metric.compute()


def test_equals_torchmetrics_and_batches_do_not_matter() -> None:
    reference, generated = pictures(150, 0, 0.0), pictures(101, 1, 0.1)
    theirs = FrechetInceptionDistance(feature=LevelsToFeatures(), normalize=False).set_dtype(torch.float64)
    for real, pixels in ((True, reference), (False, generated)):
        theirs.update(round_to_levels(pixels).to(torch.uint8), real=real)
    wanted = theirs.compute().item()
    for cuts in (150, 37, 1):
        values = distance_in_batches(reference, generated, cuts)
        assert values["FD-base"] == pytest.approx(wanted, rel=1e-5)
        assert values["FD-base_n_reference"] == 150
        assert values["FD-base_n_generated"] == 101


def test_equals_general_matrix_root() -> None:
    generator = np.random.default_rng(0)
    roots = generator.normal(size=(2, 12, 12))
    first, second = (root @ root.T for root in roots)
    means = generator.normal(size=(2, 12))
    root = scipy.linalg.sqrtm(first @ second).real
    wanted = ((means[0] - means[1]) ** 2).sum() + np.trace(first + second - 2 * root)
    found = frechet_distance(*(torch.from_numpy(a) for a in (means[0], first, means[1], second)))
    assert found == pytest.approx(wanted, rel=1e-9)


def test_gaussians_on_a_line() -> None:
    """In one dimension the distance is (m_a - m_b)^2 + (s_a - s_b)^2."""
    tensors = [torch.tensor(value) for value in ([1.0], [[4.0]], [3.5], [[9.0]])]
    assert frechet_distance(*tensors) == pytest.approx(2.5**2 + 1)


def test_singular_covariances() -> None:
    """Fewer pictures than dimensions: equal sets are at 0, and a shift by one costs its square."""
    features = torch.randn(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance, mean = features.T.cov(), features.mean(0)
    assert frechet_distance(mean, covariance, mean, covariance) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(mean, covariance, mean + 1, covariance) == pytest.approx(40, rel=1e-5)


class FirstChannels(Backbone):
    """Part of EfficientNet-Lite0's embedding, so that the eigenvalues take no time."""

    Config = BackboneConfig
    feature_dims = (8,)
    embedding_dim = 64
    embedding_size = 64

    def __init__(self) -> None:
        super().__init__(BackboneConfig())
        self.network = load_backbone("efficientnet_lite0")

    def embedding(self, pixels: Tensor, size: int | None = None) -> Tensor:
        return self.network.embedding(pixels, 64)[:, :64]


def test_grows_with_blur() -> None:
    photograph = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)[None].float() / 127.5 - 1
    patches = nn.functional.unfold(photograph, 64, stride=64).view(3, 64, 64, -1).permute(3, 0, 1, 2)
    network = FirstChannels()
    values = []
    for radius in (0, 1, 4):
        padded = nn.functional.pad(patches, (radius,) * 4, mode="reflect")
        metric = FeatureDistance(network=network)
        metric.update(patches, is_reference=True)
        metric.update(nn.functional.avg_pool2d(padded, 2 * radius + 1, stride=1), is_reference=False)
        values.append(metric.compute()["FD-base"])
    assert values[0] == pytest.approx(0, abs=1e-4)
    assert values == sorted(values)
    assert values[2] > 2 * values[1] > 0.1


def test_is_named_after_the_network_and_never_fid() -> None:
    metric = FeatureDistance()
    assert metric.name == "FD-efficientnet_lite0"
    assert metric.sums["generated_outer"].shape == (1280, 1280)


def test_too_few_pictures() -> None:
    metric = FeatureDistance(network=Small())
    metric.update(pictures(3, 0, 0.0), is_reference=True)
    metric.update(pictures(1, 0, 0.0), is_reference=False)
    with pytest.raises(UserError, match="generated set needs 2 pictures or more, got 1"):
        metric.compute()
