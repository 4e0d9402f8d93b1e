"""How full packed rows are, and how fast they are planned: `python -m benchmarks.packing`.

The mix of lengths: captions of 20 to 60 tokens, chats of a long-tailed 100 to 2,000, and pictures in blocks of 77, 263,
583 and 1,100 tokens with a caption each. Beside best-fit decreasing stand a batch of padded sequences, and sequences
put together in turn.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

import numpy as np

from mmlm.data.packing import best_fit_decreasing

BLOCKS = (77, 263, 583, 1100)
"""Tokens of pictures of 8 × 8, 16 × 16, 24 × 24 and 32 × 32 codes with their marks."""
ROWS_OF_A_BATCH = 16


def realistic_lengths(count: int, seed: int) -> np.ndarray:
    """Return token counts of a mix: 30 % text-only captions, 20 % chats, 50 % pictures with captions."""
    generator = np.random.default_rng(seed)
    captions = generator.integers(20, 61, count)
    chats = np.clip(generator.lognormal(6.0, 0.8, count), 100, 2000).astype(np.int64)
    pictures = generator.choice(BLOCKS, count) + generator.integers(20, 61, count)
    kind = generator.choice(3, count, p=(0.3, 0.2, 0.5))
    return np.choose(kind, (captions, chats, pictures))


def padded_share(lengths: np.ndarray, batch: int) -> float:
    """Return the share of tokens in batches padded to their longest sequence."""
    whole = lengths[: len(lengths) // batch * batch].reshape(-1, batch)
    return float(whole.sum() / (whole.max(1) * batch).sum())


def rows_in_turn(lengths: np.ndarray, capacity: int) -> int:
    """Return the rows where a sequence that does not fit begins the next."""
    rows, room = 0, 0
    for length in lengths.tolist():
        if length > room:
            rows, room = rows + 1, capacity
        room -= length
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; return 1 where a buffer of the default size fills less than 97 %."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packing", description=__doc__)
    parser.add_argument("--sequences", type=int, default=65536)
    parser.add_argument("--max-length", type=int, default=4096)
    parser.add_argument("--buffers", type=int, nargs="+", default=[256, 1024, 4096, 16384])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    lengths = realistic_lengths(options.sequences, options.seed)
    tokens, capacity = int(lengths.sum()), options.max_length
    found = {
        f"padded batches of {ROWS_OF_A_BATCH}": padded_share(lengths, ROWS_OF_A_BATCH),
        "packed in turn": tokens / (rows_in_turn(lengths, capacity) * capacity),
    }
    worst = 1.0
    for buffer in options.buffers:
        begin = time.perf_counter()
        parts = [lengths[start : start + buffer] for start in range(0, len(lengths), buffer)]
        rows = sum(len(best_fit_decreasing(part, capacity)) for part in parts)
        seconds = time.perf_counter() - begin
        found[f"best fit, buffer of {buffer}"] = share = tokens / (rows * capacity)
        found[f"best fit, buffer of {buffer}: sequences/s"] = len(lengths) / seconds
        if buffer >= 4096:
            worst = min(worst, share)
    if options.json:
        print(json.dumps(found))
    else:
        print(f"{options.sequences} sequences, {tokens / len(lengths):.0f} tokens on average, rows of {capacity}")
        for name, value in found.items():
            print(f"{name:42} {value:10.0f}" if name.endswith("/s") else f"{name:42} {value:10.2%}")
    return int(worst < 0.97)


if __name__ == "__main__":
    sys.exit(main())
