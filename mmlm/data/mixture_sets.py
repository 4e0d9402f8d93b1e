"""The sets of a recipe's mixture: shards, made if they are not there, and the sequences in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import torch
from torch.utils.data import ConcatDataset, Dataset

from mmlm.data.document_sequences import DocumentSequences
from mmlm.data.mixture import MixtureSequences
from mmlm.data.picture_indices import IndicesOnTheFly
from mmlm.data.shards import ShardError
from mmlm.data.tokenize_documents import document_shards_of, refuse_stream
from mmlm.documents.base import DocumentSource, DocumentSourceConfig
from mmlm.lm_recipe import LMRecipe
from mmlm.mixture_recipe import MixtureMember, member_names
from mmlm.processing import MultimodalProcessor


def iter_shards(
    processor: MultimodalProcessor, recipe: LMRecipe, split: str, *, verify: bool = False
) -> Iterator[tuple[str, MixtureMember, datasets.Dataset]]:
    """Yield name, member and shards of a split of each member of the recipe's mixture, tokenized now if need be.

    Args:
        processor: with its visual tokenizer.
        recipe: its data section is read.
        split: "train", "heldout" or "all".
        verify: read all shards, compare their checksums, and make damaged ones again.

    Raises:
        UserError: a folder holds other shards.
    """
    data = recipe.data
    for name, member in zip(member_names(data.mixture), data.mixture, strict=True):
        shards = document_shards_of(
            processor,
            member,
            split,
            Path(data.shards_dir) / name / split,
            max_length=data.max_length,
            batch_size=data.tokenize_batch_size,
            loader_workers=data.loader_workers,
            verify=verify,
        )
        yield name, member, shards


def training_mixture(processor: MultimodalProcessor, recipe: LMRecipe) -> MixtureSequences:
    """Return the sequences of the training split of the recipe's mixture.

    Raises:
        ShardError: a member has no documents.
    """
    seed = recipe.training.seed
    found = [
        _sequences(processor, recipe, recipe.data.train_split, name, member, shards, seed=seed + number)
        for number, (name, member, shards) in enumerate(iter_shards(processor, recipe, recipe.data.train_split))
    ]
    return MixtureSequences(found, [member.weight for member in recipe.data.mixture], seed=seed)


class HeldoutDocuments(ConcatDataset):
    """The held-out documents of all members, one after another."""

    def check_length(self, max_positions: int) -> None:
        """Raise `UserError` if a document has more than `max_positions` tokens."""
        for part in self.datasets:
            part.check_length(max_positions)  # type: ignore[attr-defined]


def heldout_documents(processor: MultimodalProcessor, recipe: LMRecipe) -> HeldoutDocuments:
    """Return each held-out document of the recipe's mixture once; members that hold nothing out have none.

    Raises:
        ShardError: no member holds anything out.
    """
    split = recipe.data.heldout_split
    found: list[Dataset] = [
        _sequences(processor, recipe, split, name, member, shards, seed=recipe.training.seed, is_heldout=True)
        for name, member, shards in iter_shards(processor, recipe, split)
        if len(shards)
    ]
    if not found:
        raise ShardError("data.mixture: no member has held-out documents: set training.evaluate_every_steps to 0")
    return HeldoutDocuments(found)


def _sequences(
    processor: MultimodalProcessor,
    recipe: LMRecipe,
    split: str,
    name: str,
    member: MixtureMember,
    shards: datasets.Dataset,
    *,
    seed: int,
    is_heldout: bool = False,
) -> DocumentSequences:
    source: DocumentSource = DocumentSourceConfig.family.build(member.documents)
    sequences = DocumentSequences(
        shards, processor.layout, source, name=name, seed=seed, shuffle=not is_heldout, is_heldout=is_heldout
    )
    if member.tokenization == "on_the_fly":
        encoded = source.load_encoded(split)
        refuse_stream(encoded, member)
        sequences.indices = IndicesOnTheFly(processor, source, encoded, sequences.rows, recipe.data.loader_workers)
    return sequences


def place_codec(processor: MultimodalProcessor, recipe: LMRecipe, device: torch.device) -> bool:
    """Return whether training needs the visual tokenizer, which then goes to `device`: items are made by the process
    that trains, not by loader processes, which could not use its device."""
    is_needed = any(member.tokenization == "on_the_fly" for member in recipe.data.mixture)
    if is_needed and processor.codec is not None:
        torch.nn.Module.to(processor.codec, device)
    return is_needed
