from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import visual_tokenizer
from visual_tokenizer.errors import DivergedError
from visual_tokenizer.recipe import recipe_to_dict
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.runs.manifest import CheckpointError
from visual_tokenizer.runs.processes import build_accelerator
from visual_tokenizer.training.adversarial import adaptive_weight
from visual_tokenizer.training.callbacks import Callback
from visual_tokenizer.training.trainer import TokenizerTrainer

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
ROOT = Path(visual_tokenizer.__file__).parents[1]

PATCHGAN = {"type": "patchgan", "channels": 4, "layers": 2}


def section(**fields):
    return {"discriminator": PATCHGAN, "weight": 0.5, "lecam_weight": 0.01, **fields}


def curve(folder: Path | str, name: str) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line[name]) for line in lines if name in line]


def built(recipe) -> TokenizerTrainer:
    """A trainer ready for its first step."""
    trainer = TokenizerTrainer(recipe)
    trainer.begin()
    return trainer


def trained(recipe, *callbacks) -> TokenizerTrainer:
    trainer = TokenizerTrainer(recipe)
    trainer.callbacks.extend(callbacks)
    trainer.train()
    return trainer


class At(Callback):
    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step(self, trainer):
        if trainer.step == self.step:
            self.action(trainer)


def fail(trainer):
    raise RuntimeError("the machine fell over")


def test_the_adaptive_weight_is_the_ratio_of_the_gradients_norms(tiny_recipe):
    trainer = built(tiny_recipe(adversarial=section()))
    batch = trainer._next(trainer.batches)
    output = trainer.objective(batch)
    layer = trainer.tokenizer.decoder.head.weight
    term, values = trainer.adversarial.generator_term(output, 0)
    judged = -trainer.adversarial.unwrapped.discriminator(output.pixels)[0].mean()
    (of_rec,) = torch.autograd.grad(output.reconstruction, layer, retain_graph=True)
    (of_gan,) = torch.autograd.grad(judged, layer, retain_graph=True)
    wanted = of_rec.norm() / (of_gan.norm() + 1e-4)
    assert float(values["discriminator/adaptive_weight"]) == pytest.approx(float(wanted), rel=1e-4)
    assert float(term.detach()) == pytest.approx(float((0.5 * wanted * judged).detach()), rel=1e-4)
    assert float(output.reconstruction) == pytest.approx(float(output.values["loss/l2"] + output.values["loss/l1"]))
    # The weight is no part of the graph: the term's gradient is that of the judged loss times a number.
    (of_term,) = torch.autograd.grad(term, layer)
    assert torch.allclose(of_term, 0.5 * wanted * of_gan, rtol=1e-3, atol=1e-7)


def test_the_adaptive_weight_by_hand_and_its_limits():
    layer = torch.tensor([3.0, 4.0], requires_grad=True)
    square = (layer**2).sum() / 2  # gradient (3, 4), norm 5
    line = layer[0] * 2  # norm 2
    assert float(adaptive_weight(square, line, layer)) == pytest.approx(5 / 2.0001)
    assert float(adaptive_weight(square, line, layer, scale=torch.tensor(1024.0))) == pytest.approx(5 / 2.0001)
    assert float(adaptive_weight(square * 1e6, line * 0, layer)) == 1e4
    assert float(adaptive_weight(square * torch.inf, line, layer)) == 0
    assert not adaptive_weight(square, line, layer).requires_grad


def test_neither_side_moves_the_other(tiny_recipe):
    trainer = built(tiny_recipe(adversarial=section()))
    other = trainer.adversarial
    batch = trainer._next(trainer.batches)
    output = trainer.objective(batch)
    term, _ = other.generator_term(output, 0)
    (output.loss + term).backward()
    assert all(parameter.grad is None for parameter in other.unwrapped.parameters())
    assert all(parameter.requires_grad for parameter in other.unwrapped.parameters())
    before = {
        name: value.grad.clone() for name, value in trainer.tokenizer.named_parameters() if value.grad is not None
    }
    other.accumulate(batch["pixels"], output.pixels, 0, is_last=True)
    assert all(parameter.grad is not None for parameter in other.unwrapped.parameters())
    after = {name: value.grad for name, value in trainer.tokenizer.named_parameters() if value.grad is not None}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_generators_term_trains_the_decoder_to_raise_the_logits(tiny_recipe):
    fields = {"losses": [{"type": "l2", "weight": 0.0}], "optimizer__learning_rate": 1e-3}
    trainer = built(tiny_recipe(adversarial=section(adaptive=False, weight=1.0, learning_rate=1e-12), **fields))
    batch = trainer._next(trainer.batches)

    def judged():
        with torch.no_grad():
            return float(
                trainer.adversarial.unwrapped.discriminator(trainer.tokenizer(batch["pixels"]).pixels)[0].mean()
            )

    before = judged()
    for _ in range(5):
        trainer._train_step()
    assert judged() > before + 1e-3


def test_before_its_start_the_discriminator_costs_nothing(tiny_recipe):
    recipe = tiny_recipe(adversarial=section(start_step=3, discriminator_warmup_steps=2, warmup_steps=2))
    trainer = built(recipe)
    calls = []
    trainer.adversarial.unwrapped.discriminator.register_forward_hook(lambda *_: calls.append(trainer.step))
    weights = []
    for _ in range(5):
        weights.append(trainer.adversarial.unwrapped.discriminator.stack[0].weight.detach().clone())
        trainer._train_step()
    # Real and fake from step 1 on, and once more for the generator from step 3 on.
    assert calls == [1, 1, 2, 2, 3, 3, 3, 4, 4, 4]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_what_is_logged(tiny_recipe):
    trainer = trained(tiny_recipe(adversarial=section(start_step=3, discriminator_warmup_steps=2)))
    steps = {name: [step for step, _ in curve(trainer.folder, name)] for name in (
        "loss", "loss/discriminator", "discriminator/real_logits", "discriminator/fake_logits",
        "discriminator/accuracy", "discriminator/lecam", "loss/adversarial", "discriminator/adaptive_weight",
    )}  # fmt: skip
    assert steps.pop("loss") == [1, 2, 3, 4, 5, 6]
    assert steps.pop("loss/adversarial") == steps.pop("discriminator/adaptive_weight") == [4, 5, 6]
    assert all(found == [2, 3, 4, 5, 6] for found in steps.values())
    terms = ("l2", "l1", "quantizer_commitment", "adversarial")
    total = sum(dict(curve(trainer.folder, f"loss/{name}"))[5] for name in terms)
    assert dict(curve(trainer.folder, "loss"))[5] == pytest.approx(total, rel=1e-5)
    lecam = trainer.adversarial.unwrapped.lecam
    means = [value for _, value in curve(trainer.folder, "discriminator/real_logits")]
    assert float(lecam.real) == pytest.approx(sum(0.001 * 0.999 ** (4 - n) * means[n] for n in range(5)), rel=1e-4)
    assert (trainer.folder / "plots" / "loss.png").is_file()


SETTINGS = [
    {},
    {"quantizer": {"type": "fsq", "levels": [4, 4]}, "adversarial__loss": {"type": "non_saturating"}},
    {"adversarial__r1_weight": 1.0, "adversarial__r1_every_steps": 2, "adversarial__adaptive": False},
]


@pytest.mark.parametrize("changes", SETTINGS)
def test_an_interrupted_run_goes_on_to_the_same_bits(tiny_recipe, tmp_path, changes):
    settings = {
        "training__log_every_steps": 4, "training__max_steps": 10, "training__gradient_accumulation_steps": 2,
        "adversarial": section(start_step=3, discriminator_warmup_steps=2, warmup_steps=6, betas=[0.5, 0.9]), **changes,
    }  # fmt: skip
    straight = trained(tiny_recipe(output_dir=str(tmp_path / "straight"), **settings))
    broken = tiny_recipe(output_dir=str(tmp_path / "broken"), **settings)
    for step in (1, 5, 9):
        with pytest.raises(RuntimeError, match="fell over"):
            trained(broken, At(step, fail))
    resumed = trained(broken)
    for name in ("loss", "loss/adversarial", "loss/discriminator", "discriminator/accuracy"):
        assert curve(resumed.folder, name) == curve(straight.folder, name)
    for name in ("model", "average", "optimizer", "process-0", "discriminator", "discriminator_optimizer"):
        first = load_file(straight.folder / "checkpoints" / "step-00000010" / f"{name}.safetensors")
        second = load_file(resumed.folder / "checkpoints" / "step-00000010" / f"{name}.safetensors")
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name
    kept = load_file(resumed.folder / "checkpoints" / "step-00000010" / "discriminator.safetensors")
    assert {"lecam.real", "lecam.fake", "discriminator.stack.0.weight"} <= set(kept)
    assert len(first) > 0  # the moments of the discriminator's optimizer


def test_a_run_may_get_a_discriminator_later_but_not_another(tiny_recipe):
    trained(tiny_recipe(training__max_steps=2))
    trainer = trained(tiny_recipe(training__max_steps=4, adversarial=section()))
    assert [step for step, _ in curve(trainer.folder, "loss/adversarial")] == [3, 4]
    wider = section(discriminator={**PATCHGAN, "channels": 8})
    with pytest.raises(CheckpointError, match="does not fit this recipe"):
        trained(tiny_recipe(training__max_steps=6, adversarial=wider))


def test_two_passes_of_half_the_batch_are_one_of_the_whole(tiny_recipe, tmp_path):
    # Without the adaptive weight, which is taken for each pass, and where no norm looks at a whole batch.
    fields = {
        "adversarial": section(discriminator={**PATCHGAN, "norm": "group"}, adaptive=False),
        "quantizer": {"type": "fsq", "levels": [4, 4]}, "losses": [{"type": "l2"}], "training__ema_decay": 0.0,
        "training__max_steps": 3,
    }  # fmt: skip
    one = trained(tiny_recipe(output_dir=str(tmp_path / "one"), **fields))
    two = trained(tiny_recipe(output_dir=str(tmp_path / "two"), training__gradient_accumulation_steps=2, **fields))
    same_steps(one, two)


def same_steps(one, two):
    for name in (
        "loss", "loss/l2", "loss/adversarial", "loss/discriminator", "discriminator/lecam", "gradient_norm",
        "discriminator/gradient_norm",
    ):  # fmt: skip
        first, second = (dict(curve(trainer.folder, name)) for trainer in (one, two))
        assert first.keys() == second.keys()
        assert all(first[step] == pytest.approx(second[step], rel=2e-3, abs=1e-5) for step in first), name


def test_two_processes_make_the_steps_of_one(tiny_recipe, tmp_path):
    fields = {
        # with the adaptive weight, and with batch norm
        "adversarial": section(loss={"type": "non_saturating"}, r1_weight=1.0, r1_every_steps=2),
        "quantizer": {"type": "fsq", "levels": [4, 4]}, "losses": [{"type": "l2"}], "training__max_steps": 4,
    }  # fmt: skip
    recipe = tiny_recipe(output_dir=str(tmp_path / "two"), **fields)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_to_dict(recipe)))
    processes = ROOT / "recipes" / "accelerate" / "cpu_2_processes.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(processes)]
    script = Path(__file__).with_name("two_adversarial_processes.py")
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*launch, str(script), str(tmp_path / "recipe.yaml"), str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"process-{number}.json").read_text()) for number in (0, 1))
    assert first["processes"] == 2
    assert first["is_wrapped"]
    assert first["digests"] == second["digests"]
    assert first["weights"] == second["weights"]  # one adaptive weight on every rank
    alone = trained(tiny_recipe(output_dir=str(tmp_path / "one"), **fields))
    for name in (
        "loss", "loss/l2", "loss/adversarial", "loss/discriminator", "discriminator/adaptive_weight",
        "discriminator/real_logits", "discriminator/lecam", "discriminator/r1", "gradient_norm",
        "discriminator/gradient_norm",
    ):  # fmt: skip
        one, two = (dict(curve(folder, name)) for folder in (alone.folder, tmp_path / "two"))
        assert one.keys() == two.keys(), name
        assert all(one[step] == pytest.approx(two[step], rel=5e-3, abs=1e-5) for step in one), (name, one, two)


def test_a_discriminator_that_is_no_number_ends_the_run_without_a_checkpoint(tiny_recipe):
    def poison(trainer):
        trainer.adversarial.unwrapped.discriminator.stack[0].bias.data.fill_(math.nan)

    recipe = tiny_recipe(adversarial=section(start_step=100, discriminator_warmup_steps=100),
                         training__log_every_steps=4, training__checkpoint_every_steps=1)  # fmt: skip
    with pytest.raises(DivergedError, match="step 3"):
        trained(recipe, At(2, poison))
    names = sorted(path.name for path in (Path(recipe.output_dir) / "checkpoints").iterdir())
    assert names == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("change", [
    {"training__mixed_precision": "bf16"},
    {"training__channels_last": True},
    {"training__gradient_checkpointing": True},
    {"adversarial": {"discriminator": {"type": "stylegan", "channel_base": 64}, "r1_weight": 10.0}},
    {"adversarial": {"discriminator": {"type": "dino", "levels": [0, 1], "size": 32}}},
    {"adversarial": section(loss={"type": "least_squares"})},
    {"decoder": {"type": "patch", "patch_size": 2, "width": 8}},
])  # fmt: skip
def test_settings_of_a_run(tiny_recipe, change):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        trainer = trained(tiny_recipe(**{"training__max_steps": 2, "adversarial": section(), **change}))
        values = [value for _, value in curve(trainer.folder, "loss/adversarial")]
        assert len(values) == 2
        assert all(math.isfinite(value) and value != 0 for value in values)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_what_does_not_fit_is_refused(tiny_recipe):
    with pytest.raises(ConfigError, match="image_size must be 24 or more for a patchgan of 3 layers, got 16"):
        trained(tiny_recipe(adversarial={"discriminator": {"type": "patchgan"}}))
    with pytest.raises(ConfigError, match=r"adversarial.adaptive must be false where freeze names the decoder"):
        tiny_recipe(adversarial=section(), freeze=["decoder"])
    with pytest.raises(ConfigError, match=r"unknown key 'start'.*Did you mean 'start_step'"):
        tiny_recipe(adversarial=section(start=3))


def test_a_loss_scale_changes_nothing(tiny_recipe, tmp_path, monkeypatch):
    def steps(name, scaler):
        def build_scaled(**settings):
            accelerator = build_accelerator(**settings)
            accelerator.scaler = scaler
            return accelerator

        monkeypatch.setattr("visual_tokenizer.training.trainer.build_accelerator", build_scaled)
        trainer = TokenizerTrainer(
            tiny_recipe(
                output_dir=str(tmp_path / name), adversarial=section(r1_weight=1.0), optimizer__max_grad_norm=1e9
            )
        )
        trainer.begin()
        for _ in range(3):
            trainer._train_step()
        return trainer

    plain = steps("plain", None)
    scaled = steps("scaled", torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2))
    assert scaled.adversarial.scaler.is_enabled()
    assert not plain.adversarial.scaler.is_enabled()
    for one, other in (
        (plain.tokenizer, scaled.tokenizer),
        (plain.adversarial.unwrapped, scaled.adversarial.unwrapped),
    ):
        for name, value in one.state_dict().items():
            assert torch.allclose(value, other.state_dict()[name], rtol=1e-4, atol=1e-6), name
    weight = "discriminator/adaptive_weight"
    assert float(plain.meter.sums[weight]) == pytest.approx(float(scaled.meter.sums[weight]), rel=1e-4)
    tensors, plain_values = scaled.adversarial.capture()
    scaled.adversarial.scaler.update(1.0)
    scaled.adversarial.restore(tensors, plain_values)
    assert scaled.adversarial.scaler.get_scale() == plain_values["scaler"]["scale"] == 2.0**16
