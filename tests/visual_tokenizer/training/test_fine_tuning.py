from __future__ import annotations

import pytest
import torch

from visual_tokenizer import VisualTokenizer
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.training.trainer import TokenizerTrainer


def trained(recipe) -> TokenizerTrainer:
    trainer = TokenizerTrainer(recipe)
    trainer.train()
    return trainer


@pytest.fixture
def first(tiny_recipe, tmp_path):
    """The folder `final` of a tokenizer trained for two steps."""
    return trained(tiny_recipe(output_dir=str(tmp_path / "first"), training__max_steps=2)).folder / "final"


def test_a_decoder_is_tuned_to_given_tokens(tiny_recipe, first):
    recipe = tiny_recipe(
        initialize_from=str(first), freeze=["encoder", "to_codes", "quantizer"], training__max_steps=4,
        training__evaluate_every_steps=1, training__ema_decay=0.0, quantizer__commitment_weight=0.0,
        adversarial={"discriminator": {"type": "patchgan", "channels": 4, "layers": 2}},
    )  # fmt: skip
    trainer = trained(recipe)
    before, after = VisualTokenizer.from_pretrained(first).state_dict(), trainer.tokenizer.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    trained_names = {name for name, _ in trainer.tokenizer.named_parameters() if name.startswith(("decoder", "from_"))}
    assert changed == trained_names
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for name, p in trainer.tokenizer.named_parameters() if name in trained_names}
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    indices = VisualTokenizer.from_pretrained(first).eval().encode(pixels)
    assert torch.equal(VisualTokenizer.from_pretrained(trainer.folder / "final").eval().encode(pixels), indices)


def test_training_goes_on_from_the_weights_and_not_from_the_codebook_of_early_batches(tiny_recipe, first):
    trainer = TokenizerTrainer(tiny_recipe(initialize_from=str(first)))
    trainer.begin()
    wanted = VisualTokenizer.from_pretrained(first).state_dict()
    for tokenizer in (trainer.tokenizer, trainer.average.module):
        assert all(torch.equal(value, wanted[name]) for name, value in tokenizer.state_dict().items())


def test_a_resumed_run_does_not_begin_again(tiny_recipe, first, tmp_path):
    settings = {"initialize_from": str(first), "freeze": ["encoder"]}
    straight = trained(tiny_recipe(output_dir=str(tmp_path / "straight"), training__max_steps=4, **settings))
    # The schedule of the learning rate must not depend on where the first part ends.
    constant = {"optimizer__schedule": "constant", **settings}
    straight = trained(tiny_recipe(output_dir=str(tmp_path / "constant"), training__max_steps=4, **constant))
    trained(tiny_recipe(output_dir=str(tmp_path / "parts"), training__max_steps=2, **constant))
    resumed = trained(tiny_recipe(output_dir=str(tmp_path / "parts"), training__max_steps=4, **constant))
    for name, value in straight.tokenizer.state_dict().items():
        assert torch.equal(value, resumed.tokenizer.state_dict()[name]), name


@pytest.mark.parametrize(("change", "message"), [
    ({"encoder__channels": 16}, r"of another architecture: encoder.channels: 8 there, 16 here"),
    ({"quantizer__codebook_size": 32}, r"quantizer.codebook_size: 16 there, 32 here"),
    ({"quantizer": {"type": "fsq", "levels": [4, 4]}}, r"quantizer.type: 'vq' there, 'fsq' here"),
])  # fmt: skip
def test_another_architecture_is_refused_by_name(tiny_recipe, first, change, message):
    with pytest.raises(ConfigError, match=message):
        trained(tiny_recipe(initialize_from=str(first), **change))


def test_constants_without_weights_are_compared_too(tiny_recipe, tmp_path):
    fields = {"training__max_steps": 1}
    other = {"type": "fsq", "levels": [2, 8]}
    one = trained(tiny_recipe(output_dir=str(tmp_path / "a"), quantizer=other, **fields)).folder / "final"
    same_size = {"type": "fsq", "levels": [8, 2]}
    with pytest.raises(ConfigError, match=r"quantizer.levels: \[2, 8\] there, \[8, 2\] here"):
        trained(tiny_recipe(output_dir=str(tmp_path / "b"), quantizer=same_size, initialize_from=str(one), **fields))


def test_what_can_not_be_is_refused(tiny_recipe):
    with pytest.raises(ConfigError, match=r"freeze must name some of encoder.*got \['encodr'\]"):
        tiny_recipe(freeze=["encodr"])
    with pytest.raises(ConfigError, match="not all"):
        tiny_recipe(freeze=["encoder", "to_codes", "quantizer", "from_codes", "decoder"])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        trained(tiny_recipe(initialize_from="./nowhere"))
