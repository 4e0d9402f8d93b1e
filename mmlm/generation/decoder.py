"""A batch of sequences that a causal LM continues: one forward pass a step, a cache, and scores of chosen tokens only.

`generate` prepares masks and inputs anew for every token, copies the cache, and computes and filters the scores of the
whole vocabulary. A picture's place allows one codebook and its length is known, so here the cache and the masks are
made once and the head is multiplied with the rows that may be drawn.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.generation.caches import fixed_cache, growing_cache
from mmlm.generation.loop import check_length, pad_left

LENGTH_STEP = 64
"""Lengths of fixed caches are multiples of it, so that prompts of nearby lengths share compiled code."""

_is_plain: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()
_compiled: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()


class CachedDecoder:
    """Sequences in lockstep: all rows get the same number of tokens at each step.

    Args:
        model: a causal LM in eval mode; no other forward pass of it may run meanwhile.
        prompts: ids (l,) int64 of B rows; shorter ones are padded at the left and masked.
        max_new_tokens: most tokens to be fed after the prompts.
        pad_id: fills short prompts.
        compile: run single steps through `torch.compile` on a cache of fixed shape; pays on a GPU, after minutes of
            compilation. Models whose inner decoder cannot be used alone run as they are.

    Raises:
        UserError: the model has too few positions.
    """

    def __init__(
        self, model: Any, prompts: Sequence[Tensor], max_new_tokens: int, pad_id: int, compile: bool = False
    ) -> None:
        ids, mask = pad_left(prompts, pad_id)
        self.length = 0
        self.capacity = ids.shape[1] + max_new_tokens
        check_length(model, self.capacity)
        self.model, self.device = model, model.device
        self.inner = plain_decoder(model)
        config = model.config.get_text_config(decoder=True)
        self._cache, has_plain_layers = growing_cache(config, self.capacity)
        attention = getattr(config, "_attn_implementation", None)
        self._makes_masks = has_plain_layers and attention in ("sdpa", "eager")
        self._mask_dtype = torch.bool if attention == "sdpa" else model.dtype
        self._step: Any = self.inner
        self._is_fixed = compile and self.inner is not None and self._makes_masks
        if self._is_fixed:
            self.capacity = -(-self.capacity // LENGTH_STEP) * LENGTH_STEP
            self._cache = fixed_cache(config, self.capacity)
            self._step = _compiled_step(self.inner)
        self._visible = torch.ones(len(ids), self.capacity, dtype=torch.bool, device=self.device)
        self._visible[:, : ids.shape[1]] = mask.to(self.device, torch.bool)
        self._shift = ids.shape[1] - mask.sum(1, keepdim=True).to(self.device)
        self._places = torch.arange(self.capacity, device=self.device)
        self._last: Tensor = torch.empty(0)
        self._head_rows: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
        self.feed(ids.to(self.device))

    @property
    def rows(self) -> int:
        """Number of rows, B."""
        return len(self._shift)

    @torch.no_grad()
    def feed(self, ids: Tensor) -> None:
        """Append ids (B, n) int64 to the rows; `scores` then predicts what follows them."""
        start, stop = self.length, self.length + ids.shape[1]
        arguments = {
            "input_ids": ids,
            "attention_mask": self._mask(start, stop) if self._makes_masks else self._visible[:, :stop].long(),
            "position_ids": (self._places[start:stop] - self._shift).clamp(min=0),
            "past_key_values": self._cache,
            "use_cache": True,
        }
        if self.inner is None:
            self._last = self.model(**arguments, logits_to_keep=1).logits[:, -1]
        else:
            run = self._step if start else self.inner  # the prompt's length differs from call to call
            self._last = run(**arguments).last_hidden_state[:, -1]
        self.length = stop

    def _mask(self, start: int, stop: int) -> Tensor:
        """Return who attends to whom, (B, 1, n, L): causal, no padding, but everyone to themselves."""
        places = self._places if self._is_fixed else self._places[:stop]
        queries = self._places[start:stop, None]
        visible = self._visible[:, None, None, : len(places)]
        seen: Tensor = visible
        if stop - start > 1 or self._is_fixed:
            seen = (visible & (places <= queries)) | (places == queries)  # a row of nothing would be NaN
        if self._mask_dtype == torch.bool:
            return seen
        return torch.zeros(seen.shape, dtype=self._mask_dtype, device=self.device).masked_fill(
            ~seen, torch.finfo(self._mask_dtype).min
        )

    @torch.no_grad()
    def scores(self, ids: Tensor) -> Tensor:
        """Return the logits (B, K) float32 of the tokens `ids` (K,) int64 on the CPU, each below the head's rows.

        Keep the tensor for as long as the decoder: what was made for it is found again by its identity.
        """
        if id(ids) not in self._head_rows:
            self._head_rows[id(ids)] = self._take_rows(ids)
        _, weight_or_ids, bias = self._head_rows[id(ids)]
        if self.inner is None:
            return self._last[:, weight_or_ids].float()
        return F.linear(self._last, weight_or_ids, bias).float()

    def _take_rows(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.inner is None:
            return ids, ids.to(self.device), None
        head = self.model.get_output_embeddings()
        first, last = int(ids[0]), int(ids[-1])
        is_range = last - first + 1 == len(ids) and bool((ids.diff() == 1).all())
        rows: Any = slice(first, last + 1) if is_range else ids.to(head.weight.device)  # a slice is no copy
        return ids, head.weight[rows].detach(), None if head.bias is None else head.bias[rows].detach()


def plain_decoder(model: Any) -> Any:
    """Return the part of a causal LM before its head, or None where the logits are more than `head(hidden)`.

    A few tokens tell, once a model: soft-capping, scales, masks and wrappers that add to the input show.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or not hasattr(model, "get_decoder"):
        return None
    if head.weight.numel() == 0 or hasattr(head.weight, "ds_id"):
        return None  # ZeRO-3: the weight is there while its module runs, and only then
    inner = model.get_decoder()
    if inner is None or inner is model:
        return None
    if model not in _is_plain:
        ids = torch.arange(4, device=model.device).view(1, 4)
        with torch.no_grad():
            wanted = model(input_ids=ids, use_cache=False).logits[0].float()
            hidden = getattr(inner(input_ids=ids, use_cache=False), "last_hidden_state", None)
            found = None if hidden is None else head(hidden)[0].float()
        if not bool(wanted.isfinite().all()):
            return None  # broken weights are not this function's to report, and tell nothing
        tolerance = 1e-3 * float(wanted.abs().max())
        _is_plain[model] = found is not None and float((found - wanted).abs().max()) <= tolerance
    return inner if _is_plain[model] else None


def _compiled_step(inner: Any) -> Any:
    if inner not in _compiled:
        mode = "reduce-overhead" if next(inner.parameters()).is_cuda else "default"
        _compiled[inner] = torch.compile(inner.forward, mode=mode, dynamic=False)
    return _compiled[inner]
