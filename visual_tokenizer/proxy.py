"""Weights of a proxy tokenizer for a decoder that ends in `proxy_codes`."""

from __future__ import annotations

import torch

from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.registry import ConfigError


@torch.no_grad()
def copy_proxy(tokenizer: VisualTokenizer, proxy: VisualTokenizer) -> None:
    """Give the `proxy_codes` within `tokenizer`'s decoder the codes and the decoder of `proxy`.

    Args:
        tokenizer: its decoder is or holds a `proxy_codes` whose section `proxy` is `proxy`'s decoder section.
        proxy: a trained tokenizer with one index a position.

    Raises:
        ConfigError: there is no such decoder in `tokenizer`, or it is made for another proxy.
    """
    targets = [part for part in tokenizer.decoder.modules() if hasattr(part, "copy_proxy")]
    if not targets:
        raise ConfigError("the decoder holds no 'proxy_codes', which a proxy's weights are for")
    if proxy.num_codebooks != 1 or proxy.quantizer.latent_grid is not None:
        raise ConfigError("a proxy must have one index a position, each decoded by itself")
    for target in targets:
        wanted, section = target.config, proxy.config.decoder
        if wanted.proxy.to_dict() != section or wanted.codebook_size != proxy.codebook_size:
            raise ConfigError(
                f"proxy_codes is made for {wanted.codebook_size} codes and the decoder {wanted.proxy.to_dict()}, the "
                f"proxy has {proxy.codebook_size} and {section}"
            )
        device = next(proxy.parameters()).device
        indices = torch.arange(proxy.codebook_size, device=device).unsqueeze(1)
        codes = proxy.from_codes(proxy.quantizer.indices_to_codes(indices).to(proxy.dtype))
        target.copy_proxy(codes.squeeze(1), proxy.decoder)
