"""What is wrong with a codebook, in numbers and in one plain line each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from visual_tokenizer.codebooks.distributed import broadcast_from_first_rank, max_over_ranks
from visual_tokenizer.codebooks.liveness import Liveness
from visual_tokenizer.codebooks.search import code_counts
from visual_tokenizer.codebooks.soft_assignment import assignment_entropies, distance_logits, distribution_entropy
from visual_tokenizer.errors import UserError
from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.quantizers.base import Quantizer

HEALTHY_USAGE = 0.9
"""Share of the codes in use from which a codebook is called healthy."""

DEAD_SHARE = 0.01
"""A code is dead while training if its running share is below this fraction of 1/K."""


@dataclass
class Finding:
    """One measured value and what it means."""

    name: str
    value: float
    is_healthy: bool
    advice: str


@dataclass
class CodebookReport:
    """What was seen of one codebook: counts (K,) and, for each code, batches since it was last chosen."""

    name: str
    counts: Tensor
    ages: Tensor
    values: dict[str, float] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


@torch.no_grad()
def diagnose(tokenizer: VisualTokenizer, batches: Iterable[Mapping[str, Any]], device: torch.device) -> Any:
    """Encode the pictures and report on each codebook: a list of `CodebookReport`, one for each index of a position.

    Args:
        tokenizer: is put in evaluation mode.
        batches: with `pixels` (B, 3, H, W) in [-1, 1].
        device: where the tokenizer is.

    Raises:
        UserError: there are no pictures.
    """
    quantizer = tokenizer.eval().quantizer
    size, books = quantizer.codebook_size, quantizer.num_codebooks
    counts = torch.zeros(books, size, device=device)
    ages = torch.zeros(books, size, dtype=torch.int64, device=device)
    sums: dict[str, Tensor] = {}
    tokens = 0
    for batch in batches:
        latents = tokenizer.latents(batch["pixels"].to(device))
        output = quantizer(latents)
        rows = output.indices.reshape(-1, books).T
        new = torch.stack([code_counts(row, size) for row in rows])
        ages.add_(1).masked_fill_(new > 0, 0)
        counts += new
        tokens += rows.shape[1]
        for name, value in _token_sums(quantizer, latents, output).items():
            sums[name] = sums[name] + value if name in sums else value
    if tokens == 0:
        raise UserError("there are no pictures to diagnose the codebook with")
    reports = []
    for book in range(books):
        name = "codebook" if books == 1 else f"codebook {book}"
        report = CodebookReport(name, counts[book].cpu(), ages[book].cpu())
        report.values = _usage_values(report.counts, report.ages)
        if books == 1:
            report.values |= _latent_values(quantizer, sums, tokens)
        report.findings = findings(report.values, quantizer, tokens)
        reports.append(report)
    return reports


def _token_sums(quantizer: Quantizer, latents: Tensor, output: Any) -> dict[str, Tensor]:
    """Return sums over tokens from which errors and, for a table of codes, entropies follow."""
    table = getattr(quantizer, "vectors", None)
    if table is None:
        return {}
    flat = latents.float().reshape(-1, latents.shape[-1])
    if getattr(quantizer.config, "normalize", False):
        flat = nn.functional.normalize(flat, dim=-1)
    errors = (flat - table[output.indices.reshape(-1)]).square().sum()
    sums = {"errors": errors, "sum": flat.sum(dim=0), "squares": flat.square().sum()}
    # The temperature is the mean squared error itself, so that the scale of the latents does not matter.
    temperature = (errors / max(1, flat.shape[0])).clamp_min(1e-8)
    mean_probabilities, entropy = assignment_entropies(*distance_logits(flat, table, temperature))
    return sums | {"probabilities": mean_probabilities * flat.shape[0], "entropies": entropy * flat.shape[0]}


def _usage_values(counts: Tensor, ages: Tensor) -> dict[str, float]:
    used = counts > 0
    shares = counts / counts.sum()
    values = {
        "usage": used.float().mean().item(),
        "perplexity": torch.special.entr(shares).sum().exp().item(),
        "dead": float((~used).sum()),
    }
    if bool(used.any()):
        values["age"] = ages[used].float().mean().item()
    return values


def _latent_values(quantizer: Quantizer, sums: Mapping[str, Tensor], tokens: int) -> dict[str, float]:
    if "errors" not in sums:
        return {}
    variance = sums["squares"] / tokens - (sums["sum"] / tokens).square().sum()
    error = sums["errors"] / tokens
    return {
        "quantization_error": error.item(),
        "relative_error": (error / variance.clamp_min(1e-12)).item(),
        "sample_entropy": (sums["entropies"] / tokens).item(),
        "batch_entropy": distribution_entropy(sums["probabilities"] / tokens).item(),
    }


@torch.no_grad()
def rank_distance(module: nn.Module) -> float:
    """Return the largest difference between the ranks' parameters and buffers; 0 on one process. All ranks call it."""
    worst = torch.zeros((), dtype=torch.float64)
    for tensor in (*module.parameters(), *module.buffers()):
        first = broadcast_from_first_rank(tensor.detach().clone())
        if tensor.numel():
            worst = worst.to(tensor.device).maximum((tensor.double() - first.double()).abs().max())
    return float(max_over_ranks(worst))


@torch.no_grad()
def running_values(quantizer: Quantizer) -> dict[str, float]:
    """Return what the quantizer's own running statistics say while it trains, the worst of several codebooks.

    Empty for quantizers that keep none, which have no codes that could die.
    """
    lives = [module for module in quantizer.modules() if isinstance(module, Liveness)]
    if not lives:
        return {}
    dead = [life.shares < DEAD_SHARE / life.shares.shape[0] for life in lives]
    return {
        "usage": min((~mask).float().mean().item() for mask in dead),
        "perplexity": min(life.perplexity().item() for life in lives),
        "dead": float(max(int(mask.sum()) for mask in dead)),
        "age": max(life.ages.float().mean().item() for life in lives),
    }


def findings(values: Mapping[str, float], quantizer: Quantizer, tokens: int | None = None) -> list[Finding]:
    """Return a line for each value; `tokens` is how many were looked at, None while training."""
    size = quantizer.codebook_size
    lines = []
    for name, value in values.items():
        is_healthy, advice = _judge(name, value, values, quantizer, size, tokens)
        lines.append(Finding(name, value, is_healthy, advice))
    return lines


def _judge(
    name: str, value: float, values: Mapping[str, float], quantizer: Quantizer, size: int, tokens: int | None
) -> tuple[bool, str]:
    if name == "usage":
        if value >= HEALTHY_USAGE:
            return True, f"{value:.1%} of the codes are in use"
        if tokens is not None and tokens < 3 * size:
            return True, f"{value:.1%} in use, but {tokens} tokens are too few to use {size} codes: take more pictures"
        return False, f"{1 - value:.1%} of the codes are not in use: {_remedy(quantizer)}"
    if name == "perplexity":
        is_even = value >= 0.3 * values["usage"] * size
        how = "evenly" if is_even else "unevenly: an entropy term or fewer codes would even it out"
        return is_even, f"as if {value:.0f} of {size} codes ({math.log2(max(value, 1)):.2f} bits) were used {how}"
    if name == "dead":
        return value <= (1 - HEALTHY_USAGE) * size, f"{value:.0f} codes of {size} were not chosen"
    if name == "age":
        unit = "steps" if tokens is None else "batches"
        return True, f"{value:.1f} {unit} since a code was last chosen, on average"
    if name == "relative_error":
        is_small = value < 0.5
        what = (
            "is kept" if is_small else "is lost: more codes, more of them in use, or a smaller code_dim would keep more"
        )
        return is_small, f"{1 - value if is_small else value:.1%} of the latents' variance {what}"
    if name == "rank_distance":
        is_same = value == 0
        return is_same, "all processes hold the same codebook" if is_same else (
            f"the processes' codebooks differ by up to {value:.2g}: a part does not reduce its statistics over ranks"
        )
    if name == "sample_entropy":
        return True, f"{value:.2f} nats of doubt about a latent's code (softmax of distances over the mean error)"
    if name == "batch_entropy":
        return True, f"{value:.2f} of at most {math.log(size):.2f} nats over all latents, softly assigned"
    return True, f"{value:.4g} mean squared distance of a latent to its code"


def _remedy(quantizer: Quantizer) -> str:
    """Return what this quantizer's config does not have yet."""
    config = quantizer.config
    if not hasattr(config, "reseeder"):
        if any(isinstance(module, Liveness) for module in quantizer.modules()):
            return "give the base's vq an initializer {type: kmeans} and a reseeder, or fewer codes"
        if hasattr(config, "entropy_weight"):
            return f"raise entropy_weight (now {config.entropy_weight}) or take fewer codes"
        if hasattr(config, "levels"):
            return "take fewer levels: an FSQ uses what the data need"
        return "train longer or take fewer codes"
    if config.parametrization.type == "simvq":
        return "train longer, or take a plain table with initializer {type: kmeans} and a reseeder"
    steps = []
    if config.initializer.type == "random":
        steps.append("start from the data (initializer: {type: kmeans})")
    if config.reseeder is None:
        steps.append("move dead codes (reseeder: {type: hard_example})")
    elif config.reseeder.every_steps > 20:
        steps.append(f"look for dead codes more often (reseeder.every_steps, now {config.reseeder.every_steps})")
    if not config.normalize or config.code_dim > 16:
        steps.append("put few channels on the sphere (normalize: true, code_dim: 8)")
    if not any(regularizer.type in ("entropy", "kl_uniform") for regularizer in config.regularizers):
        steps.append("add an entropy term (regularizers: [{type: entropy}])")
    steps.append("or take fewer codes")
    return ", ".join(steps)
