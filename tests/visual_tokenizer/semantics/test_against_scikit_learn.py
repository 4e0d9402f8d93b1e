"""What measures are made of, against scikit-learn's implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from visual_tokenizer.outputs import ABSENT
from visual_tokenizer.semantics import _cosines
from visual_tokenizer.semantics._code_classes import code_class_counts
from visual_tokenizer.semantics._logistic_regression import fit_logistic_regression
from visual_tokenizer.semantics._pictures import View
from visual_tokenizer.semantics._ridge import RATIOS, fit_ridge
from visual_tokenizer.semantics._token_bags import TokenBags
from visual_tokenizer.semantics.knn import nearest_classes
from visual_tokenizer.semantics.mutual_information import mutual_information
from visual_tokenizer.semantics.purity import purity
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
    bags = TokenBags(train, 9)
    theirs = TfidfTransformer().fit(counts_of(train)[:, bags.vocabulary])
    assert set(bags.vocabulary.tolist()) == set(range(8)) | set(range(9, 17))
    for indices in (train, heldout):
        wanted = theirs.transform(counts_of(indices)[:, bags.vocabulary]).toarray()
        torch.testing.assert_close(bags(indices).to_dense(), torch.from_numpy(wanted))


def test_bags_cost_nothing_for_codes_that_are_not_there(generator) -> None:
    indices = torch.randint(2**31 - 1, (6, 4, 1), generator=generator).to(torch.int32)
    bag = TokenBags(indices, 2**31 - 1)(indices)
    assert bag.is_sparse
    assert bag.shape == (6, len(indices.unique()))


@pytest.mark.parametrize("elements", [1, 1 << 24])
@pytest.mark.parametrize("is_sparse", [False, True])
def test_nearest_neighbours_vote(generator, elements: int, is_sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cosines, "ELEMENTS", elements)
    train, heldout = (torch.rand(n, 7, generator=generator, dtype=torch.float64) for n in (60, 25))
    classes = torch.randint(3, (60,), generator=generator)
    view = View(train, heldout)
    if is_sparse:
        train, heldout = (part / part.norm(dim=1, keepdim=True) for part in (train, heldout))
        view = View(train.to_sparse(), heldout.to_sparse())

    def votes(distances: np.ndarray) -> np.ndarray:  # as ours: one each, and nearness where these are equal
        return 1 + (1 - distances) / 11

    theirs = KNeighborsClassifier(5, metric="cosine", algorithm="brute", weights=votes).fit(train, classes)
    assert nearest_classes(view, classes, 3, 5).tolist() == theirs.predict(heldout).tolist()


def test_a_majority_beats_nearer_neighbours() -> None:
    angles = torch.deg2rad(torch.tensor([1.0, 2.0, 40.0, 41.0, 42.0], dtype=torch.float64))
    train = torch.stack([angles.cos(), angles.sin()], dim=1)
    view = View(train, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    classes = torch.tensor([0, 0, 1, 1, 1])
    assert nearest_classes(view, classes, 2, 5).tolist() == [1]
    assert nearest_classes(view, classes, 2, 4).tolist() == [0]  # two each: the nearer


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("is_sparse", [False, True])
def test_logistic_regression(generator, strength: float, is_sparse: bool) -> None:
    rows = torch.randn(80, 6, generator=generator, dtype=torch.float64)
    classes = (rows[:, :3] + 0.8 * torch.randn(80, 3, generator=generator, dtype=torch.float64)).argmax(1)
    ours = fit_logistic_regression(rows.to_sparse() if is_sparse else rows, classes, 3, strength)
    given = sparse.csr_matrix(rows.numpy()) if is_sparse else rows.numpy()
    theirs = LogisticRegression(C=strength, tol=1e-9, max_iter=10_000).fit(given, classes.numpy())
    torch.testing.assert_close(ours.weight.T, torch.from_numpy(theirs.coef_), rtol=1e-3, atol=1e-4)
    probabilities = ours.logits(rows).softmax(1)
    torch.testing.assert_close(probabilities, torch.from_numpy(theirs.predict_proba(given)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("channels", [5, 70])
@pytest.mark.parametrize("is_sparse", [False, True])
def test_ridge_regression_and_its_penalty(generator, channels: int, is_sparse: bool) -> None:
    rows = torch.randn(40, channels, generator=generator, dtype=torch.float64) + 2
    targets = rows[:, :3] @ torch.randn(3, 4, generator=generator, dtype=torch.float64)
    targets = targets + 1.5 * torch.randn(40, 4, generator=generator, dtype=torch.float64)
    ours = fit_ridge(rows.to_sparse() if is_sparse else rows, targets)
    centred = rows - rows.mean(0)
    scale = (centred.square().sum() / min(channels, 39)).item()
    best = RidgeCV([ratio * scale for ratio in RATIOS], scoring="neg_mean_squared_error").fit(rows, targets)
    assert ours.ratio * scale == pytest.approx(best.alpha_, rel=1e-6)
    theirs = Ridge(alpha=ours.ratio * scale, tol=1e-10).fit(rows, targets)
    fresh = torch.randn(9, channels, generator=generator, dtype=torch.float64)
    wanted = torch.from_numpy(theirs.predict(fresh))
    torch.testing.assert_close(ours(fresh.to_sparse() if is_sparse else fresh), wanted, rtol=1e-5, atol=1e-6)


def test_channels_that_say_nothing_do_no_harm(generator) -> None:
    rows = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    rows[:, 1] = 7.0
    view = View(rows, rows[:3]).standardised()
    assert view.train.isfinite().all()
    torch.testing.assert_close(view.train[:, 0].std(unbiased=False), torch.ones(()).double())
    assert fit_ridge(view.train, rows[:, :2])(view.heldout).isfinite().all()


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
        wanted["information"].append(normalized_mutual_info_score(owners, codes))
    assert purity(indices, classes, 4) == pytest.approx(np.mean(wanted["purity"]))
    assert mutual_information(indices, classes, 4) == pytest.approx(np.mean(wanted["information"]))


def test_one_code_says_nothing() -> None:
    indices, classes = torch.zeros(8, 3, 1, dtype=torch.int32), torch.arange(8) % 2
    assert mutual_information(indices, classes, 2) == 0
    assert purity(indices, classes, 2) == 0.5
    assert mutual_information(indices, torch.zeros(8, dtype=torch.int64), 1) == 0


def test_chance_of_recall_is_that_of_random_orders(generator) -> None:
    captions = ["a"] * 5 + ["b"] * 2 + list("cdefg")
    hits = []
    for _ in range(2000):
        order = torch.randperm(len(captions), generator=generator)[:3].tolist()
        hits.append(np.mean([any(captions[place] == caption for place in order) for caption in captions]))
    assert chance_of_recall(captions, 3) == pytest.approx(np.mean(hits), abs=0.01)
    assert chance_of_recall(list("abcd"), 1) == 1 / 4
    assert chance_of_recall(list("abcd"), 9) == 1
