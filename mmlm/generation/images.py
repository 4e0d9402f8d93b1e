"""Pictures from prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from mmlm.generation.block_drawing import draw_blocks
from mmlm.generation.block_grammar import BlockGrammar
from mmlm.generation.drawing import draw_pictures
from mmlm.generation.guidance import choose_guidance
from mmlm.generation.loop import evaluation_mode
from mmlm.generation.previews import OnRows, preview_images, previews_of
from mmlm.generation.prompts import read_prompts
from mmlm.generation.sampling import RowSampler, row_uniforms
from mmlm.processing import MultimodalProcessor
from mmlm.recipes.sampling import PictureSampling
from visual_tokenizer.errors import UserError
from visual_tokenizer.outputs import pad_tokens


def generate_images(
    model: PreTrainedModel,
    processor: MultimodalProcessor,
    prompts: Sequence[Any],
    guidance_scale: float | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | Sequence[int] = 0,
    num_images_per_prompt: int = 1,
    batch_size: int = 16,
    grid: Sequence[int] | None = None,
    show_progress: bool = False,
    *,
    image_guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    on_rows: OnRows | None = None,
    rows_per_preview: int = 1,
    compile: bool = False,
) -> list[Image.Image]:
    """Draw pictures; whatever is sampled is a picture, because only the layout's tokens are allowed at each place.

    A picture depends on `seed`, on its prompt, on which picture of this prompt it is and on the settings, not on the
    other prompts of the call (but for the rounding of sums, which may differ between batches).

    Args:
        model: merged causal LM; the mode (training or not) of each of its parts is restored afterwards.
        processor: the one of the same folder, with its visual tokenizer.
        prompts: captions, or lists of texts and pictures in any order, such as `[picture, "make it red"]`; an empty
            one draws without a condition.
        guidance_scale: classifier-free guidance, 0 or more; 1 is off, and half the work. This and the next three are
            by default as saved with the model (`processor.sampling`), else 3.0, 1.0, 0 and 1.0.
        temperature: 0 or more; 0 takes the most likely token.
        top_k: sample from that many of the most likely tokens; 0 is off.
        top_p: sample from the most likely tokens that together have this probability; in (0, 1], 1 is off.
        seed: any whole number, or one for each prompt.
        num_images_per_prompt: pictures of each prompt, 1 or more.
        batch_size: pictures at a time, 1 or more; guidance doubles or trebles the rows.
        grid: token grid of the pictures, (H, W) or (N,); by default that of the image processor's size or, where
            pictures have as many tokens as they need, as many as the model thinks right.
        show_progress: draw a bar on stderr.
        image_guidance_scale: turns on Chameleon's guidance with three contexts, in which `guidance_scale` is the
            text's; see `mmlm.generation.guidance`.
        negative_prompt: what guidance leads away from; by default no prompt.
        on_rows: called with a picture so far, how many of its rows are done and its number in the result.
        rows_per_preview: rows between two such calls; tokens, where the visual tokenizer has no rows.
        compile: run steps through `torch.compile`; pays where many pictures are drawn on a GPU.

    Returns:
        RGB pictures, all of the first prompt first.

    Raises:
        UserError: a setting out of its range, scores that are NaN, no visual tokenizer, or model and processor do not
            belong together.
    """
    sampling = PictureSampling.over(
        processor.sampling,
        guidance_scale=guidance_scale,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        image_guidance_scale=image_guidance_scale,
        negative_prompt=negative_prompt,
    )
    with evaluation_mode(*([] if processor.codec is None else [processor.codec])):
        indices = generate_indices(
            model,
            processor,
            prompts,
            sampling,
            seed=seed,
            num_images_per_prompt=num_images_per_prompt,
            batch_size=batch_size,
            grid=grid,
            show_progress=show_progress,
            on_rows=on_rows,
            rows_per_preview=rows_per_preview,
            compile=compile,
        )
        return processor.decode_indices(indices)


def generate_indices(
    model: PreTrainedModel,
    processor: MultimodalProcessor,
    prompts: Sequence[Any],
    sampling: PictureSampling | None = None,
    *,
    seed: int | Sequence[int] = 0,
    num_images_per_prompt: int = 1,
    batch_size: int = 16,
    grid: Sequence[int] | None = None,
    show_progress: bool = False,
    on_rows: OnRows | None = None,
    rows_per_preview: int = 1,
    compile: bool = False,
) -> Tensor:
    """Return the visual indices of pictures, (B, *grid) or (B, *grid, num_codebooks) int64; see `generate_images`.

    `sampling` None is as saved with the model.
    Where the model chooses the lengths, the rows are `ABSENT` behind each picture's own indices.
    """
    if sampling is None:
        sampling = PictureSampling.over(processor.sampling)
    for field, value in (
        ("num_images_per_prompt", num_images_per_prompt),
        ("batch_size", batch_size),
        ("rows_per_preview", rows_per_preview),
    ):
        if value < 1:
            raise UserError(f"{field} must be 1 or more, got {value}")
    guidance = choose_guidance(processor, sampling)
    processor.check_model(model)
    layout = processor.layout
    grids = processor.grids if grid is None else [tuple(grid)]
    grammar = BlockGrammar(layout, grids) if len(grids) > 1 else None
    grid = grids[-1]  # the largest
    steps = len(layout.body(grid)) if grammar is not None else int((layout.body(grid) < 0).nonzero()[-1]) + 1
    texts = [prompt for prompt in read_prompts(processor, prompts) for _ in range(num_images_per_prompt)]
    streams = []
    seen: Counter[tuple[int, str]] = Counter()
    for prompt, own in zip(texts, _seeds(seed, len(prompts), num_images_per_prompt), strict=True):
        streams.append(row_uniforms(own, prompt.name, seen[own, prompt.name], steps))
        seen[own, prompt.name] += 1
    found: list[Tensor] = []
    with evaluation_mode(model), tqdm(total=len(texts), desc="drawing", disable=not show_progress) as bar:
        for start in range(0, len(texts), batch_size):
            part = texts[start : start + batch_size]
            uniforms = torch.stack(streams[start : start + batch_size]).to(model.device)
            sampler = RowSampler(uniforms, sampling)
            if grammar is not None:
                tell = None if on_rows is None else _growing(processor, rows_per_preview, start, on_rows)
                found += draw_blocks(model, grammar, part, guidance, sampler, tell, compile)
            else:
                show = None if on_rows is None else previews_of(processor, grid, rows_per_preview, start, on_rows)
                drawn = draw_pictures(model, layout, grid, part, guidance, sampler, show, compile)
                found.append(layout.indices_of(drawn, grid))
            sampler.check_sound()
            bar.update(len(part))
    return torch.cat(found) if grammar is None else pad_tokens(found, grid[0])


def _growing(processor: MultimodalProcessor, every: int, first: int, on_rows: OnRows) -> Callable[[int, Tensor], None]:
    """Return what to call after a picture's token, where pictures have as many as they need."""

    def show(number: int, visual_ids: Tensor) -> None:
        count, rest = divmod(len(visual_ids), processor.vocabulary.num_codebooks)
        if not rest and count % every == 0 and (count,) in processor.grids:
            (image,) = preview_images(processor, visual_ids[None], (count,), count)
            on_rows(image, count, first + number)

    return show


def _seeds(seed: int | Sequence[int], prompts: int, repeats: int) -> list[int]:
    own = [seed] * prompts if isinstance(seed, int) else list(seed)
    if len(own) != prompts:
        raise UserError(f"seed must be one number, or one for each of the {prompts} prompts, got {len(own)}")
    return [one for one in own for _ in range(repeats)]
