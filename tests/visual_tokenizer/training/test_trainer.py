from __future__ import annotations

import ast
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import typing
from itertools import chain
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import visual_tokenizer
from visual_tokenizer import VisualTokenizer, build_quantizer, train
from visual_tokenizer.data.batches import DataSection
from visual_tokenizer.data.sources.base import DataSourceError
from visual_tokenizer.errors import DivergedError, Interrupted, UserError
from visual_tokenizer.recipe import recipe_to_dict
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.runs.manifest import CheckpointError
from visual_tokenizer.training.callbacks import Callback
from visual_tokenizer.training.optimization import WeightAverage, build_optimizer, decayed_names, learning_rate
from visual_tokenizer.training.recipe import AdversarialSection, OptimizerSection, TokenizerRecipe, TrainingSection
from visual_tokenizer.training.trainer import TokenizerTrainer

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
PACKAGE = Path(visual_tokenizer.__file__).parent


def curve(folder: Path | str, name: str = "loss") -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line[name]) for line in lines if name in line]


class At(Callback):
    """Calls `action(trainer)` after one step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step(self, trainer):
        if trainer.step == self.step:
            self.action(trainer)


def fail(trainer):
    raise RuntimeError("the machine fell over")


def trained(recipe, *callbacks) -> TokenizerTrainer:
    trainer = TokenizerTrainer(recipe)
    trainer.callbacks.extend(callbacks)
    trainer.train()
    return trainer


def test_a_run_leaves_everything_a_user_needs(tiny_recipe):
    recipe = tiny_recipe(training__sample_every_steps=3, training__evaluate_every_steps=3)
    trainer = trained(recipe)
    folder = trainer.folder
    assert {path.name for path in folder.iterdir()} == {
        "checkpoints", "final", "log.jsonl", "plots", "recipe.yaml", "samples",
    }  # fmt: skip
    assert {path.name for path in (folder / "final").iterdir()} == {
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json", "recipe.yaml", "samples.png",
    }  # fmt: skip
    assert [path.name for path in sorted((folder / "samples").iterdir())] == ["step-000003.png", "step-000006.png"]
    with Image.open(folder / "plots" / "loss.png") as plot:
        assert plot.format == "PNG"
    steps = [step for step, _ in curve(folder)]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in curve(folder, "heldout/psnr_db")] == [3, 6]
    total = dict(curve(folder))[1]
    terms = [dict(curve(folder, f"loss/{name}"))[1] for name in ("l2", "l1", "quantizer_commitment")]
    assert total == pytest.approx(sum(terms), rel=1e-5)
    assert dict(curve(folder, "learning_rate"))[1] == 1e-4
    assert min(dict(curve(folder, "codebook/usage")).values()) > 0

    loaded = VisualTokenizer.from_pretrained(folder / "final").eval()
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(loaded.encode(pixels), trainer.average.module.encode(pixels))
    assert not torch.equal(loaded.encoder.stem.weight, trainer.tokenizer.encoder.stem.weight)
    card = (folder / "final" / "README.md").read_text()
    assert "| Codebook size | 16 |" in card
    assert "| Tokens a picture | 64 (8 × 8) |" in card
    assert "psnr_db" in card
    assert recipe_to_dict(recipe) == yaml.safe_load((folder / "final" / "recipe.yaml").read_text())


def test_an_interrupted_run_goes_on_to_the_same_bits(tiny_recipe, tmp_path):
    # Logging every 4 and saving every 2 steps: the means in the making have to survive as well.
    settings = {"training__log_every_steps": 4, "training__max_steps": 10, "training__gradient_accumulation_steps": 2}
    straight = trained(tiny_recipe(output_dir=str(tmp_path / "straight"), **settings))
    broken = tiny_recipe(output_dir=str(tmp_path / "broken"), **settings)
    for step in (7, 9):
        with pytest.raises(RuntimeError, match="fell over"):
            trained(broken, At(step, fail))
    resumed = trained(broken)
    assert curve(resumed.folder) == curve(straight.folder)
    assert [step for step, _ in curve(resumed.folder)] == [4, 8, 10]
    for name in ("model", "average", "optimizer", "process-0"):
        first = load_file(straight.folder / "checkpoints" / "step-00000010" / f"{name}.safetensors")
        second = load_file(resumed.folder / "checkpoints" / "step-00000010" / f"{name}.safetensors")
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name
    assert [p.name for p in sorted((resumed.folder / "checkpoints").iterdir())] == ["step-00000008", "step-00000010"]


def test_a_killed_process_goes_on_exactly(tiny_recipe, tmp_path):
    settings = {"training__max_steps": 30, "training__checkpoint_every_steps": 5}
    straight = trained(tiny_recipe(output_dir=str(tmp_path / "straight"), **settings))
    recipe = tiny_recipe(output_dir=str(tmp_path / "killed"), **settings)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_to_dict(recipe)))
    command = [sys.executable, "-m", "visual_tokenizer.train", "--config", str(tmp_path / "recipe.yaml")]
    log = Path(recipe.output_dir) / "log.jsonl"
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 7):
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 7 <= len(curve(recipe.output_dir)) < 30
    assert (Path(recipe.output_dir) / "run.lock").exists()
    resumed = trained(recipe)
    assert curve(resumed.folder) == curve(straight.folder)
    assert not (resumed.folder / "run.lock").exists()


def test_sigterm_ends_the_run_after_a_checkpoint(tiny_recipe, tmp_path, capsys):
    recipe = tiny_recipe(training__checkpoint_every_steps=0)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM after a checkpoint of step 3") as stop:
        trained(recipe, At(3, lambda trainer: os.kill(os.getpid(), signal.SIGTERM)))
    assert stop.value.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == handler
    assert [p.name for p in (Path(recipe.output_dir) / "checkpoints").iterdir()] == ["step-00000003"]
    resumed = trained(recipe)
    assert "going on from step-00000003" in capsys.readouterr().out
    straight = trained(tiny_recipe(output_dir=str(tmp_path / "straight")))
    assert curve(resumed.folder) == curve(straight.folder)


def test_a_damaged_checkpoint_is_passed_over_by_name(tiny_recipe, capsys):
    recipe = tiny_recipe()
    with pytest.raises(RuntimeError):
        trained(recipe, At(5, fail))
    path = Path(recipe.output_dir) / "checkpoints" / "step-00000004" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    trained(recipe)
    said = capsys.readouterr().out
    assert "step-00000004/model.safetensors has" in said
    assert "going back to step-00000002" in said


def test_a_finished_run_is_left_as_it_is(tiny_recipe):
    trainer = trained(tiny_recipe())
    before = {path: path.stat().st_mtime_ns for path in (trainer.folder / "final").iterdir()}
    again = trained(tiny_recipe())
    assert again.step == 6
    assert {path: path.stat().st_mtime_ns for path in (trainer.folder / "final").iterdir()} == before


def test_another_recipe_does_not_go_on_from_this_one(tiny_recipe):
    trained(tiny_recipe(training__max_steps=2))
    with pytest.raises(CheckpointError, match=r"quantizer.codebook_size: 16 there, 32 now"):
        trained(tiny_recipe(quantizer__codebook_size=32))
    with pytest.raises(CheckpointError, match=r"training.seed: 0 there, 5 now"):
        trained(tiny_recipe(training__seed=5))
    with pytest.raises(ConfigError, match=r"holds a run, and training.resume is never"):
        trained(tiny_recipe(training__resume=False))
    assert trained(tiny_recipe(training__max_steps=3)).step == 3


def test_two_runs_do_not_write_to_one_folder(tiny_recipe):
    def second(trainer):
        with pytest.raises(UserError, match="in use by process"):
            TokenizerTrainer(trainer.recipe).train()
        checked.append(True)

    checked: list[bool] = []
    trained(tiny_recipe(training__max_steps=2), At(1, second))
    assert checked


def test_a_loss_that_is_no_number_ends_the_run_without_a_checkpoint(tiny_recipe):
    def poison(trainer):
        trainer.tokenizer.decoder.head.bias.data.fill_(float("nan"))

    recipe = tiny_recipe(training__log_every_steps=4, training__checkpoint_every_steps=1)
    with pytest.raises(DivergedError, match="step 3"):
        trained(recipe, At(2, poison))
    names = sorted(path.name for path in (Path(recipe.output_dir) / "checkpoints").iterdir())
    assert names == ["step-00000001", "step-00000002"]


def test_two_processes_share_the_pictures_and_hold_one_codebook(tiny_recipe, tmp_path):
    settings = {"training__max_steps": 4, "training__gradient_accumulation_steps": 2}
    recipe = tiny_recipe(output_dir=str(tmp_path / "two"), **settings)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_to_dict(recipe)))
    processes = PACKAGE.parent / "recipes" / "accelerate" / "cpu_2_processes.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(processes)]
    script = Path(__file__).with_name("two_processes.py")
    environment = {**ENVIRONMENT, "PYTHONPATH": str(PACKAGE.parent), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*launch, str(script), str(tmp_path / "recipe.yaml"), str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"process-{number}.json").read_text()) for number in (0, 1))
    assert first["processes"] == second["processes"] == 2
    assert first["is_wrapped"]
    assert first["digests"] == second["digests"]
    seen = [list(chain.from_iterable(passes)) for passes in (first["indices"], second["indices"])]
    assert len(seen[0]) == len(seen[1]) == 4 * 8 // 2
    assert not set(seen[0][:8]) & set(seen[1][:8])

    # One process sees the same pictures in the same steps, and its losses agree to rounding.
    alone = TokenizerTrainer(tiny_recipe(output_dir=str(tmp_path / "one"), **settings))
    pictures = []
    original = alone._next
    alone._next = lambda batches: pictures.append(batch := original(batches)) or batch
    alone.train()
    passes = [batch["index"].tolist() for batch in pictures[-8:]]  # before them, those that made the codebook
    pairs = [first["indices"], second["indices"]]
    for step in range(4):
        alone_saw = passes[2 * step] + passes[2 * step + 1]
        both_saw = [side[2 * step + number] for number in (0, 1) for side in pairs]
        assert alone_saw == list(chain.from_iterable(both_saw))
    losses = [value for _, value in curve(tmp_path / "one")]
    assert losses[0] == pytest.approx(curve(tmp_path / "two")[0][1], rel=0.05)

    # A run of two processes goes on with one.
    resumed = trained(tiny_recipe(output_dir=str(tmp_path / "two"), **{**settings, "training__max_steps": 6}))
    assert [step for step, _ in curve(resumed.folder)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("change", [
    {"training__mixed_precision": "bf16"},
    {"training__channels_last": True},
    {"training__report_to": ["tensorboard"]},
    {"quantizer": {"type": "fsq", "levels": [4, 4]}, "training__ema_decay": 0.0},
    {"data__num_workers": 1, "data__cache_megabytes": 0},
])  # fmt: skip
def test_settings_of_a_run(tiny_recipe, change):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        trainer = trained(tiny_recipe(training__max_steps=2, **change))
        assert len(curve(trainer.folder)) == 2
        if "training__report_to" in change:
            assert list((trainer.folder / "trackers").rglob("events*"))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_weight_decay_spares_norms_biases_codebooks_and_positions():
    model = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3), "norm": nn.GroupNorm(2, 4), "embedding": nn.Embedding(4, 4)})
    model["quantizer"] = build_quantizer("vq", codebook_size=4, code_dim=2, update={"type": "gradient"})
    model["conv"].positions = nn.Parameter(torch.zeros(1, 4, 4))
    assert decayed_names(model) == {"conv.weight"}
    optimizer = build_optimizer(model, OptimizerSection(weight_decay=0.5))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[id(model["conv"].weight)] == 0.5
    assert decays[id(model["quantizer"].codebook)] == 0
    assert len(decays) == len(list(model.parameters()))


def test_the_learning_rate_warms_up_and_falls_to_its_floor():
    section = OptimizerSection(learning_rate=1.0, warmup_steps=4, min_learning_rate_ratio=0.1)
    rates = [learning_rate(section, step, 100) for step in range(100)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[-1] == pytest.approx(0.1)
    assert all(later <= sooner for sooner, later in itertools.pairwise(rates[4:]))
    assert learning_rate(dataclasses.replace(section, schedule="constant"), 99, 100) == 1.0


def test_the_average_follows_the_formula_and_copies_what_is_not_trained():
    model = nn.BatchNorm1d(2)
    model.bias.requires_grad_(False)
    average = WeightAverage(model, decay=0.5)
    with torch.no_grad():
        model.weight.fill_(3.0), model.bias.fill_(7.0), model.running_mean.fill_(5.0)
    average.update(model, step=1)
    assert average.module.weight.tolist() == pytest.approx([1 + 2 * (1 - 2 / 11)] * 2)
    assert average.module.bias.tolist() == [7.0, 7.0]
    assert average.module.running_mean.tolist() == [5.0, 5.0]
    before = average.module.weight[0].item()
    average.update(model, step=10_000)
    assert average.module.weight[0].item() == pytest.approx((before + 3) / 2)


def test_what_does_not_fit_is_refused_with_field_value_and_rule(tiny_recipe):
    with pytest.raises(ConfigError, match=r"training.batch_size must be a multiple of .* 1 × 3 = 3, got 8"):
        TokenizerTrainer(tiny_recipe(training__gradient_accumulation_steps=3))
    with pytest.raises(DataSourceError, match=r"has 22 pictures, too few for training.batch_size = 64"):
        trained(tiny_recipe(training__batch_size=64))
    with pytest.raises(ConfigError, match=r"unknown key 'learning_rte'.*Did you mean 'learning_rate'"):
        tiny_recipe(optimizer__learning_rte=1)
    with pytest.raises(ConfigError, match="max_steps must be 1 or more, got 0"):
        tiny_recipe(training__max_steps=0)
    with pytest.raises(ConfigError, match="mixed_precision must be one of no, bf16, fp16, got 'fp4'"):
        tiny_recipe(training__mixed_precision="fp4")
    with pytest.raises(ConfigError, match="losses must be different"):
        tiny_recipe(losses=[{"type": "l2"}, {"type": "l2"}])


def test_the_entry_point_ends_in_one_line_and_a_code(tiny_values, tmp_path, capsys, monkeypatch):
    assert train.main(["--config", "nowhere.yaml"]) == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[0]
        .startswith("visual_tokenizer.train: error: recipe nowhere.yaml does not exist")
    )
    assert train.main(["--output_dir", str(tmp_path / "run"), "--quantizer.type", "fsk"]) == 2
    assert "Did you mean 'fsq'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        train.main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "accelerate launch -m visual_tokenizer.train" in said
    assert "--optimizer.warmup_steps  (0)" in said

    def stop(trainer):
        raise Interrupted(signal.SIGTERM, 3)

    monkeypatch.setattr(TokenizerTrainer, "train", stop)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_values))
    assert train.main(["--config", str(tmp_path / "tiny.yaml")]) == 143


def test_smoke_applies_the_overrides_of_the_recipe(tiny_values, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**tiny_values, "smoke": {"training.max_steps": 2, "quantizer.codebook_size": 4}}))
    words = ["--config", str(path), "--training.max_steps", "3"]
    assert train.with_smoke([*words, "--smoke", "false"]) == words
    parsed = train.parse_arguments(
        TokenizerRecipe, train.with_smoke(["--smoke=true", *words]), program="train", about=""
    )
    assert parsed.training.max_steps == 3
    assert parsed.quantizer.codebook_size == 4


def fields_of(section: type) -> set[str]:
    hints = typing.get_type_hints(section)
    return {name for name in (field.name for field in dataclasses.fields(section)) if name in hints}


def test_every_field_of_a_recipe_is_read():
    """A field counts as read where `section.field` is loaded outside of the check of its value."""
    read: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        if path.name != "training_recipe.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            read |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}
    for section in (TokenizerRecipe, AdversarialSection, DataSection, OptimizerSection, TrainingSection):
        assert fields_of(section) - read - {"smoke"} == set(), section


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"]])
def test_smoke_is_two_steps_unless_the_recipe_says_otherwise(form, tiny_values, tmp_path):
    path = tmp_path / "tiny.yaml"
    words = [word.format(path) for word in form]

    def steps(smoke):
        path.write_text(yaml.safe_dump({**tiny_values, "smoke": smoke}))
        arguments = train.with_smoke([*words, "--smoke", "true"])
        return train.parse_arguments(TokenizerRecipe, arguments, program="train", about="").training.max_steps

    assert steps({"quantizer.codebook_size": 4}) == 2
    assert steps({"training.max_steps": 3}) == 3
