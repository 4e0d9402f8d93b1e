"""MultimodalProcessor: text and pictures ↔ token ids of a merged language model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

import mmlm.models.chameleon  # noqa: F401 - AutoModelForCausalLM knows Chameleon from here on
from mmlm.layouts.base import Layout, LayoutConfig
from mmlm.merge_record import MergeRecord, check_codec, check_rows
from mmlm.placeholders import deal_out, to_batch
from mmlm.recipes.sampling import Sampling
from mmlm.vocabulary import VisualVocabulary
from visual_tokenizer import VisualTokenizer, VisualTokenizerImageProcessor
from visual_tokenizer.errors import UserError
from visual_tokenizer.outputs import own_tokens
from visual_tokenizer.runs.files import save_text, whole_folder
from visual_tokenizer.runs.saved_models import PROCESSOR, load_text_tokenizer, loading

CODEC_FOLDER = "visual_tokenizer"
SAMPLING_DEFAULTS = asdict(Sampling())
ENCODE_BATCH = 64


class MultimodalProcessor(ProcessorMixin):
    """Text and pictures to token ids of a merged language model, and ids back to pictures.

    Args:
        image_processor: picture → pixels for the visual tokenizer.
        tokenizer: the text tokenizer, with visual and structural tokens.
        layout: how a picture sits in a sequence: a section `{"type": name, **fields}` or a config.
        vocabulary: index ↔ id: a `VisualVocabulary` or its `to_dict`.
        merge: record of the merge; None for models that were trained with their visual tokens.
        codec: the visual tokenizer, put in eval mode; without it pictures can be neither encoded nor decoded.
        codec_hash: the `tokenizer_hash` that the codec must have; computed from `codec` when not given.
        sampling: how pictures are drawn unless a call says otherwise: any of `guidance_scale`, `temperature`, `top_k`
            and `top_p`; training saves its recipe's.
    """

    image_placeholder = "<image>"

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        layout: Mapping[str, Any] | LayoutConfig,
        vocabulary: Mapping[str, Any] | VisualVocabulary,
        merge: Mapping[str, Any] | MergeRecord | None = None,
        codec: VisualTokenizer | None = None,
        codec_hash: str | None = None,
        sampling: Mapping[str, float] | None = None,
        chat_template: str | None = None,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        if not isinstance(vocabulary, VisualVocabulary):
            vocabulary = VisualVocabulary.from_dict(vocabulary)
        self.vocabulary = vocabulary
        self.layout: Layout = LayoutConfig.family.build(layout, tokenizer=tokenizer, vocabulary=vocabulary)
        self.merge = MergeRecord(**merge) if isinstance(merge, Mapping) else merge
        self.codec: VisualTokenizer | None = None
        self.codec_hash = codec_hash
        self.sampling = {**SAMPLING_DEFAULTS, **(sampling or {})}
        if unknown := set(self.sampling) - set(SAMPLING_DEFAULTS):
            raise UserError(f"sampling has unknown keys {sorted(unknown)}: valid are {list(SAMPLING_DEFAULTS)}")
        if codec is not None:
            self.attach_codec(codec)

    def attach_codec(self, codec: VisualTokenizer) -> None:
        """Use `codec` as the visual tokenizer, in eval mode."""
        self.codec_hash = check_codec(codec, self.vocabulary, self.codec_hash)
        self.codec = codec.eval()

    def _codec(self) -> VisualTokenizer:
        if self.codec is None:
            raise UserError("this processor has no visual tokenizer: load it with load_codec=True")
        return self.codec

    @property
    def grid(self) -> tuple[int, ...]:
        """Token grid of a picture as the image processor hands it over: (H, W), or (N,)."""
        size = self.image_processor.size
        return tuple(self._codec().token_grid(size["height"], size["width"], 0))

    @property
    def grids(self) -> list[tuple[int, ...]]:
        """Token grids that such a picture may have: `grid`, or one a length where pictures have as many tokens as they
        need; those that the layout has a block for."""
        if not self._codec().has_variable_length:
            return [self.grid]
        lengths = range(1, self.grid[0] + 1)
        allowed = getattr(self.layout, "lengths", lengths)
        return [(length,) for length in lengths if length in allowed]

    @property
    def dead_ids(self) -> Tensor:
        """Ids (n,) int64 of rows that stand for no token; never sample them."""
        ranges = self.merge.dead_ranges if self.merge is not None else []
        return torch.cat([torch.arange(0), *(torch.arange(start, stop) for start, stop in ranges)])

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of user text; literal control and visual token names stay text."""
        return self.layout.text_ids(text)

    @torch.no_grad()
    def encode_images(self, images: Any) -> Tensor:
        """Return indices (B, *grid) or (B, *grid, num_codebooks) int64 on the CPU of a list of B pictures.

        Where pictures have as many tokens as they need, a row is `ABSENT` (−1) behind its own.
        """
        codec = self._codec()
        pixels = self.image_processor(images, return_tensors="pt")["pixel_values"]
        parts = [codec.encode(part.to(codec.device, codec.dtype)) for part in pixels.split(ENCODE_BATCH)]
        return torch.cat(parts).cpu()

    def image_block(self, indices: Tensor) -> Tensor:
        """Return the picture block (L,) int64 of one picture's indices (*grid) or (*grid, num_codebooks).

        Of a picture without rows only its own tokens are in the block, not `ABSENT` ones behind them.
        """
        has_rows = indices.ndim > (2 if self.vocabulary.num_codebooks > 1 else 1)
        return self.layout.block(indices if has_rows else own_tokens(indices[None])[0])

    @torch.no_grad()
    def encode_clips(self, clips: Sequence[Sequence[Any]]) -> Tensor:
        """Return indices (B, T, H, W) or (B, T, H, W, num_codebooks) int64 on the CPU of B clips, lists of equally
        many frames; the visual tokenizer must take clips."""
        codec = self._codec()
        frames = [self.image_processor(list(clip), return_tensors="pt")["pixel_values"] for clip in clips]
        found = [codec.encode(clip.transpose(0, 1)[None].to(codec.device, codec.dtype)).cpu() for clip in frames]
        return torch.cat(found)

    @torch.no_grad()
    def decode_indices(self, indices: Tensor) -> list[Any]:
        """Return the pictures of indices (B, *grid) or (B, *grid, num_codebooks); of a clip, a list of its frames."""
        codec = self._codec()
        parts = [codec.decode(part.to(codec.device)).float() for part in indices.split(ENCODE_BATCH)]
        pixels = torch.cat(parts)
        if pixels.ndim == 5:
            return [self.image_processor.postprocess(clip.transpose(0, 1)) for clip in pixels]
        return self.image_processor.postprocess(pixels)

    def decode_images(self, token_ids: Tensor | Sequence[int] | Sequence[Sequence[int]]) -> list[list[Any]]:
        """Return the pictures of each sequence, in order; `token_ids` is (B, L), (L,) or a list of sequences.

        A picture is an RGB image, a clip a list of them.
        """
        one = token_ids.ndim == 1 if isinstance(token_ids, Tensor) else not isinstance(token_ids[0], (Sequence, Tensor))
        found: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
        places: list[list[tuple[tuple[int, ...], int]]] = []
        for sample, sequence in enumerate([token_ids] if one else token_ids):
            ids = torch.as_tensor(sequence)
            places.append([])
            for block in self.layout.find_blocks(ids):
                same = found.setdefault(block.grid, [])
                places[-1].append((block.grid, len(same)))
                same.append((sample, self.layout.block_indices(ids, block)))
        pictures = {
            grid: self.decode_indices(torch.stack([indices for _, indices in same])) for grid, same in found.items()
        }
        return [[pictures[grid][number] for grid, number in sample] for sample in places]

    def caption_to_image(self, caption: str, indices: Tensor) -> Tensor:
        """Return BOS + caption + picture block + EOS (L,) int64: a sample for drawing."""
        return self.layout.caption_to_image(caption, self.image_block(indices))

    def image_to_caption(self, indices: Tensor, caption: str) -> Tensor:
        """Return BOS + picture block + caption + EOS (L,) int64: a sample for describing."""
        return self.layout.image_to_caption(self.image_block(indices), caption)

    def prompt_for_image(self, caption: str | None, grid: Sequence[int] | None = None) -> Tensor:
        """Return BOS + caption + block header (L,) int64, after which the first visual token is sampled.

        Args:
            caption: None for the unconditional prompt of guidance.
            grid: token grid of the picture; that of the image processor's size by default.
        """
        return self.layout.prompt_for_image(caption, self.grid if grid is None else grid)

    def prompt_for_caption(self, indices: Tensor) -> Tensor:
        """Return BOS + picture block (L,) int64, after which the caption is sampled."""
        return self.layout.prompt_for_caption(self.image_block(indices))

    def __call__(  # type: ignore[override]
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        padding: bool = False,
        padding_side: str = "right",
        add_special_tokens: bool = True,
        end_turn: bool = False,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Return `input_ids` and `attention_mask` of samples of text with `<image>` where pictures stand.

        Args:
            images: pictures of each sample, a list of lists; or one list, dealt out in order; or one picture.
            text: one sample or several; `<image>` alone for each picture's sample when not given.
            padding: fill all samples to the longest; needed for tensors of unequal samples.
            padding_side: "right", or "left" for generation.
            add_special_tokens: begin each sample with BOS.
            end_turn: end each sample with the layout's `end_of_turn_ids`, after which a model for chats answers.
            return_tensors: "pt" for int64 tensors (B, L); None for lists.
        """
        texts, pictures = deal_out(text, images, self.image_placeholder)
        flat = [picture for sample in pictures for picture in sample]
        blocks = iter([self.image_block(one) for one in self.encode_images(flat)] if flat else [])
        sequences = []
        for sample in texts:
            parts: list[Tensor | list[int]] = [self.layout.bos_ids if add_special_tokens else []]
            for number, piece in enumerate(sample.split(self.image_placeholder)):
                parts += [next(blocks)] if number else []
                parts.append(self.text_ids(piece) if piece else [])
            parts.append(self.layout.end_of_turn_ids if end_turn else [])
            sequences.append(self.layout.join(*parts))
        pad_id = self.layout.eos_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        return to_batch(sequences, pad_id, padding, padding_side, return_tensors)

    def check_model(self, model: PreTrainedModel) -> None:
        """Raise `UserError` unless the model's table, head and config have the vocabulary's rows."""
        rows = self.vocabulary.stop if self.merge is None else self.merge.rows
        check_rows(model, rows, exact=self.merge is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return what `processor_config.json` holds: layout, vocabulary, merge record, hash of the codec."""
        return {
            "processor_class": type(self).__name__,
            "layout": self.layout.config.to_dict(),
            "vocabulary": self.vocabulary.to_dict(),
            "merge": None if self.merge is None else asdict(self.merge),
            "codec_hash": self.codec_hash,
            "sampling": self.sampling,
        }

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write `processor_config.json`, whole or not at all."""
        save_text(self.to_json_string(), json_file_path)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Write text tokenizer, `processor_config.json` and the folder `visual_tokenizer/`.

        Raises:
            UserError: the codec's weights changed since the merge, for instance by a cast.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        if self.codec is not None:
            self.attach_codec(self.codec)  # checks the hash
            with whole_folder(folder / CODEC_FOLDER, existing="fill") as codec_folder:
                self.codec.save_pretrained(codec_folder)
                self.image_processor.save_pretrained(codec_folder)
        files = super().save_pretrained(str(folder))
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)
        return files

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, load_codec: bool = True, **kwargs: Any
    ) -> MultimodalProcessor:
        """Load what `save_pretrained` wrote, from a folder or a hub repository.

        Args:
            pretrained_model_name_or_path: the merged model's folder or repository.
            load_codec: False to leave the visual tokenizer on the disk, for work on token ids alone.
            **kwargs: `cache_dir`, `revision`, `token`, … as everywhere.

        Raises:
            MissingFileError: a local folder that is not there, or lacks a file.
            UserError: the folder is not that of a merged model, or holds a damaged file or another visual tokenizer
                than the merge's.
        """
        with loading(pretrained_model_name_or_path, "merged model", subfolder=kwargs.get("subfolder", "")):
            processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
            if load_codec:
                subfolder = os.path.join(kwargs.pop("subfolder", ""), CODEC_FOLDER)
                codec = VisualTokenizer.from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
                processor.attach_codec(codec)
        return processor

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Return the image processor, which lives with the codec, and the text tokenizer."""
        if not processor_dict or "layout" not in processor_dict:
            raise UserError(
                f"{pretrained_model_name_or_path} has no {PROCESSOR} with a layout: it is not a merged model. "
                "Make one with `mmlm merge`"
            )
        if "vocabulary" not in processor_dict:
            raise UserError(f"{pretrained_model_name_or_path}: {PROCESSOR} lacks vocabulary")
        subfolder = kwargs.pop("subfolder", "")
        image_processor = VisualTokenizerImageProcessor.from_pretrained(
            pretrained_model_name_or_path, subfolder=os.path.join(subfolder, CODEC_FOLDER), **kwargs
        )
        tokenizer = load_text_tokenizer(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        return [image_processor, tokenizer]
