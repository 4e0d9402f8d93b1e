from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM

from mmlm.backbones.base import LMBackboneConfig
from mmlm.merging.merge import merge_vocabulary
from mmlm.merging.strip import strip_vocabulary

SMALL = {"hidden_size": 32, "layers": 2, "heads": 2, "ffn": 32, "vocab_size": 300, "max_positions": 64, "kv_heads": 1}


@pytest.fixture(scope="module")
def captioned(tmp_path_factory, captions) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(10):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    lines = [json.dumps({"file_name": f"{n}.png", "caption": captions[7 * n]}) for n in range(10)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return {"type": "image_folder", "folder": str(folder)}


def load(captioned, **section):
    return LMBackboneConfig.family.build({**SMALL, "captions": captioned, **section}).load()


@pytest.mark.parametrize(
    ("section", "model_type"),
    [
        ({"type": "scratch_llama"}, "llama"),
        ({"type": "scratch_qwen3"}, "qwen3"),
        ({"type": "scratch_chameleon"}, "chameleon"),
        ({"type": "scratch_chameleon", "swin_norm": True, "residual_dropout": 0.5, "tie": True}, "chameleon"),
    ],
)
def test_it_is_merged_saved_and_loaded(captioned, codec, tmp_path, section, model_type) -> None:
    model, tokenizer = load(captioned, **section)
    assert model.config.model_type == model_type
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model, processor = merge_vocabulary(model, tokenizer, codec)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = processor.prompt_for_image("a red dog")[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    stripped, _ = strip_vocabulary(again, processor)
    after = stripped.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("kind", ["scratch_qwen3", "scratch_chameleon"])
def test_queries_and_keys_are_normalised(captioned, kind) -> None:
    model, _ = load(captioned, type=kind)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        before = model(ids).logits
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight *= 1000.0
            layer.self_attn.k_proj.weight *= 1000.0
        # but for the epsilon of the norm, attention does not see how large queries and keys are
        assert (model(ids).logits - before).abs().max() < 0.05 * before.abs().max()
        llama, _ = load(captioned, type="scratch_llama")
        before = llama(ids).logits
        for layer in llama.model.layers:
            layer.self_attn.q_proj.weight *= 1000.0
            layer.self_attn.k_proj.weight *= 1000.0
        assert (llama(ids).logits - before).abs().max() > 0.05 * before.abs().max()


@torch.no_grad()
def test_swin_norm_normalises_the_outputs_of_layers(captioned) -> None:
    for swin in (False, True):
        model, _ = load(captioned, type="scratch_chameleon", swin_norm=swin)
        layer = model.model.layers[0]
        hidden = torch.randn(1, 5, 32)
        positions = model.model.rotary_emb(hidden, torch.arange(5)[None])
        for part in (layer.self_attn.o_proj, layer.mlp.down_proj):
            part.weight *= 10_000.0
        change = layer(hidden, position_embeddings=positions)[0] - hidden
        # two outputs of RMS 1 where they are normalised
        assert (float(change.square().mean().sqrt()) < 2.1) is swin


@torch.no_grad()
def test_residual_dropout_drops_while_training_only(captioned) -> None:
    model, _ = load(captioned, type="scratch_chameleon", residual_dropout=0.5)
    ids = torch.arange(12)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)
    seen = []
    down = model.model.layers[0].mlp.down_proj
    down.register_forward_hook(lambda module, args, output: seen.append((module.weight @ args[0][0].T, output[0].T)))
    model(ids)
    kept = seen[0][1] != 0
    assert 0.3 < kept.float().mean() < 0.7
    torch.testing.assert_close(seen[0][1][kept], 2 * seen[0][0][kept])


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"residual_dropout": 1.0}, "residual_dropout"), ({"attention_dropout": -0.1}, "attention_dropout")],
)
def test_wrong_shares_are_refused(captioned, fields, message) -> None:
    with pytest.raises(ValueError, match=message):
        load(captioned, type="scratch_chameleon", **fields)
