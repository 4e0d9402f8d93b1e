from __future__ import annotations

import pytest
import torch

from visual_tokenizer.metrics.base import kernel_distance


def test_it_is_the_unbiased_estimate_term_by_term():
    first, second = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [2.0, 0.0], [0.0, 0.0]])

    def kernel(x, y):
        return (float(x @ y) / 2 + 1) ** 3

    within = kernel(first[0], first[1])
    others = [kernel(second[i], second[j]) for i in range(3) for j in range(3) if i != j]
    between = [kernel(x, y) for x in first for y in second]
    wanted = within + sum(others) / 6 - 2 * sum(between) / 6
    assert kernel_distance(first, second) == pytest.approx(wanted)
    assert kernel_distance(second, first) == pytest.approx(wanted)


def test_its_mean_over_equal_distributions_is_zero_at_any_count():
    generator = torch.Generator().manual_seed(0)
    for count in (4, 32):
        found = [kernel_distance(*(torch.randn(count, 5, generator=generator) for _ in range(2))) for _ in range(600)]
        values = torch.tensor(found)
        assert abs(float(values.mean())) < 4 * float(values.std()) / 600**0.5
    far = [kernel_distance(torch.randn(8, 5, generator=generator), 1 + torch.randn(8, 5, generator=generator))]
    assert min(far) > 0.5


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [((1, 3), (4, 3), "2 embeddings or more, got 1 and 4"), ((4, 3), (4, 2), "with one D")],
)
def test_wrong_sets_are_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        kernel_distance(torch.zeros(first), torch.zeros(second))
