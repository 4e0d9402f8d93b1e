"""A plan's numbers beside those of a real, small run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from mmlm.recipes.training import LMRecipe
from mmlm.training.build import build_trainer, load_processor, run_arguments
from mmlm.training.model_flops import ModelFlops
from mmlm.training.plan import STRATEGIES, Machine, activation_bytes, build_on_meta, count_parameters, plan_run
from visual_tokenizer.errors import UserError
from visual_tokenizer.registry import ConfigError

ONE = Machine(devices=1)


@pytest.mark.parametrize("rank", [0, 4])
def test_parameters_and_optimizer_are_those_of_a_run(
    recipe_fields: dict[str, Any], make_recipe: Callable[..., LMRecipe], rank: int
) -> None:
    recipe = make_recipe(recipe_fields, lora__rank=rank, training__max_steps=1)
    found = plan_run(recipe, ONE)
    trainer = build_trainer(recipe, load_processor(recipe.model), run_arguments(recipe))
    trainer.train()
    weights = list(trainer.model.parameters())
    assert found.parameters.total == sum(weight.numel() for weight in weights)
    assert found.parameters.trained == sum(weight.numel() for weight in weights if weight.requires_grad)
    assert bool(found.parameters.lora) == bool(rank)
    states = trainer.optimizer.state.values()
    held = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    memory = found.memory["DDP"]["kept"]
    assert memory.optimizer == sum(value.nbytes for value in held)
    assert memory.weights == sum(weight.nbytes for weight in weights)
    assert memory.gradients == sum(weight.nbytes for weight in weights if weight.requires_grad)
    assert found.steps == 1


def test_parts_add_up(recipe_fields: dict[str, Any], make_recipe: Callable[..., LMRecipe]) -> None:
    for tied in (True, False):
        config = LlamaConfig(
            vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4
        )
        config.tie_word_embeddings = tied
        with torch.device("meta"):
            found = count_parameters(LlamaForCausalLM(config))
        assert found.embeddings == 3200
        assert found.head == (0 if tied else 3200)
        assert found.layers == 3 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32)
        assert found.other == 32
        assert found.total == found.embeddings + found.head + found.layers + found.other


def test_strategies_share_what_they_say(recipe_fields: dict[str, Any], make_recipe: Callable[..., LMRecipe]) -> None:
    recipe = make_recipe(recipe_fields, training__mixed_precision="bf16", training__batch_size=8)
    found = plan_run(recipe, Machine(devices=4))
    total = found.parameters.total
    rows = [found.memory[strategy]["kept"] for strategy in STRATEGIES]
    assert [row.weights for row in rows] == [6 * total, 2 * total, 2 * total, -(-2 * total // 4)]
    assert [row.gradients for row in rows] == [4 * total, 2 * total, -(-2 * total // 4), -(-2 * total // 4)]
    assert [row.optimizer for row in rows][1:] == [3 * total] * 3
    assert found.rows_a_device == 2


def small_llama(kv_heads: int = 4) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
    )
    return LlamaForCausalLM(config).train()


def bytes_kept(model: LlamaForCausalLM, is_half: bool) -> int:
    """Return the bytes of what autograd keeps of 2 · 40 tokens, from the embeddings to the head's input."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.shape[:1] in ((2,), (80,)):  # no weight, nor autocast's copy of one
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=is_half),
    ):
        model.model(torch.randint(0, 64, (2, 40)), use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("is_half", [False, True])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_activations_are_within_the_stated_factor(is_half: bool, kv_heads: int) -> None:
    model = small_llama(kv_heads)
    planned = activation_bytes(model.config, 2, 40, item=2 if is_half else 4, recomputed=False, masks=False)
    assert 1 / 1.5 < bytes_kept(model, is_half) / planned < 1.5


@pytest.mark.parametrize("is_half", [False, True])
def test_recomputed_activations_are_the_blocks_inputs_and_one_block(is_half: bool) -> None:
    model = small_llama()
    item = 2 if is_half else 4
    whole, less = (
        activation_bytes(model.config, 2, 40, item=item, recomputed=recomputed, masks=False)
        for recomputed in (False, True)
    )
    model.gradient_checkpointing_enable({"use_reentrant": False})
    inputs: list[int] = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0].nbytes))
    outside = bytes_kept(model, is_half)
    assert less == sum(inputs) + whole // 6
    assert outside < whole / 6, "the blocks keep nothing themselves"


def test_operations_are_those_that_torch_counts() -> None:
    """6N and attention, counted by torch's own FLOP counter in a forward and a backward pass with full attention."""
    from torch.utils.flop_counter import FlopCounterMode

    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4
    )
    config._attn_implementation = "eager"  # whose products the counter sees
    model = LlamaForCausalLM(config)
    batch, length = 2, 48
    with FlopCounterMode(display=False) as counter:
        model(torch.randint(0, 96, (batch, length)), use_cache=False).logits.sum().backward()
    flops = ModelFlops.of(model)
    expected = flops.per_second(batch * length, batch * length * length)  # eager attention computes hidden pairs too
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)
    model.get_input_embeddings().requires_grad_(False)
    assert ModelFlops.of(model) == flops, "the table is looked up"


def test_length_and_time_of_a_run(recipe_fields: dict[str, Any], make_recipe: Callable[..., LMRecipe]) -> None:
    recipe = make_recipe(recipe_fields, training__max_steps=None, training__epochs=2, training__batch_size=10)
    machine = Machine(devices=2, mfu=0.5, peak_tflops=100)
    found = plan_run(recipe, machine, sequences=1000, sequence_length=64)
    assert (found.steps, found.row_tokens, found.tokens_a_step) == (200, 64, 640)
    assert found.total_tokens == 200 * 640
    flops = ModelFlops.of(build_on_meta(recipe))
    assert found.total_flops == pytest.approx(128000 * (flops.per_token + 32.5 * flops.per_pair))
    assert found.seconds == pytest.approx(found.total_flops / 1e14)
    fields = {**recipe_fields, "data.packing": True, "data.max_length": 128}
    packed = make_recipe(fields, training__max_steps=None, training__epochs=2, training__batch_size=10)
    found = plan_run(packed, machine, sequences=1000, sequence_length=64)
    assert (found.steps, found.row_tokens) == (100, 128)
    recipe.data.shards_dir = "nowhere"
    with pytest.raises(ConfigError, match="sequences must be given"):
        plan_run(recipe, machine)
    with pytest.raises(UserError, match=r"mfu must be in \(0, 1\], got 45"):
        Machine(mfu=45)


def test_the_command_prints_tables_and_json(recipe_fields: dict[str, Any], tmp_path: Any) -> None:
    from mmlm.cli import app

    file = tmp_path / "recipe.yaml"
    nested: dict[str, Any] = {}
    for key, value in recipe_fields.items():
        section = nested
        for name in key.split(".")[:-1]:
            section = section.setdefault(name, {})
        section[key.split(".")[-1]] = value
    file.write_text(json.dumps(nested))
    words = ["plan", "--config", str(file), "--devices", "2", "--training.max_steps", "7"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert "ZeRO-3" in shown.output
    plain = CliRunner().invoke(app, [*words, "--json"])
    found = json.loads(plain.output)
    assert found["steps"] == 7
    memory = found["memory"]["ZeRO-2"]["recomputed"]
    assert memory["total"] == sum(value for name, value in memory.items() if name != "total")
    wrong = CliRunner().invoke(app, [*words, "--devices", "3"])
    assert wrong.exit_code == 2
