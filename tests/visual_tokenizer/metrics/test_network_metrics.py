"""FID, FVD, LPIPS and face fidelity: their networks, what they are called, what they say when weights are missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from visual_tokenizer.backbones.base import Backbone, BackboneConfig, MissingWeightsError
from visual_tokenizer.errors import UserError
from visual_tokenizer.metrics import face_fidelity, fid, fvd
from visual_tokenizer.metrics.base import MetricConfig, round_to_levels
from visual_tokenizer.metrics.face_fidelity import FaceFidelity, FaceFidelityConfig
from visual_tokenizer.metrics.feature_distance import FeatureDistance
from visual_tokenizer.metrics.fid import FID
from visual_tokenizer.metrics.fvd import FVD
from visual_tokenizer.metrics.lpips import LPIPSMetric


class Means(Backbone):
    """Stands in for a network: means of quarters of a picture, or of the frames of a clip."""

    Config = BackboneConfig
    feature_dims = (12,)
    embedding_dim = 12
    embedding_size = 8

    def __init__(self, takes_clips: bool = False) -> None:
        super().__init__(BackboneConfig())
        self.takes_clips = takes_clips  # type: ignore[misc]

    def embedding(self, pixels: Tensor, size: int | None = None) -> Tensor:
        maps = pixels.mean(2) if pixels.ndim == 5 else pixels
        return nn.functional.adaptive_avg_pool2d(maps, 2).flatten(1)


class OfLevels(nn.Module):
    """The same network in the form that torchmetrics asks for."""

    num_features = 12

    def forward(self, levels: Tensor) -> Tensor:
        return Means().embedding(levels.double() / 127.5 - 1)


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.6).clamp(-1, 1)


def test_fid_equals_torchmetrics_given_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fid, "load_backbone", lambda *_: Means())
    pixels, other = pictures(40, 3, 8, 8), pictures(40, 3, 8, 8, seed=1) * 0.8 + 0.1
    theirs = FrechetInceptionDistance(feature=OfLevels(), normalize=False).set_dtype(torch.float64)
    for real, batch in ((True, pixels), (False, other)):
        theirs.update(round_to_levels(batch).to(torch.uint8), real=real)
    metric = FID()
    metric.observe(pixels, other, torch.zeros(0))
    found = metric.compute()
    assert found["FID"] == pytest.approx(theirs.compute().item(), rel=1e-4)
    assert (found["FID_n_reference"], found["FID_n_generated"]) == (40, 40)


def test_fid_and_fvd_ask_for_their_own_networks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for module in (fid, fvd):
        monkeypatch.setattr(module, "load_backbone", lambda name, weights: asked.append(name) or Means())
    FID()
    FVD()
    assert asked == ["inception_v3", "i3d"]
    # No other metric's name can be read as FID.
    assert FeatureDistance(network=Means()).name == "FD-base"


def test_fid_of_clips_takes_their_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fid, "load_backbone", lambda *_: Means())
    clips, pictured = FID(), FID()
    pixels, other = pictures(4, 3, 5, 8, 8), pictures(4, 3, 5, 8, 8, seed=1)
    clips.observe(pixels, other, torch.zeros(0))
    pictured.observe(*(side.transpose(1, 2).flatten(0, 1) for side in (pixels, other)), torch.zeros(0))
    assert clips.compute() == pytest.approx(pictured.compute())
    assert clips.compute()["FID_n_reference"] == 20


def test_fvd_is_the_frechet_distance_of_clips_by_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fvd, "load_backbone", lambda *_: Means(takes_clips=True))
    pixels, other = pictures(30, 3, 4, 8, 8), pictures(30, 3, 4, 8, 8, seed=1) + 0.2

    class OfClips(nn.Module):
        num_features = 12

        def forward(self, levels: Tensor) -> Tensor:
            return Means().embedding(levels.double() / 127.5 - 1)

    theirs = FrechetInceptionDistance(feature=OfClips(), normalize=False).set_dtype(torch.float64)
    for real, batch in ((True, pixels), (False, other)):
        theirs.update(round_to_levels(batch).to(torch.uint8), real=real)
    metric = FVD()
    metric.observe(pixels, other, torch.zeros(0))
    assert metric.compute()["FVD"] == pytest.approx(theirs.compute().item(), rel=1e-4)
    with pytest.raises(UserError, match="clips must be"):
        metric.observe(pixels[:, :, 0], other[:, :, 0], torch.zeros(0))


def test_face_similarity_is_the_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face_fidelity, "load_backbone", lambda *_: Means())
    metric = FaceFidelity(FaceFidelityConfig(weights="stub"))
    pixels, other = (round_to_levels(pictures(3, 3, 8, 8, seed=seed)) / 127.5 - 1 for seed in (0, 1))
    metric.observe(pixels, other, torch.empty(0))
    a, b = (Means().embedding(side).double() for side in (pixels, other))
    wanted = ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean().item()
    assert metric.compute() == {"face_similarity": pytest.approx(wanted, rel=1e-6)}
    metric.reset()
    metric.observe(pixels, pixels, torch.empty(0))
    assert metric.compute()["face_similarity"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"type": "fid"}, "inception-2015-12-05"),
        ({"type": "fid", "weights": "/nowhere/x.pth"}, "/nowhere/x.pth"),
        ({"type": "fvd"}, r"rgb_imagenet\.pt"),
        ({"type": "lpips"}, "vgg"),
        ({"type": "face_fidelity"}, "face_fidelity needs weights"),
        ({"type": "feature_distance", "network": "vgg16"}, "vgg16-397923af"),
    ],
)
def test_missing_weights_are_named(
    section: dict, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingWeightsError, match=message):
        MetricConfig.family.build(section)


def test_a_network_of_clips_is_no_network_of_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face_fidelity, "load_backbone", lambda *_: Means(takes_clips=True))
    with pytest.raises(ValueError, match="looks at clips"):
        FaceFidelity(FaceFidelityConfig(weights="stub"))


def test_lpips_reports_the_loss_on_rounded_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    from visual_tokenizer.metrics import lpips

    class Squares:
        weights_digest = "stub"

        def __init__(self, config: object) -> None:
            pass

        def to(self, device: torch.device) -> None:
            pass

        def distance(self, pixels: Tensor, reconstruction: Tensor) -> Tensor:
            return (pixels - reconstruction).square().mean((1, 2, 3))

    monkeypatch.setattr(lpips, "Lpips", Squares)
    metric = LPIPSMetric()
    metric.observe(torch.full((2, 3, 4, 4), 3.0), torch.full((2, 3, 4, 4), -1.001), torch.empty(0))
    assert metric.compute() == {"lpips_vgg": pytest.approx(4.0)}
