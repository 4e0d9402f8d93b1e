"""The transformer as the paper begins with it. Paper: BEiT (Bao et al., 2022), arXiv:2106.08254, sections 2.2 and 2.5.

The class is transformers' `BeitForMaskedImageModeling`; this file makes its config from a recipe and gives it the
paper's initial weights, of which transformers draws some otherwise: class and mask embedding begin at random, not at 0,
and what block l adds to the residual stream is divided by √(2l), which keeps the training of deep ones stable.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BeitConfig, BeitForMaskedImageModeling
from transformers.modeling_outputs import MaskedLMOutput
from transformers.models.beit.modeling_beit import BeitLayer

from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.pretraining.recipe import BeitSection, PatchAggregationSection


@dataclass
class AggregationOutput(MaskedLMOutput):
    """Both predictions, each (B, N, vocab_size)."""

    aggregated_logits: Tensor | None = None
    """From block l's patches and the last class token."""


class BeitWithPatchAggregation(BeitForMaskedImageModeling):
    """BEiT with the second head of BEiT v2.

    Args:
        config: of the transformer.
        layer: block whose patches are taken, counted from 1.
        head_layers: blocks of the second head.
    """

    def __init__(self, config: BeitConfig, layer: int, head_layers: int) -> None:
        super().__init__(config)
        self.layer = layer
        depth = max(config.num_hidden_layers, layer + head_layers)
        rates = [config.drop_path_rate * number / max(depth - 1, 1) for number in range(layer, layer + head_layers)]
        self.aggregation = nn.ModuleList(BeitLayer(config, drop_path_rate=rate) for rate in rates)
        self.aggregation.apply(self._init_weights)

    def forward(  # type: ignore[override]
        self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None, **kwargs: Any
    ) -> AggregationOutput:
        """Predict from pixels (B, 3, H, W) in [-1, 1] and a mask (B, N), twice."""
        kwargs["output_hidden_states"] = True
        output = self.beit(pixel_values, bool_masked_pos=bool_masked_pos, **kwargs)
        last, resolution = output.last_hidden_state, pixel_values.shape[-2:]
        bias = None
        if self.beit.shared_position_bias is not None:
            patch: Any = self.config.patch_size
            bias = self.beit.shared_position_bias((resolution[0] // patch, resolution[1] // patch))
        states = torch.cat([last[:, :1], output.hidden_states[self.layer][:, 1:]], dim=1)
        for block in self.aggregation:
            states = block(states, attention_mask=bias, resolution=resolution)
        logits, aggregated = (self.lm_head(self.layernorm(found)[:, 1:]) for found in (last, states))
        return AggregationOutput(logits=logits, aggregated_logits=aggregated)


def beit_config(model: BeitSection, image_size: int, tokenizer: VisualTokenizer) -> BeitConfig:
    """Return the config of a transformer that predicts this tokenizer's indices."""
    return BeitConfig(
        vocab_size=tokenizer.codebook_size * tokenizer.num_codebooks,
        image_size=image_size,
        patch_size=model.patch_size,
        hidden_size=model.hidden_size,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        intermediate_size=model.intermediate_size,
        layer_norm_eps=1e-6,
        layer_scale_init_value=model.layer_scale,
        drop_path_rate=model.drop_path,
        use_mask_token=True,
        use_shared_relative_position_bias=model.relative_positions,
        use_absolute_position_embeddings=model.absolute_positions,
        use_mean_pooling=True,
    )


def build_beit(config: BeitConfig, section: PatchAggregationSection | None) -> BeitForMaskedImageModeling:
    """Return a new model with random weights of the global generator."""
    model: BeitForMaskedImageModeling
    if section is None:
        model = BeitForMaskedImageModeling(config)
    else:
        model = BeitWithPatchAggregation(config, layer=section.layer, head_layers=section.head_layers)
        scale_residual_branches(model.aggregation, first=section.layer + 1)
    draw_embeddings(model)
    scale_residual_branches(model.beit.layers, first=1)
    return model


@torch.no_grad()
def draw_embeddings(model: BeitForMaskedImageModeling) -> None:
    """Draw class token, mask token and positions from a normal distribution, cut off at one standard deviation."""
    embeddings, std = model.beit.embeddings, model.config.initializer_range
    for table in (embeddings.cls_token, embeddings.mask_token, embeddings.position_embeddings):
        if table is not None:
            nn.init.trunc_normal_(table, std=std, a=-std, b=std)


@torch.no_grad()
def scale_residual_branches(blocks: Iterable[Any], first: int) -> None:
    """Divide the last matrices of attention and feed-forward layer of block number l by √(2l), l from `first` on."""
    for number, block in enumerate(blocks, first):
        for matrix in (block.attention.o_proj, block.mlp.fc2):
            matrix.weight.div_(math.sqrt(2 * number))
