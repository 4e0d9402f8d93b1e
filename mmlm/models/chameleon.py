"""Chameleon's language model as an ordinary causal LM, which transformers does not have.

transformers' `ChameleonForConditionalGeneration` sets the logit of every image token to the lowest float, before the
loss too: it can neither learn pictures nor draw them. Here the same layers and the same head predict every token.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    ChameleonConfig,
    ChameleonModel,
    ChameleonPreTrainedModel,
    GenerationMixin,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.chameleon.modeling_chameleon import (
    ChameleonDecoderLayer,
    ChameleonRMSNorm,
    ChameleonRotaryEmbedding,
    ChameleonSwinDecoderLayer,
)


class ChameleonTextModel(ChameleonModel):
    """`ChameleonModel` without its image tokenizer: pictures come in as token ids.

    A number `residual_dropout` in the config, 0 where there is none, drops outputs of attention and feed-forward layers
    while training, as the published 7B was trained (arXiv:2405.09818, section 2.3: 0.1).
    """

    def __init__(self, config: ChameleonConfig) -> None:
        ChameleonPreTrainedModel.__init__(self, config)  # not ChameleonModel's, which builds the image tokenizer
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        layer_class = ChameleonSwinDecoderLayer if config.swin_norm else ChameleonDecoderLayer
        self.layers = nn.ModuleList([layer_class(config, number) for number in range(config.num_hidden_layers)])
        self.norm = ChameleonRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = ChameleonRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        share = getattr(config, "residual_dropout", 0.0)
        if share:
            layer: Any
            for layer in self.layers:
                layer.self_attn.o_proj = _DroppedLinear(layer.self_attn.o_proj, share)
                layer.mlp.down_proj = _DroppedLinear(layer.mlp.down_proj, share)
        self.post_init()


class _DroppedLinear(nn.Linear):
    """A linear layer whose output is dropped in part while training; its weights have the same names."""

    def __init__(self, layer: nn.Linear, share: float) -> None:
        weight = layer.weight
        super().__init__(
            layer.in_features, layer.out_features, layer.bias is not None, device=weight.device, dtype=weight.dtype
        )
        self.weight, self.bias = weight, layer.bias
        self.share = share

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(super().forward(input), self.share, self.training)


class ChameleonForCausalLM(ChameleonPreTrainedModel, GenerationMixin):
    """Predicts text and image tokens alike; query-key norm and norm placement are transformers' own layers.

    Its weights have the names of `ChameleonForConditionalGeneration`, without `model.vqmodel`, whose weights are passed
    over where a folder holds them. `AutoModelForCausalLM` loads a Chameleon folder as this class once `mmlm` is in use.
    """

    config: ChameleonConfig
    config_class = ChameleonConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 - transformers' own attribute
    _keys_to_ignore_on_load_unexpected = [r"^model\.vqmodel\."]  # noqa: RUF012

    def __init__(self, config: ChameleonConfig) -> None:
        super().__init__(config)
        self.model = ChameleonTextModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits (B, L, V), and the mean cross-entropy where `labels` (B, L) are given; as every causal LM."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


AutoModelForCausalLM.register(ChameleonConfig, ChameleonForCausalLM, exist_ok=True)
