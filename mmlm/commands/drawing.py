"""`mmlm generate`, `mmlm describe` and `mmlm answer`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmlm.commands.registration import (
    BatchOption,
    DeviceOption,
    ModelOption,
    SeedOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    be_quiet,
    command,
    refuse,
)

if TYPE_CHECKING:
    from PIL import Image


@command("generate")
def generate(
    model: ModelOption,
    output: Annotated[
        str, typer.Option("--output", help="Picture file; a sheet with captions where several are drawn.")
    ],
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="What to draw; may be given again.")] = None,
    prompts_file: Annotated[
        str | None,
        typer.Option("--prompts_file", help="Text file, one prompt a line; after those of --prompt."),
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option("--guidance_scale", help="Classifier-free guidance; 1: off, and half the work.")
    ] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", help="0: the likeliest token.")] = None,
    top_k: Annotated[int | None, typer.Option("--top_k", help="Sample from the k likeliest tokens; 0: all.")] = None,
    top_p: Annotated[
        float | None, typer.Option("--top_p", help="Sample from the likeliest tokens of this probability.")
    ] = None,
    seed: SeedOption = 0,
    num_images: Annotated[int, typer.Option("--num_images", min=1, help="Pictures of each prompt.")] = 1,
    image: Annotated[
        list[str] | None,
        typer.Option("--image", help="Picture before each prompt, to be edited or as an example; may be given again."),
    ] = None,
    image_guidance_scale: Annotated[
        float | None,
        typer.Option(
            "--image_guidance_scale", help="Chameleon's three-way guidance, in which the other is the text's."
        ),
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option("--negative_prompt", help="What guidance leads away from; default: no prompt.")
    ] = None,
    best_of: Annotated[
        int, typer.Option("--best_of", min=1, help="Draw so many, keep the one after which its prompt is likeliest.")
    ] = 1,
    compile_steps: Annotated[
        bool, typer.Option("--compile", help="Compile the steps: slow to begin with, for many pictures on a GPU.")
    ] = False,
    batch_size: BatchOption = 16,
    device: DeviceOption = None,
) -> None:
    """Draw pictures; guidance, temperature, top-k and top-p are by default as saved with the model.

    [bold]Examples[/bold]

      mmlm generate --model run/lm/final --prompt "a red apple" --output apple.png

      mmlm generate --model run/lm/final --prompt cat --prompt dog --num_images 4 --output pets.png --seed 7

      mmlm generate --model run/lm/final --prompt "a red apple" --best_of 8 --output apple.png

      mmlm generate --model run/lm/final --image apple.png --prompt "make it green" --image_guidance_scale 1.2
      --guidance_scale 3 --output green.png
    """
    prompts = [*(prompt or []), *_lines(prompts_file)]
    if not prompts:
        refuse("nothing to draw: give --prompt or --prompts_file")
    if best_of > 1 and (num_images > 1 or image):
        refuse("--best_of gives one picture of a text: leave --num_images and --image out")
    target = _picture_file(output)
    _check_files("--image", image or [])
    from mmlm.generation.best_of import CaptionLikelihood, generate_best
    from mmlm.generation.grid import image_grid
    from mmlm.generation.images import generate_images
    from mmlm.merging.folder import load_merged
    from mmlm.recipes.sampling import PictureSampling

    be_quiet()
    sampling: dict[str, Any] = {
        "guidance_scale": guidance_scale,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "image_guidance_scale": image_guidance_scale,
        "negative_prompt": negative_prompt,
    }
    PictureSampling.over({}, **sampling)  # refuses what is out of range before the model is loaded
    settings = sampling | {"seed": seed, "batch_size": batch_size, "show_progress": True, "compile": compile_steps}
    loaded = load_merged(model, device)
    if best_of > 1:
        images = generate_best(*loaded, prompts, best_of, CaptionLikelihood(*loaded), **settings)
    else:
        given = [[*_open(image), text] for text in prompts] if image else prompts
        images = generate_images(*loaded, given, num_images_per_prompt=num_images, **settings)
    captions = [text for text in prompts for _ in range(num_images)]
    columns = num_images if 1 < num_images <= 16 else None
    _save(images[0] if len(images) == 1 else image_grid(images, captions, columns), target)
    print(target)


@command("describe")
def describe(
    model: ModelOption,
    image: Annotated[list[str], typer.Option("--image", help="Picture file; may be given again.")],
    max_new_tokens: Annotated[int, typer.Option("--max_new_tokens", min=1, help="Longest caption, in tokens.")] = 32,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = 0,
    batch_size: BatchOption = 16,
    device: DeviceOption = None,
) -> None:
    """Write a caption for each picture, one a line.

    [bold]Example[/bold]

      mmlm describe --model run/lm/final --image apple.png
    """
    _check_files("--image", image)
    from mmlm.generation.captions import describe_images
    from mmlm.merging.folder import load_merged
    from mmlm.recipes.sampling import Sampling

    be_quiet()
    sampling: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    Sampling(**sampling)  # refuses them before the model is loaded
    captions = describe_images(
        *load_merged(model, device), image, max_new_tokens, **sampling, seed=seed, batch_size=batch_size
    )
    print("\n".join(" ".join(caption.split()) for caption in captions))


@command("answer")
def answer(
    model: ModelOption,
    output: Annotated[str, typer.Option("--output", help="New folder for answer.md and the pictures in it.")],
    prompt: Annotated[str, typer.Option("--prompt", help="Text; {1}, {2}, … stand for the pictures.")] = "",
    image: Annotated[
        list[str] | None,
        typer.Option("--image", help="Picture file; before the text where it holds no {1}; may be given again."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max_new_tokens", min=1, help="Pictures' tokens included.")] = 1024,
    max_images: Annotated[int, typer.Option("--max_images", min=0, help="Most pictures of the answer.")] = 4,
    open_image: Annotated[bool, typer.Option("--open_image", help="Begin the answer with a picture.")] = False,
    temperature: Annotated[float, typer.Option("--temperature", help="Of text; 0: the likeliest token.")] = 0.7,
    top_p: Annotated[float, typer.Option("--top_p", help="Of text.")] = 0.9,
    guidance_scale: Annotated[float | None, typer.Option("--guidance_scale", help="Of pictures; 1: off.")] = None,
    image_guidance_scale: Annotated[
        float | None, typer.Option("--image_guidance_scale", help="Chameleon's three-way guidance of pictures.")
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
) -> None:
    """Answer text and pictures with text and pictures; the model itself says where a picture begins.

    [bold]Examples[/bold]

      mmlm answer --model run/lm/final --prompt "How is an apple pie made?" --output pie

      mmlm answer --model run/lm/final --image a.png --image b.png --prompt "{1} is to {2} as night is to" --output day
    """
    files = image or []
    _check_files("--image", files)
    if Path(output).exists():
        refuse(f"--output: {output!r} exists, choose another folder")
    pictures = _open(files)
    pieces = _placed(prompt, pictures)
    from mmlm.generation.interleaved import generate_interleaved, join_pieces
    from mmlm.merging.folder import load_merged
    from mmlm.recipes.sampling import PictureSampling, Sampling
    from visual_tokenizer.runs.files import whole_folder

    be_quiet()
    Sampling(temperature=temperature, top_p=top_p)  # refuses what is out of range before the model is loaded
    PictureSampling.over({}, guidance_scale=guidance_scale, image_guidance_scale=image_guidance_scale)
    found = join_pieces(
        generate_interleaved(
            *load_merged(model, device),
            pieces,
            max_new_tokens=max_new_tokens,
            max_images=max_images,
            open_image=open_image,
            text_temperature=temperature,
            text_top_p=top_p,
            guidance_scale=guidance_scale,
            image_guidance_scale=image_guidance_scale,
            seed=seed,
            end_turn=True,
        )
    )
    lines = []
    with whole_folder(output) as folder:
        for piece in found:
            if isinstance(piece, str):
                lines.append(piece.strip())
            else:
                name = f"{1 + sum(line.startswith('![') for line in lines)}.png"
                piece.save(folder / name)
                lines.append(f"![{name}]({name})")
        (folder / "answer.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    print(Path(output) / "answer.md")


def _placed(prompt: str, pictures: list[Image.Image]) -> list[Any]:
    """Return text and pictures in order; all pictures first where the text names none."""
    parts = re.split(r"\{(\d+)\}", prompt)
    if len(parts) == 1:
        return [*pictures, prompt] if prompt else [*pictures]
    named = [int(number) for number in parts[1::2]]
    if sorted(set(named)) != list(range(1, len(pictures) + 1)):
        refuse(f"--prompt names the pictures {named}, but there are {len(pictures)}")
    pieces = [pictures[int(part) - 1] if place % 2 else part for place, part in enumerate(parts)]
    return [piece for piece in pieces if piece != ""]


def _check_files(option: str, files: list[str]) -> None:
    missing = [file for file in files if not Path(file).is_file()]
    if missing:
        refuse(f"{option}: no file {missing[0]!r}")


def _open(files: list[str]) -> list[Image.Image]:
    from PIL import Image, UnidentifiedImageError

    try:
        return [Image.open(file) for file in files]
    except UnidentifiedImageError as error:
        refuse(f"--image: {error}")


def _lines(file: str | None) -> list[str]:
    if file is None:
        return []
    _check_files("--prompts_file", [file])
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _picture_file(name: str) -> Path:
    from PIL import Image

    known = Image.registered_extensions()
    target = Path(name)
    if known.get(target.suffix.lower()) not in Image.SAVE or target.is_dir():
        refuse(f"--output must be a picture file such as picture.png, got {name!r}")
    return target


def _save(image: Image.Image, target: Path) -> None:
    from PIL import Image

    from visual_tokenizer.runs.files import whole_file

    with whole_file(target) as unfinished:
        image.save(unfinished, format=Image.registered_extensions()[target.suffix.lower()])
