"""Cross-entropy between predicted codes of a proxy tokenizer and those that it gives the pixels.

Paper: An Image is Worth 32 Tokens for Reconstruction and Generation (Yu et al., 2024), arXiv:2406.07550, section 3.3,
the first of two stages. The decoder is one that ends in `proxy_codes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Interval
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel

from visual_tokenizer.backbones.base import NetworkHolder
from visual_tokenizer.errors import UserError
from visual_tokenizer.losses.base import Loss, LossConfig
from visual_tokenizer.outputs import TokenizerOutput
from visual_tokenizer.runs.saved_models import MODEL_FILES, loading


@dataclass(kw_only=True)
class ProxyCodesConfig(LossConfig):
    """Fields of the cross-entropy with a proxy's codes."""

    proxy: str
    """Folder or repository of a trained visual tokenizer with one index a position."""

    label_smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Share of the target that is spread over all codes. TiTok's is 0."""


class ProxyCodes(NetworkHolder, Loss):
    """−log p(index of the proxy, the held `network`), averaged over every picture and position."""

    Config = ProxyCodesConfig

    def __init__(self, config: ProxyCodesConfig) -> None:
        super().__init__(config)
        with loading(config.proxy, "visual tokenizer", MODEL_FILES, model_type="visual_tokenizer"):
            proxy: Any = AutoModel.from_pretrained(config.proxy, trust_remote_code=False)
        if not hasattr(proxy, "num_codebooks"):
            raise UserError(f"proxy must be a visual tokenizer, {config.proxy} is a {proxy.config.model_type} model")
        if proxy.num_codebooks != 1:
            raise UserError(f"proxy must have one index a position, got {proxy.num_codebooks} of {config.proxy}")
        self.hold(proxy.requires_grad_(False).eval())

    def forward(self, output: TokenizerOutput, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean cross-entropy in nats, a float32 scalar.

        Raises:
            ValueError: the decoder's logits are not those of the proxy's codes or grid.
        """
        proxy: Any = self.network
        logits = output.raw
        indices = proxy.encode(batch["pixels"])
        wanted = (indices.shape[0], proxy.codebook_size, *indices.shape[1:])
        if logits.shape != wanted:
            raise UserError(f"the decoder must give logits {wanted} for this proxy, got {tuple(logits.shape)}")
        return F.cross_entropy(logits.float(), indices, label_smoothing=self.config.label_smoothing)
