"""Reports side by side: refused unless measured alike; one table, one plot, one grid."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig, evaluate
from visual_tokenizer.data.transforms import pixels_to_bytes
from visual_tokenizer.errors import UserError
from visual_tokenizer.evaluation.comparison import check_protocols, load_report, short_names
from visual_tokenizer.evaluation.plots import GAP
from visual_tokenizer.evaluation.reconstruction import reconstruct
from visual_tokenizer.recipe import recipe_to_dict

PROTOCOL = {
    "split": "heldout",
    "source": {"type": "openmoji", "resolution": 64},
    "pictures": 10,
    "metrics": [{"type": "psnr", "measures": "dB"}, {"type": "fid", "weights_digest": "a"}],
}


def report_of(psnr: float, **changes: object) -> dict:
    rates = {"tokens_per_picture": 16, "codebook_size": 8, "bits_per_picture": 48.0, "bits_per_pixel": 0.1}
    metrics = {"psnr_db": psnr, "perceptual_vgg16": 0.3}
    return {"model": "/nowhere", "metrics": metrics, "protocol": {**copy.deepcopy(PROTOCOL), **changes}, **rates}


def write(folder: Path, name: str, report: dict) -> str:
    (folder / name).write_text(json.dumps(report))
    return str(folder / name)


def test_the_table_the_plot_and_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [write(tmp_path, f"{name}.json", report_of(psnr)) for name, psnr in (("low", 20.25), ("high", 30.5))]
    output = tmp_path / "out"
    assert evaluate.main(["--compare", f"[{', '.join(paths)}]", "--output", str(output)]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed == (output / "comparison.md").read_text().strip()
    header, _, low, high = (line.split(" | ") for line in printed.splitlines())
    column = header.index("psnr_db")
    assert (low[0], low[column], high[0], high[column]) == ("| low", "20.25", "| high", "30.5")
    assert header.index("bits_per_pixel") < column
    found = json.loads((output / "comparison.json").read_text())
    assert found["rows"]["high"]["psnr_db"] == 30.5
    assert found["protocol"] == PROTOCOL
    with Image.open(output / "rate_distortion.png") as plot:
        assert plot.size == (700, 700)  # one panel for PSNR, one for the perceptual distance
    assert not (output / "reconstructions.png").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "all"}, "split: 'heldout' and 'all'"),
        ({"source": {"type": "openmoji", "resolution": 32}}, "source.resolution: 64 and 32"),
        ({"pictures": 11}, "pictures: 10 and 11"),
        (
            {"metrics": [PROTOCOL["metrics"][0], {"type": "fid", "weights_digest": "b"}]},
            "metrics.fid.weights_digest: 'a'",
        ),
        ({"metrics": PROTOCOL["metrics"][:1]}, "metrics.fid.type: 'fid' and None"),
    ],
)
def test_other_protocols_are_refused(
    changes: dict, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [write(tmp_path, "a.json", report_of(20)), write(tmp_path, "b.json", report_of(30, **changes))]
    assert evaluate.main(["--compare", json.dumps(paths), "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "a and b were not measured alike" in said
    assert message in said
    assert not (tmp_path / "out").exists()


def test_only_what_differs_is_named() -> None:
    with pytest.raises(UserError) as raised:
        check_protocols({"a": report_of(1), "b": report_of(2), "c": report_of(3, pictures=9)})
    assert str(raised.value).endswith("protocol fields that differ: pictures: 10 and 9")
    check_protocols({"a": report_of(1), "b": report_of(2)})


def test_what_is_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError, match="there is no report"):
        load_report(tmp_path / "absent.json")
    with pytest.raises(FileNotFoundError, match=r"holds no evaluation-\*\.json"):
        load_report(tmp_path)
    write(tmp_path, "evaluation-heldout.json", {"metrics": {}})
    with pytest.raises(UserError, match="it needs the keys model, metrics and protocol"):
        load_report(tmp_path)
    write(tmp_path, "evaluation-all.json", report_of(1))
    with pytest.raises(UserError, match="holds 2 reports; name one"):
        load_report(tmp_path)
    assert evaluate.main(["--compare", "[one.json]"]) == 2
    assert "compare must hold 2 or more items, got" in capsys.readouterr().err


def test_names_are_as_short_as_they_tell_apart() -> None:
    assert short_names([Path("/runs/a/final"), Path("/runs/b/final")]) == ["a/final", "b/final"]
    assert short_names([Path("/x/a.json"), Path("/x/b.json")]) == ["a", "b"]


def test_the_grid_shows_originals_and_each_models_reconstruction(tiny_recipe, tmp_path: Path) -> None:
    """Two tokenizers evaluated and compared as a user does it; the grid's rows are compared pixel by pixel."""
    recipe = tiny_recipe()
    sections = {name: getattr(recipe, name).to_dict() for name in ("encoder", "decoder")}
    folders = []
    for bits in (2, 4):
        torch.manual_seed(bits)
        quantizer = {"type": "vq", "codebook_size": 2**bits, "code_dim": 4}
        folder = tmp_path / f"model-{bits}"
        VisualTokenizer(VisualTokenizerConfig(image_size=16, quantizer=quantizer, **sections)).save_pretrained(folder)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe_to_dict(recipe)))
        assert evaluate.main(["--model", str(folder), "--metrics", "[psnr]", "--sample_pictures", "0"]) == 0
        folders.append(folder)
    output = tmp_path / "out"
    words = ["--compare", json.dumps([str(folder) for folder in folders]), "--output", str(output)]
    assert evaluate.main([*words, "--sample_pictures", "3"]) == 0
    rows = json.loads((output / "comparison.json").read_text())["rows"]
    assert rows["model-4"]["bits_per_pixel"] == 2 * rows["model-2"]["bits_per_pixel"] == 1
    with Image.open(output / "reconstructions.png") as image:
        grid = torch.from_numpy(np.array(image.convert("RGB")))
    assert grid.shape[:2] == (GAP + 3 * (16 + GAP), GAP + 3 * (16 + GAP))

    def cell(row: int, column: int) -> torch.Tensor:
        top, left = (GAP + place * (16 + GAP) for place in (row, column))
        return grid[top : top + 16, left : left + 16].permute(2, 0, 1)

    originals = torch.stack([cell(0, column) for column in range(3)])
    for row, folder in enumerate(folders, start=1):
        tokenizer = VisualTokenizer.from_pretrained(folder).eval()
        _, wanted = reconstruct(tokenizer, originals.float() / 127.5 - 1)
        for column in range(3):
            difference = cell(row, column).int() - pixels_to_bytes(wanted[column]).int()
            assert difference.abs().max() <= 1
