"""Speed of whole tokenizers beside transformers' classes of the same models, with the same weights.

Pictures a second of encoding (pixels to indices) and decoding (indices to pixels), in one process, all sides in turn,
median after a warm-up: transformers' class, this project's tokenizer, the same with its convolutions' weights laid out
channels last, and the same with encoder and decoder compiled. Before anything is timed all sides must give the same
indices, and the same pixels where the class has a decoder. Beside them stands the least that a device could take: the
multiplications of this project's pass at the rate of a large float32 matrix product, timed in the same turns.

  python -m benchmarks.architectures                                 chameleon, janus and emu3 as published
  python -m benchmarks.architectures --model janus --size 384 --batch 1 --json results.json
  python -m benchmarks.architectures --small                         narrow networks, to try the program

Exit codes: 0 done; 1 the sides disagree; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import statistics
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig, Emu3VQVAE, Emu3VQVAEConfig
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

from benchmarks.measure import alternating_seconds
from benchmarks.quantizers import MIN_AGREEMENT, DisagreementError, markdown_table, processor_name
from visual_tokenizer.convert import MissingDecoderWarning, load_published
from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.recipe import provenance

THEIRS = "transformers"

VARIANTS = ("ours", "channels_last", "compiled")

MAX_PIXEL_ERROR = 1e-3
"""How far pixels of the same indices may lie apart; in [-1, 1]."""

PLAIN_TARGET, BEST_TARGET = 0.95, 1.3
"""Speeds beside transformers' that `ours` and the fastest variant should have at the least."""

BOUND_TARGET = 0.9
"""Share of the bound at which a variant is as fast as can be, whatever transformers' speed is."""

PRODUCT = "product"
PRODUCT_SIDE = 2048
"""Rows and columns of the matrix product that gives the bound."""


@dataclass(frozen=True)
class Model:
    """One of transformers' tokenizers.

    Args:
        build: gives its class with random weights; takes whether it should be small.
        size: side in pixels of the pictures of the published model.
        encode: (class, pixels) → indices (B, h · w).
        decode: (class, indices (B, h, w)) → pixels; none where the class has no decoder.
        note: what is done in another way here, for the table.
    """

    build: Callable[[bool], Any]
    size: int
    encode: Callable[[Any, Tensor], Tensor]
    decode: Callable[[Any, Tensor], Tensor] | None
    note: str = ""


@dataclass
class Sides:
    """What is compared: names and functions of the same input."""

    encode: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    decode: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)


def _narrow(is_small: bool, **fields: Any) -> dict[str, Any]:
    return {"base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1, **fields} if is_small else {}


def _janus_pixels(model: Any, indices: Tensor) -> Tensor:
    model.quantize.quant_state_dims = list(indices.shape[1:])  # the class decodes one size only
    pixels: Tensor = model.decode(indices.flatten(1))
    return pixels


def _emu3_indices(model: Any, pixels: Tensor) -> Tensor:
    sizes = torch.tensor([pixels.shape[-2:]] * pixels.shape[0])
    return torch.stack(model.encode(pixels, image_sizes=sizes).image_tokens).flatten(1)


MODELS: Mapping[str, Model] = {
    "chameleon": Model(
        lambda is_small: ChameleonVQVAE(ChameleonVQVAEConfig(**_narrow(is_small, num_embeddings=64))),
        512,
        lambda model, pixels: model.encode(pixels).image_tokens.view(pixels.shape[0], -1),
        None,
        "transformers' class has no decoder",
    ),
    "janus": Model(
        lambda is_small: JanusVQVAE(JanusVQVAEConfig(**_narrow(is_small, num_embeddings=64))),
        384,
        lambda model, pixels: model.encode(pixels).image_tokens.view(pixels.shape[0], -1),
        _janus_pixels,
    ),
    "emu3": Model(
        lambda is_small: Emu3VQVAE(
            Emu3VQVAEConfig(**_narrow(is_small, codebook_size=64, attn_resolutions=[1], hidden_size=64))
        ),
        512,
        _emu3_indices,
        lambda model, indices: model.decode(indices),
        "transformers makes four equal frames of a picture, here it goes through the network once",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for, print a table, and return the exit code."""
    options = _parse(arguments)
    where = {
        "device": torch.cuda.get_device_name() if options.device.type == "cuda" else f"CPU, {processor_name()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        THEIRS: transformers.__version__,
        "pictures a pass": options.batch,
        "timed passes": options.repeats,
    }
    print("  \n".join(f"{name}: {value}" for name, value in where.items()), flush=True)
    rows: list[dict[str, Any]] = []
    try:
        for name in options.model:
            print(f"{name} …", file=sys.stderr, flush=True)
            rows += measure_model(name, options)
            print(table(rows[-2:] if rows[-1]["what"] == "decode" else rows[-1:]), file=sys.stderr, flush=True)
    except DisagreementError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\n{table(rows)}\n\n{notes(options.model)}")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"machine": where, "rows": rows, **provenance()}, indent=1) + "\n")
    return 0


def _parse(arguments: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.architectures", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", nargs="+", choices=list(MODELS), default=list(MODELS), help="only these")
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="only these of ours")
    parser.add_argument("--size", type=int, help="side of the pictures in pixels (the published one)")
    parser.add_argument("--batch", type=int, default=1, help="pictures of a pass (1)")
    parser.add_argument("--repeats", type=int, default=5, help="passes that are timed (5)")
    parser.add_argument("--warmup", type=int, default=2, help="passes before them (2)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, … (a GPU, if there is one)")
    parser.add_argument("--small", action="store_true", help="narrow networks, to try the program")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args(arguments)
    for name in ("batch", "repeats", "size"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} must be 1 or more, got {getattr(options, name)}")
    options.device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return options


@torch.no_grad()  # not inference mode, whose tensors the counter of operations can't follow
def measure_model(name: str, options: Any) -> list[dict[str, Any]]:
    """Check that all sides agree and time them: one row for encoding, one for decoding where there is a decoder.

    Raises:
        DisagreementError: they don't agree.
    """
    model = MODELS[name]
    torch.manual_seed(0)
    sides = build_sides(name, model.build(options.small).eval().to(options.device), options.variant)
    size = options.size or model.size
    pixels = torch.rand(options.batch, 3, size, size, device=options.device) * 2 - 1
    indices = {side: encode(pixels) for side, encode in sides.encode.items()}
    same = agreement(name, indices)
    rows = [{"model": name, "what": "encode", "same_indices": same, **_timed(sides.encode, pixels, options)}]
    if sides.decode:
        tokens = indices[THEIRS].view(options.batch, *_grid(indices[THEIRS].shape[1]))
        error = pixel_error(name, {side: decode(tokens) for side, decode in sides.decode.items()})
        rows.append({"model": name, "what": "decode", "pixel_error": error, **_timed(sides.decode, tokens, options)})
    return rows


def _grid(tokens: int) -> tuple[int, int]:
    side = round(tokens**0.5)
    return side, side


def build_sides(name: str, theirs: Any, variants: Sequence[str]) -> Sides:
    """Return transformers' functions and those of each variant of the tokenizer that has its weights."""
    model = MODELS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MissingDecoderWarning)
        plain = load_published(theirs, source=name).to(theirs.device)
    sides = Sides()
    sides.encode[THEIRS] = functools.partial(model.encode, theirs)
    if model.decode is not None:
        sides.decode[THEIRS] = functools.partial(_their_pixels, model.decode, theirs)
    for variant in variants:
        tokenizer = _variant(plain, variant)
        sides.encode[variant] = functools.partial(_our_indices, tokenizer)
        if model.decode is not None:
            sides.decode[variant] = tokenizer.decode
    return sides


def _their_pixels(decode: Callable[[Any, Tensor], Tensor], theirs: Any, indices: Tensor) -> Tensor:
    return decode(theirs, indices).clamp(-1, 1)


def _our_indices(tokenizer: VisualTokenizer, pixels: Tensor) -> Tensor:
    return tokenizer.encode(pixels).flatten(1)


def _variant(plain: VisualTokenizer, variant: str) -> VisualTokenizer:
    if variant == "ours":
        return plain
    tokenizer = copy.deepcopy(plain)
    if variant == "channels_last":
        for module in tokenizer.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    else:
        tokenizer.encoder.compile()
        tokenizer.decoder.compile()
    return tokenizer


def agreement(name: str, indices: Mapping[str, Tensor]) -> float:
    """Return the smallest share of indices that a side has in common with transformers'.

    Raises:
        DisagreementError: it is below 99.9 %.
    """
    shares = {side: (found == indices[THEIRS]).double().mean().item() for side, found in indices.items()}
    side, share = min(shares.items(), key=lambda item: item[1])
    if share < MIN_AGREEMENT:
        raise DisagreementError(f"model '{name}': '{side}' has {share:.2%} of transformers' indices")
    return share


def pixel_error(name: str, pixels: Mapping[str, Tensor]) -> float:
    """Return the largest distance of a side's pixels from transformers'.

    Raises:
        DisagreementError: it is above 0.001.
    """
    errors = {side: (found - pixels[THEIRS]).abs().max().item() for side, found in pixels.items()}
    for side, error in errors.items():
        if not error <= MAX_PIXEL_ERROR:  # NaN is not
            raise DisagreementError(f"model '{name}': pixels of '{side}' are up to {error:.2g} from transformers'")
    return max(errors.values())


def _timed(sides: Mapping[str, Callable[[Tensor], Tensor]], given: Tensor, options: Any) -> dict[str, Any]:
    actions: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        side: (functools.partial(_run, action, given), lambda: None) for side, action in sides.items()
    }
    factor = torch.randn(PRODUCT_SIDE, PRODUCT_SIDE, device=options.device)
    actions[PRODUCT] = (functools.partial(_run, factor.matmul, factor), lambda: None)
    seconds = alternating_seconds(actions, warmup=options.warmup, repeats=options.repeats, device=options.device)
    rate = 2 * PRODUCT_SIDE**3 / statistics.median(seconds.pop(PRODUCT))
    speeds = {side: options.batch / statistics.median(found) for side, found in seconds.items()}
    flops = _flops(next(action for side, action in sides.items() if side != THEIRS), given)
    return {
        "seconds": seconds,
        "pictures_per_second": speeds,
        "ratios": {side: speed / speeds[THEIRS] for side, speed in speeds.items() if side != THEIRS},
        "flops": flops,
        "product_flops_per_second": rate,
        "shares_of_bound": {
            side: speed * flops / options.batch / rate for side, speed in speeds.items() if side != THEIRS
        },
    }


def _flops(action: Callable[[Tensor], Tensor], given: Tensor) -> int:
    """Return the operations of the convolutions and matrix products of one pass."""
    with FlopCounterMode(display=False) as counter:
        action(given)
    return counter.get_total_flops()


def _run(action: Callable[[Tensor], Tensor], given: Tensor) -> None:
    action(given)


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Return the rows of `measure_model` as a markdown table."""
    found = list(rows)
    variants = [variant for variant in VARIANTS if all(variant in row["ratios"] for row in found)]
    lines = []
    for row in found:
        speeds, ratios, shares = row["pictures_per_second"], row["ratios"], row["shares_of_bound"]
        lines.append(
            [
                f"{row['model']}, {row['what']}",
                f"{speeds[THEIRS]:.3g}",
                *(f"{speeds[variant]:.3g} ({ratios[variant]:.2f}×)" for variant in variants),
                f"{max(shares.values()):.0%}",
                f"{row['same_indices']:.2%} of indices" if "same_indices" in row else f"±{row['pixel_error']:.1e}",
                "pass" if meets_targets(ratios, shares) else "FAIL",
            ]
        )
    return markdown_table(["pictures/s", THEIRS, *variants, "of the bound", "same", "target"], lines)


def meets_targets(ratios: Mapping[str, float], shares: Mapping[str, float]) -> bool:
    """Tell whether `ours` is not slower, but for 5 %, and the fastest variant at least 1.3 times as fast, or as fast as
    the device multiplies, but for 10 %."""
    best = max(ratios.values()) >= BEST_TARGET or max(shares.values()) >= BOUND_TARGET
    return ratios.get("ours", PLAIN_TARGET) >= PLAIN_TARGET and best


def notes(models: Iterable[str]) -> str:
    """Return what is done in another way, model by model, and what the target is."""
    lines = [
        f"Target: ours at least {PLAIN_TARGET}× transformers' speed, the fastest variant at least {BEST_TARGET}× "
        f"or {BOUND_TARGET:.0%} of the bound, which no direct convolution can pass.",
        *(f"- {name}: {MODELS[name].note}." for name in models if MODELS[name].note),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
