"""`mmlm generate` and `mmlm describe`."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmlm.commands.registration import (
    BatchOption,
    CommandLineError,
    DeviceOption,
    ModelOption,
    SeedOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    be_quiet,
    command,
)

if TYPE_CHECKING:
    from PIL import Image


@command("generate")
def generate(
    model: ModelOption,
    out: Annotated[str, typer.Option("--out", help="Picture file; a sheet with captions where several are drawn.")],
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="What to draw; may be given again.")] = None,
    prompts_file: Annotated[
        str | None,
        typer.Option("--prompts-file", help="Text file, one prompt a line; after those of --prompt."),
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option("--guidance-scale", help="Classifier-free guidance; 1: off, and half the work.")
    ] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", help="0: the likeliest token.")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Sample from the k likeliest tokens; 0: all.")] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Sample from the likeliest tokens of this probability.")
    ] = None,
    seed: SeedOption = 0,
    num_images: Annotated[int, typer.Option("--num-images", help="Pictures of each prompt.")] = 1,
    batch_size: BatchOption = 16,
    device: DeviceOption = None,
) -> None:
    """Draw pictures; guidance, temperature, top-k and top-p are by default as saved with the model.

    [bold]Examples[/bold]

      mmlm generate --model runs/lm/final --prompt "a red apple" --out apple.png

      mmlm generate --model runs/lm/final --prompt cat --prompt dog --num-images 4 --out pets.png --seed 7
    """
    prompts = [*(prompt or []), *_lines(prompts_file)]
    if not prompts:
        raise CommandLineError("nothing to draw: give --prompt or --prompts-file")
    target = _picture_file(out)
    from mmlm.generation.grid import image_grid
    from mmlm.generation.images import generate_images
    from mmlm.merged_model import load_merged

    be_quiet()
    images = generate_images(
        *load_merged(model, device),
        prompts,
        guidance_scale=guidance_scale,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        num_images_per_prompt=num_images,
        batch_size=batch_size,
        show_progress=True,
    )
    captions = [text for text in prompts for _ in range(num_images)]
    columns = num_images if 1 < num_images <= 16 else None
    _save(images[0] if len(images) == 1 else image_grid(images, captions, columns), target)
    print(target)


@command("describe")
def describe(
    model: ModelOption,
    image: Annotated[list[str], typer.Option("--image", help="Picture file; may be given again.")],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Longest caption, in tokens.")] = 32,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = 0,
    batch_size: BatchOption = 16,
    device: DeviceOption = None,
) -> None:
    """Write a caption for each picture, one a line.

    [bold]Example[/bold]

      mmlm describe --model runs/lm/final --image apple.png
    """
    missing = [file for file in image if not Path(file).is_file()]
    if missing:
        raise CommandLineError(f"--image: no file {missing[0]!r}")
    from mmlm.generation.captions import describe_images
    from mmlm.merged_model import load_merged

    be_quiet()
    captions = describe_images(
        *load_merged(model, device),
        image,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        batch_size=batch_size,
    )
    print("\n".join(" ".join(caption.split()) for caption in captions))


def _lines(file: str | None) -> list[str]:
    if file is None:
        return []
    if not Path(file).is_file():
        raise CommandLineError(f"--prompts-file: no file {file!r}")
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _picture_file(name: str) -> Path:
    from PIL import Image

    known = Image.registered_extensions()
    target = Path(name)
    if known.get(target.suffix.lower()) not in Image.SAVE or target.is_dir():
        raise CommandLineError(f"--out must be a picture file such as picture.png, got {name!r}")
    return target


def _save(image: Image.Image, target: Path) -> None:
    from PIL import Image

    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        image.save(beside, format=Image.registered_extensions()[target.suffix.lower()])
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)
