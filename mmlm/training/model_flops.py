"""Floating-point operations of a training step, for throughput and plans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class ModelFlops:
    """What the model's mathematics asks for, forward and backward; what is computed again does not count.

    A product with N weights takes 2N operations a token forward, 2N back to its input and 2N for its weights' gradient:
    6N (Kaplan et al., arXiv:2001.08361, section 2.1), and 4N where the weights are frozen. Attention adds, for every
    pair of a token and one that it sees, 12 · heads · head dimension a layer: 4 forward, 8 backward (Chowdhery et al.,
    arXiv:2204.02311, appendix B, whose formula counts the pairs that the causal mask hides too). An embedding table is
    looked up, not multiplied; it counts where it is the head as well. Of experts count those that a token visits.
    """

    per_token: float
    """Operations a token, without attention's."""
    per_pair: float
    """Operations a pair of tokens of which one attends to the other."""

    @classmethod
    def of(cls, model: nn.Module) -> ModelFlops:
        """Count a causal LM, or a peft model of it; on the meta device or partitioned by ZeRO-3, too."""
        config: Any = model.config.get_text_config()  # type: ignore[union-attr,operator]
        some: Any = model
        table, head = some.get_input_embeddings(), some.get_output_embeddings()
        own = {id(weight) for weight in table.parameters()} - {id(w) for w in (head.parameters() if head else ())}
        experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
        share = (getattr(config, "num_experts_per_tok", None) or 1) / experts if experts else 1.0
        per_token = 0.0
        for name, weight in model.named_parameters():
            if id(weight) not in own:
                visited = share if ".experts." in name else 1.0
                per_token += (6.0 if weight.requires_grad else 4.0) * visited * num_elements(weight)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(per_token, 12.0 * config.num_hidden_layers * config.num_attention_heads * head_dim)

    def per_second(self, tokens: float, pairs: float) -> float:
        """Return the operations of so many tokens and pairs."""
        return tokens * self.per_token + pairs * self.per_pair


def num_elements(weight: nn.Parameter) -> int:
    """Return the elements of a parameter, of all of it where ZeRO-3 keeps a part."""
    return int(getattr(weight, "ds_numel", weight.numel()))
