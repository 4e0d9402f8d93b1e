"""Write the folders that tests/test_written_before.py loads; run once, by the revision README.md names."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from mmlm.trainer_arguments import training_arguments
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BeitForMaskedImageModeling

from mmlm import MultimodalProcessor, generate_images
from mmlm.generation.images import generate_indices
from mmlm.recipes.training import LMRecipe
from mmlm.training.build import build_trainer
from visual_tokenizer import VisualTokenizer, VisualTokenizerImageProcessor
from visual_tokenizer.recipe import read_recipe

WRITTEN = (
    "pictures", "documents.jsonl", "vq", "fsq", "merged", "shards", "shards_of_documents", "lm", "beit", "anchored",
    "expected.json", "expected.safetensors",
)  # fmt: skip
CAPTIONS = [
    f"a {color} {thing} {place}"
    for place in ("at night", "in the rain")
    for color in ("red", "green", "blue")
    for thing in ("apple", "car", "dog", "tree")
]


def run(program: str, *words: str, **environment: str) -> None:
    subprocess.run([sys.executable, "-m", program, *words], check=True, env={**os.environ, **environment})


def run_until(is_time: Callable[[], bool], number: signal.Signals, program: str, *words: str) -> None:
    """Start a program and send it a signal as soon as it is time."""
    process = subprocess.Popen([sys.executable, "-m", program, *words])
    while process.poll() is None and not is_time():
        time.sleep(0.001)
    process.send_signal(number)
    assert process.wait() in (128 + number, -number), process.returncode


def has_logged(folder: str, lines: int) -> Callable[[], bool]:
    log = Path(folder, "log.jsonl")
    return lambda: log.exists() and log.read_text().count('"loss"') >= lines


def remove(*paths: Path) -> None:
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def keep_only(folder: str, *names: str) -> None:
    remove(*(path for path in Path(folder).iterdir() if path.name not in names))


def write_inputs() -> None:
    """24 pictures of 4 × 4 coloured squares with captions, and documents of them."""
    Path("pictures").mkdir()
    lines = []
    for number, caption in enumerate(CAPTIONS):
        squares = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(squares).resize((16, 16), Image.Resampling.NEAREST).save(f"pictures/{number:02d}.png")
        lines.append(json.dumps({"file_name": f"{number:02d}.png", "text": caption}))
    Path("pictures/metadata.jsonl").write_text("\n".join(lines) + "\n")

    def picture(number: int) -> str:
        return f"pictures/{number:02d}.png"

    documents = [
        {"id": "story", "texts": ["a red dog", None, "in the rain"], "images": [None, picture(2), None]},
        {"id": "marks", "text": "<image> a car <image>", "images": [picture(1), picture(5)]},
        {"id": "text", "text": "a tree at night"},
        {
            "id": "chat",
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": picture(0)}, {"type": "text", "text": "a dog?"}],
                },
                {"role": "assistant", "content": "a red apple"},
                {"role": "user", "content": "a blue car"},
                {"role": "assistant", "content": [{"type": "image", "image": picture(9)}]},
            ],
        },
    ]
    Path("documents.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))


def write_tokenizers() -> None:
    config = ["--config", "recipes/vq.yaml"]
    run("visual_tokenizer.train", *config, "--output_dir", "vq/whole")
    run_until(has_logged("vq/interrupted", 2), signal.SIGTERM, "visual_tokenizer.train", *config)
    keep_only("vq/whole", "log.jsonl", "final")
    run("visual_tokenizer.train", "--config", "recipes/fsq.yaml")
    keep_only("fsq", "final")
    plugins = {"VISUAL_TOKENIZER_PLUGINS": "plugins"}
    run("visual_tokenizer.train", "--config", "plugins/recipes/tokenizer/anchored.yaml", **plugins)
    keep_only("anchored", "log.jsonl", "final")


def write_language_model() -> None:
    run("mmlm.cli", "merge", "--config", "recipes/merge.yaml")
    run("mmlm.data.tokenize", "--config", "recipes/pairs.yaml")
    run("mmlm.data.tokenize", "--config", "recipes/mixture.yaml")
    config = ["--config", "recipes/pairs.yaml"]
    run("mmlm.train", *config, "--output_dir", "lm/whole")
    run_until(has_logged("lm/interrupted", 4), signal.SIGTERM, "mmlm.train", *config)
    keep_only("lm/whole", "log.jsonl", "final")
    keep_only("lm/interrupted", "log.jsonl", "recipe.yaml", *checkpoints("lm/interrupted"))


def checkpoints(folder: str) -> list[str]:
    return [path.name for path in Path(folder).glob("checkpoint-*")]


def write_beit() -> None:
    config = ["--config", "recipes/beit.yaml"]
    run("visual_tokenizer.pretrain", *config, "--output_dir", "beit/whole")
    marker = Path("beit/interrupted/checkpoint-5/complete")
    run_until(marker.exists, signal.SIGKILL, "visual_tokenizer.pretrain", *config)
    keep_only("beit/whole", "log.jsonl", "final")
    keep_only("beit/interrupted", "log.jsonl", "recipe.yaml", "checkpoint-5")  # and not run.lock, which names a machine


def rows(recipe: LMRecipe, count: int) -> list[dict[str, list[int]]]:
    """The first training rows of a recipe."""
    processor = MultimodalProcessor.from_pretrained(recipe.model)
    dataset = build_trainer(recipe, processor, training_arguments(recipe)).train_dataset
    return [{name: values.tolist() for name, values in dataset[number].items()} for number in range(count)]


def write_expected() -> None:
    tensors = {}
    pictures = [Image.open(path) for path in sorted(Path("pictures").glob("*.png"))[:8]]
    for name in ("vq/whole/final", "fsq/final"):
        tokenizer = VisualTokenizer.from_pretrained(name)
        pixels = VisualTokenizerImageProcessor.from_pretrained(name)(pictures, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            indices = tokenizer.encode(pixels)
            values = {"pixels": pixels, "indices": indices, "decoded": tokenizer.decode(indices)}
        tensors |= {f"{name}/{key}": value for key, value in values.items()}
    masked = torch.arange(16) % 3 == 0
    beit = BeitForMaskedImageModeling.from_pretrained("beit/whole/final").eval()
    with torch.no_grad():
        tensors["beit/logits"] = beit(tensors["fsq/final/pixels"], masked[None].expand(8, -1)).logits
    model = AutoModelForCausalLM.from_pretrained("lm/whole/final").eval()
    processor = MultimodalProcessor.from_pretrained("lm/whole/final")
    prompts = CAPTIONS[:3]
    for name, settings in {"greedy": {"temperature": 0.0}, "seeded": {"seed": 7}}.items():
        drawn = generate_images(model, processor, prompts, **settings)
        tensors[f"{name}/pictures"] = torch.from_numpy(np.stack([np.asarray(picture) for picture in drawn]))
        tensors[f"{name}/indices"] = generate_indices(model, processor, prompts, **settings)
    pairs, mixture = (read_recipe(LMRecipe, f"recipes/{name}.yaml", {}) for name in ("pairs", "mixture"))
    packed = read_recipe(LMRecipe, "recipes/mixture.yaml", {"data.packing": True, "data.packing_buffer": 16})
    expected = {"pairs": rows(pairs, 24), "mixture": rows(mixture, 16), "packed": rows(packed, 6)}
    with torch.no_grad():
        ids = torch.tensor(expected["pairs"][0]["input_ids"])[None]
        tensors["logits"] = model(input_ids=ids).logits
    save_file({name: value.contiguous() for name, value in tensors.items()}, "expected.safetensors")
    Path("expected.json").write_text(json.dumps(expected) + "\n")


def main() -> None:
    torch.set_num_threads(1)
    remove(*(Path(name) for name in WRITTEN))
    write_inputs()
    write_tokenizers()
    write_language_model()
    write_beit()
    write_expected()
    remove(*(path for name in ("plots", "samples") for path in Path().glob(f"*/*/{name}")))
    remove(Path("documents"), *Path().rglob("run.lock"), *Path().rglob("__pycache__"))


if __name__ == "__main__":
    main()
