"""Each term against the formula written out densely (float64), a library or a bound, and what it is there to do."""

import itertools
import math
import os
import socket
import subprocess
import sys

import numpy
import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from visual_tokenizer.codebooks import soft_assignment
from visual_tokenizer.codebooks.regularizers.base import RegularizerConfig
from visual_tokenizer.codebooks.search import nearest_codes

NAMES = RegularizerConfig.family.names()
MOVE_LATENTS = {"entropy", "kl_uniform", "contrastive"}


def build(name, **fields):
    return RegularizerConfig.family.build({"type": name, **fields})


def example(tokens=40, codes=7, dim=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(tokens, dim, generator=generator, dtype=dtype)
    codebook = torch.randn(codes, dim, generator=generator, dtype=dtype)
    return latents.requires_grad_(), codebook.requires_grad_(), nearest_codes(latents, codebook)


def probabilities(latents, codebook, temperature, similarity="distance"):
    logits = -torch.cdist(latents, codebook).square() if similarity == "distance" else latents @ codebook.T
    return (logits / temperature).softmax(dim=1)


def entropy_of(p):
    return -torch.special.xlogy(p, p).sum(dim=-1)


def dense_entropy(latents, codebook, indices, temperature, similarity, sample_weight, batch_weight):
    p = probabilities(latents, codebook, temperature, similarity)
    return sample_weight * entropy_of(p).mean() - batch_weight * entropy_of(p.mean(dim=0))


def dense_kl_uniform(latents, codebook, indices, temperature, similarity):
    mean = probabilities(latents, codebook, temperature, similarity).mean(dim=0)
    return F.kl_div(torch.full_like(mean, 1 / len(mean)).log(), mean, reduction="sum")


def dense_norm(latents, codebook, indices):
    return sum((row.square().sum().sqrt() - 1) ** 2 for row in codebook) / len(codebook)


def dense_repulsion(latents, codebook, indices, temperature):
    pairs = itertools.permutations(codebook, 2)
    return sum(torch.exp(-(a - b).square().sum() / temperature) for a, b in pairs) / len(codebook)


def dense_orthogonality(latents, codebook, indices, form):
    size, dim = codebook.shape
    if form == "gram":
        return torch.linalg.matrix_norm(codebook.T @ codebook - torch.eye(dim, dtype=codebook.dtype)) ** 2 / size**2
    pairs = itertools.permutations(codebook, 2)
    return sum(F.cosine_similarity(a, b, dim=0) ** 2 for a, b in pairs) / (size * (size - 1))


def dense_variance(latents, codebook, indices, target):
    spread = (codebook - codebook.mean(dim=0)).square().sum() / len(codebook)
    return (target - spread).clamp_min(0)


def dense_contrastive(latents, codebook, indices, temperature):
    return F.cross_entropy(latents @ codebook.T / temperature, indices)


def dense_vicreg(latents, codebook, indices, variance_weight, covariance_weight, target, epsilon):
    dim = codebook.shape[1]
    covariance = torch.cov(codebook.T)
    hinge = sum((target - (covariance[d, d] + epsilon).sqrt()).clamp_min(0) for d in range(dim)) / dim
    off_diagonal = sum(covariance[i, j] ** 2 for i, j in itertools.permutations(range(dim), 2)) / dim
    return variance_weight * hinge + covariance_weight * off_diagonal


CASES = [
    ("entropy", dense_entropy, dict(temperature=0.5, similarity="distance", sample_weight=1.0, batch_weight=1.0)),
    ("entropy", dense_entropy, dict(temperature=0.5, similarity="distance", sample_weight=0.0, batch_weight=1.0)),
    ("entropy", dense_entropy, dict(temperature=0.2, similarity="dot", sample_weight=0.7, batch_weight=2.0)),
    ("entropy", dense_entropy, dict(temperature=0.2, similarity="dot", sample_weight=1.0, batch_weight=0.0)),
    ("kl_uniform", dense_kl_uniform, dict(temperature=0.5, similarity="distance")),
    ("kl_uniform", dense_kl_uniform, dict(temperature=0.2, similarity="dot")),
    ("norm", dense_norm, {}),
    ("repulsion", dense_repulsion, dict(temperature=2.0)),
    ("orthogonality", dense_orthogonality, dict(form="gram")),
    ("orthogonality", dense_orthogonality, dict(form="cosine")),
    ("variance", dense_variance, dict(target=9.0)),
    ("contrastive", dense_contrastive, dict(temperature=0.3)),
    ("vicreg", dense_vicreg, dict(variance_weight=25.0, covariance_weight=1.5, target=2.0, epsilon=1e-3)),
]


@pytest.mark.parametrize(("name", "dense", "fields"), CASES)
def test_value_and_gradients_are_those_of_the_dense_formula(name, dense, fields):
    mine, theirs = example(), example()
    value, expected = build(name, **fields)(*mine), dense(*theirs, **fields)
    assert value.ndim == 0
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    for one, other in zip(mine[:2], theirs[:2], strict=True):
        torch.testing.assert_close(
            torch.zeros_like(one) if one.grad is None else one.grad,
            torch.zeros_like(other) if other.grad is None else other.grad,
        )


def test_every_regularizer_is_compared_with_a_dense_formula():
    assert {case[0] for case in CASES} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name):
    latents, codebook, indices = example(tokens=5, codes=4)
    fields = {"temperature": 0.8} if "temperature" in vars(build(name).config) else {}
    regularizer = build(name, **fields)
    assert torch.autograd.gradcheck(lambda z, e: regularizer(z, e, indices), (latents, codebook))


@pytest.mark.parametrize("name", NAMES)
def test_moves_latents_says_whether_latents_have_a_gradient(name):
    latents, codebook, indices = example(dtype=torch.float32)
    regularizer = build(name)
    assert regularizer.moves_latents == (name in MOVE_LATENTS)
    gradients = torch.autograd.grad(regularizer(latents, codebook, indices), [latents, codebook], allow_unused=True)
    assert (gradients[0] is not None) == regularizer.moves_latents
    assert gradients[1] is not None
    if regularizer.moves_latents:  # a codebook that does not learn by gradient
        regularizer(latents, codebook.detach(), indices).backward()
        assert torch.isfinite(latents.grad).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tokens", [0, 1])
def test_finite_without_tokens_and_with_one(name, tokens):
    latents, codebook, indices = example(tokens=tokens, dtype=torch.float32)
    value = build(name)(latents, codebook, indices)
    assert value.ndim == 0
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(codebook.grad).all()
    assert latents.grad is None or torch.isfinite(latents.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_finite_where_all_codes_are_the_same_or_zero(name):
    for code in (0.0, 3.0):
        latents, codebook, indices = example(dtype=torch.float32)
        codebook = torch.full_like(codebook, code).requires_grad_()
        value = build(name)(latents, codebook, indices)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(codebook.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_compiles_into_one_graph(name):
    mine, theirs = example(dtype=torch.float32), example(dtype=torch.float32)
    regularizer = build(name)
    value = torch.compile(regularizer, fullgraph=True, backend="aot_eager")(*mine)
    value.backward()
    expected = regularizer(*theirs)
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(mine[1].grad, theirs[1].grad)


@pytest.mark.parametrize("name", NAMES)
def test_config_round_trips_and_refuses_wrong_values(name):
    config = build(name).config
    assert RegularizerConfig.family.config(config.to_dict()) == config
    with pytest.raises(ValueError, match="weight must be above 0"):
        type(config)(weight=0.0)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("entropy", {"temperature": 0.0}, "temperature must be above 0"),
        ("entropy", {"similarity": "cosine"}, "similarity must be one of distance, dot"),
        ("entropy", {"sample_weight": -1.0}, "sample_weight must be 0 or more"),
        ("entropy", {"sample_weight": 0.0, "batch_weight": 0.0}, "must not both be 0"),
        ("kl_uniform", {"temperature": -1.0}, "temperature must be above 0"),
        ("kl_uniform", {"similarity": "cosine"}, "similarity must be one of distance, dot"),
        ("repulsion", {"temperature": 0.0}, "temperature must be above 0"),
        ("repulsion", {"max_codes": 1}, "max_codes must be 0 or 2 or more, got 1"),
        ("orthogonality", {"form": "rows"}, "form must be one of gram, cosine"),
        ("variance", {"target": 0.0}, "target must be above 0"),
        ("contrastive", {"temperature": 0.0}, "temperature must be above 0"),
        ("vicreg", {"variance_weight": -1.0}, "variance_weight must be 0 or more"),
        ("vicreg", {"variance_weight": 0.0, "covariance_weight": 0.0}, "must not both be 0"),
        ("vicreg", {"epsilon": 0.0}, "epsilon must be above 0"),
    ],
)
def test_wrong_fields_are_refused(name, fields, message):
    config = RegularizerConfig.family.get(name).Config
    with pytest.raises(ValueError, match=message):
        config(**fields)


def test_entropy_and_kl_are_extreme_where_they_should_be():
    """Each code chosen surely and equally often: the minimum. All latents at one code: H(p̄) 0 and KL log K."""
    codebook = torch.eye(8)
    balanced, collapsed = codebook.repeat(5, 1), codebook[:1].repeat(40, 1)
    for latents, entropy, divergence in [(balanced, -math.log(8), 0.0), (collapsed, 0.0, math.log(8))]:
        indices = nearest_codes(latents, codebook)
        assert build("entropy")(latents, codebook, indices).item() == pytest.approx(entropy, abs=1e-5)
        assert build("kl_uniform")(latents, codebook, indices).item() == pytest.approx(divergence, abs=1e-5)


@pytest.mark.parametrize("name", ["entropy", "kl_uniform"])
def test_descent_on_latents_spreads_them_over_the_codes(name):
    latents, codebook, _ = example(tokens=64, codes=16, dim=8, dtype=torch.float32)
    latents.data.copy_(codebook.data[0] + 0.3 * latents.data)  # near one code
    codebook = codebook.detach()
    optimizer = torch.optim.Adam([latents], lr=0.05)
    before = nearest_codes(latents.detach(), codebook).unique().numel()
    for _ in range(100):
        optimizer.zero_grad()
        build(name, temperature=2.0)(latents, codebook, nearest_codes(latents.detach(), codebook)).backward()
        optimizer.step()
    assert before <= 5
    assert nearest_codes(latents.detach(), codebook).unique().numel() >= 12


def test_entropies_same_as_vector_quantize_pytorch():
    """Its LFQ takes softmax(2 z·e / τ) over the implicit codebook {−1, 1}³."""
    library = pytest.importorskip("vector_quantize_pytorch")
    lfq = library.LFQ(dim=3, codebook_size=8, diversity_gamma=2.0, spherical=False).train()
    latents = torch.randn(1, 50, 3)
    _, breakdown = lfq(latents, inv_temperature=1.5, return_loss_breakdown=True)
    regularizer = build("entropy", similarity="dot", temperature=1 / 3, sample_weight=1.0, batch_weight=2.0)
    value = regularizer(latents[0], lfq.codebook, torch.zeros(50, dtype=torch.int64))
    expected = breakdown.per_sample_entropy - 2.0 * breakdown.batch_entropy
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


def test_norm_is_zero_on_the_unit_sphere_and_pulls_towards_it():
    latents, codebook, indices = example()
    assert build("norm")(latents, F.normalize(codebook, dim=1), indices).item() == pytest.approx(0, abs=1e-12)
    (gradient,) = torch.autograd.grad(build("norm")(latents, codebook, indices), codebook)
    assert torch.equal((gradient * codebook).sum(dim=1) > 0, codebook.norm(dim=1) > 1)


def test_repulsion_counts_the_codes_that_crowd_a_code():
    latents, indices = torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64)
    repulsion = build("repulsion", temperature=0.1)
    assert repulsion(latents, 100 * torch.eye(4), indices).item() == pytest.approx(0, abs=1e-5)
    assert repulsion(latents, torch.ones(9, 4), indices).item() == pytest.approx(8, rel=1e-5)
    pairs = 5 * torch.eye(4).repeat(2, 1) + 1000  # each code has one twin; all far from the origin
    assert repulsion(latents, pairs, indices).item() == pytest.approx(1, rel=1e-3)


def test_repulsion_pushes_near_codes_apart():
    codebook = torch.tensor([[0.0, 0.0], [0.1, 0.0], [5.0, 5.0]], requires_grad=True)
    build("repulsion")(torch.zeros(1, 2), codebook, torch.zeros(1, dtype=torch.int64)).backward()
    assert codebook.grad[0, 0] > 0 > codebook.grad[1, 0]  # descent moves them in the opposite direction
    torch.testing.assert_close(codebook.grad[2], torch.zeros(2), atol=1e-5, rtol=0)


def test_repulsion_of_a_random_subset_has_the_mean_of_the_whole():
    torch.manual_seed(0)
    latents, codebook, indices = example(codes=24, dtype=torch.float32)
    whole = build("repulsion", temperature=2.0)(latents, codebook, indices)
    part = build("repulsion", temperature=2.0, max_codes=8)
    draws = torch.stack([part(latents, codebook, indices) for _ in range(400)])
    assert draws.std() > 0
    assert abs(draws.mean() - whole) < 4 * draws.std() / 20
    everything = build("repulsion", temperature=2.0, max_codes=24)
    torch.testing.assert_close(everything(latents, codebook, indices), whole)


def test_repulsion_is_the_same_in_chunks(monkeypatch):
    latents, codebook, indices = example(codes=30)
    expected = build("repulsion", temperature=2.0)(latents, codebook, indices)
    monkeypatch.setattr(soft_assignment, "CHUNK_BYTES", 0)
    monkeypatch.setattr(soft_assignment, "MIN_CHUNK_TOKENS", 7)
    torch.testing.assert_close(build("repulsion", temperature=2.0)(latents, codebook, indices), expected)


def test_orthogonality_minima():
    """Orthogonal codes give 0; more codes than channels at best the Welch bound, which a tight frame attains."""
    latents, indices = torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)
    cosine, gram = build("orthogonality", form="cosine"), build("orthogonality", form="gram")
    assert cosine(latents, 3 * torch.eye(5), indices).item() == pytest.approx(0, abs=1e-6)
    angles = torch.arange(3) * 2 * math.pi / 3
    frame = torch.stack([angles.cos(), angles.sin()], dim=1)  # three directions in the plane, 120 degrees apart
    assert cosine(latents, 2 * frame, indices).item() == pytest.approx((3 - 2) / (2 * (3 - 1)), rel=1e-5)
    assert cosine(latents, torch.randn(3, 2), indices).item() >= 0.25 - 1e-6
    assert gram(latents, frame * math.sqrt(2 / 3), indices).item() == pytest.approx(0, abs=1e-6)
    assert gram(latents, frame, indices).item() > 0.01


def test_variance_is_a_hinge():
    latents, codebook, indices = example()
    spread = torch.from_numpy(numpy.var(codebook.detach().numpy(), axis=0)).sum().item()
    assert build("variance", target=spread * 0.99)(latents, codebook, indices).item() == 0
    value = build("variance", target=spread + 1)(latents, codebook, indices)
    assert value.item() == pytest.approx(1)
    value.backward()
    moved = codebook.detach() - codebook.grad
    assert moved.var(dim=0).sum() > codebook.detach().var(dim=0).sum()


def test_contrastive_vanishes_for_latents_at_separate_codes_and_draws_latents_to_theirs():
    codebook = torch.eye(6)
    contrastive = build("contrastive")
    assert contrastive(codebook, codebook, torch.arange(6)).item() == pytest.approx(0, abs=1e-4)
    uniform = contrastive(torch.zeros(3, 6), codebook, torch.arange(3))  # all codes alike to a zero latent
    assert uniform.item() == pytest.approx(math.log(6))
    latents = torch.full((1, 6), 0.1).requires_grad_()
    contrastive(latents, codebook, torch.tensor([2])).backward()
    assert (latents.grad[0] < 0).tolist() == [False, False, True, False, False, False]


def test_vicreg_vanishes_for_independent_channels_that_vary_enough():
    codes = torch.tensor(list(itertools.product([-1.5, 1.5], repeat=3)))
    vicreg = build("vicreg")
    arguments = (torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64))
    assert vicreg(arguments[0], codes, arguments[1]).item() == 0
    collapsed = vicreg(arguments[0], codes[:1].repeat(8, 1), arguments[1])
    assert collapsed.item() == pytest.approx(25 * (1 - math.sqrt(1e-4)))
    copied = codes[:, :1].repeat(1, 3)  # every channel the same: six covariances equal to the variance
    variance = numpy.var(copied.numpy(), axis=0, ddof=1)[0]
    assert vicreg(arguments[0], copied, arguments[1]).item() == pytest.approx(6 * variance**2 / 3, rel=1e-5)


FIELDS = {"entropy": {"temperature": 0.5}, "kl_uniform": {"temperature": 0.5}}


def worker(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    results = {}
    for name, fields in FIELDS.items():
        latents, codebook, indices = example()
        value = build(name, **fields)(latents[rank::2], codebook, indices[rank::2])
        value.backward()
        results[name] = [value.detach(), latents.grad, codebook.grad]
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_gradient_of_one_on_the_whole_batch(tmp_path):
    """Means over ranks, as DDP takes them, of value and gradients."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [subprocess.Popen([sys.executable, __file__, str(rank), str(port), str(tmp_path)]) for rank in (0, 1)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, fields in FIELDS.items():
        latents, codebook, indices = example()
        value = build(name, **fields)(latents, codebook, indices)
        value.backward()
        for found, other, expected in zip(
            first[name], second[name], [value.detach(), latents.grad, codebook.grad], strict=True
        ):
            torch.testing.assert_close((found + other) / 2, expected)


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
