"""Does text in a picture survive its reconstruction?

Paper: TokBench: Evaluating Your Visual Tokenizer before Visual Generation (Wu et al., 2025), arXiv:2505.18142, section
3: T-ACC and T-NED of text read in the same regions. There the regions and the truth are annotated; here both are what
a reader finds in the original, so any pictures serve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor

from visual_tokenizer.backbones.base import frames_as_pictures
from visual_tokenizer.errors import UserError
from visual_tokenizer.metrics._text import RapidReader, TextReader, edit_distance
from visual_tokenizer.metrics.base import Metric, MetricConfig, check_pair, round_to_levels


@dataclass(kw_only=True)
class TextFidelityConfig(MetricConfig):
    """Configures the fidelity of text."""

    min_score: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """Regions that are read in the original with less confidence are left out."""


class TextFidelity(Metric):
    """Text read in each region of the original, against the text read there in the reconstruction, as `text_…`.

    Protocol: pictures clamped to [-1, 1] and rounded to 8-bit levels; regions found in the original; white space and
    case are ignored, since readers drop spaces at random.

    Args:
        reader: what reads, in place of rapidocr-onnxruntime.
    """

    Config = TextFidelityConfig

    def __init__(self, config: TextFidelityConfig | None = None, reader: TextReader | None = None) -> None:
        config = config or TextFidelityConfig()
        self.reader = reader or RapidReader(config.min_score)
        counts = {name: torch.zeros((), dtype=torch.int64) for name in ("regions", "exact", "edits", "characters")}
        super().__init__(config, {**counts, "normalized": torch.zeros((), dtype=torch.float64)})

    def weights_digest(self) -> str:
        """Return the reader's name and version."""
        return self.reader.name

    @torch.no_grad()
    def observe(self, pixels: Tensor, reconstruction: Tensor, indices: Tensor) -> None:
        """Read the pictures, or the frames of the clips; see the base class."""
        check_pair(pixels, reconstruction)
        for original, copy in zip(_as_arrays(pixels), _as_arrays(reconstruction), strict=True):
            regions = self.reader.find(original)
            wanted, found = self.reader.read(original, regions), self.reader.read(copy, regions)
            for truth, text in zip(map(_plain, wanted), map(_plain, found), strict=True):
                if truth:
                    self._count(truth, text)

    def _count(self, truth: str, text: str) -> None:
        edits = edit_distance(truth, text)
        self.add(
            regions=torch.tensor(1),
            exact=torch.tensor(int(edits == 0)),
            edits=torch.tensor(edits),
            characters=torch.tensor(len(truth)),
            normalized=torch.tensor(edits / max(len(truth), len(text)), dtype=torch.float64),
        )

    def compute(self) -> dict[str, float]:
        """Return what became of the text.

        Returns:
            `text_accuracy`: share of regions read alike, in [0, 1] (T-ACC);
            `text_normalized_edit_distance`: mean over regions of edits / length of the longer text, in [0, 1], 0 best
            (1 - T-NED);
            `text_character_error_rate`: all edits / all characters of the original, 0 or more, 0 best;
            `text_regions`: regions compared.

        Raises:
            UserError: no process saw a picture with text.
        """
        sums = {name: value.item() for name, value in self.reduced_sums().items()}
        if not sums["regions"]:
            raise UserError("text_fidelity: no text was found in any picture; see the source rendered_text")
        return {
            "text_accuracy": sums["exact"] / sums["regions"],
            "text_normalized_edit_distance": sums["normalized"] / sums["regions"],
            "text_character_error_rate": sums["edits"] / sums["characters"],
            "text_regions": float(sums["regions"]),
        }


def _as_arrays(pixels: Tensor) -> np.ndarray:
    # A NaN has no 8-bit level; black is as unreadable.
    levels = round_to_levels(frames_as_pictures(pixels)).nan_to_num()
    return levels.to(torch.uint8).permute(0, 2, 3, 1).cpu().contiguous().numpy()


def _plain(text: str) -> str:
    return "".join(text.split()).casefold()
