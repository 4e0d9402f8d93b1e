"""A folder of videos: containers, animated pictures and folders of numbered frames, with captions as `image_folder`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import datasets
from annotated_types import Ge
from PIL import Image

from visual_tokenizer.data.sources._folders import FolderConfig, FolderSource
from visual_tokenizer.data.sources.base import DataSourceError
from visual_tokenizer.data.video_decoding import ANIMATIONS, CONTAINERS, decode_clip, is_frame_folder


@dataclass(kw_only=True)
class VideoFolderConfig(FolderConfig):
    """Every video below a folder."""

    folder: str
    """Folder that is searched with all its subfolders; one that holds pictures named by numbers is a video."""
    num_frames: Annotated[int, Ge(1)] = 17
    """Frames of a clip. Shorter videos are skipped."""
    stride: Annotated[int, Ge(1)] = 1
    """Every how many frames of the video one is taken."""

    @property
    def clip_frames(self) -> int:
        return self.num_frames


class VideoFolder(FolderSource):
    """Clips of a folder's videos; `key` is the path within it."""

    Config = VideoFolderConfig
    content = "clip"
    reads_place = True

    def read(self, part: str) -> datasets.Dataset:
        folder = self.folder_of(part)
        videos = sorted(
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if (is_frame_folder(path) if path.is_dir() else path.suffix.lower() in ANIMATIONS | CONTAINERS)
        )
        if not videos:
            suffixes = " ".join(sorted(ANIMATIONS | CONTAINERS))
            raise DataSourceError(
                f"video_folder: no video below {folder} (looked for {suffixes} and folders of numbered pictures)"
            )
        captions = self.captions_in(folder)
        columns = {
            "key": videos,
            "clip": [str(folder / video) for video in videos],
            "caption": [captions.get(video, "") for video in videos],
        }
        return datasets.Dataset.from_dict(columns)

    def decode_content(self, row: Mapping[str, Any]) -> list[Image.Image]:
        """Return the frames of the clip that starts at the row's `place`, in the middle without one."""
        return decode_clip(
            Path(row["clip"]),
            frames=self.config.num_frames,
            stride=self.config.stride,
            place=row.get("place", 0.5),
            max_pixels=self.config.max_pixels,
            key=row["key"],
        )
