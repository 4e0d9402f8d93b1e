from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MistralConfig, Qwen3Config

from mmlm.generation.decoder import CachedDecoder, plain_decoder
from mmlm.generation.images import generate_indices
from mmlm.recipes.sampling import PictureSampling
from visual_tokenizer.errors import UserError

PROMPTS = [torch.tensor([3, 1, 4, 1, 5]), torch.tensor([9, 2]), torch.tensor([6])]
STEPS = [torch.tensor([[7], [8], [9]]), torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.tensor([[10], [11], [12]])]
SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, attention_bias=True),
    "qwen3": Qwen3Config(**SIZES),
    "gemma2": Gemma2Config(**SIZES, final_logit_softcapping=5.0, sliding_window=3),
    "mistral": MistralConfig(**SIZES, sliding_window=3),
}


def build(name: str, attention: str = "sdpa"):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention).eval()


@torch.no_grad()
def check_against_whole_passes(model, **options) -> None:
    """Compare the scores after each step with whole passes over each row by itself, all of the vocabulary."""
    decoder = CachedDecoder(model, PROMPTS, 4, pad_id=0, **options)
    chosen = [torch.arange(10, 20), torch.tensor([3, 8, 40])]
    rows = [*PROMPTS]
    for step in [None, *STEPS]:
        if step is not None:
            decoder.feed(step)
            rows = [torch.cat([row, new]) for row, new in zip(rows, step, strict=True)]
        wanted = torch.stack([model(row[None], use_cache=False).logits[0, -1] for row in rows])
        for ids in chosen:
            torch.testing.assert_close(decoder.scores(ids), wanted[:, ids], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "attention"),
    [(name, how) for name in CONFIGS for how in ("sdpa", "eager") if (name, how) != ("gemma2", "sdpa")],
)
def test_scores_equal_whole_passes(name, attention):
    check_against_whole_passes(build(name, attention))


def test_only_a_head_that_is_all_there_is_is_cut():
    assert plain_decoder(build("llama")) is not None
    assert plain_decoder(build("gemma2", "eager")) is None  # soft-capping follows the head


def test_a_head_with_a_bias_is_cut_with_it():
    model = build("llama")
    head = torch.nn.Linear(32, 50)
    torch.nn.init.normal_(head.bias)
    model.lm_head = head
    assert plain_decoder(model) is not None
    check_against_whole_passes(model)


def test_compiled_steps_give_the_same_scores(monkeypatch):
    compiled = []

    def compile_nothing(function, **options):
        compiled.append(options)
        return function

    monkeypatch.setattr(
        torch, "compile", compile_nothing
    )  # the fixed cache and its masks, without minutes of compiling
    check_against_whole_passes(build("llama"), compile=True)
    assert compiled == [{"mode": "default", "dynamic": False}]


@pytest.mark.slow
def test_compiled_pictures_are_the_same(merged):
    settings = {"sampling": PictureSampling(temperature=0.0), "grid": (2, 4)}
    wanted = generate_indices(*merged, ["a red dog", "a black car at night"], **settings)
    compiled = generate_indices(*merged, ["a red dog", "a black car at night"], compile=True, **settings)
    assert torch.equal(compiled, wanted)


def test_only_the_chosen_rows_of_the_head_are_multiplied(monkeypatch):
    model = build("llama")
    decoder = CachedDecoder(model, PROMPTS, 4, pad_id=0)
    monkeypatch.setattr(model.lm_head, "forward", None)  # nobody calls the whole head
    decoder.feed(STEPS[0])
    ids = torch.arange(10, 20)
    assert decoder.scores(ids).shape == (3, 10)
    _, weight, _ = decoder._head_rows[id(ids)]
    assert weight.data_ptr() == model.lm_head.weight[10].data_ptr()  # a view, no copy


def test_too_long_a_sequence_is_refused():
    with pytest.raises(UserError, match="69 tokens, but the model has 64 positions"):
        CachedDecoder(build("llama"), PROMPTS, 64, pad_id=0)
