"""Synthetic clips: the same on every machine, split by emoji, and their captions are true."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from visual_tokenizer.data.batches import DataSection, Share, training_batches
from visual_tokenizer.data.sources._scenes import HEADINGS, Scene, Sprite, bounce, draw_scene, random_scene
from visual_tokenizer.data.sources.base import Source, SourceConfig, hash_fraction
from visual_tokenizer.data.transforms import TransformConfig
from visual_tokenizer.recipe import read_recipe
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.training.recipe import TokenizerRecipe


@pytest.fixture
def build(openmoji_cache: str) -> Any:
    def make(**fields: Any) -> Source:
        section = {"type": "moving_openmoji", "resolution": 16, "num_frames": 5, "cache_dir": openmoji_cache, **fields}
        return SourceConfig.family.build(section)

    return make


def test_clips_are_deterministic_and_differ_by_seed(build):
    first, again, other = (build(seed=seed).load("train") for seed in (0, 0, 1))
    assert first.with_format(None)["caption"][:] == again.with_format(None)["caption"][:]
    assert first.with_format(None)["caption"][:] != other.with_format(None)["caption"][:]
    clips = [[np.asarray(frame) for frame in rows[7]["clip"]] for rows in (first, again)]
    assert np.array_equal(*clips)
    assert np.shape(clips[0]) == (5, 16, 16, 3)
    assert any(not np.array_equal(clips[0][0], frame) for frame in clips[0][1:])


def test_no_emoji_of_a_held_out_clip_is_seen_in_training(build):
    import json

    source = build(max_objects=3, clips_per_emoji=2, heldout_fraction=0.2)
    seen = {}
    for split in ("train", "heldout"):
        rows = source.load(split).with_format(None)
        scenes = [Scene.from_dict(json.loads(scene)) for scene in rows["clip"][:]]
        seen[split] = {sprite.key for scene in scenes for sprite in scene.sprites}
        for key, scene in zip(rows["key"][:], scenes, strict=True):
            assert scene.sprites[-1].key == key.split("/")[0], "the leader is in front"
    assert not seen["train"] & seen["heldout"]
    assert all(hash_fraction(key) < 0.2 for key in seen["heldout"])
    assert len(source.load("all")) == 2 * len(seen["train"] | seen["heldout"])


def middle(frame: Image.Image) -> tuple[float, float]:
    dark = np.argwhere(np.asarray(frame).sum(axis=2) < 300)
    return float(dark[:, 1].mean()), float(dark[:, 0].mean())


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_drawing_moves_where_its_caption_says(heading):
    across, down = HEADINGS[heading]
    start = (0.5 - 0.3 * across, 0.5 - 0.3 * down)
    sprite = Sprite("x", start, heading, 0.02, 0.0, (1.0, 1.0))
    scene = Scene(("white", "white"), False, (sprite,))
    assert scene.caption({"x": "owl"}) == f"an owl moves {heading}, on a white background"
    frames = draw_scene(scene, {"x": Image.new("RGBA", (10, 10), (0, 0, 0, 255))}, 50, 6)
    (first_x, first_y), (last_x, last_y) = middle(frames[0]), middle(frames[-1])
    assert (last_x - first_x, last_y - first_y) == pytest.approx((5 * across, 5 * down), abs=0.6)


def test_growing_and_turning():
    blank = {"x": Image.new("RGBA", (20, 20))}
    blank["x"].paste((0, 0, 0, 255), (0, 0, 10, 10))  # its upper left quarter
    grows = Sprite("x", (0.5, 0.5), "", 0.0, 0.0, (0.5, 1.0))
    assert grows.describe("box") == "a box grows"
    sizes = [
        (np.asarray(f).sum(2) < 300).sum() for f in draw_scene(Scene(("white",) * 2, False, (grows,)), blank, 40, 3)
    ]
    assert sizes[0] == pytest.approx(25, abs=8)
    assert sizes[2] == pytest.approx(100, abs=12)
    assert sizes[0] < sizes[1] < sizes[2]
    spins = Sprite("x", (0.5, 0.5), "", 0.0, 0.25, (1.0, 1.0))
    assert spins.describe("box") == "a box spins clockwise"
    frames = draw_scene(Scene(("white",) * 2, False, (spins,)), blank, 40, 4)
    quarters = [(x > 20, y > 20) for x, y in map(middle, frames)]
    assert quarters == [(False, False), (True, False), (True, True), (False, True)]


def test_bouncing_and_backgrounds():
    assert [round(bounce(place), 6) for place in (0.3, 1.2, 2.4, -0.3)] == [0.3, 0.8, 0.4, 0.3]
    graded = draw_scene(Scene(("white", "black"), True, ()), {}, 8, 1)[0]
    column = np.asarray(graded)[:, 3, 0].astype(int)
    assert (column[0], column[-1]) == (255, 20)
    assert (np.diff(column) < 0).all()


def test_scenes_survive_json_and_use_only_their_arguments():
    scene = random_scene("seed", "a", ["b", "c"], 4)
    assert scene == random_scene("seed", "a", ["b", "c"], 4)
    assert Scene.from_dict(scene.to_dict()) == scene
    assert {s.key for n in range(40) for s in random_scene(str(n), "a", ["b", "c"], 3).sprites} == {"a", "b", "c"}


@pytest.mark.parametrize("megabytes", [0, 1000])
def test_batches_of_clips_are_flipped_whole(build, megabytes):
    source = build(heldout_fraction=0)
    share = Share(process=0, processes=1, passes=1, size=4)

    def first(**data):
        section = DataSection(source=source.config, cache_megabytes=megabytes, **data)
        return next(training_batches(source, section, image_size=16, seed=0, share=share))

    if megabytes:
        source.read = lambda part, read=source.read: read(part).select(range(24))
    plain = first()["pixels"]
    flipped = first(transform=TransformConfig(horizontal_flip=True))
    assert plain.shape == (4, 3, 5, 16, 16)
    assert plain.dtype == torch.float32
    for before, after in zip(plain, flipped["pixels"], strict=True):
        assert torch.equal(before, after) or torch.equal(before.flip(-1), after)
    assert not torch.equal(plain, flipped["pixels"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"num_frames": 0}, "num_frames"), ({"max_objects": 5}, "max_objects"), ({"resolution": 4}, "resolution")],
)
def test_wrong_fields_are_named(build, fields, message):
    with pytest.raises(ConfigError, match=message):
        build(**fields)


def test_a_recipe_must_ask_for_the_frames_that_its_source_gives():
    values = {"output_dir": "x", "num_frames": 9, "data": {"source": {"type": "moving_openmoji", "num_frames": 5}}}
    with pytest.raises(ConfigError, match=r"num_frames must be what data.source gives \(5: .* got 9"):
        read_recipe(TokenizerRecipe, None, values)
    with pytest.raises(ConfigError, match=r"openmoji gives pictures\), got 9"):
        read_recipe(TokenizerRecipe, None, {**values, "data": {"source": {"type": "openmoji"}}})
    assert read_recipe(TokenizerRecipe, None, {**values, "num_frames": 5}).num_frames == 5
