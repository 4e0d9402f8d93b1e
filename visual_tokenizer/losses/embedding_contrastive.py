"""Codes are pulled to a frozen network's embedding of their picture and pushed from those of others.

Papers: ImageFolder: Autoregressive Image Generation with Folded Tokens (Li et al., 2024), arXiv:2410.01756, section
3.3: the mean of the semantic branch's codes against a linear map of DINOv2's embedding, by CLIP's loss; Factorized
Visual Tokenization and Generation (Bai et al., 2024), arXiv:2411.16681, section 3.3, whose code compares CLIP's
embedding so. It wants large batches; where they are small, `feature_distillation` needs no other pictures.

Departs from ImageFolder in that the temperature stays (its own falls from 1 to 0.01 over 200 epochs, or vectors are not
normalised), and from FQGAN in that no transformer stands between codes and loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.losses._caption_alignment import of_all_ranks, softmax_loss
from visual_tokenizer.losses._code_channels import Channels, code_channels
from visual_tokenizer.losses._taught import Taught, TaughtConfig
from visual_tokenizer.outputs import TokenizerOutput
from visual_tokenizer.teacher import Teacher


@dataclass(kw_only=True)
class EmbeddingContrastiveConfig(TaughtConfig):
    """Fields of the contrast with a network's embedding; a `level` is averaged over its places."""

    channels: Channels = field(default_factory=lambda: [0, 8])
    """First channel of the code that is compared and the one after its last; [0, code_dim] for all."""

    temperature: Annotated[float, Gt(0)] = 0.07
    """Number that cosines are divided by."""


class EmbeddingContrastive(Taught):
    """CLIP's loss between the mean code of a picture and `W e`, e the teacher's embedding."""

    Config = EmbeddingContrastiveConfig

    def __init__(self, config: EmbeddingContrastiveConfig, teacher: Teacher | None = None) -> None:
        super().__init__(config, teacher)
        self.projection = nn.Linear(self.target_width, config.channels[1] - config.channels[0])

    def forward(self, output: TokenizerOutput, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss over the pictures of all processes in nats, a float32 scalar.

        Raises:
            ValueError: codes with fewer channels than `channels` ends at.
        """
        codes = code_channels(output.codes, self.config.channels)
        pooled = codes.mean(1) if output.present is None else codes.sum(1) / output.present.sum(1, keepdim=True)
        with torch.autocast(codes.device.type, enabled=False):
            ours = F.normalize(pooled.float(), dim=1)
            theirs = F.normalize(
                self.projection(self.target(batch).mean((2, 3)).to(self.projection.weight.dtype)), dim=1
            )
            scores = of_all_ranks(ours) @ of_all_ranks(theirs.float()).T
        return softmax_loss(scores / self.config.temperature)
