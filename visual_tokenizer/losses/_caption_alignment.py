"""What the losses that align codes with captions share: both sides' embeddings, of the pictures of all processes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
import torch.distributed as dist
from annotated_types import Ge, Interval
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.backbones.base import NetworkHolder
from visual_tokenizer.codebooks.distributed import average_over_ranks, is_distributed
from visual_tokenizer.errors import UserError
from visual_tokenizer.losses._code_channels import Channels, code_channels
from visual_tokenizer.losses.base import Loss, LossConfig
from visual_tokenizer.outputs import TokenizerOutput
from visual_tokenizer.text_encoders.base import TextEncoderConfig


@dataclass(kw_only=True)
class CaptionAlignmentConfig(LossConfig):
    """Fields of both losses."""

    text_encoder: TextEncoderConfig = field(default_factory=lambda: TextEncoderConfig.family.config({"type": "minilm"}))
    """Frozen network of the captions."""

    channels: Channels = field(default_factory=lambda: [0, 8])
    """First channel of the code that is aligned and the one after its last; [0, code_dim] for all."""

    position: int | None = None
    """Token that stands for the picture, -1 the last (SEED's); null: the mean of all."""

    width: Annotated[int, Ge(1)] = 512
    """Channels between the two layers on the codes."""

    embedding_dim: Annotated[int, Ge(1)] = 256
    """Channels of the space in which pictures and captions are compared."""


class CaptionAlignment(NetworkHolder, Loss):
    """Two layers with GELU between on the pooled codes, and a linear map on the text encoder's embedding."""

    def __init__(self, config: CaptionAlignmentConfig) -> None:
        super().__init__(config)
        text_encoder: Any = TextEncoderConfig.family.build(config.text_encoder)
        self.hold(text_encoder)
        self.picture_head = nn.Sequential(
            nn.Linear(config.channels[1] - config.channels[0], config.width),
            nn.GELU(),
            nn.Linear(config.width, config.embedding_dim),
        )
        self.text_head = nn.Linear(text_encoder.embedding_dim, config.embedding_dim, bias=False)

    @torch.compiler.disable  # words are no tensors
    def texts(self, captions: list[str]) -> Tensor:
        """Return the frozen embeddings of captions, (B, embedding_dim of the text encoder) float32."""
        text_encoder: Any = self.network
        return text_encoder(captions)

    def vectors(self, output: TokenizerOutput) -> Tensor:
        """Return what is aligned, (B, N, last − first of `channels`): a part of the codes."""
        return code_channels(output.codes, self.config.channels)

    def cosines(self, output: TokenizerOutput, batch: Mapping[str, Any]) -> Tensor:
        """Return the cosines of pictures (rows) and captions (columns) of all processes, (M, M) float32.

        Every process must give equally many pictures.

        Raises:
            ValueError: the batch has no captions, or not one a picture; a `position` or `channels` out of range.
        """
        codes, position = self.vectors(output), self.config.position
        captions = batch.get("caption")
        if captions is None or len(captions) != codes.shape[0]:
            found = "none" if captions is None else str(len(captions))
            raise UserError(f"the batch must hold one `caption` a picture, {codes.shape[0]}, got {found}")
        if position is not None and output.present is not None:
            raise UserError(f"position must be null where pictures have different numbers of tokens, got {position}")
        if position is not None and not -codes.shape[1] <= position < codes.shape[1]:
            raise UserError(f"position must be one of {codes.shape[1]} tokens, got {position}")
        pooled = _mean_code(codes, output.present) if position is None else codes[:, position]
        with torch.autocast(codes.device.type, enabled=False):  # a scale of 100 needs more than three digits
            pictures = F.normalize(self.picture_head(pooled.to(self.text_head.weight.dtype)).float(), dim=1)
            texts = self.texts(list(captions)).to(self.text_head.weight.dtype)
            captioned = F.normalize(self.text_head(texts).float(), dim=1)
            return of_all_ranks(pictures) @ of_all_ranks(captioned).T


@dataclass(kw_only=True)
class SoftmaxAlignmentConfig(CaptionAlignmentConfig):
    """Fields of CLIP's loss."""

    temperature: Annotated[float, Interval(ge=0.01, le=1)] = 0.07
    """First value of the learned temperature that cosines are divided by; it is stopped at 0.01."""


class SoftmaxAlignment(CaptionAlignment):
    """The mean of the cross-entropies of captions given pictures and of pictures given captions (CLIP)."""

    def __init__(self, config: SoftmaxAlignmentConfig) -> None:
        super().__init__(config)
        self.log_scale = nn.Parameter(torch.full((), -math.log(config.temperature)))

    def forward(self, output: TokenizerOutput, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss over the pictures of all processes in nats, a float32 scalar."""
        return softmax_loss(self.log_scale.float().exp().clamp(max=100) * self.cosines(output, batch))


def softmax_loss(scores: Tensor) -> Tensor:
    """Return the mean of the cross-entropies of (M, M) scores by rows and by columns; a row's own column is right."""
    own = torch.arange(scores.shape[0], device=scores.device)
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


def _mean_code(codes: Tensor, present: Tensor | None) -> Tensor:
    """Return the mean over tokens of (B, N, C) codes, of which absent ones are 0."""
    return codes.mean(1) if present is None else codes.sum(1) / present.sum(1, keepdim=True)


def of_all_ranks(rows: Tensor) -> Tensor:
    """Concatenate (B, C) of all ranks, B the same on each, with gradient to every rank's own."""
    if not is_distributed():
        return rows
    ranks, rank = dist.get_world_size(), dist.get_rank()
    before, after = rank * rows.shape[0], (ranks - 1 - rank) * rows.shape[0]
    return ranks * average_over_ranks(F.pad(rows, (0, 0, before, after)))
