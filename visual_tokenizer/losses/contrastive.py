"""Codes are pulled to their captions and pushed from others', by a softmax over the batch (CLIP).

Papers: Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021), arXiv:2103.00020,
section 2.3 and figure 3; on the codes of a visual tokenizer: VILA-U (Wu et al., 2024), arXiv:2409.04429, section 3.1,
and SEED (Ge et al., 2023), arXiv:2307.08041, section 3.2, with the last token for the picture. The text encoder is
frozen, as VILA-U's.
"""

from __future__ import annotations

from dataclasses import dataclass

from visual_tokenizer.losses._caption_alignment import SoftmaxAlignment, SoftmaxAlignmentConfig


@dataclass(kw_only=True)
class ContrastiveConfig(SoftmaxAlignmentConfig):
    """Fields of CLIP's loss."""


class Contrastive(SoftmaxAlignment):
    """CLIP's loss on the codes."""

    Config = ContrastiveConfig
