"""Any picture network of transformers (CLIP, SigLIP, DINOv2, BEiT, ViT, ConvNeXt, ResNet, …), by folder or name.

Its weights and the normalisation of its pictures come from the folder: config.json, model.safetensors and
preprocessor_config.json.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel
from transformers.image_processing_base import ImageProcessingMixin

from visual_tokenizer.backbones.base import Backbone, BackboneConfig, MissingWeightsError, check_pixels, standardise
from visual_tokenizer.errors import MissingFileError, UserError
from visual_tokenizer.layers.published_weights import file_digest
from visual_tokenizer.runs.saved_models import FAULTS_OF_A_PART, load_whole, loading

DEFAULT_SIZE = 224


@dataclass(kw_only=True)
class TransformersVisionConfig(BackboneConfig):
    """A transformers model has no field of its own: `weights` is its folder or its name on the hub."""


class TransformersVision(Backbone):
    """A frozen transformers model of pictures.

    Levels of `features`: the hidden states after each block (transformers) or stage (convolutional networks) as
    maps; class and register tokens are left out. The embedding is the model's pooled output or, where the
    checkpoint holds no pooling layer, its first token (transformers) or the mean of its last map. Pictures are
    resized to the size that the model was made for (bilinear, antialiased when it shrinks), square.

    Raises:
        MissingWeightsError: `weights` names no folder here and cannot be had from the hub.
        UserError: the checkpoint lacks weights that are not those of a pooling layer.
    """

    Config = TransformersVisionConfig

    def __init__(self, config: TransformersVisionConfig | None = None) -> None:
        config = config or TransformersVisionConfig()
        super().__init__(config)
        if config.weights is None:
            raise MissingWeightsError("weights of transformers_vision must name a folder or a model of the hub")
        model, missing = _load_model(config.weights)
        # Of a model of pictures and texts (CLIP, SigLIP) the part that sees.
        self.model = getattr(model, "vision_model", model).eval().requires_grad_(False)
        self._has_pooler = not any("pooler" in key for key in missing)
        self._mean, self._std = _normalisation(config.weights)
        self.embedding_size = _size_of(self.model.config)
        self.weights_digest = _digest(config.weights, model)
        self._prefix_tokens = 0
        with torch.no_grad():
            blank = torch.zeros(1, 3, self.embedding_size, self.embedding_size)
            output = self._run(blank)
            first = output.hidden_states[-1]
            if first.ndim == 3:
                self._prefix_tokens = _prefix_tokens(first.shape[1], self.model.config, self.embedding_size)
            self.feature_dims = tuple(maps.shape[1] for maps in self._maps(output))
            self.embedding_dim = self._pooled(output).shape[1]

    def features(self, pixels: Tensor, levels: int | None = None) -> list[Tensor]:
        """Return the first `levels` (default all) maps of `pixels` brought to `embedding_size` px, square."""
        return self._maps(self._run(pixels))[:levels]

    def embedding(self, pixels: Tensor, size: int | None = None) -> Tensor:
        """Return one vector a picture, (B, embedding_dim); `size` must be `embedding_size` or None.

        Raises:
            ValueError: another `size`, which the positions of such a model do not allow.
        """
        if size not in (None, self.embedding_size):
            raise UserError(f"size must be {self.embedding_size}, the model's own, got {size}")
        return self._pooled(self._run(pixels))

    def _run(self, pixels: Tensor) -> Any:
        check_pixels(pixels)
        size = self.embedding_size
        pixels = pixels.to(next(self.model.parameters()).dtype)
        if pixels.shape[-2:] != (size, size):
            shrinks = min(pixels.shape[-2:]) > size
            pixels = F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False, antialias=shrinks)
        return self.model(pixel_values=standardise(pixels, self._mean, self._std), output_hidden_states=True)

    def _maps(self, output: Any) -> list[Tensor]:
        """Return the hidden states but the first, which no block has seen, as (B, C, h, w)."""
        found = []
        for hidden in output.hidden_states[1:]:
            if hidden.ndim == 3:
                patches = hidden[:, self._prefix_tokens :]
                side = math.isqrt(patches.shape[1])
                hidden = patches.transpose(1, 2).unflatten(2, (side, side))
            found.append(hidden)
        return found

    def _pooled(self, output: Any) -> Tensor:
        pooled = getattr(output, "pooler_output", None)
        if pooled is not None and self._has_pooler:
            return pooled.flatten(1)
        last = output.last_hidden_state
        if last.ndim == 4:
            return last.mean((2, 3))
        return last[:, 0] if self._prefix_tokens else last.mean(1)


def _load_model(name: str) -> tuple[Any, list[str]]:
    """Return the model in float32 and the keys that its checkpoint lacks."""
    help_text = (
        f"put config.json, model.safetensors and preprocessor_config.json of the model into a folder and give the "
        f"folder as `weights` (where there is a network: `hf download {name} --local-dir FOLDER`)"
    )
    try:
        with torch.random.fork_rng(devices=[]):
            model, info = load_whole(
                AutoModel.from_pretrained,
                name,
                "transformers model",
                refused=FAULTS_OF_A_PART,
                dispensable="pooler",
                dtype=torch.float32,
                trust_remote_code=False,
            )
    except MissingFileError as error:
        raise MissingWeightsError(f"weights: {error}; {help_text}") from error
    return model, sorted(map(str, info["missing_keys"]))


def _normalisation(name: str) -> tuple[list[float], list[float]]:
    try:
        with loading(name, "image processor"):
            fields, _ = ImageProcessingMixin.get_image_processor_dict(name)
        return list(fields["image_mean"]), list(fields["image_std"])
    except (OSError, KeyError, TypeError) as error:
        raise MissingWeightsError(
            f"weights: '{name}' has no preprocessor_config.json with image_mean and image_std, by which its pictures "
            "are normalised; put the file beside the model"
        ) from error


def _size_of(config: Any) -> int:
    size = getattr(config, "image_size", None) or DEFAULT_SIZE
    return int(size if isinstance(size, int) else min(size))


def _prefix_tokens(tokens: int, config: Any, size: int) -> int:
    """Return how many tokens before the patches belong to none of them; none where a network merges patches."""
    patch = getattr(config, "patch_size", None)
    if not isinstance(patch, int):
        raise UserError(f"weights: a {config.model_type} model has no single patch_size, got {patch}")
    return max(tokens - (size // patch) ** 2, 0)


def _digest(name: str, model: Any) -> str:
    files = sorted(Path(name).glob("*.safetensors"))
    if files:
        return "-".join(file_digest(file) for file in files)
    return f"{name}@{getattr(model.config, '_commit_hash', None)}"
