"""The benchmark of whole tokenizers at toy size, and that it notices when the sides disagree."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import architectures
from benchmarks.architectures import MODELS, THEIRS, agreement, build_sides, meets_targets, pixel_error
from benchmarks.quantizers import DisagreementError

QUICK = ["--small", "--size", "32", "--repeats", "1", "--warmup", "0", "--device", "cpu"]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_all_models_are_measured(tmp_path, capsys):
    results = tmp_path / "results.json"
    assert architectures.main([*QUICK, "--variant", "ours", "channels_last", "--json", str(results)]) == 0
    rows = json.loads(results.read_text())["rows"]
    measured = {(row["model"], row["what"]) for row in rows}
    assert measured == {(name, "encode") for name in MODELS} | {("janus", "decode"), ("emu3", "decode")}
    for row in rows:
        speeds = row["pictures_per_second"]
        assert set(speeds) == {THEIRS, "ours", "channels_last"}
        assert row["ratios"]["ours"] == pytest.approx(speeds["ours"] / speeds[THEIRS])
        share = speeds["ours"] * row["flops"] / row["product_flops_per_second"]
        assert row["shares_of_bound"]["ours"] == pytest.approx(share)
        assert row["flops"] > 1e6
        assert row.get("same_indices", 1.0) == 1.0
        assert row.get("pixel_error", 0.0) < 1e-4
    printed = capsys.readouterr().out
    assert "| emu3, decode |" in printed
    assert "four equal frames" in printed


def test_variants_are_what_they_are_called(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    theirs = MODELS["janus"].build(True).eval()
    sides = build_sides("janus", theirs, ["ours", "channels_last", "compiled"])
    assert compiled == ["CNN", "UnitSphere"]
    plain, last = (sides.decode[name].__self__ for name in ("ours", "channels_last"))
    assert plain.encoder.head.weight.is_contiguous()
    assert last.encoder.head.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last.encoder.head.weight, plain.encoder.head.weight)


def test_a_side_that_does_something_else_is_noticed():
    indices = torch.arange(100).view(1, 100)
    assert agreement("x", {THEIRS: indices, "ours": indices.clone()}) == 1.0
    with pytest.raises(DisagreementError, match=r"'ours' has 50.00%"):
        agreement("x", {THEIRS: indices, "ours": indices.clamp(max=49)})
    pixels = torch.zeros(1, 3, 2, 2)
    with pytest.raises(DisagreementError, match=r"'ours' are up to 0.5"):
        pixel_error("x", {THEIRS: pixels, "ours": pixels + 0.5})
    with pytest.raises(DisagreementError):
        pixel_error("x", {THEIRS: pixels, "ours": pixels * torch.nan})


def test_targets():
    slow = {"ours": 0.5, "compiled": 0.6}
    assert meets_targets({"ours": 0.96, "compiled": 1.4}, slow)
    assert not meets_targets({"ours": 0.9, "compiled": 1.4}, slow)
    assert not meets_targets({"ours": 1.1, "compiled": 1.2}, slow)
    assert meets_targets({"ours": 1.1, "compiled": 1.2}, {"ours": 0.8, "compiled": 0.95})
    assert not meets_targets({"ours": 0.9, "compiled": 1.2}, {"ours": 0.8, "compiled": 0.95})


def test_wrong_arguments():
    with pytest.raises(SystemExit) as error:
        architectures.main(["--model", "dalle"])
    assert error.value.code == 2
