"""The benchmark programs at toy size, and that what they measure is what they say."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import compare_quantizers, quantizers
from benchmarks.cases import CASES, LARGE_CASES, Case, build_side, read_ours, read_theirs
from benchmarks.compare_quantizers import result_table
from benchmarks.comparison_plots import PERCEPTUAL, plot_collapse, plot_rate
from benchmarks.dense_ibq import DenseIBQ
from benchmarks.measure import MIB, PeakMemory, SearchBound, alternating_seconds, make_inputs, take_step
from benchmarks.peak_memory import MeasurementError, measure_apart
from benchmarks.quantizer_sets import BASELINE, SETS, fsq_levels
from visual_tokenizer import build_quantizer
from visual_tokenizer.metrics.codebook_usage import codebook_statistics
from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.quantizers.base import QuantizerConfig

CPU = torch.device("cpu")
BY_NAME = {case.name: case for case in CASES}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def small(case: Case) -> Case:
    """Return a case of the same kind with few codes."""
    config = case.ours.keywords if isinstance(case.ours, functools.partial) else {}
    if "codebook_size" in config:
        size = {"codebook_size": 2**4}
    elif "base" in config:
        size = {"base": {**config["base"], "codebook_size": 2**4}}
    else:
        size = {"levels": [4, 3]}
    return dataclasses.replace(case, ours=functools.partial(case.ours, **size))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_both_sides_are_the_same_quantizer(case):
    """Indices and codes agree with published code before training, and the step gives both a gradient."""
    if case.needs_published:
        pytest.importorskip("vector_quantize_pytorch")
    case = small(case)
    sides = {side: build_side(case, side, CPU) for side in ("ours", "theirs")}
    latents, gradient = make_inputs(case, 64, CPU)
    assert quantizers.agreement(case, sides, latents) == 1.0
    reached = {}
    for side, (_, read) in sides.items():
        latents.grad = None
        take_step(read, latents, gradient)
        reached[side] = latents.grad.clone()
    if not case.differs:  # not the same losses to the last digit
        torch.testing.assert_close(reached["ours"], reached["theirs"], rtol=1e-3, atol=1e-6)


def test_another_codebook_is_a_disagreement():
    pytest.importorskip("vector_quantize_pytorch")
    case = small(BY_NAME["vq_ema"])
    sides = {side: build_side(case, side, CPU) for side in ("ours", "theirs")}
    sides["theirs"][0]._codebook.embed.neg_()
    with pytest.raises(quantizers.DisagreementError, match="'vq_ema'"):
        quantizers.agreement(case, sides, make_inputs(case, 64, CPU)[0])


def test_the_program_prints_a_row_for_each_case(tmp_path, capsys, monkeypatch):
    pytest.importorskip("vector_quantize_pytorch")
    monkeypatch.setattr(quantizers, "CASES", tuple(map(small, CASES)))
    options = ["--tokens", "32", "--repeats", "1", "--warmup", "0", "--device", "cpu", "--no-memory"]
    assert quantizers.main([*options, "--json", str(tmp_path / "found" / "speed.json")]) == 0
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "found" / "speed.json").read_text())["rows"]
    assert [row["case"] for row in rows] == [case.name for case in CASES]
    for case, row in zip(CASES, rows, strict=True):
        assert f"| {case.about} |" in printed
        assert set(row["seconds"]) == {"ours", "theirs"} | ({"bound"} if case.searches else set())
        assert row["tokens_per_second"]["ours"] == pytest.approx(32 / row["seconds"]["ours"][0])


def test_a_wrong_case_is_named(capsys):
    with pytest.raises(SystemExit):
        quantizers.main(["--case", "fsq", "vqq"])
    assert "'vqq'" in capsys.readouterr().err


def test_large_cases_are_held_against_the_budget(capsys, monkeypatch):
    case = small(next(case for case in LARGE_CASES if case.name == "lfq"))
    monkeypatch.setattr(quantizers, "LARGE_CASES", (case,))
    found = {"peak_bytes": 5 * 2**30, "seconds": [2.0]}
    monkeypatch.setattr(quantizers, "measure_apart", lambda *_, **__: found)
    assert quantizers.main(["--large", "--tokens", "16"]) == 1
    assert "| 2.00 | 5,120 | 4,096 | FAIL |" in capsys.readouterr().out
    found["peak_bytes"] = 2**30
    assert quantizers.main(["--large", "--tokens", "16"]) == 0
    assert "| 2.00 | 1,024 | 4,096 | pass |" in capsys.readouterr().out


@pytest.mark.slow  # three processes that import torch
def test_memory_is_measured_in_a_process_of_its_own():
    found = measure_apart(BY_NAME["ibq"], "ours", tokens=256, device=CPU, repeats=2)
    dense = measure_apart(BY_NAME["ibq"], "theirs", tokens=256, device=CPU)
    assert len(found["seconds"]) == 2
    # The dense formula holds tokens × codes several times over: 16 MiB each.
    assert dense["peak_bytes"] - found["peak_bytes"] > 32 * MIB
    with pytest.raises(MeasurementError, match="no_such_case"):
        measure_apart(dataclasses.replace(BY_NAME["ibq"], name="no_such_case"), "ours", tokens=16, device=CPU)


def test_peak_memory_is_that_of_the_largest_moment():
    memory = PeakMemory(CPU)
    held = torch.ones(24 * MIB // 4)
    for _ in range(2):
        torch.ones(48 * MIB // 4)  # freed at once: the second takes no more
    del held
    assert 70 <= memory.growth() / MIB < 80  # pages that were there before are not counted


def test_actions_are_timed_in_turn():
    calls: list[str] = []
    actions = {
        name: (functools.partial(calls.append, name), functools.partial(calls.append, f"before {name}"))
        for name in ("a", "b")
    }
    seconds = alternating_seconds(actions, warmup=1, repeats=2, device=CPU)
    assert calls == ["before a", "a", "before b", "b"] * 3
    assert [len(found) for found in seconds.values()] == [2, 2]


def test_the_bound_computes_every_product():
    bound = SearchBound(8, ((5, 3), (4, 3)), CPU)
    bound()
    latents, codebook = bound.operands[1]
    assert torch.equal(bound.scores[: 8 * 4].view(8, 4), latents @ codebook.t())


def test_dense_index_backpropagation_reaches_all_codes_as_ours_does():
    torch.manual_seed(0)
    fields = {
        "loss_weighting": "legacy",
        "update": {"type": "gradient"},
        "estimator": {"type": "index_backpropagation"},
    }
    ours = build_quantizer("vq", codebook_size=8, code_dim=4, **fields).train()
    dense = DenseIBQ(ours)
    latents, gradient = torch.randn(2, 6, 4, requires_grad=True), torch.randn(2, 6, 4)
    take_step(functools.partial(read_ours, ours), latents, gradient)
    take_step(functools.partial(read_theirs, dense), latents, gradient)
    torch.testing.assert_close(ours.codebook.grad, dense.codebook.grad)
    assert (dense.codebook.grad.abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("bits", range(2, 19))
def test_fsq_levels_come_near_the_rate(bits):
    levels = fsq_levels(bits)
    assert 0.9 * 2**bits < math.prod(levels) <= 2**bits
    assert min(levels) >= (5 if bits >= 5 else 2)


@pytest.mark.parametrize("bits", [4, 13])
def test_all_of_the_rate_set_cost_the_same(bits):
    for name, section in SETS["rate"](bits, 100).items():
        with torch.device("meta"):
            quantizer = QuantizerConfig.family.build(section)
        # √2^13 is no whole number, and FSQ's levels don't multiply to 2^13: 0.3 % of the rate at most.
        assert quantizer.num_codebooks * math.log2(quantizer.codebook_size) == pytest.approx(bits, rel=0.004), name


def test_each_of_the_collapse_set_changes_the_baseline():
    sections = SETS["collapse"](6, 100)
    baseline = sections[BASELINE]
    assert baseline["update"] == {"type": "gradient"}
    assert baseline["initializer"] == {"type": "random", "distribution": "uniform"}
    for name, section in sections.items():
        quantizer = QuantizerConfig.family.build(section)
        assert quantizer.codebook_size == 64
        assert (section == baseline) == (name == BASELINE)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures of coloured blocks."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for number in range(24):
        blocks = random.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((16, 16), Image.Resampling.NEAREST).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture
def arguments(pictures: Path, tmp_path: Path) -> list[str]:
    """A comparison of two steps on those pictures."""
    network = {
        "type": "cnn",
        "channels": 8,
        "channel_multipliers": [1, 2],
        "blocks_per_level": 1,
        "groups": 4,
        "latent_channels": 8,
        "middle_attention": False,
        "attention_resolutions": [],
    }
    recipe = {
        "output_dir": "run/unused",
        "image_size": 16,
        "encoder": network,
        "decoder": network,
        "losses": [{"type": "l2"}],
        "data": {
            "source": {"type": "image_folder", "folder": str(pictures), "heldout_fraction": 0.25},
            "batch_size": 4,
        },
    }
    (tmp_path / "base.yaml").write_text(json.dumps(recipe))
    return ["--recipe", str(tmp_path / "base.yaml"), "--out", str(tmp_path / "out"), "--steps", "2"]


def test_a_comparison_trains_measures_and_is_not_repeated(arguments, tmp_path, capsys):
    chosen = ["--set", "rate", "--only", "fsq", "residual", "--bits", "6", *arguments]
    assert compare_quantizers.main(chosen) == 0
    out = tmp_path / "out"
    results = json.loads((out / "rate.json").read_text())
    assert [(result["name"], result["bits"]) for result in results] == [("fsq", 6), ("residual", 6)]
    with Image.open(out / "rate.png") as plot:
        assert plot.format == "PNG"
    assert (out / "rate.md").read_text().strip() in capsys.readouterr().out

    fsq = results[0]
    tokenizer = VisualTokenizer.from_pretrained(out / "rate" / "fsq-6-bits" / "final").eval()
    assert fsq["bits_per_picture"] == 64 * 6
    assert fsq["codebook_size"] == tokenizer.codebook_size
    assert fsq["train"]["codebook_tokens"] % 64 == 0
    assert fsq["train"]["codebook_tokens"] // 64 + 1 <= 24
    assert fsq["train"]["codebook_usage"] <= 1

    trained = (out / "rate" / "fsq-6-bits" / "final" / "model.safetensors").stat().st_mtime_ns
    assert compare_quantizers.main(chosen) == 0
    assert (out / "rate" / "fsq-6-bits" / "final" / "model.safetensors").stat().st_mtime_ns == trained
    assert capsys.readouterr().out.count("was done before") == 2
    assert compare_quantizers.main([*chosen, "--optimizer.learning_rate", "1e-3"]) == 2
    assert "another recipe" in capsys.readouterr().err


def test_the_collapse_set_is_measured_against_its_baseline(arguments, tmp_path, capsys):
    chosen = ["--set", "collapse", "--only", "baseline", "simvq", "--bits", "4", *arguments]
    assert compare_quantizers.main(chosen) == 0
    results = json.loads((tmp_path / "out" / "collapse.json").read_text())
    assert [result["name"] for result in results] == ["baseline", "simvq"]
    assert "usage ÷ baseline" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "collapse.png") as plot:
        assert plot.format == "PNG"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--set", "rate", "--only", "fsqq"], "'fsqq'"),
        (["--set", "collapse", "--bits", "4", "6"], "one number of --bits"),
        (["--set", "rate", "--stepz", "3"], "--stepz"),
        (["--set", "rate", "--quantizer.levels", "[4]"], "--quantizer.levels"),
    ],
)
def test_wrong_arguments_are_named(words, complaint, capsys):
    with pytest.raises(SystemExit):
        compare_quantizers.main(words)
    assert complaint in capsys.readouterr().err


def result(name: str, bits: int, counts: list[int], psnr: float = 20.0) -> dict:
    return {
        "name": name,
        "bits": bits,
        "bits_per_picture": 32 * bits,
        "codebook_size": len(counts),
        "num_codebooks": 1,
        "images_per_second": 10.0,
        "heldout": {"psnr_db": psnr, PERCEPTUAL: 0.5},
        "train": codebook_statistics(torch.tensor([counts])),
    }


def test_the_table_has_dead_codes_and_factors():
    results = [result(BASELINE, 2, [9, 0, 0, 0]), result("ema", 2, [5, 5, 0, 0])]
    lines = result_table("collapse", results).splitlines()
    assert lines[2] == "| baseline | 64 | 4 | 20.00 | 0.500 | 25.0% | 1 | 3 | 10 | 1.0 | 1.0 |"
    assert lines[3] == "| ema | 64 | 4 | 20.00 | 0.500 | 50.0% | 2 | 2 | 10 | 2.0 | 2.0 |"
    assert "baseline" not in result_table("rate", results).splitlines()[0]


def test_plots_of_one_and_of_several_rates(tmp_path):
    one = [result("fsq", 2, [1, 1, 0, 0], 20.0), result("lfq", 2, [1, 1, 1, 0], 21.0)]
    several = [*one, result("fsq", 3, [1] * 8, 23.0)]
    for number, results in enumerate((one, several)):
        plot_rate(results, tmp_path / f"{number}.png")
        plot_collapse(results, tmp_path / f"collapse-{number}.png")
    assert len(list(tmp_path.glob("*.png"))) == 4
