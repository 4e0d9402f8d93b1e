"""Oracles: the dense formula, finite differences, and the size of memory as the operating system counts it."""

import subprocess
import sys

import pytest
import torch

from visual_tokenizer.codebooks import soft_assignment
from visual_tokenizer.codebooks.soft_assignment import (
    assignment_entropies,
    distance_logits,
    distribution_entropy,
    dot_logits,
    expected_values,
    log_normalizers,
)


def dense_logits(latents, keys, bias):
    return latents @ keys.T + bias


def dense_expected_values(latents, keys, bias, values):
    return dense_logits(latents, keys, bias).softmax(dim=1) @ values


def dense_assignment_entropies(latents, keys, bias):
    log_p = dense_logits(latents, keys, bias).log_softmax(dim=1)
    return log_p.exp().mean(dim=0), -(log_p.exp() * log_p).sum(dim=1).mean()


def dense_log_normalizers(latents, keys, bias):
    return dense_logits(latents, keys, bias).logsumexp(dim=1)


PAIRS = [
    (expected_values, dense_expected_values, 4),
    (assignment_entropies, dense_assignment_entropies, 3),
    (log_normalizers, dense_log_normalizers, 3),
]
each_function = pytest.mark.parametrize(("chunked", "dense", "count"), PAIRS, ids=[pair[0].__name__ for pair in PAIRS])


def inputs(count, tokens=11, codes=6, dtype=torch.float64, requires_grad=True):
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(tokens, 3), (codes, 3), (codes,), (codes, 2)][:count]
    made = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    return [tensor.requires_grad_(requires_grad) for tensor in made]


def as_tuple(output):
    return output if isinstance(output, tuple) else (output,)


def weighted_sum(output):
    """A scalar that weighs every element of every output differently."""
    return sum((part * torch.arange(1.0, part.numel() + 1).view(part.shape)).sum() for part in as_tuple(output))


@pytest.fixture
def small_chunks(monkeypatch):
    """Four tokens a chunk, so that 11 tokens make two whole ones and a rest."""
    monkeypatch.setattr(soft_assignment, "CHUNK_BYTES", 0)
    monkeypatch.setattr(soft_assignment, "MIN_CHUNK_TOKENS", 4)


@each_function
def test_gradients_are_those_of_finite_differences(chunked, dense, count, small_chunks):
    assert torch.autograd.gradcheck(chunked, inputs(count))


@each_function
@pytest.mark.parametrize("tokens", [1, 4, 11])
def test_equal_to_the_dense_formula_in_float32(chunked, dense, count, tokens, small_chunks):
    mine, theirs = (inputs(count, tokens, dtype=torch.float32) for _ in range(2))
    result, expected = chunked(*mine), dense(*theirs)
    torch.testing.assert_close(result, expected)
    weighted_sum(result).backward()
    weighted_sum(expected).backward()
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@each_function
def test_gradients_only_where_they_are_wanted(chunked, dense, count):
    for wanted in range(count):
        mine, theirs = (inputs(count, requires_grad=False) for _ in range(2))
        weighted_sum(chunked(*(x.requires_grad_(i == wanted) for i, x in enumerate(mine)))).backward()
        weighted_sum(dense(*(x.requires_grad_(i == wanted) for i, x in enumerate(theirs)))).backward()
        assert [x.grad is not None for x in mine] == [i == wanted for i in range(count)]
        torch.testing.assert_close(mine[wanted].grad, theirs[wanted].grad)


@each_function
def test_without_tokens_all_is_finite(chunked, dense, count):
    tensors = inputs(count, tokens=0)
    output = chunked(*tensors)
    weighted_sum(output).backward()
    for tensor in (*as_tuple(output), *(x.grad for x in tensors)):
        assert torch.isfinite(tensor).all()


@each_function
def test_large_logits_neither_overflow_nor_lose_the_gradient(chunked, dense, count):
    """exp(1000) is infinite in float32, and most probabilities underflow to 0."""
    mine = inputs(count, dtype=torch.float32)
    exact = [x.detach().double().requires_grad_() for x in mine]
    result = chunked(mine[0] * 1000, *mine[1:])
    expected = dense(exact[0] * 1000, *exact[1:])
    for one, other in zip(as_tuple(result), as_tuple(expected), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)
    weighted_sum(result).backward()
    assert all(torch.isfinite(x.grad).all() for x in mine)


@each_function
def test_autocast_changes_nothing(chunked, dense, count):
    def run():
        tensors = inputs(count, dtype=torch.float32)
        output = chunked(*tensors)
        weighted_sum(output).backward()
        return [*as_tuple(output), *(x.grad for x in tensors)]

    expected = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["expected_values", "assignment_entropies", "log_normalizers"])
def test_operators_keep_the_rules_of_torch_library(name):
    """Schema, shapes without data, registration of the derivative, and tracing of forward and backward."""
    operator = getattr(torch.ops.visual_tokenizer, name).default
    torch.library.opcheck(operator, tuple(inputs(4 if name == "expected_values" else 3, dtype=torch.float32)))


def test_compiles_into_one_graph():
    def both(latents, codebook):
        mean, entropy = assignment_entropies(*distance_logits(latents, codebook, 0.5))
        normalizers = log_normalizers(*dot_logits(latents, codebook, 0.5))
        expected = expected_values(*distance_logits(latents, codebook, 0.5), codebook)
        return expected.square().mean() + entropy - distribution_entropy(mean) + normalizers.mean()

    mine, theirs = (inputs(2, dtype=torch.float32) for _ in range(2))
    torch.compile(both, fullgraph=True, backend="aot_eager")(*mine).backward()
    both(*theirs).backward()
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("temperature", [0.3, torch.tensor(0.3, dtype=torch.float64)])
def test_logits_give_the_softmax_of_negative_squared_distances_and_of_products(temperature):
    latents, codebook = inputs(2)
    values = torch.eye(6, dtype=torch.float64)
    by_distance = (-torch.cdist(latents, codebook).square() / 0.3).softmax(dim=1)
    torch.testing.assert_close(expected_values(*distance_logits(latents, codebook, temperature), values), by_distance)
    by_product = (latents @ codebook.T / 0.3).softmax(dim=1)
    torch.testing.assert_close(expected_values(*dot_logits(latents, codebook, temperature), values), by_product)


def test_distribution_entropy_closed_form_and_finite_gradient_at_zero():
    assert distribution_entropy(torch.full((8,), 1 / 8)).item() == pytest.approx(torch.tensor(8.0).log().item())
    certain = torch.tensor([1.0, 0.0, 0.0], requires_grad=True)
    distribution_entropy(certain).backward()
    assert torch.isfinite(certain.grad).all()
    large = torch.full((2**18,), 2.0**-18)  # 1/K below the 1e-5 of published code
    assert distribution_entropy(large).item() == pytest.approx(18 * torch.tensor(2.0).log().item(), rel=1e-5)


MEASURE = """
import resource, sys, torch
from visual_tokenizer.codebooks.soft_assignment import *
codes, tokens, channels = map(int, sys.argv[1:])
codebook = torch.randn(codes, channels).requires_grad_()
latents = torch.randn(tokens, channels).requires_grad_()
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
mean, entropy = assignment_entropies(*distance_logits(latents, codebook, 0.01))
expected = expected_values(*distance_logits(latents, codebook, 0.01), codebook)
(entropy - distribution_entropy(mean) + expected.square().mean()).backward()
print(before, peak() - before)
"""


def test_memory_stays_below_one_tokens_by_codes_matrix():
    """65,536 codes × 1,024 tokens are 256 MiB in float32; the two chunk buffers are 64 MiB, all gradients 10 MiB."""
    command = [sys.executable, "-c", MEASURE, "65536", "1024", "4"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(output.split()[1]) < 128
