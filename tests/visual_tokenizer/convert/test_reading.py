"""Where weights come from, and that nothing in a file is run."""

from __future__ import annotations

import importlib.util
import json
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from visual_tokenizer.convert import load_published
from visual_tokenizer.convert.reading import SafetensorsFiles, Shell, read_weights
from visual_tokenizer.errors import UserError
from visual_tokenizer.registry import ConfigError, UnknownPartError

TENSORS = {"first.weight": torch.arange(6.0).view(2, 3), "second": torch.ones(2, dtype=torch.bfloat16)}


def same(found, expected=TENSORS) -> bool:
    return set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "run")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".pkl"])
@pytest.mark.parametrize("source", ["vqgan", "dalle", "titok"])
def test_a_malicious_file_is_refused_and_not_run(source, suffix, tmp_path):
    canary, file = tmp_path / "canary", tmp_path / f"model{suffix}"
    torch.save({"state_dict": TENSORS, "callbacks": Canary(canary)}, file)
    with pytest.raises(UserError, match=r"pickled objects.*safetensors.torch.save_file"):
        load_published(file, source=source)
    assert not canary.exists()
    torch.load(file, weights_only=False)
    assert canary.exists(), "the file does what it should not be allowed to"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_malicious_plain_pickle_is_refused_and_not_run(tmp_path):
    canary, file = tmp_path / "canary", tmp_path / "encoder.pkl"
    file.write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises((UserError, UserError)):
        read_weights(file)
    assert not canary.exists()


def test_a_pickled_module_is_refused_with_the_way_to_convert_it(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "encoder.pkl")
    with pytest.raises(UserError, match=r"torch.nn.modules.linear.Linear.*state_dict\(\)"):
        read_weights(tmp_path / "encoder.pkl")


def test_a_malicious_decoder_is_not_run_either(tmp_path):
    canary = tmp_path / "canary"
    torch.save(Canary(canary), tmp_path / "decoder.pkl")
    encoder = {"blocks.input.w": torch.ones(1), "blocks.output.conv.w": torch.ones(1)}
    with pytest.raises(UserError):
        load_published(encoder, source="dalle", decoder=tmp_path / "decoder.pkl")
    assert not canary.exists()


def test_lightning_checkpoints_load_without_lightning(tmp_path, monkeypatch):
    """Callbacks and options beside the weights are objects of packages that need not be there, and are not imported."""
    assert importlib.util.find_spec("pytorch_lightning") is None
    module = types.ModuleType("pytorch_lightning")
    module.Callback = type("Callback", (), {"__module__": "pytorch_lightning"})
    monkeypatch.setitem(sys.modules, "pytorch_lightning", module)
    callback = module.Callback()
    callback.best = 3
    found = {"state_dict": TENSORS, "callbacks": {module.Callback: {"best": 0.1}}, "one": callback, "epoch": 3}
    torch.save(found, tmp_path / "last.ckpt")
    monkeypatch.delitem(sys.modules, "pytorch_lightning")
    assert same(read_weights(tmp_path / "last.ckpt").tensors)
    assert "pytorch_lightning" not in sys.modules


def test_a_malicious_object_hides_behind_no_training_program(tmp_path, monkeypatch):
    """A shell stands for the name only: its arguments are dropped, and other names stay forbidden."""
    canary = tmp_path / "canary"
    module = types.ModuleType("pytorch_lightning")
    module.Callback = type("Callback", (), {"__module__": "pytorch_lightning"})
    monkeypatch.setitem(sys.modules, "pytorch_lightning", module)
    callback = module.Callback()
    callback.inner = Canary(canary)
    torch.save({"state_dict": TENSORS, "callback": callback}, tmp_path / "last.ckpt")
    with pytest.raises(UserError):
        read_weights(tmp_path / "last.ckpt")
    assert not canary.exists()
    assert vars(Shell(1, a=2)) == {}


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "ema"])
def test_state_dicts_and_torch_files(wrapper, tmp_path):
    found = dict(TENSORS) if wrapper is None else {wrapper: dict(TENSORS), "steps": 3, "optimizer": {"lr": 0.1}}
    assert same(read_weights(found).tensors)
    torch.save(found, tmp_path / "model.pt")
    assert same(read_weights(tmp_path / "model.pt").tensors)
    assert same(read_weights(str(tmp_path)).tensors)


def test_averaged_weights_come_first():
    assert same(read_weights({"model": {"x": torch.zeros(1)}, "ema": TENSORS}).tensors)


def test_folders_of_safetensors_with_their_config(tmp_path):
    save_file({"first.weight": TENSORS["first.weight"]}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"second": TENSORS["second"]}, tmp_path / "model-00002-of-00002.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"resolution": 512}))
    found = read_weights(tmp_path)
    assert same(found.tensors)
    assert found.settings == {"resolution": 512}
    assert isinstance(found.tensors, SafetensorsFiles)
    assert len(found.tensors) == 2
    assert found.tensors["second"].dtype == torch.bfloat16


def test_a_module_gives_its_weights_and_config():
    found = read_weights(nn.Linear(3, 2))
    assert set(found.tensors) == {"weight", "bias"}
    assert found.name == "Linear"


def test_what_is_not_there_or_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder or file"):
        read_weights(tmp_path / "nothing.ckpt")
    with pytest.raises(FileNotFoundError, match="found none; name the file"):
        read_weights(tmp_path)
    with pytest.raises(UserError, match="holds no tensors"):
        read_weights({"state_dict": {}})
    with pytest.raises(UserError, match="got int"):
        read_weights(3)
    for name in ("model.safetensors", "model.pt"):
        (tmp_path / name).write_bytes(b"not a checkpoint at all")
        with pytest.raises((UserError, UserError), match=name):
            read_weights(tmp_path / name)


def test_unknown_sources_and_fields():
    with pytest.raises(UnknownPartError, match=r"no part 'vqgun' in sources.*Did you mean 'vqgan'"):
        load_published({}, source="vqgun")
    with pytest.raises(ConfigError, match=r"unknown key 'image_sise'.*Did you mean 'image_size'"):
        load_published({}, source="vqgan", image_sise=3)
    with pytest.raises(ConfigError, match="image_size must be 1 or more"):
        load_published({}, source="vqgan", image_size=0)
    with pytest.raises(
        UserError, match=r"does not have the layout of 'vqgan': it has no weight called encoder.conv_in.weight"
    ):
        load_published(TENSORS, source="vqgan")
    with pytest.raises(UserError, match="hold the decoder: give no other"):
        load_published({"encoder.conv_in.weight": torch.ones(1)}, source="vqgan", decoder=TENSORS)
