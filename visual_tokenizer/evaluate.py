"""Entry point: `accelerate launch -m visual_tokenizer.evaluate --model DIR`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge

from visual_tokenizer.backbones.base import frames_as_pictures
from visual_tokenizer.data.batches import DataSection, PictureSet, with_data_of_model
from visual_tokenizer.data.sources.base import SourceConfig, Split
from visual_tokenizer.errors import UserError, program
from visual_tokenizer.evaluation.code_gallery import gallery_page
from visual_tokenizer.evaluation.comparison import ComparisonRecipe, compare
from visual_tokenizer.evaluation.meaning import MeasuredPictures, measure_semantics, semantic_table
from visual_tokenizer.evaluation.meaning_recipe import SemanticSection, with_semantic
from visual_tokenizer.evaluation.plots import reconstruction_grid, save_picture
from visual_tokenizer.evaluation.reconstruction import measure_reconstruction, reconstruct, token_bits
from visual_tokenizer.fields.ranges import Section
from visual_tokenizer.metrics.base import MetricConfig
from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.recipe import parse_arguments, provenance
from visual_tokenizer.runs.files import save_text
from visual_tokenizer.runs.processes import build_accelerator, on_first_process

PROGRAM = "python -m visual_tokenizer.evaluate"

ABOUT = """\
Measure how well a visual tokenizer reconstructs a set of pictures or clips. These come from the recipe.yaml beside
the weights unless --data says otherwise. The result does not depend on the number of processes or the batch size.
With --semantic, measure what the tokens mean too, where the pictures have classes or captions: what is fitted is
fitted on the split train and measured on heldout; a page shows codes with the pictures that use them.
With --compare, lay reports (or the folders of models that hold one) side by side, if they were measured alike.

Examples:
  accelerate launch -m visual_tokenizer.evaluate --model run/openmoji/final
  python -m visual_tokenizer.evaluate --model DIR --split all \\
    --data.source.type image_folder --data.source.folder pictures
  python -m visual_tokenizer.evaluate --model DIR --metrics "[psnr, ssim]" --output results.json
  python -m visual_tokenizer.evaluate --model DIR --metrics "[{type: fid, weights: FILE}, lpips, ms_ssim]"
  python -m visual_tokenizer.evaluate --model DIR --data.source.type rendered_text --metrics "[text_fidelity]"
  python -m visual_tokenizer.evaluate --model DIR --semantic
  python -m visual_tokenizer.evaluate --model DIR --semantic --semantic.label subgroup --semantic_page codes.html
  python -m visual_tokenizer.evaluate --compare "[DIR_A, DIR_B, report.json]" --output comparison"""


@dataclass(kw_only=True)
class TokenizerEvaluationRecipe(Section):
    """What is measured, on what."""

    model: str
    """Folder or hub name of a visual tokenizer."""

    data: DataSection = field(default_factory=DataSection)
    """Pictures; by default those of the recipe.yaml in the folder of the model. The crop is the centre."""

    split: Split = "heldout"
    """Part of the pictures."""

    image_size: Annotated[int, Ge(1)] | None = None
    """Side of a picture in pixels; null: the nominal size of the model."""

    max_pictures: Annotated[int, Ge(1)] | None = None
    """At most so many pictures of the split; null for all."""

    batch_size: Annotated[int, Ge(1)] = 32
    """Pictures of one pass on one process."""

    metrics: list[Any] = field(
        default_factory=lambda: ["feature_distance", "perceptual_distance", "psnr", "ssim", "codebook_usage"]
    )
    """Names of metrics, or mappings of `type` and fields; the use of the codebook is always measured."""

    sample_pictures: Annotated[int, Ge(0)] = 32
    """Pictures on the grid beside the results; 0 for no grid."""

    output: str | None = None
    """JSON file of the results; null: `evaluation-SPLIT.json` in the folder of the model. The grid is beside it."""

    semantic: SemanticSection | None = None
    """What the tokens mean: `--semantic`, or any of these keys; null: not measured."""

    semantic_page: str | None = None
    """HTML file that shows what codes mean; null: beside the results."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.semantic_page is not None and self.semantic is None:
            raise UserError(f"semantic_page must be null without --semantic, got {self.semantic_page!r}")
        MetricConfig.family.configs(self.metrics, "metrics", is_repeatable=True)
        if self.output is None and not Path(self.model).is_dir():
            raise UserError(f"output must name a file, because the model {self.model!r} is not a directory here")


def evaluate(recipe: TokenizerEvaluationRecipe) -> dict[str, Any]:
    """Measure, write the JSON file and the grid, and return what the file holds."""
    accelerator = build_accelerator()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    tokenizer = VisualTokenizer.from_pretrained(recipe.model, dtype=torch.float32).eval()
    tokenizer.to(accelerator.device)
    image_size = recipe.image_size or tokenizer.config.image_size
    frames = recipe.data.source.clip_frames
    tokenizer.token_grid(image_size, image_size, frames)  # refuses what the model can't take
    source = SourceConfig.family.build(recipe.data.source)

    def pictures(most: int | None, process: int = 0, processes: int = 1) -> PictureSet:
        part: dict[str, Any] = {"max_pictures": most, "process": process, "processes": processes}
        return PictureSet(source, recipe.split, recipe.data, image_size=image_size, **part)

    own = pictures(recipe.max_pictures, accelerator.process_index, accelerator.num_processes)
    batches = own.batches(recipe.batch_size)
    found = measure_reconstruction(tokenizer, batches, recipe.metrics, accelerator.device)
    bits = token_bits(tokenizer, found.tokens)
    # Not in the report: processes and batch size, which change nothing.
    protocol = {
        "split": recipe.split,
        "source": recipe.data.source.to_dict(),
        "resize_filter": recipe.data.transform.resize_filter,
        "crop": "center",
        "image_size": image_size,
        "frames": frames,
        "pictures": found.pictures,
        "reconstruction": "decode(encode(pixels)), clamped and rounded to 8 bits",
        "arithmetic": "float32",
        "metrics": found.protocol,
    }
    meaning = None
    if recipe.semantic is not None:
        shown = MeasuredPictures(source, recipe.data, recipe.semantic.max_pictures, image_size, recipe.batch_size)
        meaning = measure_semantics(tokenizer, shown, recipe.semantic, accelerator)
    report = {
        "model": recipe.model,
        "metrics": found.values,
        "tokens_per_picture": found.tokens,
        "codebook_size": tokenizer.codebook_size,
        "bits_per_picture": bits,
        "bits_per_pixel": bits / found.pixels,
        "protocol": protocol,
        **({} if meaning is None else {"semantic": meaning.entry()}),
        **provenance(),
    }
    output = Path(recipe.output or Path(recipe.model) / f"evaluation-{recipe.split}.json")

    def write() -> None:
        save_text(json.dumps(report, indent=1) + "\n", output)
        if recipe.sample_pictures:
            samples = next(pictures(recipe.sample_pictures).batches(recipe.sample_pictures))
            pixels = samples["pixels"].to(accelerator.device)
            _, reconstruction = reconstruct(tokenizer, pixels)
            shown, made = (frames_as_pictures(batch)[: recipe.sample_pictures] for batch in (pixels, reconstruction))
            save_picture(reconstruction_grid(shown, made), output.with_suffix(".png"))
        if meaning is not None and recipe.semantic is not None and recipe.semantic.codes_shown:
            page = gallery_page(f"Codes of {recipe.model}", tokenizer, meaning, recipe.semantic)
            save_text(page, Path(recipe.semantic_page or output.with_suffix(".html")))

    on_first_process(accelerator, write)
    if accelerator.is_main_process:
        print(json.dumps({"metrics": found.values, "written": str(output)}, indent=1))
        if meaning is not None:
            print(f"\n{meaning.summary()}\n\n{semantic_table(meaning.values)}")
            for name, why in meaning.left_out.items():
                print(f"{name} was left out: {why}")
    accelerator.end_training()
    return report


@program(PROGRAM)
def main(arguments: Sequence[str]) -> int:
    """Evaluate by the command line's arguments; return 0, or 2 where the user has to put something right."""
    words = list(arguments)
    if any(word.partition("=")[0] == "--compare" for word in words):
        print(compare(parse_arguments(ComparisonRecipe, words, program=PROGRAM, about=ABOUT)))
    else:
        words = with_semantic(with_data_of_model(words))
        recipe = parse_arguments(TokenizerEvaluationRecipe, words, program=PROGRAM, about=ABOUT)
        evaluate(recipe)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
