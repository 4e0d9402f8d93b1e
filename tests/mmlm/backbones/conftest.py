"""Chameleon and Emu3 of a few thousand random weights in transformers' own classes, with tokenizers to match."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AddedToken,
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonVQVAEConfig,
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3TextConfig,
    Emu3VQVAEConfig,
    PreTrainedTokenizerFast,
)

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
}


def byte_tokenizer(names: list[str], bos: str, eos: str, pad: str) -> PreTrainedTokenizerFast:
    """Bytes are ids 0 … 255, `names` follow."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: number for number, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in [bos, eos, pad, *names]])
    backend.post_processor = TemplateProcessing(f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=pad)


def shaken(model: Any) -> Any:
    """Give every weight, also those that begin as 1 or 0, a value of its own."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def letters(index: int) -> str:
    return "IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(index)) + "Z"


@pytest.fixture(scope="session")
def chameleon_tokenizer() -> PreTrainedTokenizerFast:
    images = [letters(index) for index in (3, 15, 0, 7, 12, 1, 10, 4, 14, 2, 9, 5, 13, 8, 6, 11)]
    names = [*images, "<racm3:break>", "<eoss>", "<image>", "<reserved08706>"]
    tokenizer = byte_tokenizer(names, "<s>", "</s>", "<pad>")
    tokenizer.sep_token = "<reserved08706>"
    return tokenizer


@pytest.fixture(scope="session", params=[False, True], ids=["7b norms", "34b norms"])
def whole_chameleon(request, chameleon_tokenizer) -> ChameleonForConditionalGeneration:
    vq = ChameleonVQVAEConfig(
        base_channels=32,
        channel_multiplier=[1, 1],
        num_res_blocks=1,
        resolution=8,
        embed_dim=8,
        latent_channels=8,
        num_embeddings=16,
    )
    torch.manual_seed(0)
    config = ChameleonConfig(
        vocab_size=len(chameleon_tokenizer),
        vq_config=vq,
        vocabulary_map=chameleon_tokenizer.get_vocab(),
        swin_norm=request.param,
        bos_token_id=chameleon_tokenizer.bos_token_id,
        eos_token_id=chameleon_tokenizer.eos_token_id,
        pad_token_id=chameleon_tokenizer.pad_token_id,
        **SHAPE,
    )
    return shaken(ChameleonForConditionalGeneration(config))


@pytest.fixture(scope="session")
def emu3_tokenizer() -> PreTrainedTokenizerFast:
    marks = ["<|image start|>", "<|image end|>", "<|image token|>", "<|extra_200|>", "<|extra_201|>", "<image>"]
    names = [*marks, *(f"<|visual token {index:06d}|>" for index in range(16))]
    return byte_tokenizer(names, "<|extra_203|>", "<|extra_204|>", "<|endoftext|>")


@pytest.fixture(scope="session")
def whole_emu3(emu3_tokenizer) -> Emu3ForConditionalGeneration:
    torch.manual_seed(0)
    vq = Emu3VQVAEConfig(
        codebook_size=16, base_channels=32, channel_multiplier=[1, 1], num_res_blocks=1, attn_resolutions=[1],
        hidden_size=32, temporal_downsample_factor=2,
    )  # fmt: skip
    text = Emu3TextConfig(
        vocab_size=len(emu3_tokenizer),
        bos_token_id=emu3_tokenizer.bos_token_id,
        eos_token_id=emu3_tokenizer.eos_token_id,
        pad_token_id=emu3_tokenizer.pad_token_id,
        **SHAPE,
    )
    config = Emu3Config(vq_config=vq, text_config=text, vocabulary_map=emu3_tokenizer.get_vocab())
    return shaken(Emu3ForConditionalGeneration(config))
