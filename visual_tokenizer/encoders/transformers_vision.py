"""A vision transformer of transformers (CLIP, SigLIP, DINOv2, ViT, …) as an encoder, which begins as it was pretrained.

Papers: TokenFlow (Qu et al., 2024), arXiv:2412.03069, section 3.1, whose semantic encoder begins as CLIP; VILA-U (Wu et
al., 2024), arXiv:2409.04429, section 3.1, whose encoder begins as SigLIP. The weights are read when training begins, by
folder or hub name, and saved with the tokenizer; so is the model's config, so that a trained tokenizer needs neither.
The latents are the last hidden states of the patches. Pictures are brought to the model's own size.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Gt, Interval
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel
from transformers.image_processing_base import ImageProcessingMixin

from visual_tokenizer.backbones.base import load_backbone, standardise
from visual_tokenizer.encoders.base import Encoder, EncoderConfig
from visual_tokenizer.errors import UserError
from visual_tokenizer.runs.files import require_folder


@dataclass(kw_only=True)
class TransformersVisionConfig(EncoderConfig):
    """Fields of the pretrained encoder."""

    weights: str | None = None
    """Folder or hub name of the model that training begins with; null: random weights, for which `architecture` is
    needed."""

    trained: bool = True
    """Whether it learns; false: it stays what it was."""

    architecture: dict[str, Any] = field(default_factory=dict)
    """The model's config; empty: read from `weights`."""

    mean: list[Annotated[float, Interval(ge=0, le=1)]] = field(default_factory=list)
    """Mean of a picture's channels that is subtracted; empty: read from `weights`."""

    std: list[Annotated[float, Gt(0)]] = field(default_factory=list)
    """Standard deviation that channels are divided by; empty: read from `weights`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.architecture:
            if len(self.mean) != 3 or len(self.std) != 3:
                raise UserError(f"mean and std must be three numbers, got {self.mean} and {self.std}")
            return
        if self.weights is None:
            raise UserError("weights must name a folder or a model of the hub where architecture is empty, got null")
        require_folder(self.weights, "a transformers model")
        try:
            config: Any = AutoConfig.from_pretrained(self.weights)
            pictures, _ = ImageProcessingMixin.get_image_processor_dict(self.weights)
            self.mean, self.std = list(pictures["image_mean"]), list(pictures["image_std"])
        except (OSError, KeyError):
            raise UserError(
                f"weights: '{self.weights}' is not on this machine, and the hub does not give it: where there is a "
                f"network, `hf download {self.weights} --local-dir FOLDER` (config.json, model.safetensors and "
                "preprocessor_config.json with image_mean and image_std), and name FOLDER"
            ) from None  # a recipe's error shows the first cause
        self.architecture = getattr(config, "vision_config", config).to_dict()


class TransformersVision(Encoder):
    """The patches' last hidden states; class and register tokens are left out."""

    Config = TransformersVisionConfig

    def __init__(self, config: TransformersVisionConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        fields = dict(config.architecture)
        model: Any = AutoModel.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
        self.model = getattr(model, "vision_model", model)
        shape: Any = self.model.config
        size, patch = getattr(shape, "image_size", None), getattr(shape, "patch_size", None)
        if not isinstance(size, int) or not isinstance(patch, int):
            kind = shape.model_type
            raise UserError(f"weights must be of a vision transformer of square patches, got a {kind} model")
        self.size, self.grid = size, (size // patch, size // patch)
        self._try_out(config.trained)

    def _try_out(self, is_trained: bool) -> None:
        """Learn the shapes, and take out of training what the latents don't depend on; on tensors without storage."""
        tried = copy.deepcopy(self.model).to("meta").requires_grad_(True)
        with torch.enable_grad():
            hidden = tried(pixel_values=torch.zeros(1, 3, self.size, self.size, device="meta")).last_hidden_state
            self.prefix, self.width = hidden.shape[1] - math.prod(self.grid), hidden.shape[2]
            gradients = torch.autograd.grad(
                hidden[:, self.prefix :].sum(), tuple(tried.parameters()), allow_unused=True
            )
        for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
            parameter.requires_grad_(is_trained and gradient is not None)

    def train(self, mode: bool = True) -> TransformersVision:
        """Stay in evaluation mode where it does not learn."""
        return super().train(mode and self.config.trained)

    @torch.no_grad()
    def read_weights(self) -> None:
        """Take the weights that the config names.

        Raises:
            MissingWeightsError: they can't be had.
        """
        if self.config.weights is not None:
            network = load_backbone("transformers_vision", self.config.weights)
            self.model.load_state_dict(network.model.state_dict())

    def token_grid(self, height: int, width: int) -> tuple[int, ...]:
        self.require_nominal_size(height, width)
        return self.grid

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.shape[-1] != self.size:
            shrinks = pixels.shape[-1] > self.size
            size = (self.size, self.size)
            pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=shrinks)
        seen = standardise(pixels, self.config.mean, self.config.std)
        return self.model(pixel_values=seen).last_hidden_state[:, self.prefix :]
