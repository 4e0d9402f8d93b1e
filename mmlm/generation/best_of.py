"""The best of several pictures, by a scorer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from mmlm.generation.images import generate_indices
from mmlm.generation.loop import evaluation_mode
from mmlm.processing import MultimodalProcessor
from mmlm.recipes.sampling import PictureSampling
from visual_tokenizer.errors import UserError


class Candidate(NamedTuple):
    """A picture that may be chosen."""

    image: Image.Image
    """The decoded picture, RGB."""
    indices: Tensor
    """Its visual indices (*grid) or (*grid, num_codebooks) int64."""
    prompt: str
    """What it should show."""


Scorer = Callable[[Sequence[Candidate]], Sequence[float]]
"""Returns one score a candidate, higher is better; all candidates of a call have one prompt."""


class CaptionLikelihood:
    """Scores a picture by the mean log-likelihood, in nats a token, of its caption after it, by the model itself.

    Of a merged model that was trained to describe pictures too; DALL-E's rerankers and Parti's use a model of its own.
    """

    def __init__(self, model: PreTrainedModel, processor: MultimodalProcessor) -> None:
        self.model: Any = model
        self.processor = processor

    @torch.no_grad()
    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        layout = self.processor.layout
        scores = []
        with evaluation_mode(self.model):
            for candidate in candidates:
                caption = torch.tensor([*layout.text_ids(candidate.prompt), layout.eos_id])
                ids = layout.join(self.processor.prompt_for_caption(candidate.indices), caption[:-1])
                logits = self.model(
                    input_ids=ids[None].to(self.model.device), use_cache=False, logits_to_keep=len(caption)
                ).logits[0]
                wanted = logits.float().log_softmax(-1).cpu().gather(-1, caption[:, None])
                scores.append(float(wanted.mean()))
        return scores


class ImageTextSimilarity:
    """Scores a picture by the cosine between its features and its caption's, as CLIP and SigLIP give them.

    Args:
        model: transformers' `CLIPModel`, `SiglipModel` or the like, with `get_image_features` and `get_text_features`.
        processor: its processor, of pictures and texts.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval(), processor

    @torch.no_grad()
    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        texts = [candidate.prompt for candidate in candidates]
        images = [candidate.image for candidate in candidates]
        batch = self.processor(text=texts, images=images, return_tensors="pt", padding="max_length", truncation=True)
        batch = {name: value.to(self.model.device) for name, value in batch.items()}
        pixels = _vectors(self.model.get_image_features(pixel_values=batch.pop("pixel_values")))
        words = _vectors(self.model.get_text_features(**batch))
        similar: list[float] = torch.nn.functional.cosine_similarity(pixels.float(), words.float()).tolist()
        return similar


def _vectors(features: Any) -> Tensor:
    """Return the vectors (B, C): newer versions wrap them."""
    return features if isinstance(features, Tensor) else features.pooler_output


def generate_best(
    model: PreTrainedModel,
    processor: MultimodalProcessor,
    prompts: Sequence[str],
    candidates: int,
    scorer: Scorer,
    grid: Sequence[int] | None = None,
    **settings: Any,
) -> list[Image.Image]:
    """Return for each prompt the picture that `scorer` likes best of `candidates`; of equals the first.

    Args:
        model: merged causal LM.
        processor: the one of the same folder, with its visual tokenizer.
        prompts: captions.
        candidates: pictures of each prompt, 1 or more.
        scorer: see `Scorer`.
        grid: token grid of the pictures; by default that of the image processor's size.
        **settings: of `generate_images`.

    Raises:
        UserError: `candidates` below 1, a scorer that gives another number of scores, or as `generate_images`.
    """
    if candidates < 1:
        raise UserError(f"candidates must be 1 or more, got {candidates}")
    given = {field.name: settings.pop(field.name, None) for field in fields(PictureSampling)}
    sampling = PictureSampling.over(processor.sampling, **given)
    indices = generate_indices(
        model, processor, prompts, sampling, num_images_per_prompt=candidates, grid=grid, **settings
    ).cpu()
    images = processor.decode_indices(indices)
    best = []
    for number, prompt in enumerate(prompts):
        own = range(number * candidates, (number + 1) * candidates)
        scores = list(scorer([Candidate(images[place], indices[place], prompt) for place in own]))
        if len(scores) != candidates:
            raise UserError(f"the scorer gave {len(scores)} scores for {candidates} candidates")
        best.append(images[own[max(range(candidates), key=scores.__getitem__)]])
    return best
