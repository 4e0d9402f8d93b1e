"""The folder of a converted tokenizer: weights, config, processor, model card."""

from __future__ import annotations

import math
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from visual_tokenizer.convert.sources.base import PublishedSource
from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.processing import VisualTokenizerImageProcessor
from visual_tokenizer.runs.files import whole_folder

_TEMPLATE = """---
{header}
---

# {title}

The weights of {about}, converted with `python -m visual_tokenizer.convert`. Their licence is that of the original.

| | |
|---|---|
{facts}

{limits}

## Use

```python
from PIL import Image
from visual_tokenizer import VisualTokenizer
from visual_tokenizer.processing import VisualTokenizerImageProcessor

processor = VisualTokenizerImageProcessor.from_pretrained("path/to/this/folder")
tokenizer = VisualTokenizer.from_pretrained("path/to/this/folder")
pixels = processor(Image.open("picture.png"), return_tensors="pt").pixel_values
indices = tokenizer.encode(pixels)
```

Pictures are prepared as for the original model: the shorter side resized to {size} pixels ({filter}), the centre cut
out, values scaled to [-1, 1].
"""


def write_tokenizer(tokenizer: VisualTokenizer, source: PublishedSource, folder: Path) -> None:
    """Write what `VisualTokenizer.from_pretrained` loads, the published preprocessing, and a model card."""
    size = tokenizer.config.image_size
    processor = VisualTokenizerImageProcessor(size={"height": size, "width": size}, resample=source.resample)
    with whole_folder(folder, existing="fill") as unfinished:
        tokenizer.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
        conversion_card(tokenizer, source).save(unfinished / "README.md")


def conversion_card(tokenizer: VisualTokenizer, source: PublishedSource) -> ModelCard:
    """Describe converted weights."""
    config, grid = tokenizer.config, tokenizer.token_grid()
    has_decoder = config.decoder["type"] != "absent"
    facts = {
        "Source": f"`{source.config.type}`",
        "Encoder": f"`{config.encoder['type']}`",
        "Quantizer": f"`{config.quantizer['type']}`",
        "Decoder": f"`{config.decoder['type']}`" if has_decoder else "none",
        "Codebook size": f"{tokenizer.codebook_size:,}",
        "Tokens a picture": f"{math.prod(grid)} ({' × '.join(map(str, grid))}) at {config.image_size} pixels",
        "Parameters": f"{sum(parameter.numel() for parameter in tokenizer.parameters()):,}",
    }
    limits = (
        "" if has_decoder else "These weights hold no decoder: the tokenizer encodes, and `decode` raises an error."
    )
    header = ModelCardData(library_name="transformers", tags=["visual-tokenizer", source.config.type])
    return ModelCard(
        _TEMPLATE.format(
            header=header.to_yaml(),
            title=f"Visual tokenizer of {source.about.split(' (')[0]}",
            about=source.about,
            facts="\n".join(f"| {name} | {value} |" for name, value in facts.items()),
            limits=limits,
            size=config.image_size,
            filter=source.resample.name.lower(),
        )
    )
