"""The sets of a recipe: pictures with captions, in one size or several, or the members of a mixture."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from pathlib import Path

import datasets
import torch
from accelerate import PartialState

from mmlm.data.document_sequences import DocumentSequences
from mmlm.data.document_shards import DocumentRows, DocumentShards
from mmlm.data.mixture import MixtureSequences, SequencesInTurn, StagedSequences
from mmlm.data.pair_shards import PairShards
from mmlm.data.picture_indices import IndicesOnTheFly
from mmlm.data.shards import ShardError
from mmlm.data.tokenization import open_shards
from mmlm.documents.pictures import PicturesConfig
from mmlm.processing import MultimodalProcessor
from mmlm.recipes.mixture import DocumentLimits, MixtureMember, member_names
from mmlm.recipes.training import LMDataSection
from visual_tokenizer.encoders.base import ResolutionError
from visual_tokenizer.registry import ConfigError


def sets_of(processor: MultimodalProcessor, data: LMDataSection, *, is_heldout: bool = False) -> list[DocumentShards]:
    """Return the sets that training reads: one a member of the mixture, or one a size of the pictures; evaluation is
    at the last size. Nothing is tokenized yet.
    """
    split = data.heldout_split if is_heldout else data.train_split
    folder = Path(data.shards_dir)
    if data.source is None:
        sets = []
        for name, member in zip(member_names(data.mixture), data.mixture, strict=True):
            limits = replace(member.limits, max_tokens=member.limits.max_tokens or data.max_length)
            limited = replace(member, limits=limits)
            sets.append(DocumentShards(processor, limited, split, folder / name / split, name))
        return sets
    documents = PicturesConfig(
        source=data.source,
        image_to_text_fraction=data.image_to_text_fraction,
        caption_dropout=data.caption_dropout,
        loss_on_prompt=data.loss_on_prompt,
    )
    pairs = MixtureMember(documents=documents, limits=DocumentLimits(max_text_tokens=data.max_caption_tokens))
    sizes = [stage.image_size for stage in data.resolutions][-1 if is_heldout else 0 :]
    readers = [(at_size(processor, size), folder / f"{size}px") for size in sizes] or [(processor, folder)]
    return [PairShards(reader, pairs, split, own / split, "data.source") for reader, own in readers]


def at_size(processor: MultimodalProcessor, image_size: int) -> MultimodalProcessor:
    """Return a processor that shares everything but reads pictures at another size, in pixels.

    Raises:
        ConfigError: the visual tokenizer cannot take that size.
    """
    codec = processor.codec
    if codec is not None:
        try:
            with torch.no_grad():
                codec.encode(torch.zeros(1, 3, image_size, image_size, device=codec.device, dtype=codec.dtype))
        except ResolutionError as error:
            raise ConfigError(
                f"data.resolutions.image_size must be a size that the visual tokenizer takes, got {image_size}: {error}"
            ) from error
    resized = copy.copy(processor)
    resized.image_processor = copy.deepcopy(processor.image_processor)
    size = {"height": image_size, "width": image_size}
    resized.image_processor.size = resized.image_processor.crop_size = size
    return resized


def training_sequences(
    processor: MultimodalProcessor, data: LMDataSection, *, seed: int, batch_size: int
) -> DocumentSequences | StagedSequences | MixtureSequences:
    """Return the sequences of the training split, tokenizing what is not there."""
    sets = sets_of(processor, data)
    if data.mixture:
        members = [_sequences(one, open_set(one, data), data, seed=seed + number) for number, one in enumerate(sets)]
        return MixtureSequences(members, [member.weight for member in data.mixture], seed=seed)
    stages = [_sequences(one, open_set(one, data), data, seed=seed) for one in sets]
    ends = [stage.until_step * batch_size for stage in data.resolutions if stage.until_step is not None]
    return StagedSequences(stages, ends) if ends else stages[0]


def heldout_sequences(processor: MultimodalProcessor, data: LMDataSection, *, seed: int) -> SequencesInTurn:
    """Return each held-out document once; sets that hold nothing out have none.

    Raises:
        ShardError: no set holds anything out.
    """
    opened = [(one, open_set(one, data)) for one in sets_of(processor, data, is_heldout=True)]
    found = [_sequences(one, shards, data, seed=seed, is_heldout=True) for one, shards in opened if len(shards)]
    if not found:
        raise ShardError("data: no set has held-out documents: set training.evaluate_every_steps to 0")
    return SequencesInTurn(found)


def open_set(one: DocumentShards, data: LMDataSection, *, verify: bool = False) -> datasets.Dataset:
    """Return the shards of a set, tokenized now, or repaired, as a recipe's data section says."""
    return open_shards(one, batch_size=data.tokenize_batch_size, loader_workers=data.loader_workers, verify=verify)


def _sequences(
    one: DocumentShards, shards: datasets.Dataset, data: LMDataSection, *, seed: int, is_heldout: bool = False
) -> DocumentSequences:
    rows = one.rows(shards)
    layout = one.processor.layout
    sequences = DocumentSequences(
        rows, layout, one.source, name=one.name, seed=seed, shuffle=not is_heldout, is_heldout=is_heldout
    )
    if isinstance(rows, DocumentRows) and one.is_on_the_fly:
        sequences.indices = IndicesOnTheFly(one, rows, data.loader_workers)
    return sequences


def tokenizes_on_the_fly(data: LMDataSection) -> bool:
    """Return whether training needs the visual tokenizer."""
    return any(member.tokenization == "on_the_fly" for member in data.mixture)


def place_codec(processor: MultimodalProcessor, device: torch.device) -> None:
    """Bring the visual tokenizer to the device of the process that trains and makes the items."""
    if processor.codec is not None:
        torch.nn.Module.to(processor.codec, device)


def tokenize_sets(model: str, data: LMDataSection, *, with_heldout: bool) -> None:
    """Tokenize what is not there of the sets of a data section, verify and repair what is, and print their sizes.

    Args:
        model: folder of the merged model.
        data: the section.
        with_heldout: also the held-out parts.
    """
    processor = MultimodalProcessor.from_pretrained(model)
    is_launched = int(os.environ.get("LOCAL_RANK", -1)) >= 0  # only a launcher sets it
    on_cpu = not torch.accelerator.is_available()
    state = PartialState(**({"cpu": True, "backend": "gloo"} if on_cpu and is_launched else {"cpu": on_cpu}))
    for is_heldout in (False, True) if with_heldout else (False,):
        for one in sets_of(processor, data, is_heldout=is_heldout):
            state.print(f"{one.folder}: {len(open_set(one, data, verify=True))} {one.items}")
