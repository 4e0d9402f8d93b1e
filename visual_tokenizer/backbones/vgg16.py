"""VGG-16, trained on ImageNet: the trunk of LPIPS and of many perceptual losses.

Paper: Very Deep Convolutional Networks for Large-Scale Image Recognition (Simonyan & Zisserman, 2014),
arXiv:1409.1556, table 1, column D. Keys of the state dict: those of torchvision's `vgg16`
(`features.N.weight`, `features.N.bias`); its classifier is not needed.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visual_tokenizer.backbones.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
    BackboneConfig,
    check_pixels,
    resize_shorter_side,
    run_stages,
    standardise,
)
from visual_tokenizer.layers.published_weights import find_weights, load_weights

VGG16_FILE = "the state dict of torchvision's vgg16 (vgg16-397923af.pth, 528 MB; keys features.N.weight)"

# Convolutions of each stage; a max pool stands between two stages.
_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


@dataclass(kw_only=True)
class VGG16Config(BackboneConfig):
    """VGG-16 has no field of its own."""


class VGG16(Backbone):
    """VGG-16 with frozen ImageNet weights.

    Levels of `features`: relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3, at strides 1, 2, 4, 8 and 16. The
    embedding is relu5_3 averaged over positions.
    """

    Config = VGG16Config
    feature_dims = (64, 128, 256, 512, 512)
    embedding_dim = 512
    embedding_size = 224

    def __init__(self, config: VGG16Config | None = None) -> None:
        config = config or VGG16Config()
        super().__init__(config)
        path = find_weights(config.weights, ["vgg16-397923af.pth"], VGG16_FILE)
        layers: list[nn.Module] = []
        self._ends: list[int] = []
        channels = 3
        with torch.device("meta"):
            for stage in _STAGES:
                if layers:
                    layers.append(nn.MaxPool2d(2, 2))
                for width in stage:
                    layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                    channels = width
                self._ends.append(len(layers))
            self.layers = nn.Sequential(*layers)
        self.weights_digest = load_weights(self.layers, path, VGG16_FILE, prefix="features.")

    def features(self, pixels: Tensor, levels: int | None = None) -> list[Tensor]:
        """Return the first `levels` (default 5) maps: level l is (B, C_l, H / 2^l, W / 2^l)."""
        check_pixels(pixels)
        maps = standardise(pixels.to(next(self.layers.parameters()).dtype), IMAGENET_MEAN, IMAGENET_STD)
        layers = list(self.layers)
        stages = [layers[first:after] for first, after in itertools.pairwise([0, *self._ends])]
        return run_stages(stages[:levels], maps)

    def embedding(self, pixels: Tensor, size: int | None = None) -> Tensor:
        """Return the mean of relu5_3, (B, 512), of `pixels` brought to `size` (224) px."""
        check_pixels(pixels)
        resized = resize_shorter_side(pixels, self.embedding_size if size is None else size)
        return self.features(resized)[-1].mean((2, 3))
