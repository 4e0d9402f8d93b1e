from __future__ import annotations

import pytest
from PIL import Image
from typer.testing import CliRunner

from mmlm.cli import app
from mmlm.generation.best_of import CaptionLikelihood, generate_best
from mmlm.generation.images import generate_images
from mmlm.merging.folder import load_merged


@pytest.fixture
def run(merged_folder):
    """Run a command on the tiny model."""

    def run(*words: object):
        words = (words[0], "--model", merged_folder, "--device", "cpu", *words[1:])
        return CliRunner().invoke(app, [str(word) for word in words])

    return run


@pytest.fixture(scope="session")
def loaded(merged_folder):
    return load_merged(merged_folder, "cpu")


@pytest.fixture
def red(tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


def test_a_picture_is_edited(run, loaded, red, tmp_path):
    options = ("--image-guidance-scale", 1.2, "--negative-prompt", "blue", "--guidance-scale", 2, "--seed", 3)
    result = run("generate", "--prompt", "a dog", "--image", red, *options, "--output", tmp_path / "out.png")
    assert result.exit_code == 0, result.output
    (wanted,) = generate_images(
        *loaded,
        [[Image.open(red), "a dog"]],
        guidance_scale=2,
        image_guidance_scale=1.2,
        negative_prompt="blue",
        seed=3,
    )
    assert Image.open(tmp_path / "out.png").tobytes() == wanted.tobytes()


def test_the_best_of_several(run, loaded, tmp_path):
    result = run("generate", "--prompt", "a dog", "--best-of", 3, "--output", tmp_path / "out.png")
    assert result.exit_code == 0, result.output
    (wanted,) = generate_best(*loaded, ["a dog"], 3, CaptionLikelihood(*loaded))
    assert Image.open(tmp_path / "out.png").tobytes() == wanted.tobytes()


def test_an_answer_of_text_and_pictures(run, red, tmp_path):
    words = ("--prompt", "{1} is red", "--image", red, "--max-new-tokens", 60, "--open-image", "--max-images", 2)
    result = run("answer", *words, "--output", tmp_path / "answer")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "answer/answer.md").read_text()
    assert text.startswith("![1.png](1.png)")
    assert Image.open(tmp_path / "answer/1.png").size == (32, 32)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("generate", "--prompt", "a", "--best-of", 2, "--num-images", 2, "--output", "a.png"), "--best_of gives one"),
        (("generate", "--prompt", "a", "--image", "no.png", "--output", "a.png"), "--image: no file 'no.png'"),
        (("answer", "--prompt", "{1} {3}", "--output", "new"), "names the pictures [1, 3], but there are 0"),
        (("answer", "--output", "."), "exists"),
        (("generate", "--prompt", "a", "--top-p", 0, "--output", "a.png"), "top_p must be in (0, 1], got 0.0"),
        (
            ("generate", "--prompt", "a", "--guidance-scale", -1, "--output", "a.png"),
            "guidance_scale must be 0 or more",
        ),
        (("generate", "--prompt", "a", "--num-images", 0, "--output", "a.png"), "--num_images"),
        (("answer", "--temperature", -1, "--output", "new"), "temperature must be 0 or more, got -1.0"),
    ],
)
def test_what_does_not_fit_together(run, words, message):
    result = run(*words)
    assert result.exit_code == 2
    assert message in result.stderr
