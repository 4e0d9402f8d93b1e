"""Queries of a grid read the features of a frozen network from codes of any number.

Paper: Unified Language-Vision Pretraining in LLM with Dynamic Discrete Visual Tokenization (Jin et al., 2023),
arXiv:2309.04669, section 3.1: learned queries, one a place, read the codes block by block; two layers with tanh between
lead to the teacher's features; the loss is 1 − cos at every place, kept or dropped. `feature_distillation` is for codes
that stand on a grid themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.errors import UserError
from visual_tokenizer.layers.code_reader import CodeReader
from visual_tokenizer.layers.shape import TransformerShape
from visual_tokenizer.losses._taught import Taught, TaughtConfig, resized_map
from visual_tokenizer.outputs import TokenizerOutput
from visual_tokenizer.teacher import Teacher


@dataclass(kw_only=True)
class FeatureReconstructionConfig(TransformerShape, TaughtConfig):
    """Fields of the reconstruction of features; the defaults are the paper's, but for the teacher."""

    level: int = 3
    """Level of the teacher whose features are read, 0 the finest and -1 the last."""

    code_dim: Annotated[int, Ge(1)] = 32
    """Channels of a code, the quantizer's."""

    num_latents: Annotated[int, Ge(1)] = 256
    """Most tokens of a picture."""

    grid_size: Annotated[int, Ge(1)] = 16
    """Side of the grid of queries, to which the teacher's map is brought."""

    width: Annotated[int, Ge(1)] = 1408
    depth: Annotated[int, Ge(1)] = 12
    heads: Annotated[int, Ge(1)] = 16


class FeatureReconstruction(Taught):
    """1 − cos(head(queries that read the codes), teacher), averaged over pictures and places."""

    Config = FeatureReconstructionConfig

    def __init__(self, config: FeatureReconstructionConfig, teacher: Teacher | None = None) -> None:
        super().__init__(config, teacher)
        self.projection = nn.Linear(config.code_dim, config.width)
        self.reader = CodeReader(config.num_latents, config.grid_size**2, config.width, config.depth, config.heads)
        self.head = nn.Sequential(
            nn.Linear(config.width, config.width),
            nn.Tanh(),
            nn.Linear(config.width, self.target_width),
        )

    def predict(self, codes: Tensor, present: Tensor | None = None) -> Tensor:
        """Return what is read from (B, N, code_dim) codes, (B, grid_size², C of the teacher)."""
        return self.head(self.reader(self.projection(codes), present))

    def forward(self, output: TokenizerOutput, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean of 1 − cos, a float32 scalar in [0, 2]; gradients reach head, codes and encoder.

        Raises:
            ValueError: clips, or codes that this loss was not made for.
        """
        _, length, channels = output.codes.shape
        if channels != self.config.code_dim or length > self.config.num_latents:
            raise UserError(
                f"code_dim and num_latents must be those of the tokenizer, {channels} and {length}, "
                f"got {self.config.code_dim} and {self.config.num_latents}"
            )
        predicted = self.predict(output.codes, output.present).float()
        target = resized_map(self.target(batch), (self.config.grid_size, self.config.grid_size))
        return 1 - F.cosine_similarity(predicted, target.flatten(2).transpose(1, 2), dim=2).mean()
