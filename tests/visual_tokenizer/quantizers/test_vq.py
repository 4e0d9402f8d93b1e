import pytest
import torch
from torch.nn import functional as F

from visual_tokenizer import build_quantizer
from visual_tokenizer.codebooks import search
from visual_tokenizer.codebooks.initializers.base import InitializerConfig
from visual_tokenizer.codebooks.search import code_counts, most_similar_codes, nearest_codes


def vq(**fields):
    torch.manual_seed(0)
    return build_quantizer("vq", **{"codebook_size": 16, "code_dim": 4, **fields})


@pytest.mark.parametrize("size", [2, 33, 128, 257, 400])
@pytest.mark.parametrize("tile_codes", [128, 256, 8192])
def test_search_is_the_brute_force_argmin_whatever_the_tiles(monkeypatch, size, tile_codes):
    monkeypatch.setattr(search, "TILE_CODES", tile_codes)
    monkeypatch.setitem(search.TILE_BYTES, "cpu", 4)
    latents, codebook = torch.randn(300, 8), torch.randn(size, 8)
    distances = (latents[:, None] - codebook).square().sum(dim=2)
    assert torch.equal(nearest_codes(latents, codebook), distances.argmin(dim=1))
    assert torch.equal(most_similar_codes(latents, codebook), (latents @ codebook.T).argmax(dim=1))


def test_the_first_of_equal_codes_is_chosen(monkeypatch):
    monkeypatch.setattr(search, "TILE_CODES", 128)
    codebook = torch.randn(10, 4)[torch.arange(400) % 10]
    assert nearest_codes(torch.randn(50, 4), codebook).max() < 10


def test_counts():
    indices = torch.tensor([[0, 2], [2, 2]])
    assert code_counts(indices, 4).tolist() == [1, 0, 3, 0]


def test_gradient_update_has_the_papers_three_gradients():
    """Eq. 3: the decoder's gradient goes to the latents unchanged, β pulls latents, 1 pulls codes."""
    quantizer = vq(update={"type": "gradient"}, commitment_weight=0.25)
    latents = torch.randn(2, 5, 4, requires_grad=True)
    output = quantizer(latents)
    weights = torch.randn(2, 5, 4)
    ((output.codes * weights).sum() + sum(output.losses.values())).backward()
    codes = quantizer.codebook.detach()[output.indices]
    torch.testing.assert_close(latents.grad, weights + 0.25 * 2 * (latents.detach() - codes) / 40)
    expected = torch.zeros_like(quantizer.codebook)
    expected.index_add_(0, output.indices.flatten(), (2 * (codes - latents.detach()) / 40).view(-1, 4))
    torch.testing.assert_close(quantizer.codebook.grad, expected)


def test_ema_update_closed_form():
    """Appendix A.1: one step from counts 1 and sums e, on codes that are looked up before they move."""
    quantizer = vq(update={"type": "ema", "decay": 0.9})
    before = quantizer.codebook.detach().clone()
    latents = torch.randn(3, 7, 4)
    output = quantizer(latents)
    assert torch.equal(output.codes, before[output.indices])
    flat, indices = latents.view(-1, 4), output.indices.flatten()
    one_hot = F.one_hot(indices, 16).float()
    counts = 0.9 * torch.ones(16) + 0.1 * one_hot.sum(0)
    sums = 0.9 * before + 0.1 * one_hot.T @ flat
    smoothed = (counts + 1e-5) / (counts.sum() + 16e-5) * counts.sum()
    torch.testing.assert_close(quantizer.codebook.data, sums / smoothed[:, None])
    assert not quantizer.codebook.requires_grad


def test_eval_changes_nothing():
    quantizer = vq().eval()
    state = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(torch.randn(2, 9, 4))
    assert all(torch.equal(state[name], value) for name, value in quantizer.state_dict().items())


def test_normalized_codes_are_the_largest_cosine():
    quantizer = vq(normalize=True).eval()
    latents = torch.randn(2, 9, 4) * 3
    output = quantizer(latents)
    cosines = F.normalize(latents, dim=-1) @ F.normalize(quantizer.codebook, dim=-1).T
    assert torch.equal(output.indices, cosines.argmax(-1))
    torch.testing.assert_close(output.codes.norm(dim=-1), torch.ones(2, 9))


@pytest.mark.parametrize("normalize", [False, True])
def test_ema_same_as_vector_quantize_pytorch(normalize):
    reference_module = pytest.importorskip("vector_quantize_pytorch")
    quantizer = vq(normalize=normalize, update={"type": "ema", "decay": 0.8}, commitment_weight=1.0)
    reference = reference_module.VectorQuantize(
        dim=4, codebook_size=16, decay=0.8, use_cosine_sim=normalize, commitment_weight=1.0, rotation_trick=False
    )
    start = quantizer.codebook.data.clone()
    reference._codebook.embed.data.copy_(start[None])
    reference._codebook.embed_avg.data.copy_(start[None])
    reference._codebook.cluster_size.data.fill_(1.0)
    latents = torch.randn(2, 40, 4)
    mine, theirs = latents.clone().requires_grad_(), latents.clone().requires_grad_()
    quantizer.train()
    output = quantizer(mine)
    codes, indices, _ = reference.train()(theirs)
    assert torch.equal(output.indices, indices)
    torch.testing.assert_close(output.codes, codes, atol=1e-6, rtol=1e-5)
    if not normalize:  # on the sphere that library averages directions with another weighting of the past
        torch.testing.assert_close(quantizer.codebook.data, reference._codebook.embed[0], atol=1e-5, rtol=1e-4)


def test_kmeans_lowers_the_error_to_that_of_an_independent_implementation():
    cluster = pytest.importorskip("sklearn.cluster")
    pool = torch.randn(800, 4)
    quantizer = vq(initializer={"type": "kmeans", "samples": 800, "iterations": 20})
    assert quantizer.samples_wanted == 800
    quantizer.initialize(pool)
    assert quantizer.samples_wanted == 0

    def error(codebook):
        return torch.cdist(pool, codebook).min(dim=1).values.square().mean()

    start = InitializerConfig.family.build({"type": "kmeans", "samples": 800, "iterations": 1})
    reference = cluster.KMeans(16, init="random", n_init=1, random_state=0).fit(pool.numpy())
    assert error(quantizer.codebook.data) < error(start.from_latents(pool, 16))
    assert error(quantizer.codebook.data) < 1.1 * reference.inertia_ / 800


def test_kmeans_with_fewer_latents_than_codes_is_finite_and_distinct():
    codebook = InitializerConfig.family.build({"type": "kmeans"}).from_latents(torch.randn(3, 4), 16)
    assert torch.isfinite(codebook).all()
    assert codebook.unique(dim=0).shape[0] == 16


def test_first_training_batch_initializes_once_and_survives_saving():
    quantizer = vq(initializer={"type": "kmeans"}, update={"type": "gradient"})
    quantizer(torch.randn(2, 50, 4))
    codebook = quantizer.codebook.data.clone()
    twin = vq(initializer={"type": "kmeans"}, update={"type": "gradient"})
    twin.load_state_dict(quantizer.state_dict())
    twin(torch.randn(2, 50, 4))
    assert torch.equal(twin.codebook.data, codebook)


def test_dead_codes_move_to_the_worst_served_latents():
    quantizer = vq(
        update={"type": "gradient"},
        usage_decay=0.5,
        reseeder={"type": "hard_example", "usage_below": 0.5, "every_steps": 6, "pool_factor": 1},
    )
    quantizer.codebook.data.fill_(100.0)
    quantizer.codebook.data[0] = 0.0
    latents = torch.zeros(1, 20, 4)
    latents[0, -3:] = torch.eye(4)[:3] * 5
    for _ in range(5):
        quantizer(latents)
    assert (quantizer.codebook.data[1:] == 100).all()
    quantizer(latents)
    moved = quantizer.codebook.data[1:]
    assert not (moved == 100).all(dim=1).any()
    for worst in latents[0, -3:]:
        assert (moved == worst).all(dim=1).any()
    assert quantizer(latents).metrics["usage"] >= 4 / 16


def test_reseeding_does_not_touch_live_codes():
    quantizer = vq(
        update={"type": "gradient"},
        usage_decay=0.0,
        reseeder={"type": "hard_example", "usage_below": 0.1, "every_steps": 1},
    )
    before = quantizer.codebook.data.clone()
    output = quantizer(torch.randn(4, 30, 4))
    used = output.indices.unique()
    assert torch.equal(quantizer.codebook.data[used], before[used])
