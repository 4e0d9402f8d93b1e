"""Is a face still the same person's after its reconstruction?

Paper: TokBench: Evaluating Your Visual Tokenizer before Visual Generation (Wu et al., 2025), arXiv:2505.18142, section
3: F-Sim, the cosine similarity of identity embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.backbones.base import MissingWeightsError, NetworkFields, load_backbone, require_pictures
from visual_tokenizer.metrics.base import MetricConfig, PictureMean, round_pixels


@dataclass(kw_only=True)
class FaceFidelityConfig(NetworkFields, MetricConfig):
    """Configures the fidelity of faces."""

    network: str = "transformers_vision"
    """Frozen network whose `embedding` tells persons apart: a file of `visual_tokenizer/backbones`."""
    weights: str | None = None
    """Its weights, trained to tell faces apart: for `transformers_vision` a folder or a model of the hub; required."""


class FaceFidelity(PictureMean):
    """Mean over pictures of the cosine similarity of identity embeddings, as `face_similarity`, in [-1, 1].

    Protocol: pictures clamped to [-1, 1] and rounded to 8-bit levels; each picture is one face, cropped and aligned as
    the network wants it (no face is looked for here); float32, also under autocast.

    Raises:
        MissingWeightsError: `weights` is not given or not there: no face network comes with this package.
    """

    Config = FaceFidelityConfig

    def __init__(self, config: FaceFidelityConfig | None = None) -> None:
        config = config or FaceFidelityConfig()
        if config.weights is None:
            raise MissingWeightsError(
                "face_fidelity needs weights: a network trained to tell faces apart (for the network "
                "transformers_vision a folder with config.json, model.safetensors and preprocessor_config.json); "
                "none comes with this package"
            )
        super().__init__(config, "face_similarity")
        self.network = load_backbone(config.network, config.weights)
        require_pictures(self.network)

    def values(self, pixels: Tensor, reconstruction: Tensor) -> Tensor:
        """Return the cosine similarity of each pair, (B,) float64."""
        self.network.to(pixels.device)
        with torch.autocast(pixels.device.type, enabled=False):
            wanted, found = (self.network.embedding(round_pixels(batch)).double() for batch in (pixels, reconstruction))
            return F.cosine_similarity(wanted, found, dim=1)
