import math
import os
import resource
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from visual_tokenizer import build_quantizer
from visual_tokenizer.codebooks import binary_entropy
from visual_tokenizer.codebooks.binary_entropy import batch_entropy, sample_entropy


def all_codes(bits):
    return torch.tensor([[(index >> shift) & 1 for shift in range(bits)] for index in range(2**bits)]).double() * 2 - 1


def enumerated_entropies(latents, inverse_temperature):
    """Both entropies by a float64 softmax over all 2^d codes."""
    scores = 2 * inverse_temperature * latents.double() @ all_codes(latents.shape[-1]).T
    logs = F.log_softmax(scores, dim=-1)
    of_samples = -(logs.exp() * logs).sum(-1).mean()
    mean = logs.exp().mean(0)
    return of_samples, -torch.xlogy(mean, mean).sum()


@pytest.mark.parametrize("inverse_temperature", [0.3, 3.0])
@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_entropies_and_gradients_are_those_of_all_codes_enumerated(bits, inverse_temperature):
    latents = torch.randn(7, bits)
    mine, theirs = latents.clone().requires_grad_(), latents.clone().requires_grad_()
    logits = 4 * inverse_temperature * mine
    found = sample_entropy(logits), batch_entropy(logits, bits)
    expected = enumerated_entropies(theirs, inverse_temperature)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-6, rtol=1e-5)
        (gradient,) = torch.autograd.grad(one, mine, retain_graph=True)
        (right,) = torch.autograd.grad(other, theirs, retain_graph=True)
        torch.testing.assert_close(gradient, right, atol=1e-6, rtol=1e-4)


def test_the_gradient_of_the_tables_passes_gradcheck():
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: binary_entropy.sum_of_tables(x[None]), logits)
    assert torch.autograd.gradcheck(lambda x: batch_entropy(x, 3), logits)


def test_groups_are_an_upper_bound_and_chunks_change_nothing(monkeypatch):
    """Closed form: all bits equal, half of the tokens each: ln 2 in truth, d·ln 2 from single bits."""
    logits = torch.tensor([[500.0] * 7, [-500.0] * 7])
    assert batch_entropy(logits, 7).item() == pytest.approx(math.log(2))
    assert batch_entropy(logits, 3).item() == pytest.approx(3 * math.log(2))
    assert batch_entropy(logits, 1).item() == pytest.approx(7 * math.log(2))
    random = torch.randn(50, 7, requires_grad=True)
    bounds = [batch_entropy(random, group) for group in (7, 4, 1)]
    assert bounds[0] < bounds[1] < bounds[2]
    (whole,) = torch.autograd.grad(bounds[1], random)
    monkeypatch.setattr(binary_entropy, "HALF_BYTES", 4 * 4 * 6)
    chunked = batch_entropy(random, 4)
    torch.testing.assert_close(chunked, bounds[1])
    torch.testing.assert_close(torch.autograd.grad(chunked, random)[0], whole)


def test_certain_bits_give_finite_gradients():
    """At inverse temperature 100 most probabilities are 0 or 1 in float32, the odds are e^±12000."""
    latents = torch.tensor([[30.0, -30.0, 0.0, 1e-3], [0.5, -1e-6, 3.0, -0.2]]).repeat(1, 3).requires_grad_()
    output = build_quantizer("lfq", codebook_size=2**12)(latents[None])
    sum(output.losses.values()).backward()
    assert torch.isfinite(latents.grad).all()
    assert all(torch.isfinite(value) for value in (*output.losses.values(), *output.metrics.values()))


@pytest.mark.parametrize("clamp", [1e-5, 1e-30])
def test_same_as_vector_quantize_pytorch(monkeypatch, clamp):
    """Independent implementation at d = 12 in float64, which enumerates 4,096 codes.

    It clamps probabilities to 1e-5 inside the logarithm. As published, its entropies are met to 2e-3; with the clamp
    lowered, entropies and gradients to float32.
    """
    library = pytest.importorskip("vector_quantize_pytorch.lookup_free_quantization")
    monkeypatch.setattr(library, "log", lambda t: t.clamp(min=clamp).log())
    reference = library.LFQ(
        codebook_size=2**12,
        entropy_loss_weight=0.1,
        commitment_loss_weight=0.25,
        diversity_gamma=0.7,
        force_quantization_f32=False,
    ).double()
    # Near the decision border, where the probabilities are neither 0 nor 1 and have gradients.
    latents = torch.randn(2, 40, 12) * 0.01
    mine, theirs = latents.clone().requires_grad_(), latents.double().requires_grad_()
    quantizer = build_quantizer("lfq", codebook_size=2**12, batch_entropy_weight=0.7)
    output = quantizer(mine)
    (codes, indices, loss), parts = reference(theirs, inv_temperature=100.0, return_loss_breakdown=True)
    assert torch.equal(output.indices, indices.long())
    assert torch.equal(output.codes.double(), codes.sign())
    assert torch.equal(quantizer.indices_to_codes(output.indices).double(), reference.indices_to_codes(indices))
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if clamp < 1e-5 else {"atol": 2e-3, "rtol": 2e-3}
    torch.testing.assert_close(output.metrics["sample_entropy"].double(), parts.per_sample_entropy, **tolerance)
    torch.testing.assert_close(output.metrics["batch_entropy"].double(), parts.batch_entropy, **tolerance)
    torch.testing.assert_close(output.losses["commitment"].double(), 0.25 * parts.commitment)
    torch.testing.assert_close(sum(output.losses.values()).double(), loss, **tolerance)
    if clamp < 1e-5:
        weights = torch.randn_like(latents)
        ((output.codes * weights).sum() + sum(output.losses.values())).backward()
        ((codes * weights).sum() + loss).backward()
        torch.testing.assert_close(mine.grad, theirs.grad.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("order", "index"), [("most_significant_first", 0b1100), ("least_significant_first", 0b0011)])
def test_signs_and_index_orders(order, index):
    """Closed form; a latent of 0 is −1."""
    quantizer = build_quantizer("lfq", codebook_size=16, index_order=order).eval()
    output = quantizer(torch.tensor([[[0.2, 7.0, 0.0, -3.0]]]))
    assert output.codes.tolist() == [[[1, 1, -1, -1]]]
    assert output.indices.item() == index
    assert torch.equal(quantizer.indices_to_codes(output.indices), output.codes)


def test_the_decoders_gradient_passes_unchanged():
    latents, weights = torch.randn(2, 5, 9, requires_grad=True), torch.randn(2, 5, 9)
    quantizer = build_quantizer("lfq", codebook_size=512, commitment_weight=0.0, entropy_weight=0.0)
    output = quantizer(latents)
    assert output.losses == {}
    (output.codes * weights).sum().backward()
    assert torch.equal(latents.grad, weights)


def test_a_step_with_a_quarter_million_codes_fits_in_memory():
    """8,192 tokens × 2^18 codes are 8 GiB; the step may take a 16th of that beyond what the process had."""
    quantizer = build_quantizer("lfq", codebook_size=2**18)
    latents = torch.randn(8, 1024, 18, requires_grad=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    output = quantizer(latents)
    sum(output.losses.values()).backward()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 2**29
    assert output.metrics["batch_entropy_groups"] == 1
    assert output.metrics["batch_entropy"] > 8  # ln 8192 = 9.01, less the collisions
    assert torch.isfinite(latents.grad).all()


def test_more_bits_than_a_table_counts():
    """62 bits: bounded memory, exact codes; the batch entropy says that it is a bound."""
    quantizer = build_quantizer("lfq", codebook_size=2**62)
    output = quantizer(torch.randn(2, 8, 62))
    assert torch.equal(quantizer.indices_to_codes(output.indices), output.codes)
    assert output.metrics["perplexity"].item() == pytest.approx(16)
    assert output.metrics["batch_entropy_groups"] == 4


def test_no_tokens_give_losses_of_zero():
    output = build_quantizer("lfq", codebook_size=16)(torch.zeros(0, 3, 4))
    assert [loss.item() for loss in output.losses.values()] == [0, 0]


def test_eval_mode_computes_no_entropy():
    """Nothing is reduced over ranks then, so one rank may encode alone."""
    output = build_quantizer("lfq").eval()(torch.randn(1, 4, 13))
    assert set(output.losses) == {"commitment"}
    assert set(output.metrics) == {"perplexity", "usage"}


@pytest.mark.parametrize("name", ["lfq", "bsq", "relaxed_binary", "fsq"])
def test_compiles_in_one_graph(name):
    torch.compiler.reset()  # all quantizers share one forward, and so its limit of compilations
    quantizer = build_quantizer(name)
    twin = build_quantizer(name)
    latents = torch.randn(2, 6, quantizer.code_dim)
    mine, theirs = latents.clone().requires_grad_(), latents.clone().requires_grad_()
    expected, found = quantizer(mine), torch.compile(twin, fullgraph=True, backend="aot_eager")(theirs)
    assert torch.equal(found.indices, expected.indices)
    (expected.codes.square().sum() + sum(expected.losses.values())).backward()
    (found.codes.square().sum() + sum(found.losses.values())).backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_bad_fields():
    for field, wrong in (
        ("codebook_size", 1000),
        ("codebook_size", 2**63),
        ("inverse_temperature", 0.0),
        ("entropy_weight", -1.0),
        ("commitment_weight", float("nan")),
        ("entropy_group_bits", 25),
    ):
        with pytest.raises(ValueError, match=f"{field} must be"):
            build_quantizer("lfq", **{field: wrong})


def worker(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    latents = shared_latents()[3:] if rank else shared_latents()[:3]
    output = build_quantizer("lfq", codebook_size=32, inverse_temperature=1.0)(latents.requires_grad_())
    (gradient,) = torch.autograd.grad(output.losses["entropy"], latents)
    torch.save({"batch_entropy": output.metrics["batch_entropy"], "gradient": gradient}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def shared_latents():
    return torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))


def test_two_ranks_with_unequal_shares_have_the_batch_entropy_of_one_process(tmp_path):
    """The batch part of each rank's gradient is, averaged over ranks as DDP does, that of one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [subprocess.Popen([sys.executable, __file__, str(rank), str(port), str(tmp_path)]) for rank in (0, 1)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    logits = (4 * shared_latents()).requires_grad_()
    expected = batch_entropy(logits.view(-1, 5), 5)
    assert torch.equal(first["batch_entropy"], second["batch_entropy"])
    torch.testing.assert_close(first["batch_entropy"], expected.detach())
    (of_batch,) = torch.autograd.grad(expected, logits)
    for rank, share in ((first, slice(0, 3)), (second, slice(3, 4))):
        own = logits[share].detach().requires_grad_()
        (of_samples,) = torch.autograd.grad(sample_entropy(own.view(-1, 5)), own)
        torch.testing.assert_close(rank["gradient"], 0.1 * 4 * (of_samples - 2 * of_batch[share]), atol=1e-6, rtol=1e-4)


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
