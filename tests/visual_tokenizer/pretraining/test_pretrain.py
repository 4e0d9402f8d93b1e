import copy
import math
import multiprocessing
import os
import signal
import time

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, BeitForMaskedImageModeling, BeitModel

from visual_tokenizer import VisualTokenizer, pretrain, probe
from visual_tokenizer.errors import Interrupted
from visual_tokenizer.hf_training.stopping import StopAtStep
from visual_tokenizer.pretraining import build
from visual_tokenizer.pretraining.evaluation import pictures_of
from visual_tokenizer.pretraining.targets import TokenTargets
from visual_tokenizer.recipe import recipe_to_dict
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.runs.folder import StepLog
from visual_tokenizer.runs.manifest import verify_manifest


def weights(folder):
    return load_file(folder / "model.safetensors")


def losses(folder):
    return {line["step"]: line["loss"] for line in StepLog(folder).read() if "loss" in line}


def test_a_run_that_goes_on_ends_as_an_unbroken_one(beit_recipe, tmp_path):
    settings = {"model__drop_path": 0.2, "data__transform": {"horizontal_flip": True, "crop": "random"}}
    whole = build.pretrain(beit_recipe(output_dir=str(tmp_path / "whole"), **settings))
    broken = beit_recipe(output_dir=str(tmp_path / "broken"), **settings)
    args = build.run_arguments(broken)
    tokenizer = VisualTokenizer.from_pretrained(broken.tokenizer)
    trainer = build.build_trainer(broken, tokenizer, args, 0)

    def stop(step, number=3):
        if trainer.state.global_step == number:
            raise KeyboardInterrupt
        return step

    batches = iter(trainer.batches)
    trainer.batches = type("Stopping", (), {"__len__": lambda _: 4, "__iter__": lambda _: map(stop, batches)})()
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    half = tmp_path / "broken" / "checkpoint-2"
    verify_manifest(half)
    (tmp_path / "broken" / "checkpoint-3").mkdir()  # what was being written
    torch.manual_seed(99)
    final = build.pretrain(broken)
    expected, found = weights(whole), weights(final)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")
    assert len(losses(tmp_path / "whole")) == 4


@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_ends_a_run_after_its_step_and_it_goes_on_bit_for_bit(workers, beit_recipe, tmp_path, monkeypatch):
    settings = {"training__checkpoint_every_steps": 100, "data__num_workers": workers}
    if workers:
        settings["data__cache_megabytes"] = 0
    whole = build.pretrain(beit_recipe(output_dir=str(tmp_path / "whole"), **settings))
    stopped = beit_recipe(output_dir=str(tmp_path / "stopped"), **settings)
    on_step_end = StopAtStep.on_step_end
    others_children = {child.pid for child in multiprocessing.active_children()}  # of tests before

    def signalled(self, args, state, control, **others):
        if state.global_step == 2:
            children = [child.pid for child in multiprocessing.active_children() if child.pid not in others_children]
            assert len(children) == workers
            for pid in (*children, os.getpid()):
                os.kill(pid, signal.SIGTERM)
            time.sleep(0.2)
        return on_step_end(self, args, state, control, **others)

    monkeypatch.setattr(StopAtStep, "on_step_end", signalled)
    with pytest.raises(Interrupted, match="SIGTERM after a checkpoint of step 2"):
        build.pretrain(stopped)
    monkeypatch.setattr(StopAtStep, "on_step_end", on_step_end)
    verify_manifest(tmp_path / "stopped" / "checkpoint-2")
    assert not (tmp_path / "stopped" / "final").exists()
    expected, found = weights(whole), weights(build.pretrain(stopped))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert losses(tmp_path / "whole") == losses(tmp_path / "stopped")


def test_passes_of_a_step_add_up_to_the_whole_batch(beit_recipe, tmp_path):
    def run(name, **settings):
        return build.pretrain(
            beit_recipe(output_dir=str(tmp_path / name), model__drop_path=0.0, masking__masked_patches=1, **settings)
        )

    whole, parts = run("whole"), run("parts", training__gradient_accumulation_steps=2)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], value, atol=1e-5, rtol=1e-4)


def test_the_tokenizer_stays_as_it_is_and_in_no_checkpoint(beit_recipe, tmp_path):
    recipe = beit_recipe()
    before = copy.deepcopy(VisualTokenizer.from_pretrained(recipe.tokenizer).state_dict())
    final = build.pretrain(recipe)
    after = VisualTokenizer.from_pretrained(final / "visual_tokenizer").state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    saved = weights(tmp_path / "run" / "checkpoint-4")
    assert not any("quantizer" in name or "decoder" in name for name in saved)


def test_transformers_loads_the_result_and_finds_the_same_features(beit_recipe, pictures_folder):
    recipe = beit_recipe(patch_aggregation={"layer": 1, "head_layers": 1})
    tokenizer = VisualTokenizer.from_pretrained(recipe.tokenizer)
    trainer = build.build_trainer(recipe, tokenizer, build.run_arguments(recipe), 0)
    trainer.train()
    final = build.save_final(trainer, tokenizer, recipe)
    trained = trainer.model.eval()
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    mask = torch.arange(16).expand(2, 16) < 5
    model, report = BeitForMaskedImageModeling.from_pretrained(final, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    base, report = BeitModel.from_pretrained(final, add_pooling_layer=False, output_loading_info=True)
    assert not report["missing_keys"]
    with torch.no_grad():
        expected = trained(pixel_values=pixels, bool_masked_pos=mask).logits
        assert torch.equal(model.eval()(pixels, bool_masked_pos=mask).logits, expected)
        features = base.eval()(pixels).last_hidden_state
        assert torch.equal(features, trained.beit(pixels).last_hidden_state)
    assert model.config.architectures == ["BeitForMaskedImageModeling"]
    processor = AutoImageProcessor.from_pretrained(final)
    pictures = pictures_of(recipe.data, recipe.image_size, "all", 4)
    names = sorted(pictures_folder.glob("*.png"))
    for number, expected in zip((0, 8, 16, 24), next(pictures.batches(4))["pixels"], strict=True):
        made = processor(Image.open(names[number]).convert("RGB"), return_tensors="pt").pixel_values[0]
        torch.testing.assert_close(made, expected, atol=1e-6, rtol=0)


def test_training_learns_to_read_hidden_tokens_off_the_visible_patches(beit_recipe, tmp_path):
    folder = tmp_path / "plain"
    folder.mkdir()
    for number in range(48):
        colour = tuple(255 * (number >> bit & 1) for bit in range(3))
        Image.new("RGB", (16, 16), colour).save(folder / f"{number:02}.png")
    recipe = beit_recipe(
        data__source={"type": "image_folder", "folder": str(folder), "heldout_fraction": 0.25},
        training__max_steps=60,
        training__log_every_steps=10,
        training__checkpoint_every_steps=60,
        model__drop_path=0.0,
        optimizer__learning_rate=3e-3,
    )
    build.pretrain(recipe)
    targets = TokenTargets(VisualTokenizer.from_pretrained(recipe.tokenizer), 16)
    shown = next(pictures_of(recipe.data, recipe.image_size, "all", 48).batches(48))["pixels"]
    share = torch.bincount(targets(shown).flatten()) / targets(shown).numel()
    entropy = -(share * share.clamp_min(1e-9).log()).sum().item()
    assert entropy > 1  # what is left to a model that knows how frequent tokens are, but does not look
    lines = [line for line in StepLog(tmp_path / "run").read() if "masked_loss" in line]
    assert lines[0]["masked_loss"] > entropy
    assert lines[-1]["masked_loss"] < 0.5 * entropy < 0.3 * math.log(16)
    assert lines[-1]["masked_accuracy"] > 0.9


def test_commands_write_what_they_say_and_name_what_is_wrong(beit_recipe, tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe_to_dict(beit_recipe(training__evaluate_every_steps=2))))
    assert pretrain.main(["--config", str(file)]) == 0
    final = tmp_path / "run" / "final"
    assert "masked tokens" in capsys.readouterr().out
    for name in ("README.md", "recipe.yaml", "probe.json", "probe.png", "preprocessor_config.json"):
        assert (final / name).is_file(), name
    assert list((tmp_path / "run" / "samples").glob("*.png"))
    assert [line["step"] for line in StepLog(tmp_path / "run").read() if "eval_masked_loss" in line] == [2, 4]
    assert pretrain.main(["--config", str(file)]) == 0  # nothing is left to do
    assert probe.main(["--model", str(final), "--output", str(tmp_path / "again.json"), "--label_column", "null"]) == 0
    capsys.readouterr()
    assert probe.main(["--model", str(final), "--output", str(tmp_path / "again.json")]) == 2
    assert "probe.label_column must be a column of labels of the source" in capsys.readouterr().err
    assert pretrain.main(["--config", str(file), "--training.resume", "never"]) == 2
    assert "training.resume is never" in capsys.readouterr().err
    assert pretrain.main(["--config", str(file), "--model.patch_size", "8"]) == 2
    assert "the patch grid must equal the token grid" in capsys.readouterr().err
    assert pretrain.main(["--config", str(file), "--masking.mask_patches", "8"]) == 2
    assert "Did you mean 'masked_patches'" in capsys.readouterr().err


def test_wrong_fields_are_named(beit_recipe):
    with pytest.raises(ConfigError, match=r"image_size must be a multiple of 4 \(model.patch_size\), got 18"):
        beit_recipe(image_size=18)
    with pytest.raises(ConfigError, match=r"patch_aggregation.layer must be below 2 \(model.layers\), got 2"):
        beit_recipe(patch_aggregation={"layer": 2})
    with pytest.raises(ConfigError, match=r"model.relative_positions must be true where absolute_positions is false"):
        beit_recipe(model__relative_positions=False)
