"""The architecture of a visual tokenizer, as a Hugging Face config."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from visual_tokenizer.decoders.base import DecoderConfig
from visual_tokenizer.encoders.base import EncoderConfig
from visual_tokenizer.quantizers.base import QuantizerConfig
from visual_tokenizer.registry import ConfigError, closest

_SECTIONS = {"encoder": EncoderConfig, "quantizer": QuantizerConfig, "decoder": DecoderConfig}
_DEFAULTS = {"encoder": {"type": "cnn"}, "quantizer": {"type": "fsq"}, "decoder": {"type": "cnn"}}
# Keys that transformers itself writes into config.json or passes to the constructor.
_FRAMEWORK_KEYS = {"architectures", "auto_map", "dtype", "transformers_version", "model_type", "name_or_path"}


class VisualTokenizerConfig(PreTrainedConfig):
    """Architecture of a `VisualTokenizer`.

    Args:
        image_size: nominal side of a picture in pixels; 1 or more.
        num_frames: frames of a nominal clip; 0 where pictures are tokenized.
        encoder: section `{"type": name, **fields}`; default VQGAN's CNN.
        quantizer: section; default FSQ with 1,000 codes.
        decoder: section; default VQGAN's CNN.

    Raises:
        ConfigError: an unknown key or a wrong value, naming the section, the key and the nearest valid one.
    """

    model_type = "visual_tokenizer"

    image_size: int = 256
    num_frames: int = 0
    encoder: Any = None
    quantizer: Any = None
    decoder: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        fields = ["image_size", "num_frames", *_SECTIONS]
        for key in kwargs:
            if key not in _FRAMEWORK_KEYS and not key.startswith("_") and not hasattr(PreTrainedConfig, key):
                raise ConfigError(
                    f"VisualTokenizerConfig: unknown key '{key}'; valid are {', '.join(fields)}.{closest(key, fields)}"
                )
        if not isinstance(self.image_size, int) or self.image_size < 1:
            raise ConfigError(f"image_size must be an integer of 1 or more (pixels), got {self.image_size!r}")
        if not isinstance(self.num_frames, int) or self.num_frames < 0:
            raise ConfigError(f"num_frames must be an integer of 0 (pictures) or more, got {self.num_frames!r}")
        for name, kind in _SECTIONS.items():
            section = getattr(self, name)
            part = kind.family.config(_DEFAULTS[name] if section is None else section)
            setattr(self, name, part.to_dict())
        super().__post_init__(**kwargs)
