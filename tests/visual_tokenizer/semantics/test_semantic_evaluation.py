"""`evaluate --semantic` on pictures whose colour is their class: report, page, comparison, batches and processes."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import re
import socket
import time
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from torch import Tensor, multiprocessing

from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig, evaluate
from visual_tokenizer.backbones.base import Backbone, BackboneConfig
from visual_tokenizer.evaluation import meaning as semantic_evaluation
from visual_tokenizer.evaluation.meaning import mean_codes
from visual_tokenizer.evaluation.meaning_recipe import SemanticSection, with_semantic
from visual_tokenizer.outputs import TokenizerOutput
from visual_tokenizer.recipe import recipe_to_dict
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.text_encoders.base import TextEncoder, TextEncoderConfig

COLOURS = {"red": (230, 30, 20), "green": (20, 200, 40), "blue": (30, 40, 220)}


class Stub(Backbone):
    """Stands in for a network: the picture's mean colour."""

    Config = BackboneConfig
    feature_dims = (3,)
    embedding_dim = 3
    embedding_size = 8

    def __init__(self) -> None:
        super().__init__(BackboneConfig())
        self.weights_digest = "stub"

    def embedding(self, pixels: Tensor, size: int | None = None) -> Tensor:
        return pixels.mean((2, 3))


class StubText(TextEncoder):
    """Stands in for a text encoder: counts of three letters."""

    embedding_dim = 3

    def __init__(self) -> None:
        super().__init__(TextEncoderConfig())

    def forward(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[1.0 + text.count(letter) for letter in "rgb"] for text in texts])


@pytest.fixture(autouse=True)
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(semantic_evaluation, "load_backbone", lambda *_: Stub())
    monkeypatch.setattr(TextEncoderConfig.family, "build", lambda *_: StubText())


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures in a folder a colour, each with a caption."""
    folder, random, lines = tmp_path_factory.mktemp("coloured"), np.random.default_rng(0), []
    for number in range(60):
        name, colour = list(COLOURS.items())[number % 3]
        (folder / name).mkdir(exist_ok=True)
        noise = random.integers(-20, 20, (16, 16, 3))
        Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(folder / name / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{name}/{number}.png", "caption": f"a {name} thing {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def make_model(coloured: Path, tiny_recipe: Any, tmp_path: Path) -> Any:
    """Tokenizers with the recipe of those pictures beside them, as runs leave them."""

    def make(name: str = "model", quantizer: dict | None = None, **changes: Any) -> Path:
        source = {"type": "image_folder", "folder": str(coloured), "heldout_fraction": 0.4}
        recipe = tiny_recipe(**{"data.source": source, **changes})
        torch.manual_seed(0)
        sections = {part: getattr(recipe, part).to_dict() for part in ("encoder", "decoder")}
        chosen = quantizer or {"type": "vq", "codebook_size": 16, "code_dim": 4, "normalize": True}
        tokenizer = VisualTokenizer(VisualTokenizerConfig(image_size=16, quantizer=chosen, **sections))
        tokenizer.save_pretrained(tmp_path / name)
        (tmp_path / name / "recipe.yaml").write_text(yaml.safe_dump(recipe_to_dict(recipe)))
        return tmp_path / name

    return make


def report(model: Path, output: Path, *words: str) -> dict[str, Any]:
    told = ["--model", str(model), "--metrics", "[psnr]", "--sample_pictures", "0", "--output", str(output)]
    assert evaluate.main([*told, *words]) == 0
    return json.loads(output.read_text())


class Page(HTMLParser):
    """What is on the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "tags must be nested"

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_report_the_table_and_the_page(make_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(make_model(), tmp_path / "a.json", "--semantic", "--semantic.codes_shown", "3")
    values, protocol = found["semantic"]["values"], found["semantic"]["protocol"]
    assert found["semantic"]["left_out"] == {}
    assert values["knn_accuracy_teacher"] == values["linear_accuracy_teacher"] == 1
    assert values["knn_accuracy_chance"] < 0.6
    assert values["text_to_image_r1_chance"] == pytest.approx(1 / protocol["heldout_pictures"])
    assert protocol["classes"] == sorted(COLOURS)
    assert protocol["label"] == "label"
    assert protocol["train_pictures"] + protocol["heldout_pictures"] == 60
    assert protocol["seed"] == 0
    assert len(protocol["measures"]) == 6
    printed = capsys.readouterr().out
    assert "classes: 3 of label, k = 5" in printed
    assert f"| knn_accuracy | {values['knn_accuracy_codes']:.3f} | {values['knn_accuracy_tokens']:.3f} |" in printed

    text = (tmp_path / "a.html").read_text()
    page = Page(text)
    assert page.open == []
    shown = [attributes["id"] for tag, attributes in page.tags if tag == "article"]
    assert 3 <= len(shown) <= 9
    assert len(set(shown)) == len(shown)
    assert all(re.fullmatch(r"code-0-\d+", str(name)) for name in shown)
    assert "purity" in page.words
    assert not re.search(r"<script|https?:|src=", text)
    pictures = re.findall(r"\.(p\d+)\{background-image:url\(data:image/png;base64,([^)]+)\)\}", text)
    assert len(set(pictures)) == len(pictures)
    with Image.open(io.BytesIO(base64.b64decode(pictures[0][1]))) as picture:
        assert picture.size == (16, 16)
    used = {str(attributes.get("class")).split()[-1] for tag, attributes in page.tags if "role" in attributes}
    assert used == {name for name, _ in pictures}


def test_marks_are_where_the_code_is(make_model: Any, tmp_path: Path) -> None:
    model = make_model()
    report(
        model, tmp_path / "a.json", "--semantic", "--semantic.codes_shown", "1", "--semantic_page", f"{tmp_path}/p.html"
    )
    text = (tmp_path / "p.html").read_text()
    index = int(re.findall(r'id="code-0-(\d+)"', text)[0])
    rule = re.findall(r'class="picture (p\d+)" role="img" aria-label="[^"]*">(.*?)</div>', text)[0]
    data = re.search(rf"\.{rule[0]}\{{background-image:url\(data:image/png;base64,([^)]+)\)", text).group(1)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), dtype=np.float32) / 127.5 - 1
    tokenizer = VisualTokenizer.from_pretrained(model).eval()
    grid = tokenizer.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0]
    wanted = {
        (f"{100 * column / 8:.3g}%", f"{100 * row / 8:.3g}%") for row, column in (grid == index).nonzero().tolist()
    }
    assert set(re.findall(r'<i style="left:([^;]+);top:([^;]+);width:12.5%;height:12.5%">', rule[1])) == wanted


def test_tokens_without_a_place_are_swapped(make_model: Any, tmp_path: Path) -> None:
    base = {"type": "vq", "codebook_size": 16, "code_dim": 4, "normalize": True}
    model = make_model(quantizer={"type": "multi_scale", "scales": [1, 2, 8], "base": base})
    report(model, tmp_path / "a.json", "--semantic.codes_shown", "2")
    text = (tmp_path / "a.html").read_text()
    assert "difference ×" in text
    assert "<i style" not in text
    assert Page(text).open == []


def test_batches_change_nothing(make_model: Any, tmp_path: Path) -> None:
    model = make_model()
    few, many = (
        report(model, tmp_path / f"{size}.json", "--semantic", f"--batch_size={size}")["semantic"] for size in (7, 64)
    )
    assert few["protocol"] == many["protocol"]
    assert few["values"] == pytest.approx(many["values"], abs=1e-9)
    assert (tmp_path / "7.html").read_text().split("<h1>")[1] == (tmp_path / "64.html").read_text().split("<h1>")[1]


def work(rank: int, port: int, words: list[str]) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    PartialState._reset_state()
    torch.set_num_threads(1)
    assert evaluate.main(words) == 0


def test_two_processes_report_what_one_does(make_model: Any, tmp_path: Path) -> None:
    model = make_model()
    one = report(model, tmp_path / "one.json", "--semantic")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    words = ["--model", str(model), "--metrics", "[psnr]", "--sample_pictures", "0", "--semantic"]
    words += ["--output", str(tmp_path / "two.json")]
    # Forked, because importing everything anew in each process would take far longer than the test itself.
    processes = multiprocessing.start_processes(work, (port, words), nprocs=2, join=False, start_method="fork")
    deadline = time.monotonic() + 120
    while not processes.join(timeout=1):
        if time.monotonic() > deadline:
            for process in processes.processes:
                process.kill()
            pytest.fail("the two processes did not finish within 120 s")
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["semantic"]["protocol"] == one["semantic"]["protocol"]
    assert two["semantic"]["values"] == pytest.approx(one["semantic"]["values"], abs=1e-9)
    assert (tmp_path / "two.html").read_text() == (tmp_path / "one.html").read_text()


def test_reports_are_compared_where_both_say_what_tokens_mean(
    make_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model()
    paths = {
        name: tmp_path / f"{name}.json"
        for name, words in (
            ("a", ["--semantic"]),
            ("b", ["--semantic"]),
            ("plain", []),
            ("seed", ["--semantic.seed=1"]),
        )
        if report(model, tmp_path / f"{name}.json", *words)
    }
    capsys.readouterr()

    def compare(*names: str) -> tuple[int, str, str]:
        words = ["--compare", json.dumps([str(paths[name]) for name in names]), "--output", str(tmp_path / "out")]
        code = evaluate.main([*words, "--sample_pictures", "0"])
        said = capsys.readouterr()
        return code, said.out, said.err

    code, table, _ = compare("a", "b")
    assert code == 0
    assert "knn_accuracy_codes" in table.splitlines()[0]
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["semantic_protocol"]["seed"] == 0
    code, table, _ = compare("a", "plain")
    assert (code, "knn" in table) == (0, False)
    code, _, complaint = compare("a", "seed")
    assert code == 2
    assert "semantic.seed: 0 and 1" in complaint


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--semantic.label", "colour"],
            "semantic.label must be, for the source image_folder, one of label, got 'colour'",
        ),
        (["--semantic.measures", "[knnn]"], "Did you mean 'knn'"),
        (["--semantic.measures", "[knn, knn]"], "measures must hold each once, got knn twice"),
        (["--semantic.max_pictures", "3"], "max_pictures must be 10 or more, got 3"),
        (["--semantic.pictures_shown", "0"], "pictures_shown must be 1 or more, got 0"),
        (["--semantic_page", "p.html"], "semantic_page must be null without --semantic, got 'p.html'"),
    ],
)
def test_errors_end_in_one_line(
    make_model: Any, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model()
    assert evaluate.main(["--model", str(model), "--output", str(model / "x.json"), *words]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_what_pictures_do_not_allow_is_left_out_or_refused(
    make_model: Any, pictures_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder without subfolders and captions has no classes and no words; the page shows codes all the same."""
    source = {"type": "image_folder", "folder": str(pictures_folder), "heldout_fraction": 0.4}
    model = make_model(**{"data.source": source})
    found = report(model, tmp_path / "a.json", "--semantic", "--semantic.codes_shown=2")["semantic"]
    assert found["values"] == {}
    assert found["left_out"]["knn"].endswith("training pictures have labels, 10 are needed")
    assert "was left out" in capsys.readouterr().out
    assert "<article" in (tmp_path / "a.html").read_text()
    words = ["--model", str(model), "--output", str(tmp_path / "b.json"), "--semantic.measures", "[zero_shot]"]
    assert evaluate.main(words) == 2
    assert "zero_shot can't be measured" in capsys.readouterr().err


def test_the_mean_is_over_a_pictures_own_codes() -> None:
    codes = torch.tensor([[[2.0], [4.0], [0.0]], [[1.0], [2.0], [6.0]]])
    fields: dict[str, Any] = dict.fromkeys(("pixels", "indices", "latents", "raw"), torch.zeros(1))
    assert mean_codes(TokenizerOutput(codes=codes, **fields)).flatten().tolist() == [2, 3]
    present = torch.tensor([[True, True, False], [True, True, True]])
    assert mean_codes(TokenizerOutput(codes=codes, present=present, **fields)).flatten().tolist() == [3, 3]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--semantic"], ["--semantic={}"]),
        (["--semantic", "true", "--x", "1"], ["--semantic={}", "--x", "1"]),
        (["--semantic.seed", "2", "--semantic"], ["--semantic={}", "--semantic.seed", "2"]),
        (["--semantic=false", "--x=1"], ["--x=1"]),
        (["--semantic", "{seed: 3}"], ["--semantic={seed: 3}"]),
        (["--x", "1"], ["--x", "1"]),
    ],
)
def test_the_word_alone_is_enough(words: list[str], wanted: list[str]) -> None:
    assert with_semantic(words) == wanted


def test_without_scikit_learn_nothing_is_begun(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    words = ["--model", "nowhere", "--output", "a.json", "--semantic"]
    assert evaluate.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "need the package scikit-learn: pip install 'mmlm[semantics]'" in line


def test_all_measures_are_made_unless_some_are_named() -> None:
    assert len(SemanticSection().measure_configs()) == 6
    section = SemanticSection(measures=[{"type": "knn", "neighbours": 3}])
    assert [config.neighbours for config in section.measure_configs()] == [3]
    with pytest.raises(ConfigError, match="names or mappings"):
        SemanticSection(measures=[4])
    with pytest.raises(ConfigError, match="measures must hold each once, got knn twice"):
        SemanticSection(measures=["knn", {"type": "knn", "neighbours": 3}])
