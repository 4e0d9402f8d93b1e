"""How often each code stands in pictures of each class."""

from __future__ import annotations

import torch
from torch import Tensor

from visual_tokenizer.outputs import ABSENT


def code_class_counts(indices: Tensor, classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the codes of one codebook that are used, (M,) int64, and their tokens by class, (M, count) int64.

    Args:
        indices: (P, N) integers, `ABSENT` where there is no token.
        classes: (P,) int64 in [0, count); tokens of pictures of class -1 are left out.
        count: number of classes.
    """
    present = (indices != ABSENT) & (classes >= 0)[:, None]
    pictures = present.nonzero(as_tuple=True)[0]
    used, places = indices[present].long().unique(return_inverse=True)
    counts = torch.bincount(places * count + classes[pictures], minlength=len(used) * count)
    return used, counts.view(len(used), count)


def shuffled(classes: Tensor, seed: int) -> Tensor:
    """Return the pictures' classes in a random order, so that each class is as frequent as before."""
    return classes[torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))]
