"""What there is to see of a code: pictures, places, words, and what the decoder makes without it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from visual_tokenizer.data.transforms import pixels_to_bytes
from visual_tokenizer.evaluation.code_statistics import CodeStatistics, choose_codes, code_statistics
from visual_tokenizer.evaluation.meaning import SemanticReport, semantic_rows
from visual_tokenizer.evaluation.meaning_recipe import SemanticSection
from visual_tokenizer.evaluation.semantic_page import ShownCode, Swap, Use, semantic_page
from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.outputs import ABSENT
from visual_tokenizer.semantics.base import SemanticData, TokenizedPictures, join_pictures

WORDS = 5
"""Words of a code, at most."""
SWAPS = 2
"""Pictures of a code in which its token is swapped, where tokens have no place."""


class CodeGallery:
    """Shows codes of a tokenizer, which is in evaluation mode, on the pictures that were measured, `data`.

    `load_pixels` brings numbers of pictures, training ones first, to their pixels (3, H, W) in [-1, 1]; at most
    `pictures_shown` of each code are chosen, by `seed`.
    """

    def __init__(
        self,
        tokenizer: VisualTokenizer,
        data: SemanticData,
        load_pixels: Callable[[set[int]], Mapping[int, Tensor]],
        *,
        pictures_shown: int,
        seed: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.pictures: TokenizedPictures = join_pictures([data.train, data.heldout])
        self.load_pixels = load_pixels
        self.pictures_shown = pictures_shown
        self.seed = seed
        self.words = [set(re.findall(r"\w+", caption.lower())) for caption in self.pictures.captions]
        self.frequencies = Counter(word for words in self.words for word in words)

    def show(self, parts: Mapping[str, Sequence[CodeStatistics]]) -> dict[str, list[ShownCode]]:
        """Return what there is to see of the codes of each part."""
        chosen = {code: self._examples(code) for codes in parts.values() for code in codes}
        pixels = self.load_pixels({row for rows in chosen.values() for row in rows})
        return {name: [self._shown(code, chosen[code], pixels) for code in codes] for name, codes in parts.items()}

    def _examples(self, code: CodeStatistics) -> list[int]:
        """Return pictures that hold the code, drawn at random."""
        holding = (self.pictures.indices[..., code.book] == code.index).any(1).nonzero()[:, 0]
        draw = torch.Generator().manual_seed(self.seed + code.index)
        return holding[torch.randperm(len(holding), generator=draw)[: self.pictures_shown]].tolist()

    def _shown(self, code: CodeStatistics, rows: Sequence[int], pixels: Mapping[int, Tensor]) -> ShownCode:
        present = int((self.pictures.indices[..., code.book] != ABSENT).sum())
        grid = self.tokenizer.token_grid()
        has_place = len(grid) == 2
        uses = []
        for row in rows:
            sides = self._grid_of(pixels[row]) if has_place else (1, 1)
            places = (self.pictures.indices[row, :, code.book] == code.index).nonzero()[:, 0].tolist()
            boxes = [_box(place, sides) for place in places] if has_place else []
            uses.append(Use(pixels_to_bytes(pixels[row]), self.pictures.captions[row], boxes))
        swaps = [] if has_place else [self._swap(code, row) for row in rows[:SWAPS]]
        return ShownCode(
            statistics=code,
            share=code.tokens / present,
            words=self._words(code),
            uses=uses,
            swaps=[swap for swap in swaps if swap is not None],
            num_codebooks=self.tokenizer.num_codebooks,
        )

    def _grid_of(self, pixels: Tensor) -> tuple[int, ...]:
        height, width = pixels.shape[-2:]
        return self.tokenizer.token_grid(height, width, 0)

    def _words(self, code: CodeStatistics) -> list[str]:
        """Return the words that captions of the code's pictures have more often than others, the most telling first.

        That is the term of a word in the mutual information of words and the code: p(w | c) ln(p(w | c) / p(w)).
        """
        rows = (self.pictures.indices[..., code.book] == code.index).any(1).nonzero()[:, 0].tolist()
        counts = Counter(word for row in rows for word in self.words[row])
        total = len(self.words)

        def telling(word: str) -> float:
            share = counts[word] / len(rows)
            return share * math.log(share * total / self.frequencies[word])

        ranked = sorted((word for word in counts if counts[word] > 1), key=lambda word: (-telling(word), word))
        return [word for word in ranked if telling(word) > 0][:WORDS]

    @torch.no_grad()
    def _swap(self, code: CodeStatistics, row: int) -> Swap | None:
        """Return the picture with the first such token swapped; None where no other code ever stands there."""
        position = int((self.pictures.indices[row, :, code.book] == code.index).nonzero()[0, 0])
        there = self.pictures.indices[:, position, code.book]
        others = there[(there != ABSENT) & (there != code.index)]
        if not len(others):
            return None
        other = int(torch.bincount(others.long()).argmax())
        pair = self.pictures.indices[row].long()[None].repeat(2, 1, 1)
        pair[1, position, code.book] = other
        tokens = pair if self.tokenizer.num_codebooks > 1 else pair[..., 0]
        decoded = self.tokenizer.decode(tokens.to(self.tokenizer.device)).float().cpu()
        return Swap(decoded[0], decoded[1], position, other, self.pictures.captions[row])


def _box(place: int, grid: Sequence[int]) -> tuple[float, float, float, float]:
    top, left = divmod(place, grid[1])
    return left / grid[1], top / grid[0], 1 / grid[1], 1 / grid[0]


def gallery_page(title: str, tokenizer: VisualTokenizer, report: SemanticReport, section: SemanticSection) -> str:
    """Return the HTML page of a measured tokenizer in evaluation mode; `section` says how much is shown."""
    chosen = choose_codes(code_statistics(report.data), section.codes_shown, section.seed)
    load = report.pictures.pixels
    gallery = CodeGallery(tokenizer, report.data, load, pictures_shown=section.pictures_shown, seed=section.seed)
    protocol = report.protocol
    where = (
        "A code's places are marked in its pictures; the encoder saw more than them."
        if len(tokenizer.token_grid()) == 2
        else "Tokens have no place: below a code's pictures, two are decoded with it and with another."
    )
    notes = [
        f"{tokenizer.codebook_size:,} codes, {tokenizer.num_codebooks} at a position; counted over "
        f"{protocol['train_pictures']:,} training and {protocol['heldout_pictures']:,} held-out pictures of "
        f"{protocol['source']['type']}.",
        where,
    ]
    return semantic_page(title, gallery.show(chosen), semantic_rows(report.values), notes)
