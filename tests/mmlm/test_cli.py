from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from mmlm.cli import app
from mmlm.commands.parts import describe
from mmlm.merging.folder import load_merged
from mmlm.processing import MultimodalProcessor
from visual_tokenizer.registry import Family

COMMANDS = ["merge", "strip", "tokenize", "generate", "describe", "evaluate", "parts", "serve", "answer"]


def run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(*words: object) -> str:
    """Return the one line on stderr of a command that must end with exit code 2."""
    result = run(*words)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make_codec, make_model, text_tokenizer):
    """A saved visual tokenizer, a saved language model, and what `mmlm merge` makes of them."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("cli")
    make_codec(quantizer={"type": "fsq", "levels": [4, 4]}).save_pretrained(root / "codec")
    make_model(len(text_tokenizer)).save_pretrained(root / "text")
    text_tokenizer.save_pretrained(root / "text")
    result = run(
        *(
            "merge",
            "--language-model",
            root / "text",
            "--visual-tokenizer",
            root / "codec",
            "--output",
            root / "merged",
        ),
        *("--embedding-init", "mean", "--seed", 3),
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(root / "merged")
    return root


def test_merge_writes_a_plain_checkpoint_with_its_recipe(folders):
    model = AutoModelForCausalLM.from_pretrained(folders / "merged")
    processor = MultimodalProcessor.from_pretrained(folders / "merged")
    processor.check_model(model)
    assert (processor.merge.embedding_init, processor.merge.seed, processor.merge.rows % 64) == ("mean", 3, 0)
    recipe = yaml.safe_load((folders / "merged/recipe.yaml").read_text())
    assert recipe["language_model"]["path"] == str(folders / "text")
    assert not list(folders.glob(".*"))


def test_options_override_the_recipe(folders, tmp_path):
    recipe = {
        "language_model": {"type": "pretrained", "path": "nowhere"},
        "visual_tokenizer": str(folders / "codec"),
        "output_dir": "nowhere",
        "layout": {"type": "emu3"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = run(
        *("merge", "--config", tmp_path / "recipe.yaml", "--output", tmp_path / "out", "--layout", "chameleon"),
        *("--language_model.path", folders / "text", "--layout.begin_image_token", "<|go|>"),
    )
    assert result.exit_code == 0, result.output
    processor = MultimodalProcessor.from_pretrained(tmp_path / "out")
    assert processor.layout.config.type == "chameleon"
    assert "<|go|>" in processor.layout.structural_ids


def test_strip_undoes_a_merge(folders, tmp_path):
    result = run("strip", "--model", folders / "merged", "--output", tmp_path / "text")
    assert result.exit_code == 0, result.output
    before = AutoModelForCausalLM.from_pretrained(folders / "text").state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "text").state_dict()
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)
    assert AutoTokenizer.from_pretrained(tmp_path / "text").get_vocab() == (
        AutoTokenizer.from_pretrained(folders / "text").get_vocab()
    )


def test_one_picture_is_written_as_it_is_and_again_the_same(folders, tmp_path):
    words = (
        "generate",
        "--model",
        folders / "merged",
        "--device",
        "cpu",
        "--prompt",
        "a red dog",
        "--seed",
        5,
    )
    for name in ("one.png", "two.png"):
        result = run(*words, "--output", tmp_path / "new" / name)
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines() == [str(tmp_path / "new" / name)]
    first, second = (Image.open(tmp_path / "new" / name) for name in ("one.png", "two.png"))
    assert first.size == (32, 32)
    assert first.tobytes() == second.tobytes()
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["one.png", "two.png"]


def test_several_pictures_make_a_sheet(folders, tmp_path):
    (tmp_path / "prompts.txt").write_text("a blue tree\n\n  a black house \n", encoding="utf-8")
    result = run(
        *(
            "generate",
            "--model",
            folders / "merged",
            "--prompt",
            "a red dog",
            "--output",
            tmp_path / "sheet.jpg",
        ),
        *(
            "--prompts_file",
            tmp_path / "prompts.txt",
            "--num-images",
            2,
            "--guidance-scale",
            1,
            "--temperature",
            0,
        ),
    )
    assert result.exit_code == 0, result.output
    sheet = Image.open(tmp_path / "sheet.jpg")
    assert sheet.format == "JPEG"
    assert sheet.width == 2 * (128 + 8) + 8
    assert sheet.height > 3 * 128


def test_describe_prints_one_line_a_picture(folders, tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (50, 40), "red").save(tmp_path / f"{name}.png")
    result = run(
        *("describe", "--model", folders / "merged", "--max-new-tokens", 5),
        *("--image", tmp_path / "a.png", "--image", tmp_path / "b.png"),
    )
    assert result.exit_code == 0, result.output
    first, second = result.stdout.removesuffix("\n").split("\n")
    assert first == second


def test_parts_lists_every_family_with_a_line_each():
    result = run("parts")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "mmlm.layouts" in lines
    assert "visual_tokenizer.quantizers" in lines
    assert [line for line in lines if line.split()[:1] == ["emu3"] and "Emu3" in line]
    assert "cannot be loaded" not in result.stdout


def test_a_part_that_cannot_be_loaded_says_why(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "somebodys_parts").mkdir()
    files = {
        "__init__": "",
        "base": "class Base: ...\nPART = Base",
        "mine": '"""My part.\n\nMore."""\nfrom somebodys_parts.base import Base\nclass Mine(Base):\n    Config = int',
        "broken": "1 / 0",
    }
    for name, text in files.items():
        (tmp_path / f"somebodys_parts/{name}.py").write_text(text)
    family = Family("somebodys_parts")
    assert describe(family, "mine") == "My part."
    assert describe(family, "broken") == "cannot be loaded: ZeroDivisionError: division by zero"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_its_options(command):
    result = run(command, "--help")
    assert result.exit_code == 0, result.output
    assert len(result.output.splitlines()) > 5


def test_help_imports_nothing_heavy():
    program = (
        "import sys; from typer.testing import CliRunner; from mmlm.cli import app;"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0;"
        "print(sorted({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)))"
    )
    start = time.perf_counter()
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"
    assert time.perf_counter() - start < 10


def test_options_that_cannot_be_read_are_one_line_too():
    assert refused("generate", "--num-images", 0).startswith("mmlm generate: error: Invalid value for '--num_images'")
    assert refused("generate") == "mmlm generate: error: Missing option '--model'."
    assert refused("nonsense") == "mmlm: error: No such command 'nonsense'."
    without = run()
    assert without.exit_code == 2
    assert "Usage: mmlm" in without.output


def test_user_errors_are_one_line_and_exit_code_2(folders, tmp_path):
    merged, codec, text = (folders / name for name in ("merged", "codec", "text"))
    picture = tmp_path / "x.png"
    draw = ("generate", "--model", merged, "--prompt", "a", "--output", picture)
    join = ("merge", "--language-model", text, "--visual-tokenizer", codec, "--output", tmp_path / "out")
    cases = [
        ((*draw, "--temperature", -1), "mmlm generate: error: temperature must be 0 or more, got -1.0"),
        ((*draw, "--device", "abacus"), "device 'abacus' cannot be used"),
        (("generate", "--model", tmp_path, "--prompt", "a", "--output", picture), "it is not a merged model"),
        (("generate", "--model", tmp_path / "gone", "--prompt", "a", "--output", picture), "merged model"),
        (("generate", "--model", merged, "--output", picture), "give --prompt or --prompts_file"),
        (
            ("generate", "--model", merged, "--prompts_file", "gone.txt", "--output", picture),
            "no file 'gone.txt'",
        ),
        (("generate", "--model", merged, "--prompt", "a", "--output", "x.odd"), "--output must be a picture file"),
        (("describe", "--model", merged, "--image", "gone.png"), "no file 'gone.png'"),
        ((*join[:-1], merged), "exists and is not empty"),
        (
            (*join, "--layout", "emu"),
            "layout.type must be one of chameleon, emu3, llamagen, sequence, got 'emu'. Did you mean 'emu3'?",
        ),
        ((*join, "--seeed", 3), "unknown key 'seeed'"),
        ((*join, "--embedding-init", "zero"), "embedding_init must be one of"),
        (("merge", "--language-model", tmp_path, *join[3:]), "no language model with safetensors weights"),
        (("merge", "--config", "gone.yaml"), "recipe gone.yaml does not exist"),
        (("strip", "--model", codec, "--output", tmp_path / "out"), "it is not a merged model"),
        (("evaluate", "--model", merged), "give --recipe FILE or --data.type NAME"),
        (("tokenize", "--config", "gone.yaml"), "recipe gone.yaml does not exist"),
    ]
    for words, message in cases:
        assert message in refused(*words), words
    assert list(tmp_path.iterdir()) == []


def test_load_merged_gives_a_model_in_eval_mode_with_its_codec(folders):
    model, processor = load_merged(folders / "merged", "cpu")
    assert not model.training
    assert processor.codec is not None
    assert json.loads((folders / "merged/processor_config.json").read_text())["codec_hash"] == processor.codec_hash


def test_options_are_read_with_hyphens_and_by_their_former_names(tmp_path):
    for options in (["--prompts_file", "gone.txt", "--output"], ["--prompts-file", "gone.txt", "--out"]):
        result = run("generate", "--model", tmp_path, *options, tmp_path / "new.png")
        assert result.exit_code == 2
        assert "--prompts_file: no file 'gone.txt'" in result.stderr
        assert ("--out is now called --output" in result.stderr) == ("--out" in options)
