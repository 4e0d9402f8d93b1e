"""Folders of every kind that programs take, as they should be: tiny, and made once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BeitConfig,
    BeitForMaskedImageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTModel,
)
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

from mmlm.merging.merge import merge_vocabulary
from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig, VisualTokenizerImageProcessor

PATCHES = {"type": "patch", "patch_size": 8, "width": 8}
FSQ = {"type": "fsq", "levels": [4, 4]}
SIZE = 16


class Folders(NamedTuple):
    """Whole folders, made once; a test breaks a copy."""

    root: Path

    def __getattr__(self, name: str) -> Path:
        return self.root / name


def text_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and an end of text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: number for number, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def language_model(rows: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def write_folders(root: Path) -> Folders:
    """Fill `root`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    (root / "pictures").mkdir()
    lines = []
    for number in range(12):
        squares = np.random.default_rng(number).integers(0, 256, (2, 2, 3), dtype=np.uint8)
        picture = Image.fromarray(squares).resize((SIZE, SIZE), Image.Resampling.NEAREST)
        picture.save(root / f"pictures/{number:02}.png")
        lines.append(json.dumps({"file_name": f"{number:02}.png", "text": f"squares {number}"}))
    (root / "pictures/metadata.jsonl").write_text("\n".join(lines))
    source = {"type": "image_folder", "folder": str(root / "pictures"), "heldout_fraction": 0.3}

    config = VisualTokenizerConfig(image_size=SIZE, encoder=PATCHES, quantizer=FSQ, decoder=PATCHES)
    codec = VisualTokenizer(config).eval()
    tokenizer = text_tokenizer()
    rows = len(tokenizer)
    language_model(rows).save_pretrained(root / "lm")
    tokenizer.save_pretrained(root / "lm")

    codec.save_pretrained(root / "tokenizer")
    VisualTokenizerImageProcessor(size=SIZE).save_pretrained(root / "tokenizer")
    (root / "tokenizer/recipe.yaml").write_text(yaml.safe_dump({"data": {"source": source}}))
    protocol = {"split": "all", "source": source, "resize_filter": "lanczos", "image_size": SIZE, "pictures": 12}
    report = {"model": "/nowhere", "metrics": {"psnr_db": 20.0}, "protocol": protocol}
    (root / "tokenizer/evaluation-all.json").write_text(json.dumps(report))
    shutil.copytree(root / "tokenizer", root / "other")

    merged, processor = merge_vocabulary(language_model(rows), tokenizer, codec)
    merged.save_pretrained(root / "merged")
    processor.save_pretrained(root / "merged")

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    beit = BeitConfig(image_size=SIZE, patch_size=8, vocab_size=16, use_mask_token=True, **small)
    BeitForMaskedImageModeling(beit).save_pretrained(root / "pretrained")
    codec.save_pretrained(root / "pretrained/visual_tokenizer")
    fields = {"patch_size": 8, "hidden_size": 16, "layers": 2, "heads": 2, "intermediate_size": 16}
    recipe = {"tokenizer": "x", "output_dir": "x", "image_size": SIZE, "model": fields, "data": {"source": source}}
    (root / "pretrained/recipe.yaml").write_text(yaml.safe_dump(recipe))

    ViTModel(ViTConfig(image_size=SIZE, patch_size=8, **small)).save_pretrained(root / "network")
    (root / "network/preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )

    vq = JanusVQVAEConfig(
        base_channels=32,
        channel_multiplier=[1, 2],
        num_res_blocks=1,
        embed_dim=8,
        latent_channels=16,
        num_embeddings=64,
        num_patches=8,
    )
    JanusVQVAE(vq).save_pretrained(root / "published")
    return Folders(root)
