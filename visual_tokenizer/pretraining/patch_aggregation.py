"""A second prediction that only the class token can help: it learns what the whole picture shows.

Paper: BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers (Peng et al., 2022), arXiv:2208.06366,
section 2.3. The patches of block l and the class token of the last block go through a few blocks of their own; norm and
head are those of the first prediction. The extra blocks are for training only: an exported model has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BeitConfig, BeitForMaskedImageModeling
from transformers.modeling_outputs import MaskedLMOutput
from transformers.models.beit.modeling_beit import BeitLayer


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
