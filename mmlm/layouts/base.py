"""What every sequence layout has in common: one template builds, checks and constrains a picture block."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from annotated_types import Ge, Interval
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mmlm.codebook_patterns.base import PatternConfig
from mmlm.text_tokenizer import encode_text, token_id_of
from mmlm.vocabulary import VisualVocabulary
from visual_tokenizer.errors import UserError
from visual_tokenizer.registry import PartConfig

END_OF_SEQUENCE = "the end of the sequence"
Grid = tuple[int, ...]


class MalformedSequenceError(UserError):
    """A token sequence breaks the layout.

    Attributes:
        position: place of the first wrong token.
        expected: what the layout demands there.
        found: what is there instead.
    """

    def __init__(self, position: int, expected: str, found: str) -> None:
        super().__init__(f"position {position}: expected {expected}, found {found}")
        self.position, self.expected, self.found = position, expected, found


class Block(NamedTuple):
    """Where one picture stands in a sequence."""

    start: int
    """Position of the block's first token."""
    end: int
    """Position after the block's last token."""
    grid: Grid
    """Token rows and columns (H, W), (N,) for tokenizers without rows, (T, H, W) of a clip."""


@dataclass(kw_only=True)
class LayoutConfig(PartConfig, package="mmlm.layouts"):
    """Fields that every layout has."""

    grid_rank: Annotated[int, Interval(ge=1, le=3)] = 2
    """Dimensions of the visual tokenizer's token grid: 1 for a plain sequence, 2 for rows and columns, 3 for clips
    beside pictures."""
    pattern: PatternConfig = field(default_factory=lambda: PatternConfig.family.config({"type": "flattened"}))
    """In which order the codebooks of positions follow each other, where a position has several."""

    ranks: ClassVar[Mapping[int, str]] = {1: "sequence", 2: "rows and columns"}
    """The `grid_rank`s for which the layout has a block."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid_rank not in self.ranks:
            known = " or ".join(f"{rank} ({name})" for rank, name in self.ranks.items())
            video = ": video grids have no block in this layout" if self.grid_rank == 3 else ""
            raise UserError(f"grid_rank must be {known}, got {self.grid_rank}{video}")
        names = self.structural_tokens()
        if len(set(names)) != len(names) or not all(names):
            raise UserError(f"the structural tokens must be {len(names)} different names, got {names}")

    def for_grid(self, grid: Grid) -> LayoutConfig:
        """Return this config with what depends on the visual tokenizer's usual token `grid` filled in."""
        return dataclasses.replace(self, grid_rank=len(grid))

    def for_lengths(self, most: int) -> LayoutConfig:
        """Return this config for a visual tokenizer that gives a picture as many tokens as it needs, 1 to `most`.

        Raises:
            UserError: a layout in which every picture has the same size.
        """
        return self.for_grid((most,))

    def structural_tokens(self) -> list[str]:
        """Return the names of the layout's own tokens, in the order in which they get new ids."""
        own = [value for key, value in vars(self).items() if key.endswith("_token")]
        return own + self.pattern.structural_tokens()

    def takes(self, grid: Grid) -> bool:
        """Return whether a picture or clip of this token grid has a block: as to its dimensions, not their sizes."""
        return len(grid) == self.grid_rank or (self.grid_rank == 3 and len(grid) == 2)


@dataclass(kw_only=True)
class FixedGridConfig(LayoutConfig):
    """Of layouts that write no size, so that every picture has the same."""

    height: Annotated[int, Ge(0)] = 0
    """Token rows of every picture; 0: those of the visual tokenizer at its image_size."""
    width: Annotated[int, Ge(0)] = 0
    """Token columns of every picture; 0: those of the visual tokenizer at its image_size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.height == 0) != (self.width == 0):
            raise UserError(f"height and width must both be 0 or both be 1 or more, got {self.height} and {self.width}")

    def for_grid(self, grid: Grid) -> FixedGridConfig:
        height, width = grid if len(grid) == 2 else (1, math.prod(grid))
        if self.height:
            height, width = self.height, self.width
        return dataclasses.replace(self, grid_rank=len(grid), height=height, width=width)

    def for_lengths(self, most: int) -> FixedGridConfig:
        raise UserError(
            f"layout '{self.type}' writes no size, so that every picture must have the same, and this visual tokenizer "
            f"gives 1 to {most} tokens: take 'sequence'"
        )

    def check_size(self, height: int, width: int) -> None:
        """Raise `UserError` unless a picture has this size."""
        if (height, width) != (self.height, self.width):
            raise UserError(
                f"this layout writes no size: every picture has {self.height} x {self.width} "
                f"tokens, got {height} x {width}"
            )


class Layout:
    """How pictures and text make a sequence.

    A *template* is the block of one picture as int64 slots: a slot of 0 or more is exactly that token id, a
    slot `-1 - c` is any visual token of codebook c. The i-th slot of a codebook is that of position i in raster order,
    frame by frame; the config's pattern says how several codebooks take turns.

    Args:
        config: the layout's fields.
        tokenizer: text tokenizer that holds the structural tokens.
        vocabulary: visual index ↔ token id.

    Raises:
        ValueError: the tokenizer has no EOS token, or lacks a structural token.
    """

    Config: ClassVar[type[LayoutConfig]]

    def __init__(self, config: LayoutConfig, tokenizer: PreTrainedTokenizerBase, vocabulary: VisualVocabulary) -> None:
        self.config: Any = config
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        if tokenizer.eos_token_id is None:
            raise UserError("the text tokenizer has no eos_token: a layout ends every sequence with one")
        self.eos_id: int = tokenizer.eos_token_id
        self.bos_ids: list[int] = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        found = {name: token_id_of(tokenizer, name) for name in config.structural_tokens()}
        missing = [name for name, token_id in found.items() if token_id is None]
        if missing:
            raise UserError(f"the text tokenizer lacks the layout's token(s) {', '.join(missing)}")
        self.structural_ids: dict[str, int] = {n: i for n, i in found.items() if i is not None}
        self._templates: dict[Grid, Tensor] = {}
        self._orders: dict[Grid, Tensor] = {}
        self._pattern = PatternConfig.family.build(config.pattern)
        self._empty_slots = [self.structural_ids[name] for name in config.pattern.structural_tokens()]

    def build_template(self, height: int, width: int) -> list[int]:
        """Return the slots of a picture of `height` · `width` positions."""
        raise NotImplementedError

    def build_clip_template(self, frames: int, height: int, width: int) -> list[int]:
        """Return the slots of a clip; only layouts whose `ranks` hold 3 have one."""
        raise NotImplementedError

    def read_grid(self, token_ids: Tensor, start: int) -> Grid:
        """Return the grid (height, width), or (frames, height, width), that the block beginning at `start` claims.

        Raises:
            MalformedSequenceError: the block's opening tokens are not the layout's.
        """
        raise NotImplementedError

    @property
    def start_id(self) -> int:
        """Id of the token that opens a block."""
        raise NotImplementedError

    @property
    def start_slot(self) -> int:
        """First slot of every block: `start_id`, or a visual slot where blocks have no opening token."""
        return self.start_id

    def picture_row(self, width: int) -> list[int]:
        """Return the slots of `width` consecutive positions, in the pattern's order."""
        books = self._pattern.arrange(width, self.vocabulary.num_codebooks)
        return [self._empty_slots[0] if book is None else -1 - book for book in books]

    def template(self, grid: Sequence[int]) -> Tensor:
        """Return the slots (L,) int64 of a picture of token `grid` (H, W), (N,) or (T, H, W); do not write to it.

        Raises:
            UserError: wrong number of dimensions or a size below 1.
        """
        grid = tuple(int(size) for size in grid)
        if grid not in self._templates:
            if not self.config.takes(grid) or min(grid, default=0) < 1:
                raise UserError(
                    f"grid must have {self.config.grid_rank} dimension(s) of 1 or more, got {grid}"
                    + (": video grids have no block in this layout" if len(grid) == 3 else "")
                )
            if len(grid) == 3:
                slots = self.build_clip_template(*grid)
            else:
                slots = self.build_template(*(grid if len(grid) == 2 else (1, grid[0])))
            self._templates[grid] = torch.tensor(slots, dtype=torch.int64)
        return self._templates[grid]

    def slot_order(self, grid: Sequence[int]) -> Tensor:
        """Return for each visual slot, in the sequence's order, its flat place in indices (*grid, num_codebooks).

        (V,) int64, a permutation of 0 … V - 1; the identity unless a pattern other than `flattened` is used.
        """
        grid = tuple(int(size) for size in grid)
        if grid not in self._orders:
            slots = self.template(grid)
            books = -1 - slots[slots < 0]
            order = torch.empty_like(books)
            for book in range(self.vocabulary.num_codebooks):
                mask = books == book
                order[mask] = torch.arange(int(mask.sum())) * self.vocabulary.num_codebooks + book
            self._orders[grid] = order
        return self._orders[grid]

    def header(self, grid: Sequence[int]) -> Tensor:
        """Return the fixed ids (h,) before the block's first visual slot: a prompt ends with them."""
        template = self.template(grid)
        return template[: int((template < 0).int().argmax())]

    def body(self, grid: Sequence[int]) -> Tensor:
        """Return the template's slots (L - h,) from the first visual slot on: what is to be generated."""
        return self.template(grid)[len(self.header(grid)) :]

    def block(self, indices: Tensor) -> Tensor:
        """Return the block (L,) int64 of one picture.

        Args:
            indices: (*grid) int64, or (*grid, num_codebooks).
        """
        return self.blocks(indices[None])[0]

    def blocks(self, indices: Tensor) -> Tensor:
        """Return the blocks (B, L) int64 of pictures of one grid: indices (B, *grid) or (B, *grid, num_codebooks).
        Errors are those of `block`."""
        grid = indices.shape[1:-1] if self.vocabulary.num_codebooks > 1 else indices.shape[1:]
        template = self.template(grid).to(indices.device)
        ids = self.vocabulary.indices_to_ids(indices).flatten(1)
        filled = template.repeat(len(ids), 1)
        filled[:, template < 0] = ids[:, self.slot_order(grid).to(ids.device)]
        return filled

    def indices_of(self, visual_ids: Tensor, grid: Sequence[int]) -> Tensor:
        """Return the indices (B, *grid) or (B, *grid, num_codebooks) of visual ids (B, V) in their slots' order."""
        books = self.vocabulary.num_codebooks
        ids = torch.empty_like(visual_ids)
        ids[:, self.slot_order(grid).to(ids.device)] = visual_ids
        return self.vocabulary.ids_to_indices(ids.view(len(ids), *grid, *([books] if books > 1 else [])))

    def block_indices(self, token_ids: Tensor | Sequence[int], block: Block) -> Tensor:
        """Return the indices (*grid) or (*grid, num_codebooks) of a block that `find_blocks` found."""
        ids = torch.as_tensor(token_ids)[block.start : block.end]
        return self.indices_of(ids[self.template(block.grid).to(ids.device) < 0][None], block.grid)[0]

    def find_blocks(self, token_ids: Tensor | Sequence[int]) -> list[Block]:
        """Return every picture block of one sequence (L,), in order.

        Raises:
            MalformedSequenceError: a block that is cut short or wrong, or a visual or structural token outside one.
        """
        ids = torch.as_tensor(token_ids, dtype=torch.int64)
        blocks = []
        ours = self.is_picture_token(ids)
        position = 0
        while ours[position:].any():
            position += int(ours[position:].int().argmax())
            if not self.fits(self.start_slot, int(ids[position])):
                raise MalformedSequenceError(
                    position, f"text or {self.describe_slot(self.start_slot)}", self.name_of(int(ids[position]))
                )
            grid = self.read_grid(ids, position)
            grid = grid[1:] if self.config.grid_rank == 1 else grid
            if math.prod(grid) > len(ids) - position:  # before a template of any size is built
                raise MalformedSequenceError(len(ids), f"{grid} visual tokens", END_OF_SEQUENCE)
            end = self._check_block(ids, position, self.template(grid).to(ids.device))
            blocks.append(Block(position, end, grid))
            position = end
        return blocks

    def is_picture_token(self, ids: Tensor) -> Tensor:
        """Return a bool tensor of the shape of `ids`: which are visual or structural tokens."""
        structural = torch.tensor(list(self.structural_ids.values()), dtype=torch.int64, device=ids.device)
        return self.vocabulary.is_visual(ids) | torch.isin(ids, structural)

    def _check_block(self, ids: Tensor, start: int, template: Tensor) -> int:
        """Return the end of the block at `start`, or raise on the first token that breaks `template`."""
        part = ids[start : start + len(template)]
        slots = template[: len(part)]
        wrong = torch.where(slots >= 0, part != slots, self.vocabulary.codebook_of(part) != -1 - slots)
        if wrong.any():
            at = int(wrong.int().argmax())
            raise MalformedSequenceError(start + at, self.describe_slot(int(slots[at])), self.name_of(int(part[at])))
        if len(part) < len(template):
            raise MalformedSequenceError(
                start + len(part), self.describe_slot(int(template[len(part)])), END_OF_SEQUENCE
            )
        return start + len(template)

    def fits(self, slot: int, token_id: int) -> bool:
        """Return whether a template's slot allows this token."""
        if slot >= 0:
            return token_id == slot
        return int(self.vocabulary.codebook_of(torch.tensor(token_id))) == -1 - slot

    def describe_slot(self, slot: int) -> str:
        """Return what a template slot demands, in words."""
        if slot >= 0:
            return self.name_of(slot)
        several = f" of codebook {-1 - slot}" if self.vocabulary.num_codebooks > 1 else ""
        return f"a visual token{several}"

    def name_of(self, token_id: int) -> str:
        """Return a token's name and id, for messages."""
        name = self.tokenizer.convert_ids_to_tokens(token_id) if 0 <= token_id < len(self.tokenizer) else None
        return f"{name!r} ({token_id})" if name is not None else f"id {token_id}"

    @property
    def end_of_turn_ids(self) -> list[int]:
        """Ids that end a user's turn in a conversation: the tokenizer's separator, where it has one."""
        return [] if self.tokenizer.sep_token_id is None else [self.tokenizer.sep_token_id]

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of user text; literal control and visual token names stay text."""
        return encode_text(self.tokenizer, text)

    def caption_to_image(self, caption: str, block: Tensor) -> Tensor:
        """Return BOS + caption + picture block + EOS (L,) int64: one sample for drawing."""
        return self.join(self.bos_ids, self.text_ids(caption), block, [self.eos_id])

    def image_to_caption(self, block: Tensor, caption: str) -> Tensor:
        """Return BOS + picture block + caption + EOS (L,) int64: one sample for describing."""
        return self.join(self.bos_ids, block, self.text_ids(caption), [self.eos_id])

    def prompt_for_image(self, caption: str | None, grid: Sequence[int]) -> Tensor:
        """Return BOS + caption + block header (L,) int64; without a caption, the prompt for guidance."""
        return self.join(self.bos_ids, self.text_ids(caption or ""), self.header(grid))

    def prompt_for_caption(self, block: Tensor) -> Tensor:
        """Return BOS + picture block (L,) int64: the caption is to follow."""
        return self.join(self.bos_ids, block)

    @staticmethod
    def join(*parts: Tensor | Sequence[int]) -> Tensor:
        """Concatenate ids to one int64 tensor (L,) on the CPU."""
        return torch.cat([torch.as_tensor(part, dtype=torch.int64).cpu() for part in parts])


PART = Layout
