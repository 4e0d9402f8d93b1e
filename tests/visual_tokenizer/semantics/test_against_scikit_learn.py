"""What measures are made of, against their definitions and what scikit-learn counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import Ridge
from sklearn.metrics.cluster import contingency_matrix
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.outputs import ABSENT
from visual_tokenizer.semantics._text_space import RATIOS, fit_text_map
from visual_tokenizer.semantics.base import SemanticMeasureConfig, View, code_class_counts, token_bags
from visual_tokenizer.semantics.knn import nearest_classes
from visual_tokenizer.semantics.linear_probe import fit_classifier
from visual_tokenizer.semantics.text_retrieval import chance_of_recall


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def indices_of(generator: torch.Generator, count: int) -> Tensor:
    """(P, 6, 2) indices of 9 codes, of pictures of 1 to 6 tokens."""
    indices = torch.randint(9, (count, 6, 2), generator=generator).to(torch.int32)
    lengths = torch.randint(1, 7, (count,), generator=generator)
    indices[torch.arange(6)[None] >= lengths[:, None]] = ABSENT
    return indices


def counts_of(indices: Tensor) -> np.ndarray:
    counts = np.zeros((len(indices), 18))
    for row, picture in enumerate(indices.tolist()):
        for token in picture:
            for book, index in enumerate(token):
                if index != ABSENT:
                    counts[row, 9 * book + index] += 1
    return counts


def test_bags_of_tokens_are_tf_idf(generator) -> None:
    train, heldout = indices_of(generator, 40), indices_of(generator, 15)
    train[train == 8] = 7  # a code that no training picture holds is left out
    view = token_bags(train, heldout, 9)
    vocabulary = sorted(set(range(8)) | set(range(9, 17)))
    theirs = TfidfTransformer().fit(counts_of(train)[:, vocabulary])
    for indices, bags in ((train, view.train), (heldout, view.heldout)):
        wanted = theirs.transform(counts_of(indices)[:, vocabulary]).toarray()
        np.testing.assert_allclose(bags.toarray(), wanted)


def test_bags_cost_nothing_for_codes_that_are_not_there(generator) -> None:
    indices = torch.randint(2**31 - 1, (6, 4, 1), generator=generator).to(torch.int32)
    bag = token_bags(indices, indices, 2**31 - 1).train
    assert sparse.issparse(bag)
    assert bag.shape == (6, len(indices.unique()))


@pytest.mark.parametrize("is_sparse", [False, True])
def test_nearest_neighbours_vote(generator, is_sparse: bool) -> None:
    train, heldout = (torch.rand(n, 7, generator=generator, dtype=torch.float64).numpy() for n in (60, 25))
    classes = torch.randint(3, (60,), generator=generator)
    view = View(*map(sparse.csr_matrix, (train, heldout))) if is_sparse else View(train, heldout)
    cosines = (heldout @ train.T) / np.linalg.norm(heldout, axis=1)[:, None] / np.linalg.norm(train, axis=1)
    wanted = []
    for row in cosines:
        nearest = row.argsort()[-5:]
        votes = [
            ((classes.numpy()[nearest] == one).sum(), row[nearest][classes.numpy()[nearest] == one].sum())
            for one in range(3)
        ]
        wanted.append(votes.index(max(votes)))
    assert nearest_classes(view, classes, 5).tolist() == wanted


def test_a_majority_beats_nearer_neighbours() -> None:
    angles = torch.deg2rad(torch.tensor([1.0, 2.0, 40.0, 41.0, 42.0], dtype=torch.float64))
    train = torch.stack([angles.cos(), angles.sin()], dim=1)
    view = View(train.numpy(), np.array([[1.0, 0.0]]))
    classes = torch.tensor([0, 0, 1, 1, 1])
    assert nearest_classes(view, classes, 5).tolist() == [1]
    assert nearest_classes(view, classes, 4).tolist() == [0]  # two each: the nearer


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_logistic_regression_minimises_its_loss(generator, strength: float, is_sparse: bool, count: int) -> None:
    """Found anew by Newton's way to a gradient of 0; two classes have a row of weights each, as three have."""
    rows = torch.randn(80, 6, generator=generator, dtype=torch.float64)
    classes = (rows[:, :count] + 0.8 * torch.randn(80, count, generator=generator, dtype=torch.float64)).argmax(1)
    weights = torch.zeros(7, count, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([weights], max_iter=2000, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        logits = rows @ weights[:6] + weights[6]
        value = strength * F.cross_entropy(logits, classes, reduction="sum") + weights[:6].square().sum() / 2
        value.backward()
        return value

    search.step(loss)
    given = sparse.csr_matrix(rows.numpy()) if is_sparse else rows.numpy()
    found = torch.from_numpy(fit_classifier(given, classes.numpy(), strength).predict_proba(given))
    wanted = (rows @ weights[:6] + weights[6]).softmax(1).detach()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("channels", [5, 70])
@pytest.mark.parametrize("is_sparse", [False, True])
def test_ridge_regression_and_its_penalty(generator, channels: int, is_sparse: bool) -> None:
    rows = torch.randn(40, channels, generator=generator, dtype=torch.float64) + 2
    targets = rows[:, :3] @ torch.randn(3, 4, generator=generator, dtype=torch.float64)
    targets = targets + 1.5 * torch.randn(40, 4, generator=generator, dtype=torch.float64)
    given = sparse.csr_matrix(rows.numpy()) if is_sparse else rows.numpy()
    found = fit_text_map(given, targets.numpy())
    centred = rows - rows.mean(0)
    scale = (centred.square().sum() / min(channels, 39)).item()
    rows, targets = rows.numpy(), targets.numpy()
    errors = []  # of each row, by a map that was fitted without it
    for ratio in RATIOS:
        maps = [Ridge(alpha=ratio * scale).fit(np.delete(rows, i, 0), np.delete(targets, i, 0)) for i in range(40)]
        missed = [map.predict(rows[i : i + 1]) - targets[i] for i, map in enumerate(maps)]
        errors.append(np.square(missed).mean())
    assert found.alpha_ == pytest.approx(RATIOS[int(np.argmin(errors))] * scale, rel=1e-6)
    best = Ridge(alpha=found.alpha_, tol=1e-10).fit(rows, targets)
    fresh = torch.randn(9, channels, generator=generator, dtype=torch.float64).numpy()
    ours = found.predict(sparse.csr_matrix(fresh) if is_sparse else fresh)
    np.testing.assert_allclose(ours, best.predict(fresh), rtol=1e-5, atol=1e-6)


def test_channels_that_say_nothing_do_no_harm(generator) -> None:
    rows = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    rows[:, 1] = 7.0
    view = View(rows.numpy(), rows[:3].numpy()).standardised()
    assert np.isfinite(view.train).all()
    assert view.train[:, 0].std() == pytest.approx(1)
    assert np.isfinite(fit_text_map(view.train, rows[:, :2].numpy()).predict(view.heldout)).all()
    same = np.full((30, 4), 7.0)
    np.testing.assert_allclose(fit_text_map(same, rows[:, :2].numpy()).predict(same[:1]), rows[:, :2].mean(0)[None])


def value(name: str, indices: Tensor, classes: Tensor) -> float:
    return SemanticMeasureConfig.family.build({"type": name}).value(indices, classes)


def test_purity_and_mutual_information(generator) -> None:
    indices, classes = indices_of(generator, 50), torch.randint(4, (50,), generator=generator)
    wanted: dict[str, list[float]] = {"purity": [], "information": []}
    for book in indices.unbind(2):
        present = book != ABSENT
        codes = book[present].numpy()
        owners = classes[:, None].expand_as(book)[present].numpy()
        table = contingency_matrix(codes, owners)
        used, counts = code_class_counts(book, classes, 4)
        assert used.tolist() == sorted(set(codes.tolist()))
        assert counts.tolist() == table.tolist()
        wanted["purity"].append(table.max(1).sum() / table.sum())
        shares = table / table.sum()
        entropies = [-(p[p > 0] * np.log(p[p > 0])).sum() for p in (shares, shares.sum(0), shares.sum(1))]
        wanted["information"].append(2 * (sum(entropies[1:]) - entropies[0]) / sum(entropies[1:]))
    assert value("purity", indices, classes) == pytest.approx(np.mean(wanted["purity"]))
    assert value("mutual_information", indices, classes) == pytest.approx(np.mean(wanted["information"]))


def test_one_code_says_nothing() -> None:
    indices, classes = torch.zeros(8, 3, 1, dtype=torch.int32), torch.arange(8) % 2
    assert value("mutual_information", indices, classes) == 0
    assert value("purity", indices, classes) == 0.5
    assert value("mutual_information", indices, torch.zeros(8, dtype=torch.int64)) == 0


def test_chance_of_recall_is_that_of_random_orders(generator) -> None:
    captions = ["a"] * 5 + ["b"] * 2 + list("cdefg")
    hits = []
    for _ in range(2000):
        order = torch.randperm(len(captions), generator=generator)[:3].tolist()
        hits.append(np.mean([any(captions[place] == caption for place in order) for caption in captions]))
    assert chance_of_recall(captions, 3) == pytest.approx(np.mean(hits), abs=0.01)
    assert chance_of_recall(list("abcd"), 1) == 1 / 4
    assert chance_of_recall(list("abcd"), 9) == 1
