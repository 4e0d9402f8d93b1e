"""Modules and names that plugins of version 0.1 may import, under the names they had then.

A module that moved is found under its former name, with a warning that names the new one; an error class that was
folded into `UserError` is given as that.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from visual_tokenizer.errors import MissingFileError, UserError

logger = logging.getLogger(__name__)

MODULES = {
    "mmlm.backbones._published": "mmlm.backbones.base",
    "mmlm.block_grammar": "mmlm.generation.block_grammar",
    "mmlm.chameleon_model": "mmlm.models.chameleon",
    "mmlm.cross_entropy": "mmlm.losses.cross_entropy",
    "mmlm.embeddings": "mmlm.models.embeddings",
    "mmlm.head_loss": "mmlm.losses.head_loss",
    "mmlm.image_text_model": "mmlm.scores.image_text_model",
    "mmlm.language_models": "mmlm.backbones.gguf",
    "mmlm.likelihood": "mmlm.scores.likelihood",
    "mmlm.lm_recipe": "mmlm.recipes.training",
    "mmlm.merge": "mmlm.merging.merge",
    "mmlm.mixture_recipe": "mmlm.recipes.mixture",
    "mmlm.picture_bank": "mmlm.scores.picture_bank",
    "mmlm.stopping": "visual_tokenizer.hf_training.stopping",
    "mmlm.subject": "mmlm.measures.base",
    "mmlm.text_perplexity": "mmlm.scores.text_perplexity",
    "mmlm.user_errors": "visual_tokenizer.errors",
    "visual_tokenizer.backbones._weights": "visual_tokenizer.layers.published_weights",
    "visual_tokenizer.checkpoints": "visual_tokenizer.runs.checkpoints",
    "visual_tokenizer.codebooks.relaxation": "visual_tokenizer.codebooks.annealing",
    "visual_tokenizer.data.sources._emoji_groups": "visual_tokenizer.data.emoji_groups",
    "visual_tokenizer.data.sources._files": "visual_tokenizer.data.files",
    "visual_tokenizer.data.sources._openmoji": "visual_tokenizer.data.openmoji",
    "visual_tokenizer.feature_cache": "visual_tokenizer.runs.feature_cache",
    "visual_tokenizer.kernel_distance": "visual_tokenizer.metrics.base",
    "visual_tokenizer.layers.attention_shape": "visual_tokenizer.layers.shape",
    "visual_tokenizer.layers.causal_shape": "visual_tokenizer.layers.shape",
    "visual_tokenizer.layers.chunk_causal": "visual_tokenizer.layers.causal_convolution",
    "visual_tokenizer.layers.level_shape": "visual_tokenizer.layers.shape",
    "visual_tokenizer.layers.positions": "visual_tokenizer.layers.transformer",
    "visual_tokenizer.layers.vit_shape": "visual_tokenizer.layers.shape",
    "visual_tokenizer.locations": "visual_tokenizer.runs.files",
    "visual_tokenizer.metrics._frechet": "visual_tokenizer.metrics.base",
    "visual_tokenizer.objective": "visual_tokenizer.training.objective",
    "visual_tokenizer.plots": "visual_tokenizer.evaluation.plots",
    "visual_tokenizer.processes": "visual_tokenizer.runs.processes",
    "visual_tokenizer.random_state": "visual_tokenizer.runs.random_state",
    "visual_tokenizer.run_folder": "visual_tokenizer.runs.folder",
    "visual_tokenizer.semantics._code_classes": "visual_tokenizer.semantics.base",
    "visual_tokenizer.semantics._pictures": "visual_tokenizer.semantics.base",
    "visual_tokenizer.token_lengths": "visual_tokenizer.outputs",
}
"""Former name of a module → where its contents are."""

NAMES = {
    "visual_tokenizer.metrics.base": {"NoDataError": "UserError"},
    "visual_tokenizer.backbones.base": {"UnsuitablePixelsError": "UserError", "WeightsMismatchError": "UserError"},
    "visual_tokenizer.convert.links": {"LayoutError": "UserError"},
    "visual_tokenizer.convert.sources.base": {"Source": "PublishedSource", "SourceConfig": "PublishedSourceConfig"},
    "visual_tokenizer.processing": {"InvalidImageError": "UserError", "InvalidPixelsError": "UserError"},
    "visual_tokenizer.modeling": {"PixelsError": "UserError"},
    "mmlm.layouts.base": {"GridError": "UserError"},
    "mmlm.backbones.base": {"Backbone": "LMBackbone", "BackboneConfig": "LMBackboneConfig"},
}
"""Module → former name in it → name there now."""


class _FormerModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module under its former name; asked last, so a module that is there goes first."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self) if name in MODULES else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        now = MODULES[spec.name]
        logger.warning("%s is now %s: change the plugin that imports it", spec.name, now)
        module, found = ModuleType(spec.name), importlib.import_module(now)

        def get(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            if not hasattr(found, name) and name.endswith("Error"):
                return MissingFileError if "NotFound" in name else UserError
            return getattr(found, name)

        module.__getattr__ = get  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: the contents are looked up where they are."""


_finder = _FormerModules()


def know_former_names(families: Sequence[str] = ()) -> None:
    """Let what is imported from here on find modules by their former names, and folded errors in their modules.

    Args:
        families: packages whose `base` is given the names that it had.
    """
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)
    for name, renamed in NAMES.items():
        if name in sys.modules or name.rpartition(".")[0] in families:
            module = importlib.import_module(name)
            for former, now in renamed.items():
                if not hasattr(module, former):
                    setattr(module, former, getattr(module, now))
