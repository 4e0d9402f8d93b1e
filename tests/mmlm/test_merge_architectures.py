"""A merge and its undoing, over the architectures that people bring."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from mmlm.generation.captions import describe_images
from mmlm.generation.images import generate_images
from mmlm.merging.merge import merge_vocabulary
from mmlm.merging.strip import strip_vocabulary

DECODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
}
NO_GROUPS = {key: value for key, value in DECODER.items() if key != "num_key_value_heads"}
CONFIGS = {
    "llama": (LlamaConfig, DECODER),
    "smollm": (LlamaConfig, {**DECODER, "tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, DECODER),
    "qwen3": (Qwen3Config, {**DECODER, "head_dim": 8, "tie_word_embeddings": True}),
    "mistral": (MistralConfig, {**DECODER, "sliding_window": 16}),
    "gemma2": (Gemma2Config, {**DECODER, "head_dim": 8, "tie_word_embeddings": True, "sliding_window": 16}),
    "gpt_neox": (GPTNeoXConfig, NO_GROUPS),
    "opt": (
        OPTConfig,
        {
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 96,
            "word_embed_proj_dim": 24,
        },
    ),
    "phi": (PhiConfig, NO_GROUPS),  # its head has a bias
    "gptj": (GPTJConfig, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96, "rotary_dim": 4}),  # and this one
}


@pytest.mark.parametrize("name", CONFIGS)
def test_merge_draw_strip_gives_the_old_model_bit_for_bit(name, text_tokenizer, codec, tmp_path) -> None:
    config_class, fields = CONFIGS[name]
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    torch.manual_seed(0)
    config = config_class(vocab_size=len(text_tokenizer) + 3, **special, **fields)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    was = copy.deepcopy(model)
    was_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    prompt = torch.tensor([[1, 300, 301, 20]])
    old = was(prompt).logits

    model, processor = merge_vocabulary(model, text_tokenizer, codec, pad_to_multiple_of=64)
    rows = len(text_tokenizer) + 3
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is was_tied
    assert torch.equal(model(prompt).logits[..., :rows], old)
    (image,) = generate_images(model, processor, ["a red dog"], guidance_scale=2.0, seed=1)
    assert image.size == (32, 32)
    assert len(describe_images(model, processor, [image], max_new_tokens=4)) == 1

    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(prompt).logits, model(prompt).logits)
    processor.check_model(again)

    stripped, tokenizer = strip_vocabulary(again, processor)
    assert tokenizer.get_vocab() == text_tokenizer.get_vocab()
    wanted, found = was.state_dict(), stripped.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert torch.equal(stripped(prompt).logits, old)
    assert stripped.config.get_text_config().vocab_size == rows
