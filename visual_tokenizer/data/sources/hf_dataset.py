"""A Hugging Face data set: saved on disk, a folder of data files, or a name on the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from visual_tokenizer.data.sources._columns import ColumnsConfig, TableSource, to_rows
from visual_tokenizer.data.sources.base import DataSourceError


@dataclass(kw_only=True)
class HFDatasetConfig(ColumnsConfig):
    """What `datasets.load_dataset` or `datasets.load_from_disk` reads."""

    path: str
    """Folder written by `save_to_disk`, folder of data files, or name of a data set on the hub."""
    name: str | None = None
    """Configuration of a data set that has several."""
    split: str = "train"
    """Split that is read for training and from which samples are held out; may be a slice, `train[:10%]`."""
    heldout_split: str | None = None
    """Split of the held-out samples; null: a share of `split`."""


class HFDataset(TableSource):
    """A data set of the `datasets` library."""

    Config = HFDatasetConfig
    parts_named_by = "split"

    def read(self, part: str) -> datasets.Dataset | datasets.IterableDataset:
        split = self.name_of(part)
        return to_rows(self._table(split), self.config, where=f"hf_dataset {self.config.path}, split {split}")

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
