"""One teacher for all losses: what it is, how precise, what is cached, and what is said where it is missing."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import ViTConfig, ViTModel

import visual_tokenizer
from visual_tokenizer.backbones.base import load_backbone
from visual_tokenizer.backbones.efficientnet_lite0 import EfficientNetLite0
from visual_tokenizer.data.sources.base import DataSourceError
from visual_tokenizer.losses.base import LossConfig
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.runs.feature_cache import FeatureCache, keys_digest
from visual_tokenizer.teacher import Teacher, TeacherSection
from visual_tokenizer.training.objective import build_losses
from visual_tokenizer.training.trainer import TokenizerTrainer

ROOT = Path(visual_tokenizer.__file__).parents[1]
DISTILLATION = {"type": "feature_distillation", "channels": [0, 4], "width": 8, "heads": 2, "depth": 0, "size": 32}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def batch_of(*numbers: int, flipped: bool = False) -> dict[str, Tensor]:
    """Pictures that depend on their number alone."""
    pictures = [torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(number)) * 2 - 1 for number in numbers]
    pixels = torch.stack([picture.flip(-1) if flipped else picture for picture in pictures])
    return {"pixels": pixels, "index": torch.tensor(numbers), "flipped": torch.full((len(numbers),), flipped)}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pictures of each look that any EfficientNet takes."""
    seen: list[int] = []
    stem = EfficientNetLite0._stem

    def counted(self: EfficientNetLite0, pixels: Tensor) -> Tensor:
        seen.append(len(pixels))
        return stem(self, pixels)

    monkeypatch.setattr(EfficientNetLite0, "_stem", counted)
    return seen


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet_lite0"])
def test_it_gives_what_the_network_gives(name):
    teacher, network, batch = Teacher(TeacherSection(network=name)), load_backbone("efficientnet_lite0"), batch_of(1, 2)
    assert torch.equal(teacher.features(batch, 3), network.features(batch["pixels"], 4)[3])
    assert torch.equal(teacher.features(batch, None)[:, :, 0, 0], network.embedding(batch["pixels"]))
    assert teacher.features(batch, 3, 64).shape[2:] == (4, 4)
    assert Teacher(TeacherSection(size=64)).features(batch, 3).shape[2:] == (4, 4)
    assert (teacher.level(-1), teacher.width(4), teacher.width(None)) == (4, 320, 1280)


def test_a_folder_of_transformers_is_a_teacher(tmp_path):
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(image_size=24, patch_size=8, **shape)).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    teacher = Teacher(TeacherSection(network=str(tmp_path)))
    assert teacher.features(batch_of(1), teacher.level(-1)).shape == (1, 16, 3, 3)
    with pytest.raises(ConfigError, match=r"teacher\.weights must be null"):
        Teacher(TeacherSection(network=str(tmp_path), weights="x.pth"))


def test_half_precision_is_near_and_computes_in_it_whatever_the_autocast():
    exact = Teacher(TeacherSection()).features(batch_of(1, 2), 2)
    rough = Teacher(TeacherSection(dtype="bfloat16"))
    assert {parameter.dtype for parameter in rough.network.parameters()} == {torch.bfloat16}
    found = rough.features(batch_of(1, 2), 2)
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).norm() < 0.1 * exact.norm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Teacher(TeacherSection()).features(batch_of(1, 2), 2).dtype == torch.float32


def test_losses_that_name_no_network_share_the_teacher_and_others_do_not():
    sections = [
        {**DISTILLATION, "level": -1},
        {"type": "perceptual", "network": None, "layers": [0]},
        {"type": "embedding_contrastive", "network": "efficientnet-lite0"},
        {"type": "l1"},
    ]
    teacher = Teacher(TeacherSection())
    losses = build_losses([LossConfig.family.config(section) for section in sections], teacher)
    assert losses["feature_distillation"].network is teacher.network is losses["perceptual"].network
    assert losses["feature_distillation"].level == 4
    assert losses["embedding_contrastive"].network is not teacher.network
    with pytest.raises(ConfigError, match=r"losses: feature_distillation: layers must be .* 0\.\.4"):
        build_losses([LossConfig.family.config({**DISTILLATION, "level": 5})], teacher)
    with pytest.raises(ConfigError, match=r"losses: perceptual: network must name a network"):
        build_losses([LossConfig.family.config(sections[1])], None)


def opened(folder, count: int = 4, **section) -> Teacher:
    teacher = Teacher(TeacherSection(cache_dir=str(folder), **section))
    teacher.open_cache([f"key{number}" for number in range(count)], {"image_size": 32})
    return teacher


def test_each_picture_and_its_mirror_image_are_looked_at_once(tmp_path, calls):
    teacher, plain = opened(tmp_path), Teacher(TeacherSection())
    first = teacher.features(batch_of(0, 1), 2)
    assert torch.equal(first, plain.features(batch_of(0, 1), 2))
    calls.clear()
    assert torch.equal(teacher.features(batch_of(1, 0), 2), first.flip(0))
    assert calls == []
    mixed = teacher.features(batch_of(0, 3), 2)
    assert calls == [1]
    assert torch.equal(mixed[0], first[0])
    mirrored = teacher.features(batch_of(0, flipped=True), 2)
    assert not torch.allclose(mirrored[0], first[0])
    assert calls == [1, 1]
    # Another level, another size and the embedding are other features.
    for level, size in ((1, None), (2, 64), (None, None)):
        calls.clear()
        one, again = (teacher.features(batch_of(0), level, size) for _ in range(2))
        assert torch.equal(one, again)
        assert calls == [1]
    # Another run finds all of it.
    calls.clear()
    assert torch.equal(opened(tmp_path).features(batch_of(0, 1), 2), first)
    assert calls == []


def test_bfloat16_is_kept_as_it_is(tmp_path):
    teacher = opened(tmp_path, dtype="bfloat16")
    first, again = (teacher.features(batch_of(0), 2) for _ in range(2))
    assert first.dtype == again.dtype == torch.bfloat16
    assert torch.equal(first, again)


def test_a_cache_of_another_teacher_or_other_pictures_is_refused(tmp_path):
    opened(tmp_path)
    with pytest.raises(ConfigError, match=r"written for others: dtype: 'float32' there, 'bfloat16' now"):
        opened(tmp_path, dtype="bfloat16")
    with pytest.raises(ConfigError, match=r"keys: .*; pictures: 4 there, 5 now"):
        opened(tmp_path, count=5)
    identity = json.loads((tmp_path / "cache.json").read_text())
    (tmp_path / "cache.json").write_text(json.dumps({**identity, "weights": "0123456789abcdef"}))
    with pytest.raises(ConfigError, match=r"weights: '0123456789abcdef' there"):
        opened(tmp_path)
    assert keys_digest(["ab", "c"]) != keys_digest(["a", "bc"])


def test_a_damaged_row_is_made_again(tmp_path, calls):
    teacher = opened(tmp_path)
    first = teacher.features(batch_of(0, 1), 2)
    file = tmp_path / "level-2-own.features"
    content = bytearray(file.read_bytes())
    content[5] ^= 255  # within the first row, picture 0 as it is
    file.write_bytes(content)
    calls.clear()
    assert torch.equal(opened(tmp_path).features(batch_of(0, 1), 2), first)
    assert calls == [1]


def test_many_writers_at_once_leave_every_row_whole(tmp_path):
    """Each opens the folder for itself, as a process does; rows are what their number says, whoever wrote them."""
    pictures = 64
    values = torch.arange(pictures, dtype=torch.float32)[:, None].expand(pictures, 300).contiguous()
    errors: list[Exception] = []

    def work(seed: int) -> None:
        try:
            cache = FeatureCache(tmp_path, {"weights": "a"}, pictures)
            order = torch.randperm(pictures, generator=torch.Generator().manual_seed(seed))
            for part in order.split(4):
                cache.write("level", part, torch.zeros(len(part), dtype=torch.bool), values[part])
                found = cache.read("level", part, torch.zeros(len(part), dtype=torch.bool))
                assert found is not None
                assert torch.equal(found[0][found[1]], values[part][found[1]])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    found = FeatureCache(tmp_path, {"weights": "a"}, pictures).read(
        "level", torch.arange(pictures), torch.zeros(pictures, dtype=torch.bool)
    )
    assert found is not None
    assert found[1].all()
    assert torch.equal(found[0], values)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def recipe_values(tmp_path, **teacher):
    return {
        "losses": [{"type": "l1"}, {**DISTILLATION, "level": 1}],
        "teacher": {"cache_dir": str(tmp_path / "cache"), **teacher},
        "data__transform": {"horizontal_flip": True},
    }


def test_after_an_epoch_the_teacher_is_not_run_again_and_nothing_else_changes(tiny_recipe, tmp_path, calls):
    values = recipe_values(tmp_path)
    trainer = TokenizerTrainer(tiny_recipe(training__max_steps=12, **values))  # 22 pictures: 2 steps an epoch
    trainer.train()
    looked = sum(calls)
    assert 16 <= looked <= 44  # each picture as it is and mirrored, at most
    calls.clear()
    again = TokenizerTrainer(tiny_recipe(output_dir=str(tmp_path / "b"), training__max_steps=12, **values))
    again.train()
    assert calls == []
    plain = {**values, "teacher": {}}
    without = TokenizerTrainer(tiny_recipe(output_dir=str(tmp_path / "c"), training__max_steps=12, **plain))
    without.train()
    assert sum(calls) == 12 * 8
    one, other, third = (load_file(run.folder / "final" / "model.safetensors") for run in (trainer, again, without))
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
        torch.testing.assert_close(value, third[name], atol=1e-4, rtol=1e-3)


def test_what_can_not_be_cached_or_taught_is_refused(tiny_recipe, tmp_path):
    values = recipe_values(tmp_path)
    with pytest.raises(ConfigError, match=r"teacher\.cache_dir must be null unless .*got crop random and 0 frames"):
        tiny_recipe(**{**values, "data__transform": {"crop": "random"}})
    with pytest.raises(ConfigError, match="teacher must be null where no loss learns from it"):
        tiny_recipe(teacher={})
    with pytest.raises(ConfigError, match="size must be 32 or more"):
        tiny_recipe(**{**values, "teacher": {"size": 16}})
    with pytest.raises(ConfigError, match="dtype"):
        tiny_recipe(**{**values, "teacher": {"dtype": "float64"}})


def test_a_stream_can_not_be_cached(tiny_recipe, tmp_path, monkeypatch):
    trainer = TokenizerTrainer(tiny_recipe(**recipe_values(tmp_path)))
    monkeypatch.setattr("visual_tokenizer.data.batches.datasets.IterableDataset", object)
    with pytest.raises(DataSourceError, match=r"teacher\.cache_dir must be null for a streamed source"):
        trainer.train()


def test_the_losses_copy_with_their_teacher():
    loss = build_losses([LossConfig.family.config({**DISTILLATION, "level": 1})], Teacher(TeacherSection()))
    copied = copy.deepcopy(loss["feature_distillation"]).double()
    assert copied.network is copied.teacher.network
    assert next(copied.network.parameters()).dtype == torch.float64


def run_entry_point(recipe: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "visual_tokenizer.train", "--config", str(recipe), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, cwd=folder)


def test_without_the_network_a_recipe_says_what_is_missing_at_once_and_runs_with_the_installed_one(
    tiny_values, tmp_path
):
    values = {
        **tiny_values,
        "losses": [{"type": "l1"}, {**DISTILLATION, "level": -1}],
        "teacher": {"network": "openai/clip-vit-base-patch16"},
    }
    values["data"] = {**values["data"], "source": {"type": "image_folder", "folder": str(tmp_path / "nowhere")}}
    values["training"] = {**values["training"], "max_steps": 2}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(values))
    failed = run_entry_point(recipe, tmp_path)
    assert failed.returncode == 2
    lines = [line for line in failed.stderr.splitlines() if line.startswith("visual_tokenizer.train: error:")]
    assert len(lines) == 1
    assert "`hf download openai/clip-vit-base-patch16 --local-dir FOLDER`" in lines[0]
    assert "`--teacher.network efficientnet_lite0`" in lines[0]
    assert not Path(values["output_dir"]).exists()  # nothing was read or written; nor are there pictures
    source = json.dumps(tiny_values["data"]["source"])
    done = run_entry_point(recipe, tmp_path, "--teacher.name", "efficientnet-lite0", "--data.source", source)
    assert done.returncode == 0, done.stderr
    assert (Path(values["output_dir"]) / "final" / "model.safetensors").is_file()
