"""Tokenization that is killed, damaged or changed half-way ends with the shards of one that was not."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import PartialState
from PIL import Image

from mmlm.data import shard_plan
from mmlm.data.shard_plan import count_reasons, plan_shards, read_plan
from mmlm.data.shards import ShardError, ShardHeader, expected_header, load_shards
from mmlm.data.tokenization import tokenize
from mmlm.data.tokenize import main
from mmlm.processing import MultimodalProcessor
from visual_tokenizer import VisualTokenizer
from visual_tokenizer.data.sources.base import SourceConfig

ROOT = Path(__file__).parents[3]
TIMEOUT_SECONDS = 600


def write_pictures(folder: Path, count: int) -> None:
    """Pictures of 4 × 4 random colours, enlarged to 16 pixels, with captions; every 50th is not readable."""
    folder.mkdir()
    lines = []
    for number in range(count):
        name = f"{number:05d}.ppm"
        squares = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        if number % 50 == 7:
            (folder / name).write_bytes(b"no picture")
        else:
            Image.fromarray(squares.repeat(4, 0).repeat(4, 1)).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": f"picture {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def write_recipe(file: Path, merged_folder: Path, pictures: Path, shards_dir: Path, batch_size: int) -> None:
    source = {"type": "image_folder", "folder": str(pictures), "heldout_fraction": 0.0}
    data = {"source": source, "shards_dir": str(shards_dir), "tokenize_batch_size": batch_size}
    recipe = {"model": str(merged_folder), "output_dir": str(file.with_suffix("")), "data": data}
    file.write_text(json.dumps(recipe | {"training": {"max_steps": 1, "batch_size": 1}}))


def finished_shards(shards_dir: Path) -> int:
    unfinished = shards_dir / ".train.unfinished"
    return len(list(unfinished.glob("pictures-*.json"))) if unfinished.is_dir() else 0


def wait_until(condition: Callable[[], bool], is_alive: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert is_alive(), "the process ended by itself"
        assert time.monotonic() < end
        time.sleep(0.002)


def check_equal(found: Path, unkilled: Path, count: int) -> None:
    """Every readable picture once, and the very bytes of a run that was left alone."""
    rows = load_shards(found / "train")
    assert rows["key"][:] == [f"{number:05d}.ppm" for number in range(count) if number % 50 != 7]
    assert rows["caption"][:] == [f"picture {number}" for number in range(count) if number % 50 != 7]
    assert len({tuple(indices) for indices in rows["indices"][:]}) > len(rows) // 2, "pictures differ"
    assert rows["indices"][:] == load_shards(unkilled / "train")["indices"][:]
    for name in ("files.json", "header.json"):
        assert (found / "train" / name).read_text() == (unkilled / "train" / name).read_text()
    assert not list(found.glob(".*"))
    assert not list((found / "train").glob(".*")), "nothing half-written is left"


@pytest.fixture(scope="module", autouse=True)
def _state() -> None:
    PartialState(cpu=True)


@pytest.fixture(scope="module")
def processor(merged_folder: Path) -> MultimodalProcessor:
    return MultimodalProcessor.from_pretrained(merged_folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "pictures"
    write_pictures(folder, 300)
    return folder


def source_of(pictures: Path) -> SourceConfig:
    return SourceConfig.family.config({"type": "image_folder", "folder": str(pictures), "heldout_fraction": 0.0})


@pytest.fixture(scope="module")
def unkilled(merged_folder: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unkilled")
    write_recipe(folder / "recipe.yaml", merged_folder, pictures, folder / "shards", batch_size=4)
    main(["--config", str(folder / "recipe.yaml")])
    return folder / "shards"


def test_five_kills_lose_and_repeat_nothing(
    merged_folder: Path, pictures: Path, unkilled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the killed processes compute where this one does
    shards_dir = tmp_path / "shards"
    write_recipe(tmp_path / "recipe.yaml", merged_folder, pictures, shards_dir, batch_size=4)
    chance = random.Random(0)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmlm.data.tokenize"])
    for target in sorted(chance.sample(range(1, 70), 5)):
        process = context.Process(target=main, args=(["--config", str(tmp_path / "recipe.yaml")],))
        process.start()
        wait_until(lambda target=target: finished_shards(shards_dir) >= target, process.is_alive)
        time.sleep(chance.uniform(0, 0.02))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (shards_dir / "train").exists()
    main(["--config", str(tmp_path / "recipe.yaml")])
    check_equal(shards_dir, unkilled, 300)


def test_a_kill_between_header_and_name_is_made_good(
    pair_shards: Callable,
    processor: MultimodalProcessor,
    pictures: Path,
    unkilled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shard_plan, "move_folder", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            tokenize(pair_shards(processor, source_of(pictures), tmp_path / "train"), batch_size=4)
    assert (tmp_path / ".train.unfinished" / "header.json").is_file()
    monkeypatch.setattr(processor.codec, "encode", None)  # nothing is left to tokenize
    tokenize(pair_shards(processor, source_of(pictures), tmp_path / "train"), batch_size=64)
    check_equal(tmp_path, unkilled, 300)


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "manifest"])
def test_a_damaged_shard_is_found_and_made_again(
    damage: str, merged_folder: Path, pictures: Path, unkilled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards_dir = tmp_path / "shards"
    shutil.copytree(unkilled, shards_dir)
    write_recipe(tmp_path / "recipe.yaml", merged_folder, pictures, shards_dir, batch_size=4)
    file = shards_dir / "train" / "pictures-00042.arrow"
    content = file.read_bytes()
    if damage == "flipped":  # the size is right, and one index wrong
        file.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
        load_shards(shards_dir / "train")
    elif damage == "manifest":
        file.with_suffix(".json").write_text("{")
    else:
        file.unlink() if damage == "missing" else file.write_bytes(content[:-100])
        with pytest.raises(ShardError, match=r"damaged: pictures-00042.*run mmlm\.data\.tokenize"):
            load_shards(shards_dir / "train")
    encoded: list[int] = []
    encode = VisualTokenizer.encode

    def counting(codec: VisualTokenizer, pixels: torch.Tensor) -> torch.Tensor:
        encoded.append(len(pixels))
        return encode(codec, pixels)

    monkeypatch.setattr(VisualTokenizer, "encode", counting)
    main(["--config", str(tmp_path / "recipe.yaml")])
    assert encoded == [4], "only the damaged shard"
    check_equal(shards_dir, unkilled, 300)


def test_what_another_tokenizer_or_other_pictures_left_is_not_used(
    pair_shards: Callable, processor: MultimodalProcessor, pictures: Path, unkilled: Path, tmp_path: Path
) -> None:
    for change in ({"keys_hash": "0"}, {"provenance": {"codec_hash": "0"}}):
        unfinished = tmp_path / ".train.unfinished"
        shutil.copytree(unkilled / "train", unfinished)
        plan = json.loads((unfinished / "plan.json").read_text())
        (unfinished / "plan.json").write_text(json.dumps(plan | change))
        (unfinished / "pictures-99999.json").write_text("{}")
        header = tokenize(pair_shards(processor, source_of(pictures), tmp_path / "train"), batch_size=100)
        assert read_plan(tmp_path / "train").rows_per_unit == 100, "begun anew, with a plan of its own"  # type: ignore[union-attr]
        assert header.count == 294
        assert not (tmp_path / "train" / "pictures-99999.json").exists()
        shutil.rmtree(tmp_path / "train")


def test_a_split_without_pictures_is_a_table_without_rows(
    pair_shards: Callable, processor: MultimodalProcessor, pictures: Path, tmp_path: Path
) -> None:
    assert tokenize(pair_shards(processor, source_of(pictures), tmp_path / "heldout", "heldout")).count == 0
    rows = load_shards(tmp_path / "heldout")
    assert (len(rows), rows.column_names) == (0, ["key", "caption", "indices", "grid"])


def test_skipped_pictures_are_counted_by_reason(unkilled: Path) -> None:
    header = json.loads((unkilled / "train" / "header.json").read_text())
    assert header["count"] == 294
    assert sorted(header["skipped"]) == [f"{number:05d}.ppm" for number in range(7, 300, 50)]
    assert header["skipped_by_reason"] == {"not a picture in a known format": 6}
    assert count_reasons(["9 × 9 = 81 pixels", "bad", "12 × 9 = 108 pixels"]) == {"# × # = # pixels": 2, "bad": 1}


def test_units_do_not_depend_on_processes_and_cover_every_row(processor: MultimodalProcessor, pictures: Path) -> None:
    header: ShardHeader = expected_header(processor, source_of(pictures), "train")
    for count, batch_size, wanted in [(300, 4, None), (1000, 64, None), (100_000, 64, None), (10, 4, 3)]:
        rows = datasets.Dataset.from_dict({"key": [str(number) for number in range(count)]})
        plan = plan_shards(rows, header, batch_size, wanted)
        assert [row for unit in range(plan.units) for row in plan.range_of(unit)] == list(range(count))
        assert plan.rows_per_unit == 3 if wanted else plan.rows_per_unit % batch_size == 0  # type: ignore[operator]


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_files_of_a_stream_are_units(
    pair_shards: Callable, loader_workers: int, processor: MultimodalProcessor, tmp_path: Path
) -> None:
    write_pictures(tmp_path / "pictures", 30)
    for shard in range(3):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for number in range(10 * shard, 10 * shard + 10):
                for suffix, content in [
                    ("webp", (tmp_path / "pictures" / f"{number:05d}.ppm").read_bytes()),
                    ("txt", f"picture {number}".encode()),
                ]:
                    member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    source = SourceConfig.family.config(
        {"type": "webdataset", "shards": str(tmp_path / "*.tar"), "heldout_fraction": 0.0}
    )
    calls = 0
    encode = processor.codec.encode  # type: ignore[union-attr]

    def failing(pixels: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:  # in the second file
            raise KeyboardInterrupt
        return encode(pixels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processor.codec, "encode", failing)
        options = {"batch_size": 4, "loader_workers": loader_workers}
        with pytest.raises(KeyboardInterrupt):
            tokenize(pair_shards(processor, source, tmp_path / "train"), **options)
        assert finished_shards(tmp_path) == 1
        tokenize(pair_shards(processor, source, tmp_path / "train"), **options)
    assert calls == 5 + 6, "the two files that were not done, in three batches each"
    expected = [number for number in range(30) if number != 7]
    rows = load_shards(tmp_path / "train")
    assert rows["caption"][:] == [f"picture {number}" for number in expected]
    images = [Image.open(tmp_path / "pictures" / f"{number:05d}.ppm") for number in expected]
    assert torch.equal(torch.tensor(rows["indices"][:]), processor.encode_images(images).flatten(1))


def descendants(pid: int) -> list[int]:
    """Return the process and all that it started, from /proc."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


@pytest.mark.slow
def test_twenty_kills_over_20000_pictures_with_changing_processes(merged_folder: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 20_000)

    def launch(name: str, processes: int) -> subprocess.Popen:
        recipe = tmp_path / f"{name}.yaml"
        write_recipe(recipe, merged_folder, tmp_path / "pictures", tmp_path / name, batch_size=64)
        config = ROOT / "recipes" / "accelerate" / ("cpu_2_processes.yaml" if processes > 1 else "cpu.yaml")
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
        launcher += ["--main_process_port", "29671", "--num_cpu_threads_per_process", "1"]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [*launcher, "-m", "mmlm.data.tokenize", "--config", str(recipe)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=open(tmp_path / f"{name}.log", "ab"),
        )

    assert launch("unkilled", 1).wait(TIMEOUT_SECONDS) == 0, (tmp_path / "unkilled.log").read_text()[-3000:]
    chance = random.Random(1)
    kills = 0
    for target in sorted(chance.sample(range(150), 20)):
        process = launch("killed", 1 + kills % 2)
        wait_until(
            lambda target=target: finished_shards(tmp_path / "killed") >= target,
            lambda process=process: process.poll() is None,
        )
        time.sleep(chance.uniform(0, 0.05))
        for pid in descendants(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()
        kills += 1
        assert not (tmp_path / "killed" / "train").exists(), "killed before the end"
    assert kills == 20
    assert launch("killed", 2).wait(TIMEOUT_SECONDS) == 0, (tmp_path / "killed.log").read_text()[-3000:]
    check_equal(tmp_path / "killed", tmp_path / "unkilled", 20_000)
