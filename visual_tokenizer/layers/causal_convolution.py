"""Convolutions over clips in which no frame, or no chunk of frames, sees a later one.

Papers: Language Model Beats Diffusion – Tokenizer is Key to Visual Generation (Yu et al., 2023), arXiv:2310.05737,
section 3.2 and figure 2; Emu3: Next-Token Prediction is All You Need (Wang et al., 2024), arXiv:2409.18869, section
2.2, for the chunks. That paper names two temporal residual layers of 3-D convolutions; batch normalisation and padding
are those of the published weights.
"""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

TimePadding = Literal["zeros", "replicate"]


class CausalConv3d(nn.Conv3d):
    """Convolution padded in time on the left only: (B, in, T, H, W) → (B, out, 1 + ⌊(T − 1)/stride⌋, H', W').

    With a stride, output frame i sees input frames up to i · stride, so the first sees the first alone. In space the
    padding is zeros, "same"; where it can't be even there is more of it on the right and below.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: over time, height and width.
        stride: over time, height and width.
        time_padding: zeros, or copies of the first frame.
        groups: channels are mixed within so many groups only.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int, int] = (3, 3, 3),
        stride: tuple[int, int, int] = (1, 1, 1),
        *,
        time_padding: TimePadding = "zeros",
        groups: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, groups=groups)
        self.time_padding = time_padding
        self.frames_before = kernel_size[0] - 1
        self.sides: list[int] = []
        for kernel, step in ((kernel_size[2], stride[2]), (kernel_size[1], stride[1])):
            total = max(0, kernel - step)
            self.sides += [total // 2, total - total // 2]

    def forward(self, hidden: Tensor) -> Tensor:
        if self.frames_before and self.time_padding == "replicate":
            first = hidden[:, :, :1].expand(-1, -1, self.frames_before, -1, -1)
            hidden = F.pad(torch.cat([first, hidden], dim=2), self.sides)
        else:
            hidden = F.pad(hidden, (*self.sides, self.frames_before, 0))
        return super().forward(hidden)


class FrameGroupNorm(nn.GroupNorm):
    """Group normalisation with each frame's own statistics, so that nothing leaks back in time: (B, C, T, H, W)."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(groups, channels, eps=1e-6)

    def forward(self, hidden: Tensor) -> Tensor:
        frames = rearrange(hidden, "b c t h w -> (b t) c h w")
        return rearrange(super().forward(frames), "(b t) c h w -> b c t h w", b=hidden.shape[0])


class CausalResidualBlock(nn.Module):
    """Norm, SiLU, causal 3 × 3 × 3 convolution, twice, beside a (projected) identity."""

    def __init__(self, in_channels: int, out_channels: int, *, groups: int, time_padding: TimePadding) -> None:
        super().__init__()
        self.norm1 = FrameGroupNorm(groups, in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, time_padding=time_padding)
        self.norm2 = FrameGroupNorm(groups, out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels, time_padding=time_padding)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        residual = self.conv1(F.silu(self.norm1(hidden)))
        return self.shortcut(hidden) + self.conv2(F.silu(self.norm2(residual)))


class DepthToSpaceTime(nn.Module):
    """Doubling by a convolution to more channels, which are then laid out in space, and in time if asked.

    In time 1 + n frames become 1 + 2n: the copy that would stand before the first frame is dropped.
    """

    def __init__(self, channels: int, *, doubles_time: bool, time_padding: TimePadding) -> None:
        super().__init__()
        self.time = 2 if doubles_time else 1
        self.conv = CausalConv3d(channels, channels * self.time * 4, time_padding=time_padding)

    def forward(self, hidden: Tensor) -> Tensor:
        wide = self.conv(hidden)
        clip = rearrange(wide, "b (c p q r) t h w -> b c (t p) (h q) (w r)", p=self.time, q=2, r=2)
        return clip[:, :, self.time - 1 :]


class AdaptiveFrameNorm(nn.Module):
    """Group normalisation whose scale and shift follow from the latents of the same time.

    The scale is a linear map of the deviation over a latent frame, the shift of its mean; both start at the identity.
    """

    def __init__(self, channels: int, latent_channels: int, *, groups: int) -> None:
        super().__init__()
        self.norm = FrameGroupNorm(groups, channels)
        self.scale = nn.Linear(latent_channels, channels)
        self.shift = nn.Linear(latent_channels, channels)
        for layer in (self.scale, self.shift):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden: Tensor, latents: Tensor) -> Tensor:
        """Normalise (B, C, T, H, W) by latents (B, L, t, h, w), T = 1 + (t − 1) · k."""
        values = latents.float().flatten(3)
        mean = values.mean(dim=-1).transpose(1, 2)
        deviation = (values.var(dim=-1, correction=0) + 1e-6).sqrt().transpose(1, 2)
        scale = self._in_time(1 + self.scale(deviation.to(hidden.dtype)), hidden.shape[2])
        return self.norm(hidden) * scale + self._in_time(self.shift(mean.to(hidden.dtype)), hidden.shape[2])

    @staticmethod
    def _in_time(values: Tensor, frames: int) -> Tensor:
        """Lay (B, t, C) out over the frames that each latent frame stands for: (B, C, T, 1, 1)."""
        latent_frames = values.shape[1]
        if latent_frames > 1:
            repeats = (frames - 1) // (latent_frames - 1)
            values = torch.cat([values[:, :1], values[:, 1:].repeat_interleave(repeats, dim=1)], dim=1)
        return values.transpose(1, 2)[..., None, None]


class ChunkCausalConv3d(nn.Module):
    """A convolution of which output frame i sees input frames up to (i + 1) · stride − 1.

    (B, in, T, H, W) → (B, out, T / stride, H, W). With stride 1 no frame sees a later one; with more, `stride` frames
    become one that sees all of them. All padding is zeros; in time it comes first.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: over time, height and width; in time at least the stride.
        time_stride: frames that become one.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: tuple[int, int, int], *, time_stride: int = 1
    ) -> None:
        super().__init__()
        down, across = (side - 1 for side in kernel_size[1:])
        self.padding = (
            *(across - across // 2, across // 2),
            *(down - down // 2, down // 2),
            *(kernel_size[0] - time_stride, 0),
        )
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size, stride=(time_stride, 1, 1))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv(F.pad(hidden, self.padding))


class TemporalResidualBlock(nn.Module):
    """Batch norm, SiLU, causal 3 × 3 × 3 convolution, twice, beside the identity: (B, C, T, H, W) → the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm3d(channels)
        self.conv1 = ChunkCausalConv3d(channels, channels, (3, 3, 3))
        self.norm2 = nn.BatchNorm3d(channels)
        self.conv2 = ChunkCausalConv3d(channels, channels, (3, 3, 3))

    def forward(self, hidden: Tensor) -> Tensor:
        residual = self.conv1(F.silu(self.norm1(hidden)))
        return hidden + self.conv2(F.silu(self.norm2(residual)))
