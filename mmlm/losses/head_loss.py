"""The loss in the place of a causal LM's head, so that the model hands on a number and never its logits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from mmlm.losses.cross_entropy import TokenLosses, linear_cross_entropy, logits_cross_entropy
from visual_tokenizer.errors import UserError

logger = logging.getLogger(__name__)

ISOLATION_TOLERANCE = 0.02
"""Largest difference, as a share of the largest value, that rounding may make between a document alone and packed."""


class HeadLoss:
    """Runs a causal LM on a batch and returns its loss token by token.

    The head is called where it always is, within the model and whatever wraps it, so that ZeRO-3 and FSDP gather
    its weight before it and reduce its gradient after it; but it computes `linear_cross_entropy`. Before the first
    batch a probe puts known numbers in the place of the logits: if they do not come out of the model as they were
    (soft-capping, scaling, masks), or the head is not a plain linear layer, or products are float16, the model runs as
    it is, its logits stand in memory, and the log says why.

    Args:
        model: the language model, or a peft model of it, without wrappers.
        z_loss: factor of the squared log normalizer.
    """

    def __init__(self, model: nn.Module, z_loss: float = 0.0) -> None:
        self.model: Any = model
        self.z_loss = z_loss
        find_head: Any = getattr(model, "get_output_embeddings", None)
        self.head: Any = None if find_head is None else find_head()
        self.flattens = "flash" in str(getattr(self.model.config, "_attn_implementation", ""))
        """Whether packed batches go in as one row: flash attention tells documents apart only there."""
        self._reasons: dict[bool, str | None] = {}
        self._isolates = False

    def __call__(
        self, model: nn.Module, inputs: Mapping[str, Tensor], labels: Tensor, weights: Tensor
    ) -> tuple[TokenLosses, Any]:
        """Return the losses of a batch and the model's output, in which `logits` may be anything.

        Args:
            model: as the trainer wraps it.
            inputs: arguments of its forward; `position_ids` that begin anew mark packed documents.
            labels: (B, L), what each place predicts.
            weights: (B, L).

        Raises:
            UserError: documents are packed and the model cannot keep them apart.
        """
        is_packed = "position_ids" in inputs
        if is_packed and not self._isolates:
            self.check_isolation(model, inputs["input_ids"].device)
        if is_packed and self.flattens:
            inputs = {name: value.reshape(1, -1) for name, value in inputs.items()}
        labels, weights = labels.flatten(), weights.flatten()
        reason = self.why_not(model, inputs["input_ids"].device)
        if reason is not None:
            output = model(**inputs, use_cache=False)
            return logits_cross_entropy(output.logits, labels, weights, self.z_loss), output
        found: list[TokenLosses] = []

        def loss(hidden: Tensor) -> Tensor:
            weight, bias = _weight_and_bias(self.head)
            found.append(linear_cross_entropy(hidden.flatten(0, -2), weight, labels, bias, weights, z_loss=self.z_loss))
            return found[0].total.view(1, 1, 1)

        with _in_place_of(self.head, loss):
            output = model(**inputs, use_cache=False)
        return found[0]._replace(total=output.logits.sum()), output

    def why_not(self, model: nn.Module, device: torch.device) -> str | None:
        """Return why the model's logits are needed, or None where the head's input is enough."""
        is_half = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.float16
        if is_half not in self._reasons:
            reason = "float16 needs loss scaling before the head" if is_half else self._look(model, device)
            self._reasons[is_half] = reason
            if reason is not None:
                logger.warning(
                    "the loss is taken from the model's logits, which stand in memory as a whole: %s", reason
                )
        return self._reasons[is_half]

    def _look(self, model: nn.Module, device: torch.device) -> str | None:
        if self.head is None:
            return "the model names no head (get_output_embeddings)"
        if not is_plain_head(self.head):
            return f"the head is not a plain linear layer but {type(self.head).__name__}"
        if next(iter(self.head.parameters())).dtype == torch.float16:
            return "float16 needs loss scaling before the head"
        known: list[Tensor] = []

        def stand_in(hidden: Tensor) -> Tensor:
            rows = _weight_and_bias(self.head)[0].shape[0]
            known.append(torch.linspace(-50, 50, hidden.shape[:-1].numel() * rows, device=device).to(hidden.dtype))
            return known[0].clone().view(*hidden.shape[:-1], rows)

        with _undisturbed(model), _in_place_of(self.head, stand_in):
            output = model(input_ids=torch.arange(4, device=device).view(1, 4), use_cache=False)
        if not known:
            return "the model's forward does not call its head"
        if output.logits.numel() != known[0].numel() or not torch.equal(
            output.logits.flatten().float(), known[0].float()
        ):
            return f"{type(self.model).__name__} changes the logits after its head (soft-capping, scale or mask)"
        return None

    def check_isolation(self, model: nn.Module, device: torch.device) -> None:
        """Try the model on small packed documents.

        Raises:
            UserError: a document's hidden states depend on another's, or on its place in the row.
        """
        first, other, last = torch.arange(9, device=device).view(3, 3)
        ids = torch.stack([torch.cat(pair) for pair in ((first, last), (other, last), (last, first))])
        positions = torch.arange(3, device=device).repeat(3, 2)
        if self.flattens:
            ids, positions = ids.view(1, -1), positions.view(1, -1)
        seen: list[Tensor] = []
        hook = (
            self.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
            if self.head is not None
            else None
        )
        try:
            with _undisturbed(model):
                output = model(input_ids=ids, position_ids=positions, use_cache=False)
        except TypeError as error:
            raise UserError(f"{type(self.model).__name__} takes no position_ids: set data.packing: false") from error
        finally:
            if hook is not None:
                hook.remove()
        hidden = (seen[0] if seen else output.logits).float().view(3, 6, -1)
        alone = hidden[2, :3]
        difference = max(float((hidden[row, 3:] - alone).abs().max()) for row in (0, 1))
        if not difference <= ISOLATION_TOLERANCE * float(alone.abs().max()):
            raise UserError(
                f"{type(self.model).__name__} with attention "
                f"{getattr(self.model.config, '_attn_implementation', 'of its own')!r} does not keep packed documents "
                f"apart (a difference of {difference:.3g}): set data.packing: false"
            )
        self._isolates = True


def is_plain_head(head: nn.Module) -> bool:
    """Return whether a head is `weight` and `bias` alone, or such a head with some rows trained by peft."""
    if isinstance(head, TrainableTokensWrapper):
        head = head.original_module
        return own_class(head) is nn.Linear and head.bias is None
    return own_class(head) is nn.Linear


def own_class(module: nn.Module) -> type[nn.Module]:
    """Return a module's class as it was before FSDP2, which gives what it shards a subclass of it."""
    return type(module).__bases__[-1] if isinstance(module, FSDPModule) else type(module)


def _weight_and_bias(head: Any) -> tuple[Tensor, Tensor | None]:
    return head.weight, None if isinstance(head, TrainableTokensWrapper) else head.bias


@contextmanager
def _in_place_of(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let `forward` stand for the module's own; its hooks still run."""
    before = vars(module).get("forward")
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before  # type: ignore[method-assign]


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """No gradients, no dropout."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
