"""Pictures from prompts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LogitsProcessor, PreTrainedModel

from mmlm.generation.constraints import LayoutConstraint
from mmlm.generation.guidance import ClassifierFreeGuidance
from mmlm.generation.loop import continue_sequences, evaluation_mode
from mmlm.generation.sampling import GenerationError, RowSampler, check_sampling, row_uniforms
from mmlm.processing import MultimodalProcessor


def generate_images(
    model: PreTrainedModel,
    processor: MultimodalProcessor,
    prompts: Sequence[str],
    guidance_scale: float | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    num_images_per_prompt: int = 1,
    batch_size: int = 16,
    grid: Sequence[int] | None = None,
    show_progress: bool = False,
) -> list[Image.Image]:
    """Draw pictures; whatever is sampled is a picture, because only the layout's tokens are allowed at each place.

    A picture depends on `seed`, on its prompt, on which picture of this prompt it is and on the settings, not on the
    other prompts of the call (but for the rounding of sums, which may differ between batches).

    Args:
        model: merged causal LM; the mode (training or not) of each of its parts is restored afterwards.
        processor: the one of the same folder, with its visual tokenizer.
        prompts: captions; an empty one draws without a condition.
        guidance_scale: classifier-free guidance, 0 or more; 1 is off, and half the work. This and the next three are
            by default as saved with the model (`processor.sampling`), else 3.0, 1.0, 0 and 1.0.
        temperature: 0 or more; 0 takes the most likely token.
        top_k: sample from that many of the most likely tokens; 0 is off.
        top_p: sample from the most likely tokens that together have this probability; in (0, 1], 1 is off.
        seed: any whole number.
        num_images_per_prompt: pictures of each prompt, 1 or more.
        batch_size: pictures at a time, 1 or more; guidance doubles the rows.
        grid: token grid of the pictures, (H, W) or (N,); by default that of the image processor's size.
        show_progress: draw a bar on stderr.

    Returns:
        RGB pictures, all of the first prompt first.

    Raises:
        GenerationError: a setting out of its range, or scores that are NaN.
        ModelMismatchError: model and processor do not belong together.
        MissingCodecError: the processor has no visual tokenizer.
    """
    with evaluation_mode(*([] if processor.codec is None else [processor.codec])):
        indices = generate_indices(
            model,
            processor,
            prompts,
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            num_images_per_prompt=num_images_per_prompt,
            batch_size=batch_size,
            grid=processor.grid if grid is None else grid,
            show_progress=show_progress,
        )
        return processor.decode_indices(indices)


def generate_indices(
    model: PreTrainedModel,
    processor: MultimodalProcessor,
    prompts: Sequence[str],
    *,
    guidance_scale: float | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    num_images_per_prompt: int = 1,
    batch_size: int = 16,
    grid: Sequence[int],
    show_progress: bool = False,
) -> Tensor:
    """Return the visual indices of pictures, (B, *grid) or (B, *grid, num_codebooks) int64; see `generate_images`."""
    saved: dict[str, Any] = processor.sampling
    guidance_scale = saved["guidance_scale"] if guidance_scale is None else guidance_scale
    temperature = saved["temperature"] if temperature is None else temperature
    top_k = saved["top_k"] if top_k is None else top_k
    top_p = saved["top_p"] if top_p is None else top_p
    _check_settings(prompts, guidance_scale, num_images_per_prompt, batch_size)
    check_sampling(temperature, top_k, top_p)
    processor.check_model(model)
    layout = processor.layout
    is_visual = layout.body(grid) < 0
    # The block's last tokens are fixed, so nothing is asked of the model for them.
    steps = int(is_visual.nonzero()[-1]) + 1
    is_visual = is_visual[:steps].to(model.device)

    texts = [text for text in prompts for _ in range(num_images_per_prompt)]
    seen: Counter[str] = Counter()
    streams = []
    for text in texts:
        streams.append(row_uniforms(seed, text, seen[text], steps))
        seen[text] += 1
    found = []
    with evaluation_mode(model), tqdm(total=len(texts), desc="drawing", disable=not show_progress) as bar:
        for start in range(0, len(texts), batch_size):
            part = texts[start : start + batch_size]
            rows = [layout.prompt_for_image(text, grid) for text in part]
            if guidance_scale != 1:
                rows += [layout.prompt_for_image(None, grid)] * len(part)
            length = max(map(len, rows))
            uniforms = torch.stack(streams[start : start + batch_size]).to(model.device)
            sampler = RowSampler(uniforms, length, temperature, top_k, top_p)
            chain: list[LogitsProcessor] = [] if guidance_scale == 1 else [ClassifierFreeGuidance(guidance_scale)]
            chain += [LayoutConstraint(layout, grid, length), sampler]
            tokens = continue_sequences(model, rows, chain, steps, pad_id=layout.eos_id)
            sampler.check_sound()
            found.append(tokens[: len(part), is_visual])
            bar.update(len(part))
    books = processor.vocabulary.num_codebooks
    ids = torch.cat(found).view(len(texts), *grid, *([books] if books > 1 else []))
    return processor.vocabulary.ids_to_indices(ids)


def _check_settings(prompts: Sequence[str], scale: float, num_images_per_prompt: int, batch_size: int) -> None:
    if isinstance(prompts, str) or not all(isinstance(text, str) for text in prompts) or not prompts:
        raise GenerationError(f"prompts must be a list of one or more texts, got {prompts!r}")
    if not 0 <= scale < math.inf:
        raise GenerationError(f"guidance_scale must be 0 or more, got {scale}")
    if num_images_per_prompt < 1:
        raise GenerationError(f"num_images_per_prompt must be 1 or more, got {num_images_per_prompt}")
    if batch_size < 1:
        raise GenerationError(f"batch_size must be 1 or more, got {batch_size}")
