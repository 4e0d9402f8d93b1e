"""A Hugging Face data set: saved on disk, a folder of data files, or a name on the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from visual_tokenizer.data.sources._columns import to_rows
from visual_tokenizer.data.sources.base import DataSourceError, Source, SourceConfig


@dataclass(kw_only=True)
class HFDatasetConfig(SourceConfig):
    """What `datasets.load_dataset` or `datasets.load_from_disk` reads."""

    path: str
    """Folder written by `save_to_disk`, folder of data files, or name of a data set on the hub."""
    name: str | None = None
    """Configuration of a data set that has several."""
    split: str = "train"
    """Split that is read for training and from which samples are held out; may be a slice, `train[:10%]`."""
    heldout_split: str | None = None
    """Split of the held-out samples; null: a share of `split`."""
    image_column: str = "image"
    """Column of the pictures."""
    caption_column: str | None = "caption"
    """Column of the captions: text, a list of texts (the first counts) or a class label; null: none."""
    key_column: str | None = None
    """Column that identifies a sample; null: its row number, or in a stream the hash of its picture."""
    label_column: str | None = None
    """Column of the pictures' classes: names or class labels; null: none."""
    streaming: bool = False
    """Read on the way instead of storing the whole set first."""


class HFDataset(Source):
    """A data set of the `datasets` library."""

    Config = HFDatasetConfig

    def __init__(self, config: HFDatasetConfig) -> None:
        super().__init__(config)
        self.label_columns = () if config.label_column is None else ("label",)

    @property
    def has_own_heldout(self) -> bool:
        return self.config.heldout_split is not None

    def read(self, part: str) -> datasets.Dataset | datasets.IterableDataset:
        split = self.config.split if part == "main" else self.config.heldout_split
        return to_rows(
            self._table(split),
            image_column=self.config.image_column,
            caption_column=self.config.caption_column,
            key_column=self.config.key_column,
            label_column=self.config.label_column,
            where=f"hf_dataset {self.config.path}, split {split}",
        )

    def _table(self, split: str) -> Any:
        folder = Path(self.config.path)
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            saved = datasets.load_from_disk(str(folder))
            if isinstance(saved, datasets.DatasetDict):
                if split not in saved:
                    raise DataSourceError(f"hf_dataset {folder}: no split '{split}'; there are {', '.join(saved)}")
                saved = saved[split]
            return saved.to_iterable_dataset() if self.config.streaming else saved
        return datasets.load_dataset(self.config.path, self.config.name, split=split, streaming=self.config.streaming)
