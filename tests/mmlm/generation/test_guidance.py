from __future__ import annotations

import pytest
import torch

from mmlm.generation.constraints import LayoutConstraint
from mmlm.generation.guidance import ClassifierFreeGuidance, guide
from mmlm.generation.loop import continue_sequences
from mmlm.generation.sampling import RowSampler, row_uniforms

GRID = (2, 4)


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 3.0, 7.5])
def test_guide_is_the_formula(scale):
    conditional, unconditional = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    wanted = unconditional + scale * (conditional - unconditional)
    torch.testing.assert_close(guide(conditional, unconditional, scale), wanted)


def test_both_halves_get_the_guided_scores():
    scores = torch.tensor([[1.0, 2.0], [0.0, 5.0]])
    guided = ClassifierFreeGuidance(3.0)(torch.zeros(2, 1, dtype=torch.int64), scores)
    assert guided.tolist() == [[3.0, -4.0], [3.0, -4.0]]


def test_an_odd_batch_is_refused():
    with pytest.raises(ValueError, match="got 3 in all"):
        ClassifierFreeGuidance(2.0)(torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3, 4))


class Recorder(ClassifierFreeGuidance):
    """Keeps what guidance made at each step."""

    def __init__(self, scale):
        super().__init__(scale)
        self.guided = []

    def __call__(self, input_ids, scores):
        self.guided.append(super().__call__(input_ids, scores))
        return self.guided[-1]


def test_guided_scores_equal_two_separate_passes_without_cache_or_padding(merged):
    model, processor = merged
    layout = processor.layout
    prompts = ["a red dog", "a yellow house near the sea"]
    rows = [layout.prompt_for_image(text, GRID) for text in prompts]
    null = layout.prompt_for_image(None, GRID)
    assert len({len(null), *map(len, rows)}) == 3  # so that padding matters
    length = max(map(len, rows))
    guidance = Recorder(2.5)
    uniforms = torch.stack([row_uniforms(0, text, 0, 10) for text in prompts])
    chain = [guidance, LayoutConstraint(layout, GRID, length), RowSampler(uniforms, length)]
    tokens = continue_sequences(model, [*rows, null, null], chain, 10, pad_id=layout.eos_id)
    assert torch.equal(tokens[:2], tokens[2:])
    with torch.no_grad():
        for row in range(2):
            for step in range(10):
                drawn = tokens[row, :step]
                conditional = model(torch.cat([rows[row], drawn])[None]).logits[0, -1]
                unconditional = model(torch.cat([null, drawn])[None]).logits[0, -1]
                wanted = unconditional + 2.5 * (conditional - unconditional)
                torch.testing.assert_close(guidance.guided[step][row], wanted, atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(guidance.guided[step][row + 2], wanted, atol=1e-4, rtol=1e-4)
