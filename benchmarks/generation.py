"""Pictures a second: `generate_indices` beside transformers' `generate` with two forward passes for guidance.

    python -m benchmarks.generation --json run/benchmarks/generation.json

Both draw the same prompts with the same untrained model, guidance, constraint and sampler, in turns in one process;
greedy tokens are compared first. The other way is what Emu3's published script does, with its slow parts replaced:
`UnbatchedClassifierFreeGuidanceLogitsProcessor`, which runs the model again with a cache of its own, a mask of what the
layout allows, made once, and the sampler over the whole vocabulary.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

from benchmarks.measure import alternating_seconds
from mmlm.generation.images import generate_indices
from mmlm.generation.loop import pad_left
from mmlm.generation.sampling import RowSampler, row_uniforms
from mmlm.merging.merge import merge_vocabulary
from mmlm.processing import MultimodalProcessor
from mmlm.recipes.sampling import PictureSampling, Sampling
from mmlm.text_tokenizer import train_text_tokenizer
from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig

SCALE = 3.0
TOP_K = 2048
PATCH = 4
THINGS = ("apple", "house near the sea", "dog", "tree at night", "car in the rain", "bird", "boat", "red cup")


class Size(NamedTuple):
    """What is drawn, and with which model."""

    hidden: int = 512
    layers: int = 8
    text_rows: int = 32000
    levels: tuple[int, ...] = (8, 8, 8, 16)
    side: int = 16
    pictures: int = 4


def build(size: Size, device: torch.device, dtype: torch.dtype) -> tuple[Any, MultimodalProcessor]:
    """Return an untrained merged Llama in Emu3's layout; its scores vary enough that greedy tokens have no ties."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.text_rows,
        hidden_size=size.hidden,
        intermediate_size=size.hidden * 3,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 32,
        num_key_value_heads=size.hidden // 32,
        max_position_embeddings=size.side * (size.side + 1) + 128,
        tie_word_embeddings=False,
        initializer_range=0.1,
    )
    sections: Any = {
        "encoder": {"type": "patch", "patch_size": PATCH, "width": 16},
        "quantizer": {"type": "fsq", "levels": list(size.levels)},
        "decoder": {"type": "patch", "patch_size": PATCH, "width": 16},
    }
    codec = VisualTokenizer(VisualTokenizerConfig(image_size=size.side * PATCH, **sections))
    with tempfile.TemporaryDirectory() as folder:
        words = train_text_tokenizer([f"a {thing} 0 1 2 3 4 5 6 7 8 9 *" for thing in THINGS], 380, folder)
    model, processor = merge_vocabulary(LlamaForCausalLM(config), words, codec, embedding_init="random")
    model.eval()
    return torch.nn.Module.to(model, device=device, dtype=dtype), processor


def prompts_of(size: Size) -> list[str]:
    """Return as many prompts as pictures, of unequal lengths."""
    return [f"a {THINGS[number % len(THINGS)]}" for number in range(size.pictures)]


class OneOfTheLayout(LogitsProcessor):
    """Leaves one token in each row: the one that `sampler` draws from those that the layout's `slots` allow."""

    def __init__(self, processor: MultimodalProcessor, slots: Tensor, prompt_length: int, sampler: RowSampler) -> None:
        self.slots, self.prompt_length, self.sampler = slots.tolist(), prompt_length, sampler
        self.visual_ids = processor.vocabulary.visual_ids
        self._forbidden: dict[int, Tensor] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V): 0 at the drawn token of each row, -inf elsewhere."""
        step = input_ids.shape[1] - self.prompt_length
        slot = self.slots[step]
        if slot not in self._forbidden:
            mask = torch.ones(scores.shape[-1], dtype=torch.bool)
            mask[self.visual_ids(-1 - slot) if slot < 0 else slot] = False
            self._forbidden[slot] = mask.to(scores.device)
        tokens = self.sampler.choose(scores.masked_fill(self._forbidden[slot], -torch.inf), step)
        return torch.full_like(scores, -torch.inf).scatter_(-1, tokens[:, None], 0.0)


@torch.no_grad()
def draw_with_generate(
    model: Any, processor: MultimodalProcessor, prompts: list[str], temperature: float, seed: int
) -> Tensor:
    """Return the indices (B, H, W) that `generate` draws with two forward passes a step."""
    layout, grid = processor.layout, processor.grid
    ids, mask = (
        one.to(model.device) for one in pad_left([layout.prompt_for_image(p, grid) for p in prompts], layout.eos_id)
    )
    nothing: Any = layout.prompt_for_image(None, grid).to(model.device).repeat(len(prompts), 1)
    is_visual = layout.body(grid) < 0
    steps = int(is_visual.nonzero()[-1]) + 1
    uniforms = torch.stack(
        [row_uniforms(seed, prompt, prompts[:n].count(prompt), steps) for n, prompt in enumerate(prompts)]
    )
    processors = [
        UnbatchedClassifierFreeGuidanceLogitsProcessor(SCALE, model, unconditional_ids=nothing),
        OneOfTheLayout(
            processor,
            layout.body(grid)[:steps],
            ids.shape[1],
            RowSampler(uniforms.to(model.device), Sampling(temperature=temperature, top_k=TOP_K)),
        ),
    ]
    config = GenerationConfig(max_new_tokens=steps, do_sample=False, pad_token_id=layout.eos_id, eos_token_id=None)
    result = model.generate(
        input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList(processors)
    )
    drawn = result[:, ids.shape[1] :].cpu()
    return layout.indices_of(drawn[:, is_visual[:steps]], grid)


def measure(
    size: Size, device: torch.device, dtype: torch.dtype, repeats: int, compile: bool = False
) -> dict[str, Any]:
    """Return pictures a second of both ways, their ratio, and the share of equal greedy tokens."""
    model, processor = build(size, device, dtype)
    prompts = prompts_of(size)

    def ours(temperature: float, compiled: bool = False) -> Tensor:
        return generate_indices(
            model,
            processor,
            prompts,
            PictureSampling(guidance_scale=SCALE, temperature=temperature, top_k=TOP_K),
            batch_size=len(prompts),
            grid=processor.grid,
            compile=compiled,
        ).cpu()

    greedy = draw_with_generate(model, processor, prompts, 0.0, 0)
    equal = float((ours(0.0) == greedy).double().mean())

    def nothing() -> None: ...

    actions: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        "generate, two forwards": (lambda: _discard(draw_with_generate(model, processor, prompts, 1.0, 0)), nothing),
        "generate_images": (lambda: _discard(ours(1.0)), nothing),
    }
    if compile:
        actions["generate_images, compiled"] = (lambda: _discard(ours(1.0, compiled=True)), nothing)
    seconds = alternating_seconds(actions, warmup=1, repeats=repeats, device=device)
    rates = {name: len(prompts) / statistics.median(found) for name, found in seconds.items()}
    base = rates["generate, two forwards"]
    return {
        "size": size._asdict(),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "equal_greedy_tokens": equal,
        "pictures_per_second": rates,
        "ratio": {name: rate / base for name, rate in rates.items()},
        "seconds": seconds,
    }


def _discard(_: Tensor) -> None:
    """Give actions nothing to return."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Size()
    parser.add_argument("--hidden", type=int, default=default.hidden, help="width of the model")
    parser.add_argument("--layers", type=int, default=default.layers)
    parser.add_argument("--text-rows", type=int, default=default.text_rows, help="rows of the text vocabulary")
    parser.add_argument("--side", type=int, default=default.side, help="rows and columns of tokens of a picture")
    parser.add_argument("--pictures", type=int, default=default.pictures, help="pictures at a time")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default=None, choices=["float32", "bfloat16"])
    parser.add_argument("--compile", action="store_true", help="measure compiled steps too")
    parser.add_argument("--json", type=Path, default=None, help="write the numbers here")
    given = parser.parse_args()
    device = torch.device(given.device)
    dtype = getattr(torch, given.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    size = Size(given.hidden, given.layers, given.text_rows, default.levels, given.side, given.pictures)
    result = measure(size, device, dtype, given.repeats, given.compile)
    for name, rate in result["pictures_per_second"].items():
        print(f"{name:28} {rate:8.3f} pictures/s   {result['ratio'][name]:5.2f} x")
    print(f"equal greedy tokens          {result['equal_greedy_tokens']:8.1%}")
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
