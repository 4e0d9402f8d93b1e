"""What a training run needs, before it runs: parameters, memory of a device, tokens, operations, time.

The model is built on the meta device, from its config alone.

Memory of a device, in bytes, for N weights of which M are trained, on P devices; b is 2 under bf16 or fp16, else 4:

| | weights | gradients | optimizer |
|---|---|---|---|
| DDP | 4 N, and b N for autocast's copies where b is 2 | 4 M | 8 M (AdamW's two moments) |
| ZeRO-1 | b N | b M | 12 M / P (float32 weights and two moments) |
| ZeRO-2 | b N | b M / P | 12 M / P |
| ZeRO-3 | b N / P | b M / P | 12 M / P |

ZeRO's rows are those of Rajbhandari et al. (arXiv:1910.02054, section 3.1 and figure 1), without communication buffers.
Frozen weights have `training.parameter_dtype` in place of 4 and take no autocast copy where that is b.

Activations of a block, for each token of a row, of width D, attention width A = heads · head dimension and
feed-forward width F: 4 · 8 D for norms and the residual stream, which stay in float32, and b · (2 D + 4 A + 4 F)
for the inputs of products, queries, keys (repeated for grouped heads), values, attention's output, and the gated
feed-forward layer. With gradient checkpointing: 4 D a block, and one block whole. On a Llama this is right within a
factor of 1.5 of what autograd keeps. Attention is taken to be fused; where documents are packed, a mask of one byte
for each pair of places of a row is added.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Interval
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from mmlm.data.shards import HEADER_NAME
from mmlm.losses.cross_entropy import LOGITS_AT_A_TIME
from mmlm.recipes.training import LMRecipe
from mmlm.training.build import load_processor, longest_sequence
from mmlm.training.lora import add_lora
from mmlm.training.model_flops import ModelFlops
from visual_tokenizer.errors import UserError
from visual_tokenizer.fields.ranges import Section
from visual_tokenizer.hf_training.arguments import total_sequences, total_steps
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.runs.saved_models import CONFIG, loading

STRATEGIES = ("DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass
class Machine(Section):
    """What a run has."""

    devices: Annotated[int, Ge(1)] = 8
    """Processes, each with one device."""
    memory_gb: Annotated[float, Gt(0)] = 80.0
    """Of a device, in 10^9 bytes."""
    mfu: Annotated[float, Interval(gt=0, le=1)] = 0.45
    """Share of the peak that the model's operations reach."""
    peak_tflops: Annotated[float, Gt(0)] = 989.0
    """Of a device, in 10^12 operations a second; 989: H100, bf16, dense."""


@dataclass
class Parameters:
    """Elements of the weights; a tied head counts with the embeddings."""

    embeddings: int
    layers: int
    head: int
    other: int
    lora: int
    total: int
    trained: int
    trained_tensors: int


@dataclass
class DeviceMemory:
    """Bytes on one device."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    """The logits of one chunk, and the gradient of the head's weight before it is added to the others."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.loss


@dataclass
class Plan:
    """The result of `plan_run`."""

    parameters: Parameters
    memory: dict[str, dict[str, DeviceMemory]]
    """By strategy, then `kept` or `recomputed` activations."""
    row_tokens: int
    """Tokens of a row."""
    rows_a_device: int
    """Rows of one forward pass on one device."""
    tokens_a_step: int
    steps: int
    total_tokens: int
    flops_a_token: float
    """Forward and backward, with attention's."""
    total_flops: float
    seconds: float
    """At the machine's MFU, without evaluation, samples and checkpoints."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain numbers, with the totals of the memory."""
        found = asdict(self)
        for strategy, kinds in self.memory.items():
            for kind, memory in kinds.items():
                found["memory"][strategy][kind]["total"] = memory.total
        return found


def build_on_meta(recipe: LMRecipe) -> Any:
    """Return the recipe's model without storage, with adapters if the recipe says so.

    Raises:
        UserError: `model` has no config of a language model.
    """
    with loading(recipe.model, "language model", [CONFIG]), torch.device("meta"):
        config = AutoConfig.from_pretrained(recipe.model, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        model.tie_weights()
    with torch.device("meta"):
        if recipe.lora.rank:
            with torch.device("cpu"):
                layout = load_processor(recipe.model).layout
            return add_lora(model, recipe.lora, layout)
    return model


def count_parameters(model: Any) -> Parameters:
    """Count a causal LM, or a peft model of it."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    in_table = {id(weight) for weight in table.parameters()}
    in_head = {id(weight) for weight in head.parameters()} - in_table if head is not None else set()
    in_layers = {
        id(weight) for module in model.modules() if isinstance(module, nn.ModuleList) for weight in module.parameters()
    }
    found = dict.fromkeys(("embeddings", "layers", "head", "other", "lora"), 0)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            part = "lora"
        elif id(weight) in in_table:
            part = "embeddings"
        elif id(weight) in in_head:
            part = "head"
        else:
            part = "layers" if id(weight) in in_layers else "other"
        found[part] += weight.numel()
    trained = [weight.numel() for weight in model.parameters() if weight.requires_grad]
    return Parameters(**found, total=sum(found.values()), trained=sum(trained), trained_tensors=len(trained))


def activation_bytes(config: Any, rows: int, length: int, *, item: int, recomputed: bool, masks: bool) -> int:
    """Return the bytes that wait for the backward pass; see the formula at the head of this file.

    Args:
        config: of the language model.
        rows: of one forward pass.
        length: tokens of a row.
        item: bytes of a product's operand.
        recomputed: with gradient checkpointing.
        masks: whether attention takes a mask of every pair of places.
    """
    width, layers = config.hidden_size, config.num_hidden_layers
    attention = config.num_attention_heads * (getattr(config, "head_dim", None) or width // config.num_attention_heads)
    inner = getattr(config, "intermediate_size", None) or 4 * width
    block = 4 * 8 * width + item * (2 * width + 4 * attention + 4 * inner)
    kept = 4 * width * layers + block if recomputed else block * layers
    return rows * length * kept + (rows * length * length if masks else 0)


def device_memory(
    recipe: LMRecipe, parameters: Parameters, strategy: str, devices: int, *, activations: int, head: int
) -> DeviceMemory:
    """Return the bytes of one strategy; `head` is the elements of the head's weight.

    Raises:
        ValueError: an unknown strategy.
    """
    if strategy not in STRATEGIES:
        raise UserError(f"strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
    stage = STRATEGIES.index(strategy)
    item = 4 if recipe.training.mixed_precision == "no" else 2
    stored = BYTES[recipe.training.parameter_dtype]
    total, trained = parameters.total, parameters.trained
    frozen = total - trained
    if stage == 0:
        copies = item * (trained + (frozen if stored != item else 0)) if item == 2 else 0
        weights, gradients = 4 * trained + stored * frozen + copies, 4 * trained
        optimizer = 8 * trained + 4 * parameters.trained_tensors  # a step count a tensor
    else:
        weights, gradients, optimizer = item * total, item * trained, -(-12 * trained // devices)
        if stage >= 2:
            gradients = -(-gradients // devices)
        if stage >= 3:
            weights = -(-weights // devices)
    loss = LOGITS_AT_A_TIME * item + (4 * head if trained >= head else 0)
    return DeviceMemory(weights, gradients, optimizer, activations, loss)


def plan_run(
    recipe: LMRecipe,
    machine: Machine,
    *,
    sequences: int | None = None,
    sequence_length: int | None = None,
) -> Plan:
    """Plan a run by a recipe; nothing trains, and no weights are read.

    Args:
        recipe: of the training.
        machine: what it runs on.
        sequences: of the training split; None: what the shards' header says.
        sequence_length: tokens of a sequence on average; None: the longest that data.max_length and model allow.

    Raises:
        ConfigError: no model, a batch that does not divide, or unknown numbers of sequences or tokens.
    """
    model = build_on_meta(recipe)
    config = model.config.get_text_config()
    parameters = count_parameters(model)
    longest = longest_sequence(recipe.data, model.config)
    row = longest if recipe.data.packing or sequence_length is None else sequence_length
    if row is None:
        raise ConfigError("sequence_length must be given: neither data.max_length nor the model's config bounds it")
    document = min(sequence_length or row, row)
    rows = recipe.training.per_device_batch_size(machine.devices)
    steps = _steps(recipe, sequences, document / row if recipe.data.packing else 1.0)
    tokens = recipe.training.batch_size * row
    flops = ModelFlops.of(model)
    flops_a_token = flops.per_second(1, (document + 1) / 2)
    table = config.vocab_size * config.hidden_size
    memory = {
        strategy: {
            name: device_memory(
                recipe,
                parameters,
                strategy,
                machine.devices,
                activations=activation_bytes(
                    config,
                    rows,
                    row,
                    item=4 if recipe.training.mixed_precision == "no" else 2,
                    recomputed=name == "recomputed",
                    masks=recipe.data.packing,
                ),
                head=table,
            )
            for name in ("kept", "recomputed")
        }
        for strategy in STRATEGIES
    }
    return Plan(
        parameters=parameters,
        memory=memory,
        row_tokens=row,
        rows_a_device=rows,
        tokens_a_step=tokens,
        steps=steps,
        total_tokens=steps * tokens,
        flops_a_token=flops_a_token,
        total_flops=flops_a_token * steps * tokens,
        seconds=flops_a_token * steps * tokens / (machine.devices * machine.peak_tflops * 1e12 * machine.mfu),
    )


def _steps(recipe: LMRecipe, sequences: int | None, rows_a_sequence: float) -> int:
    """Return the optimizer steps; a packed sequence takes its share of a row."""
    if recipe.training.max_steps is not None:
        return recipe.training.max_steps
    if sequences is None:
        header = Path(recipe.data.shards_dir) / recipe.data.train_split / HEADER_NAME
        if not header.is_file():
            raise ConfigError(
                f"sequences must be given: training.epochs counts passes over them, and {header} is not there yet"
            )
        sequences = int(json.loads(header.read_text(encoding="utf-8"))["count"])
    if recipe.data.packing:
        rows = (total_sequences(recipe.training, sequences) or 0) * rows_a_sequence
        return max(1, int(rows) // recipe.training.batch_size)
    return total_steps(recipe.training, sequences)
