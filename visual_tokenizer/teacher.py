"""The frozen network that a recipe's losses learn from: one for all of them, in half precision and cached if wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Len
from torch import Tensor

from visual_tokenizer.backbones.base import (
    BackboneConfig,
    MissingWeightsError,
    check_layers,
    check_pixels,
    load_backbone,
    require_pictures,
    resize_shorter_side,
)
from visual_tokenizer.fields.ranges import Section
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.runs.feature_cache import FeatureCache, keys_digest

DEFAULT = "efficientnet_lite0"


@dataclass(kw_only=True)
class TeacherSection(Section):
    """Which network, how precisely it computes, and whether its features are kept."""

    renamed: ClassVar[Mapping[str, str | None]] = {"name": "network"}

    network: Annotated[str, Len(1)] = DEFAULT
    """A file of `visual_tokenizer/backbones` (efficientnet_lite0 comes with the installation), or the folder or hub
    name of any vision model of transformers."""

    weights: str | None = None
    """State dict of a network of `visual_tokenizer/backbones`; null: that of the installed package."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What it computes in, whatever `training.mixed_precision` is."""

    size: Annotated[int, Ge(32)] | None = None
    """Pixels of the shorter side that it sees, where a loss does not say; null: an embedding's own size, and pictures
    as they are. 32 is a network's coarsest stride."""

    cache_dir: str | None = None
    """Folder in which its features are kept, for this teacher and these pictures only; null: it looks at every picture
    anew. Wants pictures of the same pixels each epoch: crop center, mirrored or not."""


class Teacher:
    """A frozen network and, where it is wanted, the cache of its features.

    The network is moved by whoever holds it (`NetworkHolder`).

    Args:
        section: the recipe's.

    Raises:
        MissingWeightsError: the network is not on this machine; the message says what to download.
        FileNotFoundError: `network` is a path where nothing is.
        ValueError: the network looks at clips.
    """

    def __init__(self, section: TeacherSection) -> None:
        self.section = section
        self.network = _load(section).to(getattr(torch, section.dtype))
        require_pictures(self.network)
        self.cache: FeatureCache | None = None

    def level(self, number: int | None) -> int | None:
        """Return a level as 0, 1, …; −1 is the last; None, the embedding, stays.

        Raises:
            ValueError: the network has no such level.
        """
        if number is None:
            return None
        level = number + len(self.network.feature_dims) if number < 0 else number
        check_layers([level], self.network)
        return level

    def width(self, level: int | None) -> int:
        """Return the channels of a level, or of the embedding."""
        return self.network.embedding_dim if level is None else self.network.feature_dims[level]

    def open_cache(self, keys: Sequence[str], pictures: Mapping[str, Any]) -> None:
        """Keep features from now on in `section.cache_dir`.

        Args:
            keys: of the pictures 0, 1, … of a batch's `index`.
            pictures: what else their pixels depend on, in plain JSON types.

        Raises:
            ConfigError: the folder belongs to another teacher or to other pictures.
        """
        assert self.section.cache_dir is not None
        identity = {
            "network": self.network.config.type,
            "weights": self.network.weights_digest,
            "dtype": self.section.dtype,
            "preprocessing": dict(pictures),
            "keys": keys_digest(keys),
        }
        self.cache = FeatureCache(self.section.cache_dir, identity, len(keys))

    @torch.compiler.disable  # files are no tensors
    @torch.no_grad()
    def features(self, batch: Mapping[str, Any], level: int | None, size: int | None = None) -> Tensor:
        """Return the features of a batch's pictures, (B, C, h, w); h = w = 1 of an embedding.

        Args:
            batch: `pixels` (B, 3, H, W) in [-1, 1]; with a cache `index` and `flipped`, (B,) on the CPU, as well.
            level: 0 … L−1, or None for the embedding.
            size: pixels of the shorter side; None: the section's.
        """
        pixels, size = batch["pixels"], self.section.size if size is None else size
        check_pixels(pixels)
        if self.cache is None:
            return self._run(pixels, level, size)
        kind = f"{'embedding' if level is None else f'level-{level}'}-{'own' if size is None else size}"
        index, flipped = batch["index"], batch["flipped"]
        found = self.cache.read(kind, index, flipped)
        if found is not None and bool(found[1].all()):
            return found[0].to(pixels.device, non_blocking=True)
        missing = (torch.ones(len(index), dtype=torch.bool) if found is None else ~found[1]).nonzero()[:, 0]
        made = self._run(pixels[missing.to(pixels.device)], level, size).cpu().contiguous()
        self.cache.write(kind, index[missing], flipped[missing], made)
        features = made if found is None else found[0].index_copy(0, missing, made)
        return features.to(pixels.device, non_blocking=True)

    def _run(self, pixels: Tensor, level: int | None, size: int | None) -> Tensor:
        with torch.autocast(pixels.device.type, enabled=False):
            if level is None:
                return self.network.embedding(pixels, size)[..., None, None]
            seen = pixels if size is None else resize_shorter_side(pixels, size)
            return self.network.features(seen, level + 1)[level]


def _load(section: TeacherSection) -> Any:
    stem = section.network.replace("-", "_")
    if stem in BackboneConfig.family.names():
        return load_backbone(stem, section.weights)
    if section.weights is not None:
        raise ConfigError(
            f"teacher.weights must be null where network is a transformers model, got {section.weights!r}"
        )
    try:
        return load_backbone("transformers_vision", section.network)
    except MissingWeightsError as error:
        raise MissingWeightsError(
            f"teacher.network: '{section.network}' is not on this machine, and the hub does not give it: where there "
            f"is a network, `hf download {section.network} --local-dir FOLDER` (config.json, model.safetensors and "
            "preprocessor_config.json), then `--teacher.network FOLDER`; or take `--teacher.network "
            "efficientnet_lite0`, which is installed"
        ) from error
