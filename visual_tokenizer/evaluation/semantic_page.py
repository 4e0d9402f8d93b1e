"""One HTML file that shows what codes mean: who uses them, where, and what the decoder makes of them.

Each picture is in the file once, as a background; marks lie over it. Nothing is fetched and nothing runs.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from visual_tokenizer.data.transforms import pixels_to_bytes
from visual_tokenizer.evaluation.code_statistics import CodeStatistics

SIDE = 96
"""Pixels of a picture on the page."""
STORED = 128
"""Pixels of the longer side of a stored picture, at most."""
MOST_GAIN = 16.0
"""Factor on the difference that a swapped token makes, at most; less where the largest would be more than white."""

_STYLE = f"""
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1.5rem; max-width: 1080px; color: #1d2733;
  background: #f6f7f9 }}
h1 {{ font-size: 1.5rem; margin: 0 0 .3rem }} h2 {{ font-size: 1.15rem; margin: 2.2rem 0 .2rem }}
h3 {{ font-size: 1rem; margin: 0 0 .2rem; font-variant-numeric: tabular-nums }}
p {{ margin: .2rem 0 .6rem; color: #4a5868 }}
table {{ border-collapse: collapse; margin: 1rem 0; background: #fff }}
th, td {{ padding: .25rem .8rem; border: 1px solid #dfe4ea; text-align: right; font-variant-numeric: tabular-nums }}
th:first-child, td:first-child {{ text-align: left }} th {{ background: #eef1f5; font-weight: 600 }}
article {{ background: #fff; border: 1px solid #dfe4ea; border-radius: 8px; padding: .8rem 1rem; margin: .8rem 0 }}
.bar {{ display: inline-block; width: 90px; height: .55em; background: #e4e9ef; border-radius: 3px }}
.bar b {{ display: block; height: 100%; background: #2f6fb0; border-radius: 3px }}
.row {{ display: flex; flex-wrap: wrap; gap: .6rem }}
figure {{ margin: 0; width: {SIDE}px }}
figcaption {{ font-size: 11px; line-height: 1.25; color: #5b6876; overflow-wrap: anywhere }}
.picture {{ position: relative; width: {SIDE}px; height: {SIDE}px; background-size: 100% 100%;
  image-rendering: pixelated; border: 1px solid #cfd6de }}
.picture i {{ position: absolute; box-sizing: border-box; border: 2px solid #e5007d; box-shadow: 0 0 0 1px #fff }}
.swaps {{ margin-top: .6rem }}
""".strip()


@dataclass(frozen=True)
class Use:
    """A picture that holds a code."""

    levels: Tensor
    """(3, H, W) uint8."""
    caption: str
    boxes: list[tuple[float, float, float, float]]
    """Left, top, width and height of each place as shares of the sides; none where tokens have no place."""


@dataclass(frozen=True)
class Swap:
    """A picture decoded with and without a token."""

    reconstruction: Tensor
    """(3, H, W) in [-1, 1]."""
    swapped: Tensor
    """The same with index `other` in place of the code."""
    position: int
    """Place in the picture's sequence of tokens."""
    other: int
    """The index that stands there most often in other pictures."""
    caption: str


@dataclass(frozen=True)
class ShownCode:
    """All that the page shows of a code."""

    statistics: CodeStatistics
    share: float
    """Of all tokens of its codebook."""
    words: list[str]
    """Words that captions of its pictures have more often than others."""
    uses: list[Use]
    swaps: list[Swap]
    num_codebooks: int
    """The tokenizer's."""

    @property
    def name(self) -> str:
        """Its identifier on the page."""
        return f"code-{self.statistics.book}-{self.statistics.index}"

    @property
    def title(self) -> str:
        """Its heading."""
        book = f" of codebook {self.statistics.book}" if self.num_codebooks > 1 else ""
        return f"Code {self.statistics.index}{book}"


@dataclass
class _Pictures:
    """Pictures of the page by what is in them, each stored once."""

    names: dict[bytes, str] = field(default_factory=dict)
    rules: list[str] = field(default_factory=list)

    def name(self, levels: Tensor) -> str:
        """Return the class of a (3, H, W) uint8 picture."""
        key = levels.numpy().tobytes()
        if key not in self.names:
            self.names[key] = f"p{len(self.names)}"
            self.rules.append(f".{self.names[key]}{{background-image:url({_data_address(levels)})}}")
        return self.names[key]


def _data_address(levels: Tensor) -> str:
    picture = Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
    kind = "PNG"
    if max(picture.size) > STORED:
        picture.thumbnail((STORED, STORED), Image.Resampling.LANCZOS)
        kind = "JPEG"
    stream = io.BytesIO()
    picture.save(stream, format=kind, **({"optimize": True} if kind == "PNG" else {"quality": 85}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def semantic_page(
    title: str,
    parts: Mapping[str, Sequence[ShownCode]],
    values: Mapping[str, Mapping[str, float]],
    notes: Sequence[str],
) -> str:
    """Return the page: `notes`, sentences below the title, `values` by row and column, `parts`, codes by heading."""
    pictures = _Pictures()
    sections = [
        f"<section><h2>{html.escape(name)}</h2>{''.join(_article(code, pictures) for code in codes)}</section>"
        for name, codes in parts.items()
        if codes
    ]
    heading = f"<h1>{html.escape(title)}</h1>" + "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    style = f"<style>{_STYLE}\n{chr(10).join(pictures.rules)}</style>"
    body = f"{heading}{_table(values)}{''.join(sections)}"
    return f'<!doctype html>\n<html lang="en"><head>{head}{style}</head>\n<body>{body}</body></html>\n'


def _table(values: Mapping[str, Mapping[str, float]]) -> str:
    columns = list(dict.fromkeys(column for row in values.values() for column in row))
    if not columns:
        return ""
    lines = [f"<tr><th>measure</th>{''.join(f'<th>{html.escape(column)}</th>' for column in columns)}</tr>"]
    for name, row in values.items():
        cells = "".join(f"<td>{row[column]:.3f}</td>" if column in row else "<td></td>" for column in columns)
        lines.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _article(code: ShownCode, pictures: _Pictures) -> str:
    found = code.statistics
    facts = [f"{found.tokens:,} tokens ({code.share:.2%}) in {found.pictures:,} pictures"]
    if found.commonest:
        bar = f'<span class="bar"><b style="width:{100 * found.purity:.0f}%"></b></span>'
        facts.append(f"purity {found.purity:.0%} {bar} commonest class: {html.escape(found.commonest)}")
    if code.words:
        facts.append(f"words: {html.escape(', '.join(code.words))}")
    figures = "".join(
        _figure(pictures, use.levels, use.caption, [_mark(box) for box in use.boxes]) for use in code.uses
    )
    swaps = ""
    for swap in code.swaps:
        difference, gain = difference_map(swap.reconstruction, swap.swapped)
        shown = [
            (swap.reconstruction, f"{swap.caption}, decoded"),
            (swap.swapped, f"token {swap.position + 1}: {found.index} → {swap.other}"),
            (difference, f"difference × {gain:.2g}"),
        ]
        figures_of_swap = "".join(_figure(pictures, pixels_to_bytes(pixels), words, []) for pixels, words in shown)
        swaps += f'<div class="row swaps">{figures_of_swap}</div>'
    return (
        f'<article id="{code.name}"><h3>{html.escape(code.title)}</h3><p>{" · ".join(facts)}</p>'
        f'<div class="row">{figures}</div>{swaps}</article>'
    )


def _mark(box: Sequence[float]) -> str:
    left, top, width, height = (f"{100 * side:.3g}%" for side in box)
    return f'<i style="left:{left};top:{top};width:{width};height:{height}"></i>'


def _figure(pictures: _Pictures, levels: Tensor, caption: str, marks: Sequence[str]) -> str:
    words = html.escape(caption, quote=True)
    picture = f'<div class="picture {pictures.name(levels)}" role="img" aria-label="{words}">{"".join(marks)}</div>'
    return f"<figure>{picture}<figcaption>{words}</figcaption></figure>"


def difference_map(pixels: Tensor, swapped: Tensor) -> tuple[Tensor, float]:
    """Return the mean difference over channels as a grey picture (3, H, W) in [-1, 1], and the factor on it.

    Black is no difference; the largest is white unless the factor would be above `MOST_GAIN`.
    """
    difference = (pixels - swapped).abs().mean(0, keepdim=True)
    gain = min(MOST_GAIN, 2 / max(difference.max().item(), 1e-9))
    return (gain * difference - 1).clamp(-1, 1).expand(3, -1, -1).to(torch.float32), gain
