"""What moves in a synthetic clip, in words and in frames."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {
    "white": (255, 255, 255),
    "black": (20, 20, 20),
    "grey": (150, 150, 150),
    "light blue": (170, 210, 245),
    "blue": (60, 100, 200),
    "green": (90, 170, 90),
    "yellow": (250, 225, 110),
    "orange": (245, 165, 85),
    "pink": (245, 180, 205),
    "purple": (145, 105, 190),
}
"""Backgrounds by name, 8-bit RGB."""

HEADINGS = {
    "right": (1, 0),
    "left": (-1, 0),
    "down": (0, 1),
    "up": (0, -1),
    "down and right": (1, 1),
    "down and left": (-1, 1),
    "up and right": (1, -1),
    "up and left": (-1, -1),
}
"""Directions across and down."""

SPEEDS = (0.02, 0.05)
"""Least and greatest way a frame, as a share of the frame's side."""
TURNS = (0.012, 0.035)
"""Least and greatest turn a frame, in full circles."""
SCALES = (0.45, 1.0)
"""Least and greatest size of a drawing, as a share of its rasterised side."""


@dataclass(frozen=True)
class Sprite:
    """One drawing and how it moves."""

    key: str
    """Which drawing."""
    start: tuple[float, float]
    """Where it starts within the room that it has, across and down, each in [0, 1]."""
    heading: str
    """Which way it moves, a key of `HEADINGS`; empty: it stays."""
    speed: float
    """Way a frame, as a share of the frame's side."""
    turn: float
    """Clockwise turn a frame, in full circles; below 0: the other way round."""
    scales: tuple[float, float]
    """Size in the first and in the last frame, as shares of the rasterised side."""

    def describe(self, name: str) -> str:
        """Return `a red apple moves right and spins clockwise`."""
        deeds = [f"moves {self.heading}"] if self.heading else []
        if self.turn:
            deeds.append(f"spins {'clockwise' if self.turn > 0 else 'counterclockwise'}")
        if self.scales[0] != self.scales[1]:
            deeds.append("grows" if self.scales[1] > self.scales[0] else "shrinks")
        listed = deeds[0] if len(deeds) == 1 else f"{', '.join(deeds[:-1])} and {deeds[-1]}"
        return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name} {listed}"


@dataclass(frozen=True)
class Scene:
    """A background and the sprites on it, the first at the back."""

    colours: tuple[str, str]
    """Keys of `COLOURS`: one edge and the other; equal: plain."""
    is_vertical: bool
    """Whether the colour changes from top to bottom instead of from left to right."""
    sprites: tuple[Sprite, ...]

    def caption(self, names: Mapping[str, str]) -> str:
        """Return one sentence; `names` by key of the drawing."""
        first, last = self.colours
        ground = f"a {first} background" if first == last else f"a background from {first} to {last}"
        return f"{', '.join(sprite.describe(names[sprite.key]) for sprite in self.sprites)}, on {ground}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scene:
        """Undo `to_dict`, also after a way through JSON."""
        sprites = tuple(
            Sprite(**{**sprite, "start": tuple(sprite["start"]), "scales": tuple(sprite["scales"])})
            for sprite in values["sprites"]
        )
        return cls(tuple(values["colours"]), values["is_vertical"], sprites)


def random_scene(seed: str, leader: str, companions: list[str], max_objects: int) -> Scene:
    """Return a scene that depends on nothing but the arguments, of which `seed` is any text.

    `leader` is the key of the drawing in front; the others are `companions`; there are at most `max_objects`.
    """
    generator = random.Random(seed)  # of Python, whose sequence of random() is the same in every version
    count = 1 + int(generator.random() * max_objects)
    keys = [leader, *(_choice(generator, companions) for _ in range(count - 1))]
    names = list(COLOURS)
    first = _choice(generator, names)
    last = _choice(generator, names) if generator.random() < 0.5 else first
    sprites = tuple(_random_sprite(generator, key) for key in reversed(keys))
    return Scene((first, last), generator.random() < 0.5, sprites)


def _choice(generator: random.Random, values: list[str]) -> str:
    return values[int(generator.random() * len(values))]


def _between(generator: random.Random, bounds: tuple[float, float]) -> float:
    return round(bounds[0] + (bounds[1] - bounds[0]) * generator.random(), 5)


def _random_sprite(generator: random.Random, key: str) -> Sprite:
    moves, spins, grows = ((generator.random() < share) for share in (0.8, 0.4, 0.3))
    moves = moves or not (spins or grows)
    heading = _choice(generator, list(HEADINGS)) if moves else ""
    speed = _between(generator, SPEEDS) if moves else 0.0
    turn = _between(generator, TURNS) * (1 if generator.random() < 0.5 else -1) if spins else 0.0
    least, greatest = SCALES
    middle = (least + greatest) / 2
    size = _between(generator, (middle, greatest))
    scales = (size, size)
    if grows:
        small = _between(generator, (least, least + 0.15))
        scales = (small, size) if generator.random() < 0.5 else (size, small)
    # It starts in the half that it moves away from, so that it has room before it bounces.
    across, down = HEADINGS[heading] if heading else (0, 0)
    start = tuple(
        round(0.25 + 0.5 * chance if sign == 0 else 0.45 * chance if sign > 0 else 1 - 0.45 * chance, 5)
        for sign, chance in ((across, generator.random()), (down, generator.random()))
    )
    return Sprite(key, (start[0], start[1]), heading, speed, turn, scales)


def bounce(place: float) -> float:
    """Fold any number into [0, 1] as a ball's way between two walls: 1.2 → 0.8, −0.3 → 0.3."""
    place = place % 2.0
    return 2.0 - place if place > 1.0 else place


def draw_scene(scene: Scene, drawings: Mapping[str, Image.Image], size: int, frames: int) -> list[Image.Image]:
    """Return the frames, RGB of `size` × `size`; `drawings` are square RGBA by key."""
    ground = _background(scene, size)
    clip = []
    for frame in range(frames):
        picture = ground.copy()
        for sprite in scene.sprites:
            layer = _place(drawings[sprite.key], sprite, size, frame, frames)
            picture.paste(layer, mask=layer)
        clip.append(picture)
    return clip


def _background(scene: Scene, size: int) -> Image.Image:
    first, last = (np.array(COLOURS[name], dtype=np.float64) for name in scene.colours)
    share = np.linspace(0.0, 1.0, size)[:, None]
    line = np.rint(first + (last - first) * share).astype(np.uint8)
    shape = (size, size, 3)
    ramp = np.broadcast_to(line[:, None] if scene.is_vertical else line[None], shape)
    return Image.fromarray(np.ascontiguousarray(ramp))


def _place(drawing: Image.Image, sprite: Sprite, size: int, frame: int, frames: int) -> Image.Image:
    """Return the drawing on a transparent RGBA layer, where and as it is at `frame`."""
    share = frame / max(1, frames - 1)
    scale = sprite.scales[0] + (sprite.scales[1] - sprite.scales[0]) * share
    side = scale * drawing.width
    heading = HEADINGS[sprite.heading] if sprite.heading else (0, 0)
    room = size - side
    centre = [
        side / 2 + room * bounce(start + sign * sprite.speed * frame * size / room)
        for start, sign in zip(sprite.start, heading, strict=True)
    ]
    angle = 2 * math.pi * sprite.turn * frame
    # The map from a pixel of the layer back to one of the drawing; y points down, so a positive angle is clockwise.
    cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
    middle = drawing.width / 2
    across = (cosine, sine, middle - cosine * centre[0] - sine * centre[1])
    down = (-sine, cosine, middle + sine * centre[0] - cosine * centre[1])
    return drawing.transform((size, size), Image.Transform.AFFINE, (*across, *down), Image.Resampling.BILINEAR)
