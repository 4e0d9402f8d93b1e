"""Codebook statistics by hand and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from visual_tokenizer.errors import UserError
from visual_tokenizer.metrics.codebook_usage import CodebookUsage, CodebookUsageConfig, count_indices


def usage(codebook_size: int, num_codebooks: int = 1) -> CodebookUsage:
    return CodebookUsage(CodebookUsageConfig(codebook_size=codebook_size, num_codebooks=num_codebooks))


def test_the_tokenizer_gives_what_the_config_leaves_open() -> None:
    config = CodebookUsageConfig(num_codebooks=3).for_codebook(7, 2)
    assert (config.codebook_size, config.num_codebooks) == (7, 3)
    with pytest.raises(ValueError, match="where no tokenizer gives it"):
        CodebookUsage(CodebookUsageConfig())


def test_by_hand() -> None:
    metric = usage(8)
    metric.update(torch.tensor([[0, 0, 0, 0], [1, 1, 5, 7]]))
    # shares 1/2, 1/4, 1/8, 1/8: 0.5 + 0.5 + 0.375 + 0.375 bits
    assert metric.compute() == {
        "codebook_usage": 0.5,
        "codebook_entropy_bits": 1.75,
        "codebook_perplexity": pytest.approx(2**1.75),
        "codebook_dead": 4.0,
        "codebook_tokens": 8.0,
    }


def test_large_codebook_against_scipy() -> None:
    size = 262_144
    indices = (torch.randn(200_000, generator=torch.Generator().manual_seed(0)) * 2000 + 100_000).long()
    metric = usage(size)
    for part in indices.view(-1, 16, 25).split([3, 400, 97]):
        metric.update(part)
    counts = np.bincount(indices.numpy(), minlength=size)
    values = metric.compute()
    assert values["codebook_entropy_bits"] == pytest.approx(scipy.stats.entropy(counts, base=2))
    assert values["codebook_perplexity"] == pytest.approx(np.exp(scipy.stats.entropy(counts)))
    assert values["codebook_usage"] == np.count_nonzero(counts) / size
    assert values["codebook_dead"] == size - np.count_nonzero(counts)


def test_even_use_reaches_the_bounds() -> None:
    metric = usage(16)
    metric.update(torch.arange(16).repeat(3))
    values = metric.compute()
    assert values["codebook_usage"] == 1
    assert values["codebook_entropy_bits"] == pytest.approx(4)
    assert values["codebook_perplexity"] == pytest.approx(16)


def test_several_codebooks_are_counted_apart() -> None:
    indices = torch.stack([torch.arange(4).expand(2, 4), torch.full((2, 4), 3)], dim=-1)  # (2, 4, 2)
    counts = count_indices(indices, 4, 2)
    assert counts.tolist() == [[2, 2, 2, 2], [0, 0, 0, 8]]
    metric = usage(4, 2)
    metric.update(indices)
    values = metric.compute()
    assert values["codebook_usage"] == pytest.approx((1 + 0.25) / 2)
    assert values["codebook_perplexity"] == pytest.approx((4 + 1) / 2)
    assert values["codebook_dead"] == 3
    assert values["codebook_tokens"] == 16


@pytest.mark.parametrize(
    ("indices", "num_codebooks", "message"),
    [
        (torch.tensor([0, 4]), 1, r"0\.\.3, got 0\.\.4"),
        (torch.tensor([-1, 2]), 1, r"0\.\.3, got -1\.\.2"),
        (torch.zeros(2, 3, dtype=torch.int64), 2, "num_codebooks = 2"),
        (torch.zeros(2, 3), 1, "integers"),
    ],
)
def test_wrong_indices_are_refused(indices: torch.Tensor, num_codebooks: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        usage(4, num_codebooks).update(indices)


def test_empty() -> None:
    metric = usage(4)
    metric.update(torch.zeros(0, 5, dtype=torch.int64))
    with pytest.raises(UserError, match="codebook_usage"):
        metric.compute()
    with pytest.raises(ValueError, match="codebook_size must be 1 or more"):
        usage(0)
