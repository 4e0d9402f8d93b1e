"""Documents of Multimodal C4: sentences, and pictures that belong to one of them.

Paper: Multimodal C4: An Open, Billion-scale Corpus of Images Interleaved with Text (Zhu et al., 2023),
arXiv:2304.06939.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import datasets
from annotated_types import Interval

from mmlm.documents._content import as_list, file_in, join_texts
from mmlm.documents._lines import index_lines, read_entry
from mmlm.documents.base import BrokenDocumentError, Document, DocumentSource, DocumentSourceConfig, Part
from visual_tokenizer.data.files import expand

BETWEEN_SENTENCES = " "


@dataclass(kw_only=True)
class Mmc4Config(DocumentSourceConfig):
    """JSON lines with `text_list` and `image_info`, and a folder of pictures."""

    files: str
    """Files as a path, a glob (`*`, `**`) or a brace pattern (`docs_shard_{0..9}_v2.jsonl`)."""
    images_folder: str
    """Folder of the pictures, which are called as `image_name` says."""
    min_similarity: Annotated[float, Interval(ge=-1, le=1)] = 0.0
    """Pictures whose `matched_sim` with their sentence is below this are left out."""


class Mmc4(DocumentSource):
    """Each picture stands before the sentence that it was matched with (`matched_text_index`)."""

    Config = Mmc4Config

    def read(self) -> datasets.Dataset:
        return index_lines(expand(self.config.files, where="mmc4"), lambda entry, _: self._parts(entry))

    def document(self, row: Mapping[str, Any]) -> Document:
        return Document.of_parts(row["key"], self._parts(read_entry(row)))

    def _parts(self, entry: Any) -> list[Part]:
        if not isinstance(entry, Mapping) or "text_list" not in entry:
            raise BrokenDocumentError("an object with the keys text_list and image_info is needed")
        sentences = [str(sentence) for sentence in as_list(entry["text_list"], "text_list")]
        before: dict[int, list[Part]] = {}
        for number, image in enumerate(as_list(entry.get("image_info") or [], "image_info")):
            place = image.get("matched_text_index") if isinstance(image, Mapping) else None
            if not isinstance(place, int) or not 0 <= place < len(sentences):
                raise BrokenDocumentError(
                    f"image_info[{number}].matched_text_index must be in 0 … {len(sentences) - 1}, got {place!r}"
                )
            if image.get("matched_sim", 1.0) >= self.config.min_similarity:
                before.setdefault(place, []).append(file_in(self.config.images_folder, image.get("image_name")))
        parts = [part for place, sentence in enumerate(sentences) for part in [*before.get(place, []), sentence]]
        return join_texts(parts, BETWEEN_SENTENCES)
