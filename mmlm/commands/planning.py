"""`mmlm plan`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from mmlm.commands.registration import RECIPE_WORDS, be_quiet, command

if TYPE_CHECKING:
    from mmlm.training.plan import Machine, Plan


@command("plan", **RECIPE_WORDS)
def plan(
    context: typer.Context,
    config: Annotated[str, typer.Option("--config", help="Training recipe.")],
    devices: Annotated[int, typer.Option("--devices", help="Processes, each with one device.")] = 8,
    memory_gb: Annotated[float, typer.Option("--memory_gb", help="Of a device, in 10^9 bytes.")] = 80.0,
    mfu: Annotated[float, typer.Option("--mfu", help="Share of the peak that is reached.")] = 0.45,
    peak_tflops: Annotated[float, typer.Option("--peak_tflops", help="Of a device; 989: H100, bf16.")] = 989.0,
    sequences: Annotated[
        int | None, typer.Option("--sequences", min=1, help="Of the training split; default: as the shards say.")
    ] = None,
    sequence_length: Annotated[
        int | None, typer.Option("--sequence_length", min=1, help="Tokens on average; default: the most there may be.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a training run needs: parameters, memory of a device, tokens, operations, time. Nothing trains.

    Other fields of the recipe: --field VALUE.

    [bold]Examples[/bold]

      mmlm plan --config recipes/lm/openmoji_llama.yaml

      mmlm plan --config recipes/lm/openmoji_llama.yaml --devices 1 --memory_gb 24 --peak_tflops 165 \\
        --training.mixed_precision bf16 --data.packing true --sequence_length 90
    """
    from mmlm.recipes.training import LMRecipe
    from mmlm.training.plan import Machine, plan_run
    from visual_tokenizer.recipe import parse_arguments, with_smoke

    be_quiet()
    words = with_smoke(["--config", config, *context.args])
    recipe = parse_arguments(LMRecipe, words, program="mmlm plan", about=plan.__doc__ or "")
    machine = Machine(devices, memory_gb, mfu, peak_tflops)
    found = plan_run(recipe, machine, sequences=sequences, sequence_length=sequence_length)
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        _show(found, machine)


def _show(found: Plan, machine: Machine) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("part", "parameters", title="Parameters")
    for name in ("embeddings", "layers", "head", "other", "lora", "total", "trained"):
        table.add_row(name, f"{getattr(found.parameters, name):,}")
    console.print(table)
    parts = ("weights", "gradients", "optimizer", "activations", "loss", "total")
    title = f"GB on each of {machine.devices} devices of {machine.memory_gb:g} GB"
    table = Table("strategy", "activations are", *parts, "fits", title=title)
    for strategy, kinds in found.memory.items():
        for kind, memory in kinds.items():
            sizes = [f"{getattr(memory, part) / 1e9:.2f}" for part in parts]
            table.add_row(strategy, kind, *sizes, "yes" if memory.total < machine.memory_gb * 1e9 else "no")
    console.print(table)
    table = Table("run", "", title="Work")
    table.add_row("rows a device × tokens of a row", f"{found.rows_a_device} × {found.row_tokens:,}")
    table.add_row("tokens a step", f"{found.tokens_a_step:,}")
    table.add_row("steps", f"{found.steps:,}")
    table.add_row("tokens in all", f"{found.total_tokens:,}")
    table.add_row("operations a token (6N and attention)", f"{found.flops_a_token:.3g}")
    table.add_row("operations in all", f"{found.total_flops:.3g}")
    table.add_row(f"time at {machine.mfu:.0%} of {machine.peak_tflops:g} TFLOP/s a device", _duration(found.seconds))
    console.print(table)


def _duration(seconds: float) -> str:
    for name, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.2g} s"
