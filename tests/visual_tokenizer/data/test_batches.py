"""What each step and process sees, for folders and for streams."""

from __future__ import annotations

import io
import itertools
import tarfile
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from visual_tokenizer.data.batches import DataSection, PictureSet, Share, StepSampler, training_batches
from visual_tokenizer.data.sources.base import DataSourceError, Source, SourceConfig

ALONE = Share(process=0, processes=1, passes=1, size=4)


@pytest.fixture
def stream(tmp_path: Path) -> Source:
    """22 pictures in 2 shards, each captioned by its number."""
    for shard in range(2):
        with tarfile.open(tmp_path / f"s-{shard}.tar", "w") as tar:
            for number in range(11 * shard, 11 * shard + 11):
                buffer = io.BytesIO()
                Image.new("RGB", (4, 4), (10 * number, 0, 0)).save(buffer, format="PNG")
                for extension, content in {"png": buffer.getvalue(), "txt": str(number).encode()}.items():
                    info = tarfile.TarInfo(f"{number:04d}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    section = {"type": "webdataset", "shards": str(tmp_path / "s-*.tar"), "heldout_fraction": 0}
    return SourceConfig.family.build(section)


def numbers(source: Source, share: Share, first_step: int, steps: int, workers: int = 0) -> list[list[int]]:
    section = DataSection(source=source.config, num_workers=workers)
    batches = training_batches(source, section, image_size=4, seed=3, share=share, first_step=first_step)
    taken = itertools.islice(batches, steps * share.passes)
    return [[int(caption) for caption in batch["caption"]] for batch in taken]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_at_any_step(stream, workers):
    whole = numbers(stream, ALONE, 0, 8, workers)
    assert all(len(set(batch)) == 4 for batch in whole)
    assert len(set(list(chain.from_iterable(whole[:4])))) == 16  # within an epoch, each picture once
    assert list(chain.from_iterable(whole[:2])) != sorted(list(chain.from_iterable(whole[:2])))
    for step in (1, 4, 5, 7):
        assert numbers(stream, ALONE, step, 8 - step, workers) == whole[step:]


def test_a_stream_skips_without_decoding(stream, monkeypatch):
    decoded = []
    original = stream.decode
    monkeypatch.setattr(stream, "decode", lambda row: decoded.append(row["key"]) or original(row))
    numbers(stream, ALONE, 7, 1)
    assert len(decoded) == 4


def test_two_processes_share_each_step_of_a_stream(stream):
    whole = numbers(stream, ALONE, 0, 6)
    parts = [numbers(stream, Share(process=p, processes=2, passes=1, size=2), 0, 6) for p in (0, 1)]
    assert [first + second for first, second in zip(*parts, strict=True)] == whole


def test_a_stream_that_is_too_short_says_so(stream):
    with pytest.raises(DataSourceError, match="fewer than 30 pictures"):
        numbers(stream, Share(process=0, processes=1, passes=1, size=30), 0, 1)


def test_a_part_of_a_stream_is_evaluated_once(stream):
    section = DataSection(source=stream.config)

    def seen(**part: Any) -> list[str]:
        batches = PictureSet(stream, "all", section, image_size=4, **part).batches(3)
        return list(chain.from_iterable(batch["caption"] for batch in batches))

    whole = seen(max_pictures=9)
    assert len(set(whole)) == 9
    halves = [seen(max_pictures=9, process=process, processes=2) for process in (0, 1)]
    assert sorted(list(chain.from_iterable(halves))) == sorted(whole)
    assert len(seen(max_pictures=None)) == 22


def test_the_order_of_pictures_depends_on_the_step_alone():
    def keys(share: Share, first_step: int, steps: int) -> list:
        passes = iter(StepSampler(21, seed=3, share=share, first_step=first_step))
        return [next(passes) for _ in range(steps * share.passes)]

    whole = keys(Share(process=0, processes=1, passes=1, size=8), 0, 5)
    assert all(len(set(batch)) == 8 for batch in whole)
    assert not set(whole[0]) & set(whole[1])
    assert [batch[0].epoch for batch in whole] == [0, 0, 1, 1, 2]
    assert keys(Share(process=0, processes=1, passes=1, size=8), 3, 2) == whole[3:]
    parts = [keys(Share(process=process, processes=2, passes=2, size=2), 1, 4) for process in (0, 1)]
    for step in range(4):
        mixed = [parts[p][2 * step + number] for number in (0, 1) for p in (0, 1)]
        assert list(chain.from_iterable(mixed)) == whole[1 + step]
