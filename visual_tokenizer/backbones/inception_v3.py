"""Inception-v3 of 2015 as TensorFlow published it: the network by which FID is defined.

Papers: Rethinking the Inception Architecture for Computer Vision (Szegedy et al., 2015), arXiv:1512.00567; GANs
Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al., 2017),
arXiv:1706.08500. The graph of 2015-12-05 differs from the paper and from torchvision: an average pool leaves the
padding out of its mean, the last block pools by the maximum, the classifier has 1,008 outputs, and pictures are
resized as TensorFlow 1 did. Keys of the state dict: those of the file that pytorch-fid and torch-fidelity publish.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.backbones.base import (
    Backbone,
    BackboneConfig,
    check_pixels,
    resize_like_tensorflow,
    run_stages,
)
from visual_tokenizer.layers.published_weights import find_weights, load_weights

FILE_NAMES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
INCEPTION_FILE = (
    "the state dict of TensorFlow's Inception of 2015-12-05 as pytorch-fid and torch-fidelity publish it "
    f"({FILE_NAMES[0]}, 91 MB; keys Mixed_5b.branch1x1.conv.weight, fc.weight (1008, 2048))"
)


@dataclass(kw_only=True)
class InceptionV3Config(BackboneConfig):
    """Inception-v3 has no field of its own."""


class _Conv(nn.Module):
    """Convolution, BatchNorm (eps 1e-3), ReLU; `kernel` (h, w) is padded to "same" unless `valid`."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: tuple[int, int], stride: int = 1, valid: bool = False
    ) -> None:
        super().__init__()
        padding = (0, 0) if valid else (kernel[0] // 2, kernel[1] // 2)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(maps)))


def _average_pool(maps: Tensor) -> Tensor:
    return F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False)


def _maximum_pool(maps: Tensor) -> Tensor:
    return F.max_pool2d(maps, 3, stride=1, padding=1)


class _BlockA(nn.Module):
    """35 x 35: 1x1, 5x5, two 3x3, pool."""

    def __init__(self, width: int, pool_width: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(width, 64, (1, 1))
        self.branch5x5_1 = _Conv(width, 48, (1, 1))
        self.branch5x5_2 = _Conv(48, 64, (5, 5))
        self.branch3x3dbl_1 = _Conv(width, 64, (1, 1))
        self.branch3x3dbl_2 = _Conv(64, 96, (3, 3))
        self.branch3x3dbl_3 = _Conv(96, 96, (3, 3))
        self.branch_pool = _Conv(width, pool_width, (1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(maps)))
        five = self.branch5x5_2(self.branch5x5_1(maps))
        return torch.cat([self.branch1x1(maps), five, double, self.branch_pool(_average_pool(maps))], 1)


class _BlockB(nn.Module):
    """From 35 x 35 to 17 x 17."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(width, 384, (3, 3), stride=2, valid=True)
        self.branch3x3dbl_1 = _Conv(width, 64, (1, 1))
        self.branch3x3dbl_2 = _Conv(64, 96, (3, 3))
        self.branch3x3dbl_3 = _Conv(96, 96, (3, 3), stride=2, valid=True)

    def forward(self, maps: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(maps)))
        return torch.cat([self.branch3x3(maps), double, F.max_pool2d(maps, 3, stride=2)], 1)


class _BlockC(nn.Module):
    """17 x 17: 7x7 as 1x7 and 7x1, once and twice."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(768, 192, (1, 1))
        self.branch7x7_1 = _Conv(768, inner, (1, 1))
        self.branch7x7_2 = _Conv(inner, inner, (1, 7))
        self.branch7x7_3 = _Conv(inner, 192, (7, 1))
        self.branch7x7dbl_1 = _Conv(768, inner, (1, 1))
        self.branch7x7dbl_2 = _Conv(inner, inner, (7, 1))
        self.branch7x7dbl_3 = _Conv(inner, inner, (1, 7))
        self.branch7x7dbl_4 = _Conv(inner, inner, (7, 1))
        self.branch7x7dbl_5 = _Conv(inner, 192, (1, 7))
        self.branch_pool = _Conv(768, 192, (1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(maps)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(maps)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(maps), seven, double, self.branch_pool(_average_pool(maps))], 1)


class _BlockD(nn.Module):
    """From 17 x 17 to 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = _Conv(768, 192, (1, 1))
        self.branch3x3_2 = _Conv(192, 320, (3, 3), stride=2, valid=True)
        self.branch7x7x3_1 = _Conv(768, 192, (1, 1))
        self.branch7x7x3_2 = _Conv(192, 192, (1, 7))
        self.branch7x7x3_3 = _Conv(192, 192, (7, 1))
        self.branch7x7x3_4 = _Conv(192, 192, (3, 3), stride=2, valid=True)

    def forward(self, maps: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(maps))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(maps))))
        return torch.cat([three, seven, F.max_pool2d(maps, 3, stride=2)], 1)


class _BlockE(nn.Module):
    """8 x 8: forks of 1x3 and 3x1; `pool_by_maximum` only in the last block."""

    def __init__(self, width: int, pool_by_maximum: bool) -> None:
        super().__init__()
        self.pool = _maximum_pool if pool_by_maximum else _average_pool
        self.branch1x1 = _Conv(width, 320, (1, 1))
        self.branch3x3_1 = _Conv(width, 384, (1, 1))
        self.branch3x3_2a = _Conv(384, 384, (1, 3))
        self.branch3x3_2b = _Conv(384, 384, (3, 1))
        self.branch3x3dbl_1 = _Conv(width, 448, (1, 1))
        self.branch3x3dbl_2 = _Conv(448, 384, (3, 3))
        self.branch3x3dbl_3a = _Conv(384, 384, (1, 3))
        self.branch3x3dbl_3b = _Conv(384, 384, (3, 1))
        self.branch_pool = _Conv(width, 192, (1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        three = self.branch3x3_1(maps)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(maps))
        found = [self.branch1x1(maps), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        found += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(self.pool(maps))]
        return torch.cat(found, 1)


class _InceptionLayers(nn.Module):
    """The layers under the names of the state dict; what has no weights stands between them in `stages`."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, (3, 3), stride=2, valid=True)
        self.Conv2d_2a_3x3 = _Conv(32, 32, (3, 3), valid=True)
        self.Conv2d_2b_3x3 = _Conv(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = _Conv(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = _Conv(80, 192, (3, 3), valid=True)
        self.Mixed_5b = _BlockA(192, 32)
        self.Mixed_5c = _BlockA(256, 64)
        self.Mixed_5d = _BlockA(288, 64)
        self.Mixed_6a = _BlockB(288)
        self.Mixed_6b = _BlockC(128)
        self.Mixed_6c = _BlockC(160)
        self.Mixed_6d = _BlockC(160)
        self.Mixed_6e = _BlockC(192)
        self.Mixed_7a = _BlockD()
        self.Mixed_7b = _BlockE(1280, pool_by_maximum=False)
        self.Mixed_7c = _BlockE(2048, pool_by_maximum=True)
        self.fc = nn.Linear(2048, 1008)
        """Not run; its 1,008 outputs tell the network of 2015 from torchvision's, which has 1,000."""

    def stages(self) -> list[list[nn.Module]]:
        """Return the layers that lead to each level of `features`."""
        return [
            [self.Conv2d_1a_3x3, self.Conv2d_2a_3x3, self.Conv2d_2b_3x3, nn.MaxPool2d(3, 2)],
            [self.Conv2d_3b_1x1, self.Conv2d_4a_3x3, nn.MaxPool2d(3, 2)],
            [self.Mixed_5b, self.Mixed_5c, self.Mixed_5d],
            [self.Mixed_6a, self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e],
            [self.Mixed_7a, self.Mixed_7b, self.Mixed_7c],
        ]


class InceptionV3(Backbone):
    """TensorFlow's Inception-v3 of 2015 with frozen weights.

    Levels of `features`: the first and second max pool, Mixed_5d, Mixed_6e and Mixed_7c, at strides 4, 8, 8, 16
    and 32. The embedding is the 2,048-wide `pool_3` of FID.
    """

    Config = InceptionV3Config
    feature_dims = (64, 192, 288, 768, 2048)
    embedding_dim = 2048
    embedding_size = 299

    def __init__(self, config: InceptionV3Config | None = None) -> None:
        config = config or InceptionV3Config()
        super().__init__(config)
        path = find_weights(config.weights, FILE_NAMES, INCEPTION_FILE)
        with torch.device("meta"):
            self.network = _InceptionLayers()
        self.weights_digest = load_weights(self.network, path, INCEPTION_FILE)

    def features(self, pixels: Tensor, levels: int | None = None) -> list[Tensor]:
        """Return the first `levels` (default 5) maps of `pixels` as they are, 75 px or more a side for all five."""
        check_pixels(pixels)
        # (level - 128) / 128, as in the published graph.
        maps = (pixels.to(self.network.fc.weight.dtype) * 127.5 - 0.5) / 128
        return run_stages(self.network.stages()[:levels], maps)

    def embedding(self, pixels: Tensor, size: int | None = None) -> Tensor:
        """Return `pool_3`, (B, 2048), of `pixels` resized to `size` x `size` (299) as TensorFlow 1 does."""
        check_pixels(pixels)
        resized = resize_like_tensorflow(pixels, self.embedding_size if size is None else size)
        return self.features(resized)[-1].mean((2, 3))
