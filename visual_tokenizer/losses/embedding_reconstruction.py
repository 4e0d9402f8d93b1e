"""A reverse Q-Former reads the embedding of the whole picture from the codes (SEED's second stage).

Papers: Making LLaMA SEE and Draw with SEED Tokenizer (Ge et al., 2023), arXiv:2310.01218, section 3.1, stage II: the
generation embedding comes near, by mean squared error, the image embedding that an unCLIP Stable Diffusion draws
from; Planting a SEED of Vision in Large Language Model (Ge et al., 2023), arXiv:2307.08041, section 3.2: the reverse
Q-Former. As in the authors' code two layers with tanh between lead from a code to the width, and four blocks follow.

Where the limit is: the embedding is that of the teacher, and no diffusion model is part of this project. A checkpoint
of unCLIP Stable Diffusion would take what `predict` returns, if the teacher is its image encoder (CLIP ViT-H/14); until
then the tokenizer's own decoder, which is trained on pixels, draws in its place. SEED's first version regresses 77 text
features of Stable Diffusion instead; it has no counterpart here.

Departs from it in that the reading query is one block of cross-attention after the others (the published weights
flatten the tokens behind three narrowing layers), in that the teacher's embedding is brought to one length, and in that
positions are sines and cosines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, MultipleOf
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.errors import UserError
from visual_tokenizer.layers.attention import ReadingBlock
from visual_tokenizer.layers.shape import TransformerShape
from visual_tokenizer.layers.transformer import Transformer, learned_positions, sinusoidal_positions
from visual_tokenizer.losses._taught import Taught, TaughtConfig
from visual_tokenizer.outputs import TokenizerOutput
from visual_tokenizer.teacher import Teacher


@dataclass(kw_only=True)
class EmbeddingReconstructionConfig(TransformerShape, TaughtConfig):
    """Fields of the reconstruction of an embedding; the defaults are SEED's, but for the teacher."""

    code_dim: Annotated[int, Ge(1)] = 32
    """Channels of a code, the quantizer's."""

    width: Annotated[int, Ge(1), MultipleOf(4)] = 768
    """Channels of the transformer; a multiple of `heads` and of 4."""

    depth: Annotated[int, Ge(1)] = 4
    heads: Annotated[int, Ge(1)] = 12

    cosine_weight: Annotated[float, Ge(0)] = 0.0
    """Factor on 1 − cos, which is added to the squared error. SEED's is 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.level is not None:
            raise UserError(f"level must be null, the embedding of the whole picture, got {self.level}")


class EmbeddingReconstruction(Taught):
    """mean (ê − e)² + w (1 − cos(ê, e)), e the teacher's embedding of length √C: each channel is about 1."""

    Config = EmbeddingReconstructionConfig

    def __init__(self, config: EmbeddingReconstructionConfig, teacher: Teacher | None = None) -> None:
        super().__init__(config, teacher)
        dims = config.code_dim
        self.projection = nn.Sequential(nn.Linear(dims, dims), nn.Tanh(), nn.Linear(dims, config.width))
        self.transformer = Transformer(config.width, config.depth, config.heads)
        self.query = learned_positions(1, config.width)
        self.reader = ReadingBlock(config.width, config.heads)
        self.head = nn.Linear(config.width, self.target_width)

    def predict(self, codes: Tensor) -> Tensor:
        """Return the generation embedding of (B, N, code_dim) codes: (B, C of the teacher)."""
        hidden = self.projection(codes)
        positions = sinusoidal_positions(1, codes.shape[1], self.config.width, codes.device)
        hidden = self.transformer(hidden + positions.to(hidden.dtype))
        return self.head(self.reader(self.query.expand(len(codes), -1, -1), hidden)[:, 0])

    def forward(self, output: TokenizerOutput, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss, a float32 scalar; gradients reach codes and encoder.

        Raises:
            ValueError: codes with another number of channels than `code_dim`, or pictures of different lengths.
        """
        if output.codes.shape[2] != self.config.code_dim or output.present is not None:
            raise UserError(
                f"code_dim must be {output.codes.shape[2]} (the quantizer's), of equally many tokens a picture, "
                f"got {self.config.code_dim}"
            )
        target = self.target(batch)[:, :, 0, 0]
        target = F.normalize(target, dim=1) * self.target_width**0.5
        predicted = self.predict(output.codes).float()
        cosine = F.cosine_similarity(predicted, target, dim=1).mean()
        return F.mse_loss(predicted, target) + self.config.cosine_weight * (1 - cosine)
