"""Classes by their names alone.

Paper: Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021), arXiv:2103.00020,
section 3.1.2, with a linear map from tokens to a frozen text encoder's space in place of a trained alignment.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn import functional as F

from visual_tokenizer.errors import UserError
from visual_tokenizer.semantics._text_space import to_text_space
from visual_tokenizer.semantics.base import SemanticData, SemanticMeasure, SemanticMeasureConfig


@dataclass(kw_only=True)
class ZeroShotConfig(SemanticMeasureConfig):
    """Fields of zero-shot classification."""

    prompt: str = "a drawing of {}"
    """Sentence about a class; `{}` stands for its name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if "{}" not in self.prompt:
            raise UserError(f"prompt must hold {{}}, where the class is put, got {self.prompt!r}")


class ZeroShot(SemanticMeasure):
    """Accuracy of the class whose name is most cosine-similar, as `zero_shot_accuracy_…`.

    The map to the text encoder's space is the one of `text_retrieval`, fitted on captions: no class is seen. The
    training captions' mean is subtracted from both sides.
    """

    Config = ZeroShotConfig
    needs = ("labels", "captions")

    def measure(self, data: SemanticData) -> dict[str, float]:
        """Return the accuracy of each view and, as chance, the share of the commonest class."""
        sentences = [self.config.prompt.replace("{}", name) for name in data.classes]
        assert data.text_encoder is not None  # there are captions
        names = data.text_encoder(sentences).double().cpu()
        wanted = data.class_numbers(data.heldout)
        values = {"zero_shot_accuracy_chance": data.majority_share}
        texts = data.train.texts.double()
        names = F.normalize(names - texts.mean(0), dim=1)
        for name, view in data.views.items():
            found = (F.normalize(to_text_space(view, texts), dim=1) @ names.T).argmax(1)
            values[f"zero_shot_accuracy_{name}"] = (found == wanted).double().mean().item()
        return values
