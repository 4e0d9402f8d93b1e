"""Key-value caches for sequences whose length is known beforehand.

transformers' `DynamicCache` copies all keys and values at every token, its `StaticCache` attends over the whole length
from the first token on. Here the memory is taken once and attention sees what is there.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, PretrainedConfig, StaticCache
from transformers.cache_utils import DynamicLayer


class PreallocatedLayer(DynamicLayer):
    """Keys and values (B, heads, length, head_dim) in memory from the start; `update` returns a view of what is there.

    `length` is the most tokens.
    """

    _layer_type = None  # transformers registers subclasses under the name of their parent's type of layer

    def __init__(self, length: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.length = length
        self.filled = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_empty(*key_states.shape[:2], self.length, key_states.shape[-1])
        self.values = value_states.new_empty(*value_states.shape[:2], self.length, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values (B, heads, n, head_dim) behind what is there and return all so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        stop = self.filled + key_states.shape[-2]
        self.keys[:, :, self.filled : stop] = key_states
        self.values[:, :, self.filled : stop] = value_states
        self.filled = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def get_seq_length(self) -> int:
        return self.filled

    def get_max_length(self) -> int:
        return self.length


def growing_cache(config: PretrainedConfig, length: int) -> tuple[Cache, bool]:
    """Return an empty cache for `length` tokens, and whether all of its layers are plain.

    Models with layers of other kinds (sliding windows, states) get transformers' own cache.
    """
    own = DynamicCache(config=config)
    if own.layers and all(type(layer) is DynamicLayer for layer in own.layers):
        return Cache(layers=[PreallocatedLayer(length) for _ in own.layers]), True
    return own, False


def fixed_cache(config: PretrainedConfig, length: int) -> Cache:
    """Return an empty cache whose shapes never change, as compiled code needs."""
    return StaticCache(config=config, max_cache_len=length)
