"""Classifier-free guidance in one batch: all contexts of a picture are rows of one forward pass and one cache.

Paper: Classifier-Free Diffusion Guidance (Ho & Salimans, 2022), arXiv:2207.12598; for tokens: Stay on topic with
Classifier-Free Guidance (Sanchez et al., 2023), arXiv:2306.17806; with two scales: InstructPix2Pix (Brooks et al.,
2023), arXiv:2211.09800, equation 3. transformers' own processor runs the model a second time each step with a cache of
its own.

Two conventions are in use. Emu3 has two contexts: the prompt, pictures and all, and a negative prompt (3.0 in its
published script). Chameleon has three: the prompt, the prompt's pictures without its text, and nothing but the opening
of a picture (text 3.0, pictures 1.2 in the published code). Where a prompt has no pictures the last two are the same,
and Chameleon's guidance is Emu3's with the text's scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmlm.generation.prompts import Prompt, Segment, read_prompts
from mmlm.processing import MultimodalProcessor
from mmlm.recipes.sampling import PictureSampling

NOTHING = Prompt((), "")
"""Only BOS and the opening tokens of a picture."""


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Return `unconditional + scale · (conditional - unconditional)`, of the shape of both."""
    return torch.lerp(unconditional, conditional, scale)


@dataclass(frozen=True)
class Guidance:
    """None: the prompt alone."""

    def contexts(self, prompt: Prompt) -> list[Prompt]:
        """Return what the model continues, the prompt itself first; always equally many."""
        return [prompt]

    def combine(self, scores: Tensor) -> Tensor:
        """Return the scores (B, V) to draw from, of those of m contexts (m, B, V)."""
        return scores[0]


@dataclass(frozen=True)
class TextGuidance(Guidance):
    """Emu3's: away from a negative prompt, or from no prompt at all."""

    scale: float
    negative: Prompt = NOTHING

    def contexts(self, prompt: Prompt) -> list[Prompt]:
        return [prompt, self.negative]

    def combine(self, scores: Tensor) -> Tensor:
        return guide(scores[0], scores[1], self.scale)


@dataclass(frozen=True)
class TextAndImageGuidance(Guidance):
    """Chameleon's: `u + s_img · (i - u) + s_txt · (full - i)`, where i knows the prompt's pictures and u nothing."""

    text_scale: float
    image_scale: float
    negative: Prompt = NOTHING

    def contexts(self, prompt: Prompt) -> list[Prompt]:
        pictures: tuple[Segment, ...] = tuple(segment for segment in prompt.segments if segment.is_picture)
        return [prompt, Prompt(pictures, prompt.name), self.negative]

    def combine(self, scores: Tensor) -> Tensor:
        full, images, nothing = scores
        return nothing + self.image_scale * (images - nothing) + self.text_scale * (full - images)


def choose_guidance(processor: MultimodalProcessor, sampling: PictureSampling) -> Guidance:
    """Return three-way guidance where an `image_guidance_scale` is given, else two-way; none where scales are 1."""
    away_from = sampling.negative_prompt
    negative = NOTHING if away_from is None else read_prompts(processor, [away_from])[0]
    if sampling.image_guidance_scale is not None:
        return TextAndImageGuidance(sampling.guidance_scale, sampling.image_guidance_scale, negative)
    return Guidance() if sampling.guidance_scale == 1 else TextGuidance(sampling.guidance_scale, negative)
