"""How much faster two processes tokenize pictures than one: `python -m benchmarks.pretokenize MERGED_FOLDER`.

Three measurements, each `--repeats` times in turn, of tokenization alone (no imports, no loading), with as many threads
in all as there are cores:

- one: one process, all cores' threads.
- two: two processes of one launch, half the threads each.
- apart: two processes that know nothing of each other, each with half the pictures: what the machine can give.

Printed are the medians, two / (one / 2), and two / apart.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
PICTURES_A_FOLDER = 1000


class MeasurementError(RuntimeError):
    """A process that tokenizes failed."""


def write_pictures(folder: Path, count: int, side: int) -> None:
    """Write PNG files of smooth random colours, the same on every machine."""
    for number in range(count):
        part = folder / f"{number // PICTURES_A_FOLDER:05d}"
        part.mkdir(parents=True, exist_ok=True)
        squares = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(squares).resize((side, side), Image.Resampling.BICUBIC).save(part / f"{number:07d}.png")


def work(model: str, pictures: str, folder: str, batch_size: int) -> None:
    """Tokenize as one process of a launch; the first prints the seconds as JSON."""
    import torch
    from accelerate import PartialState

    from mmlm.data.pair_shards import PairShards
    from mmlm.data.tokenization import tokenize
    from mmlm.documents.pictures import PicturesConfig
    from mmlm.processing import MultimodalProcessor
    from mmlm.recipes.mixture import MixtureMember
    from visual_tokenizer.data.sources.base import SourceConfig

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    processor = MultimodalProcessor.from_pretrained(model)
    source = SourceConfig.family.config({"type": "image_folder", "folder": pictures, "heldout_fraction": 0.0})
    member = MixtureMember(documents=PicturesConfig(source=source))
    state = PartialState(cpu=True)
    assert processor.codec is not None
    side = processor.codec.config.image_size
    processor.codec.encode(torch.zeros(batch_size, 3, side, side))  # warm up
    state.wait_for_everyone()
    shards = PairShards(processor, member, "train", Path(folder))
    begin = time.perf_counter()
    header = tokenize(shards, batch_size=batch_size)
    seconds = time.perf_counter() - begin
    state.print(json.dumps({"seconds": seconds, "pictures": header.count, "processes": state.num_processes}))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def start(
    model: str, pictures: Path, folder: Path, *, batch_size: int, processes: int, threads: int
) -> subprocess.Popen[str]:
    """Start a launch of `processes` with `threads` each."""
    config = ROOT / "recipes" / "accelerate" / ("cpu_2_processes.yaml" if processes > 1 else "cpu.yaml")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["--num_cpu_threads_per_process", str(threads)]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            command += ["--main_process_port", str(free.getsockname()[1])]
    command += ["-m", "benchmarks.pretokenize", model, "--work", str(pictures), str(folder)]
    command += ["--batch-size", str(batch_size)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a launch and return what its first process printed.

    Raises:
        MeasurementError: it failed.
    """
    output, _ = process.communicate()
    if process.returncode != 0:
        raise MeasurementError(f"{process.args!r} ended with {process.returncode}")
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; one line of JSON at the end."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pretokenize", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", help="folder of a merged model")
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--side", type=int, default=256, help="of a picture, in pixels")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", nargs=2, metavar=("PICTURES", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        pictures, folder = options.work
        work(options.model, pictures, folder, options.batch_size)
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    half = max(1, cores // 2)
    seconds: dict[str, list[float]] = {"one": [], "two": [], "apart": []}
    with tempfile.TemporaryDirectory() as scratch:
        whole, halves = Path(scratch) / "whole", [Path(scratch) / f"half-{part}" for part in range(2)]
        write_pictures(whole, options.pictures, options.side)
        for number, file in enumerate(sorted(whole.rglob("*.png"))):
            place = halves[number * 2 // options.pictures] / file.relative_to(whole)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, place)
        for repeat in range(options.repeats):
            for name, parts, processes, threads in (
                ("one", [whole], 1, 2 * half),
                ("two", [whole], 2, half),
                ("apart", halves, 1, half),
            ):
                runs = [
                    start(
                        options.model,
                        part,
                        Path(scratch) / f"{name}-{repeat}-{place}",
                        batch_size=options.batch_size,
                        processes=processes,
                        threads=threads,
                    )
                    for place, part in enumerate(parts)
                ]
                found = [result_of(run) for run in runs]
                if sum(one["pictures"] for one in found) != options.pictures:
                    raise MeasurementError(f"{name}: {found} are not {options.pictures} pictures")
                seconds[name].append(max(one["seconds"] for one in found))
                print(f"{name}: {seconds[name][-1]:.2f} s, {options.pictures / seconds[name][-1]:.1f} pictures/s")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {
        "two_over_half_of_one": medians["two"] / (medians["one"] / 2),
        "two_over_apart": medians["two"] / medians["apart"],
    }
    print(json.dumps({"cores": cores, "pictures": options.pictures, "seconds": seconds} | ratios))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
