"""Models of pictures and texts in one space, such as CLIP and SigLIP, from a folder or the hub."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModel, AutoProcessor

from mmlm.generation.best_of import ImageTextSimilarity
from visual_tokenizer.backbones.base import MissingWeightsError
from visual_tokenizer.errors import MissingFileError, UserError
from visual_tokenizer.runs.saved_models import FAULTS_OF_A_PART, load_whole, loading, require_vocabulary


def load_image_text_model(name: str, device: torch.device | str = "cpu") -> ImageTextSimilarity:
    """Return the scorer of a transformers model that has features of pictures and of texts, in float32.

    Args:
        name: folder with config.json, model.safetensors, preprocessor_config.json and the tokenizer's files, or the
            model's name on the hub.
        device: where it runs.

    Raises:
        FileNotFoundError: a path where nothing is.
        MissingWeightsError: neither this machine nor the hub has the model or its processor; the message says what to
            download.
        UserError: it is a model of another kind, or its checkpoint lacks weights.
    """
    what = "transformers model of pictures and texts"
    try:
        with torch.random.fork_rng(devices=[]):
            model, _ = load_whole(
                AutoModel.from_pretrained,
                name,
                what,
                refused=FAULTS_OF_A_PART,
                dtype=torch.float32,
                trust_remote_code=False,
            )
        is_both = hasattr(model, "get_image_features") and hasattr(model, "get_text_features")
        processor = None
        if is_both:
            with loading(name, what):
                processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
                require_vocabulary(processor.tokenizer, Path(name))
    except MissingFileError as error:
        raise MissingWeightsError(
            f"weights: {error}; put config.json, model.safetensors, preprocessor_config.json and the tokenizer's files "
            "into a folder and give the folder as `weights` (where there is a network: `hf download "
            "openai/clip-vit-base-patch32 --local-dir FOLDER`, or google/siglip-base-patch16-224)"
        ) from error
    if processor is None:
        raise UserError(
            f"weights must name a model of pictures and texts (CLIP, SigLIP), '{name}' is {type(model).__name__}"
        )
    return ImageTextSimilarity(model.requires_grad_(False).to(device), processor)
