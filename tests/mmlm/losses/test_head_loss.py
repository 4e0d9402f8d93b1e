"""The loss in the place of the head, on the heads of several model families, and packed documents in them."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    PhiConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from mmlm.data.collating import SequenceCollator
from mmlm.data.packing import join
from mmlm.losses.head_loss import HeadLoss
from mmlm.losses.modality_loss import shift_left
from visual_tokenizer.errors import UserError

SHAPE: dict[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": 67, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "llama, tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8),
    "phi, with a bias": PhiConfig(**{**SHAPE, "num_key_value_heads": 4}),
    "gpt2": GPT2Config(**GPT2, eos_token_id=2),
    "gemma2, no cap": Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=None, sliding_window=4),
}
CHANGING = {
    "gemma2, soft-capped": Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=2.0, sliding_window=4),
    "cohere, scaled": CohereConfig(**SHAPE, logit_scale=0.3),
}


def model_of(config: Any, implementation: str = "eager") -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return model.eval()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(3, 67, (2, 11))
    labels = shift_left(ids, -100)
    labels[0, 6:] = -100
    return ids, labels, torch.rand(2, 11) * (labels >= 0)


@pytest.mark.parametrize("name", [*CONFIGS, *CHANGING])
def test_it_is_the_loss_of_the_models_own_logits(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model = model_of((CONFIGS | CHANGING)[name])
    ids, labels, weights = batch()
    logits = model(input_ids=ids).logits
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    (losses * weights.flatten()).sum().backward()
    expected = {key: weight.grad.clone() for key, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    head_loss = HeadLoss(model)
    with caplog.at_level(logging.WARNING):
        found, output = head_loss(model, {"input_ids": ids}, labels, weights)
    found.total.backward()
    assert torch.allclose(found.losses, losses, atol=1e-5)
    for key, weight in model.named_parameters():
        assert torch.allclose(weight.grad, expected[key], atol=1e-5, rtol=1e-4), key
    if name in CHANGING:
        assert "changes the logits after its head" in caplog.text
        assert output.logits.shape == (2, 11, 67)
    else:
        assert not caplog.text
        assert output.logits.numel() == 1, "no logits"
    assert model(input_ids=ids).logits.shape == (2, 11, 67), "the head is as it was"


@pytest.mark.parametrize("tied", [True, False])
def test_lora_with_trained_rows_needs_no_logits(tied: bool) -> None:
    model = model_of(LlamaConfig(**SHAPE, tie_word_embeddings=tied))
    rows: Any = [5, 6, 60] if tied else {"embed_tokens": [5, 60], "lm_head": [5, 60]}
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=rows))
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(0.3 * torch.randn_like(weight))
    ids, labels, weights = batch()
    losses = F.cross_entropy(adapted(input_ids=ids).logits.flatten(0, 1), labels.flatten(), reduction="none")
    trained = [weight for weight in adapted.parameters() if weight.requires_grad]
    expected = torch.autograd.grad((losses * weights.flatten()).sum(), trained)
    found, output = HeadLoss(adapted)(adapted, {"input_ids": ids}, labels, weights)
    assert output.logits.numel() == 1
    assert torch.allclose(found.losses, losses, atol=1e-5)
    for one, other in zip(torch.autograd.grad(found.total, trained), expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_head_of_its_own_kind_is_run_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    class Doubling(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = model_of(CONFIGS["llama"])
    head = Doubling(32, 67, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    ids, labels, weights = batch()
    found, _ = HeadLoss(model)(model, {"input_ids": ids}, labels, weights)
    plain = F.cross_entropy(model(input_ids=ids).logits.flatten(0, 1), labels.flatten(), reduction="none")
    assert torch.allclose(found.losses, plain, atol=1e-5)
    assert "is not a plain linear layer but Doubling" in caplog.text


def test_a_compiled_model_needs_no_logits() -> None:
    model = model_of(CONFIGS["llama"])
    ids, labels, weights = batch()
    plain, _ = HeadLoss(model)(model, {"input_ids": ids}, labels, weights)
    head_loss, compiled = HeadLoss(model), torch.compile(model, backend="eager")
    for factor in (1.0, 2.0):
        found, output = head_loss(compiled, {"input_ids": ids}, labels, factor * weights)
        assert output.logits.numel() == 1
        assert torch.allclose(found.total, factor * plain.total, rtol=1e-5)


def documents() -> list[dict[str, Any]]:
    torch.manual_seed(2)
    items = []
    for length in (5, 1, 9, 4):
        ids = torch.randint(3, 67, (length,)).numpy()
        items.append({"input_ids": ids, "labels": ids.copy(), "token_kinds": 0 * ids})
    return items


@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        *((name, kind) for name in ("llama", "qwen2", "gpt2") for kind in ("sdpa", "eager")),
        ("gemma2, no cap", "eager"),
        ("gemma2, soft-capped", "eager"),
    ],
)
@pytest.mark.parametrize("flattens", [False, True])
def test_packed_documents_have_the_losses_and_gradients_that_they_have_alone(
    name: str, implementation: str, flattens: bool
) -> None:
    """`flattens` is how batches go to flash attention."""
    model = model_of((CONFIGS | CHANGING)[name], implementation)
    items = documents()
    collate = SequenceCollator(pad_id=0, pad_to_multiple_of=8)
    alone, packed = collate(items), collate([join(items[:2]), join(items[2:])])
    losses, gradients = [], []
    for rows in (alone, packed):
        head_loss = HeadLoss(model)
        head_loss.flattens = flattens
        labels = shift_left(rows["labels"], -100)
        inputs = {key: rows[key] for key in ("input_ids", "position_ids") if key in rows}
        found, _ = head_loss(model, inputs, labels, torch.ones(labels.shape))
        losses.append(found.losses[labels.flatten() >= 0])
        gradients.append(torch.autograd.grad(found.total, list(model.parameters())))
    assert len(losses[0]) == 15
    assert torch.allclose(losses[0], losses[1], atol=1e-5)
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-4, rtol=1e-4)


def test_models_that_mix_documents_are_refused() -> None:
    config = MambaConfig(vocab_size=67, hidden_size=32, num_hidden_layers=2, state_size=4)
    rows = SequenceCollator(pad_id=0)([join(documents())])
    inputs = {key: rows[key] for key in ("input_ids", "position_ids")}
    for model in (model_of(config, "eager"), _Forgetful(model_of(CONFIGS["llama"]))):
        with pytest.raises(UserError, match=r"set data\.packing: false"):
            HeadLoss(model)(model, inputs, rows["labels"], torch.ones(rows["labels"].shape))


class _Forgetful(nn.Module):
    """Takes position_ids and passes them over."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def get_output_embeddings(self) -> nn.Module:
        return self.model.get_output_embeddings()

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None, **options: Any) -> Any:
        return self.model(input_ids=input_ids, **options)
