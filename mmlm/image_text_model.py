"""Models of pictures and texts in one space, such as CLIP and SigLIP, from a folder or the hub."""

from __future__ import annotations

import torch
from transformers import AutoModel, AutoProcessor

from mmlm.generation.best_of import ImageTextSimilarity
from visual_tokenizer.backbones.base import MissingWeightsError
from visual_tokenizer.errors import UserError
from visual_tokenizer.runs.files import require_folder


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
    require_folder(name, "a transformers model of pictures and texts")
    try:
        with torch.random.fork_rng(devices=[]):
            model, info = AutoModel.from_pretrained(
                name, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
        is_both = hasattr(model, "get_image_features") and hasattr(model, "get_text_features")
        processor = AutoProcessor.from_pretrained(name) if is_both else None
    except (OSError, ValueError) as error:
        raise MissingWeightsError(
            f"weights: no transformers model of pictures and texts '{name}' on this machine or the hub; put "
            "config.json, model.safetensors, preprocessor_config.json and the tokenizer's files into a folder and give "
            "the folder as `weights` (where there is a network: `hf download openai/clip-vit-base-patch32 --local-dir "
            "FOLDER`, or google/siglip-base-patch16-224)"
        ) from error
    if processor is None:
        raise UserError(
            f"weights must name a model of pictures and texts (CLIP, SigLIP), '{name}' is {type(model).__name__}"
        )
    if lacking := sorted(map(str, info["missing_keys"])):
        raise UserError(f"weights: the checkpoint of '{name}' lacks {', '.join(lacking[:3])}")
    return ImageTextSimilarity(model.requires_grad_(False).to(device), processor)
