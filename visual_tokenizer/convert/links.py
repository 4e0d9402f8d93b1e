"""Which weight of a published layout is which weight of ours: a list that is read in both directions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from visual_tokenizer.errors import UserError

Weights: TypeAlias = Mapping[str, Tensor]
"""Tensors by name."""


@dataclass(frozen=True)
class Link:
    """One weight of ours and what it is made of.

    Args:
        ours: its name here.
        theirs: the published names; several are stacked along the first dimension.
        ones: how many last dimensions of size 1 the published weight has more than ours (a 1 × 1 convolution for a
            linear map); negative where ours has more.
    """

    ours: str
    theirs: tuple[str, ...]
    ones: int = 0

    def read(self, published: Weights) -> Tensor:
        """Return our weight."""
        parts = [published[name] for name in self.theirs]
        joined = torch.cat(parts) if len(parts) > 1 else parts[0]
        if self.ones < 0:
            return joined.reshape(*joined.shape, *[1] * -self.ones)
        if self.ones and joined.shape[-self.ones :] != (1,) * self.ones:
            raise UserError(f"{self.theirs[0]} must end in {self.ones} dimensions of 1, got {tuple(joined.shape)}")
        return joined.reshape(joined.shape[: joined.ndim - self.ones])

    def write(self, weight: Tensor) -> dict[str, Tensor]:
        """Return the published weights."""
        parts = weight.chunk(len(self.theirs)) if len(self.theirs) > 1 else (weight,)
        if self.ones < 0:
            parts = tuple(part.reshape(part.shape[: self.ones]) for part in parts)
        elif self.ones:
            parts = tuple(part.reshape(*part.shape, *[1] * self.ones) for part in parts)
        return {name: part.detach().clone() for name, part in zip(self.theirs, parts, strict=True)}


def layer(ours: str, theirs: str, *, ones: int = 0, has_bias: bool = True) -> list[Link]:
    """Link a weight and, if there is one, its bias."""
    links = [Link(f"{ours}.weight", (f"{theirs}.weight",), ones)]
    return [*links, Link(f"{ours}.bias", (f"{theirs}.bias",))] if has_bias else links


def stacked_layer(ours: str, theirs: Sequence[str], *, ones: int = 0) -> list[Link]:
    """Link several layers that are one layer of ours, their outputs side by side."""
    return [
        Link(f"{ours}.weight", tuple(f"{name}.weight" for name in theirs), ones),
        Link(f"{ours}.bias", tuple(f"{name}.bias" for name in theirs)),
    ]


def batch_norm(ours: str, theirs: str) -> list[Link]:
    """Link a batch normalisation, running statistics and all."""
    names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return [Link(f"{ours}.{name}", (f"{theirs}.{name}",)) for name in names]


def biasless_residual(ours: str, theirs: str, has_shortcut: bool) -> list[Link]:
    """Link a residual block whose convolutions have no bias."""
    links = []
    for number in ("1", "2"):
        links += layer(f"{ours}.norm{number}", f"{theirs}.norm{number}")
        links += layer(f"{ours}.conv{number}", f"{theirs}.conv{number}", has_bias=False)
    return links + layer(f"{ours}.shortcut", f"{theirs}.nin_shortcut", has_bias=False) if has_shortcut else links


def count_numbered(published: Weights, name: str) -> int:
    """Return how many weights there are whose name is `name` with 0, 1, … for `{}`."""
    number = 0
    while name.format(number) in published:
        number += 1
    return number


def read_links(links: Iterable[Link], published: Weights, where: str) -> dict[str, Tensor]:
    """Return our weights by name.

    Raises:
        UserError: weights are missing, or there are some that no link names.
    """
    chosen = list(links)
    wanted = {name for link in chosen for name in link.theirs}
    missing, unexpected = sorted(wanted - set(published)), sorted(set(published) - wanted)
    if missing or unexpected:
        listed = [
            f"{len(names)} {kind} ({', '.join(names[:4])}{'…' if len(names) > 4 else ''})"
            for kind, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise UserError(f"{where}: the checkpoint's weights are not those of this layout: {'; '.join(listed)}")
    return {link.ours: link.read(published) for link in chosen}


def write_links(links: Iterable[Link], state: Weights) -> dict[str, Tensor]:
    """Return published weights by name: the inverse of `read_links`."""
    published: dict[str, Tensor] = {}
    for link in links:
        published |= link.write(state[link.ours])
    return published
