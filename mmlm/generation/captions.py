"""Captions from pictures."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from mmlm.generation.loop import evaluation_mode
from mmlm.generation.sampling import RowSampler, row_uniforms
from mmlm.generation.writing import text_ids_of, write_text
from mmlm.processing import MultimodalProcessor
from mmlm.recipes.sampling import Sampling
from visual_tokenizer.errors import UserError


def describe_images(
    model: PreTrainedModel,
    processor: MultimodalProcessor,
    images: list[Any],
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
    show_progress: bool = False,
) -> list[str]:
    """Write a caption for each picture; only text is sampled, up to EOS.

    Args:
        model: merged causal LM; the mode (training or not) of each of its parts is restored afterwards.
        processor: the one of the same folder, with its visual tokenizer.
        images: what the image processor takes: Pillow images, uint8 arrays, local files.
        max_new_tokens: longest caption, in tokens; 1 or more.
        temperature: 0 or more; 0 takes the most likely token.
        top_k: sample from that many of the most likely tokens; 0 is off.
        top_p: sample from the most likely tokens that together have this probability; in (0, 1], 1 is off.
        seed: any whole number; a caption depends on it and on its picture's tokens, not on the other pictures.
        batch_size: pictures at a time, 1 or more.
        show_progress: draw a bar on stderr.

    Raises:
        UserError: a setting out of its range, scores that are NaN, something that is not a picture, no visual
            tokenizer, or model and processor do not belong together.
    """
    if not isinstance(images, (list, tuple)) or not images:
        raise UserError(f"images must be a list of one or more pictures, got {images!r}")
    if max_new_tokens < 1 or batch_size < 1:
        raise UserError(f"max_new_tokens and batch_size must be 1 or more, got {max_new_tokens} and {batch_size}")
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    processor.check_model(model)
    layout = processor.layout
    allowed = text_ids_of(model, processor)
    captions = []
    with evaluation_mode(model), tqdm(total=len(images), desc="describing", disable=not show_progress) as bar:
        for start in range(0, len(images), batch_size):
            indices = processor.encode_images(list(images[start : start + batch_size]))
            prompts = [processor.prompt_for_caption(one) for one in indices]
            streams = [row_uniforms(seed, _fingerprint(one), 0, max_new_tokens) for one in indices]
            sampler = RowSampler(torch.stack(streams).to(model.device), sampling)
            tokens = write_text(model, prompts, allowed, sampler, max_new_tokens, layout.eos_id)
            sampler.check_sound()
            captions += [_text(processor, row) for row in tokens.tolist()]
            bar.update(len(prompts))
    return captions


def _fingerprint(indices: Tensor) -> str:
    return hashlib.sha256(indices.contiguous().numpy().tobytes()).hexdigest()


def _text(processor: MultimodalProcessor, ids: list[int]) -> str:
    eos = processor.layout.eos_id
    return processor.tokenizer.decode(ids[: ids.index(eos)] if eos in ids else ids).strip()
