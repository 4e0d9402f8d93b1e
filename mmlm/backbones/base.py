"""What every source of a language model has in common."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from mmlm.layouts.base import LayoutConfig
from mmlm.processing import MultimodalProcessor
from mmlm.vocabulary import VisualVocabulary
from visual_tokenizer.convert import load_published
from visual_tokenizer.convert.conversion import build_source
from visual_tokenizer.errors import UserError
from visual_tokenizer.processing import VisualTokenizerImageProcessor
from visual_tokenizer.registry import PartConfig, UnknownPartError
from visual_tokenizer.runs.saved_models import load_text_tokenizer, load_whole

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(kw_only=True)
class LMBackboneConfig(PartConfig, package="mmlm.backbones"):
    """Fields that every source has."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights."""


class LMBackbone:
    """Gives a causal language model and its text tokenizer."""

    Config: ClassVar[type[LMBackboneConfig]]

    def __init__(self, config: LMBackboneConfig) -> None:
        self.config: Any = config

    @property
    def torch_dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return DTYPES[self.config.dtype]

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Return the model, in eval mode on the CPU, and its text tokenizer.

        Raises:
            MissingFileError: it is not there.
        """
        raise NotImplementedError


PART = LMBackbone


@dataclass(kw_only=True)
class PublishedConfig(LMBackboneConfig):
    """Which multimodal model: a folder or hub name in transformers' layout."""

    path: str
    """Folder, or name on the hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null: the newest."""


class PublishedBackbone(LMBackbone):
    """A published multimodal model, whose vocabulary holds visual tokens already.

    A subclass sets the classes and the sampling of the published code, and says what is where.
    """

    whole_class: ClassVar[type[PreTrainedModel]]
    """transformers' class of language model and visual tokenizer together."""
    source: ClassVar[str]
    """Name of the visual tokenizer's source in `visual_tokenizer.convert`."""
    sampling: ClassVar[dict[str, float]]
    """How the published code draws."""

    def language_model(self, whole: PreTrainedModel) -> PreTrainedModel:
        """Return the language model, which learns and draws visual tokens; weights are shared with `whole`."""
        raise NotImplementedError

    def visual_weights(self, whole: Any) -> nn.Module:
        """Return the visual tokenizer's module in `whole`."""
        return whole.model.vqmodel

    def layout(self, grid: tuple[int, ...]) -> LayoutConfig:
        """Return the published layout for pictures of this token grid."""
        raise NotImplementedError

    def table(self, names: dict[str, int]) -> list[int]:
        """Return the ids of the visual tokens in index order, from the published vocabulary."""
        raise NotImplementedError

    def decoder(self) -> str | None:
        """Return where the visual tokenizer's decoder is, if it is published by itself."""
        return None

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        whole, tokenizer = self.read()
        return self.language_model(whole).eval(), tokenizer

    def load_multimodal(self) -> tuple[PreTrainedModel, MultimodalProcessor]:
        """Return the model, in eval mode on the CPU, and the processor with its visual tokenizer.

        Raises:
            UserError: the visual tokenizer's weights are not those of the source.
        """
        return self.adopt(*self.read(), decoder=self.decoder())

    def read(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Return transformers' whole model and its text tokenizer.

        Raises:
            MissingFileError: it is not there.
        """
        options = {} if self.config.revision is None else {"revision": self.config.revision}
        kind: Any = self.whole_class
        whole, _ = load_whole(
            kind.from_pretrained,
            self.config.path,
            f"{kind.__name__} with safetensors weights",
            model_type=kind.config_class.model_type,
            dtype=self.torch_dtype,
            **options,
        )
        return whole, load_text_tokenizer(self.config.path, **options)

    def adopt(
        self, whole: Any, tokenizer: PreTrainedTokenizerBase, decoder: Any = None
    ) -> tuple[PreTrainedModel, MultimodalProcessor]:
        """Return model and processor of a published model that is in memory; see `load_multimodal`."""
        codec = load_published(self.visual_weights(whole), source=self.source, decoder=decoder)
        names = whole.config.vocabulary_map or tokenizer.get_vocab()
        processor = MultimodalProcessor(
            VisualTokenizerImageProcessor(size=codec.config.image_size, resample=build_source(self.source).resample),
            tokenizer,
            layout=self.layout(codec.token_grid(None, None, 0)),
            vocabulary=VisualVocabulary(table=self.table(names)),
            codec=codec,
            sampling=self.sampling,
        )
        model = self.language_model(whole).eval()
        processor.check_model(model)
        return model, processor


def with_weights(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, weights: dict[str, Tensor]
) -> PreTrainedModel:
    """Return a model of that config that holds these very tensors, none copied; all must be there, and no other."""
    with init_empty_weights(include_buffers=False):
        model = model_class(config)
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if config.tie_word_embeddings else set()
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    if set(missing) - tied or unexpected:
        raise UserError(f"weights do not fit {model_class.__name__}: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model


def published_backbone(section: Any) -> PublishedBackbone:
    """Return the backbone of a section or config.

    Raises:
        UnknownPartError: no such backbone, or one whose model has no visual tokens of its own.
    """
    backbone = LMBackboneConfig.family.build(section)
    if not isinstance(backbone, PublishedBackbone):
        raise UnknownPartError(
            f"'{backbone.config.type}' gives a language model without visual tokens: merge it with a visual tokenizer"
        )
    return backbone


def load_published_lm(
    weights: str | os.PathLike[str] | PreTrainedModel,
    source: str,
    *,
    text_tokenizer: PreTrainedTokenizerBase | None = None,
    decoder: Any = None,
    **fields: Any,
) -> tuple[PreTrainedModel, MultimodalProcessor]:
    """Return a published model's language model, an ordinary causal LM, and a processor with its visual tokenizer.

    Both are saved with `save_pretrained` and loaded again as those of a merge are.

    Args:
        weights: a folder or hub name in transformers' layout, or transformers' module, whose tensors are then shared.
        source: chameleon or emu3.
        text_tokenizer: of a module.
        decoder: where the visual tokenizer's decoder is published by itself (chameleon): what
            `visual_tokenizer.convert.load_published` takes.
        **fields: of the backbone's config, such as `dtype` and `revision`.

    Raises:
        ValueError: a module without its text tokenizer.
    """
    if isinstance(weights, nn.Module):
        if text_tokenizer is None:
            raise UserError("text_tokenizer must be given where weights is a module")
        backbone = published_backbone({"type": source, "path": weights.name_or_path, **fields})
        return backbone.adopt(weights, text_tokenizer, decoder)
    backbone = published_backbone({"type": source, "path": os.fspath(weights), **fields})
    whole, tokenizer = backbone.read()
    return backbone.adopt(whole, text_tokenizer or tokenizer, decoder or backbone.decoder())
