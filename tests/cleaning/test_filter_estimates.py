"""HOC and the confident joint give back the noise that was planted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import check_grad

from probekit.cleaning import filter as filters
from probekit.errors import ProbeError
from probekit.probes.neighbors import nearest_others


def planted(transition: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows in clusters of three of one true class; neighbours are the two others of the cluster."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(rng.integers(0, len(transition), n // 3), 3)
    cumulative = transition.cumsum(1)[truth]
    hard = (rng.random(len(truth))[:, None] > cumulative).sum(1)
    base = np.arange(len(truth)) // 3 * 3
    offset = np.arange(len(truth)) % 3
    neighbors = np.stack([base + (offset + 1) % 3, base + (offset + 2) % 3], axis=1)
    return truth, hard, neighbors


@pytest.mark.parametrize(
    ("e0", "e1"), [(0.3, 0.1), (0.1, 0.3), (0.0, 0.0), (0.2, 0.2)], ids=lambda e: str(e)
)
def test_two_classes(e0: float, e1: float) -> None:
    transition = np.array([[1 - e0, e0], [e1, 1 - e1]])
    truth, hard, neighbors = planted(transition, 24_000, seed=1)
    found = filters.hoc(hard, neighbors, 2)
    # 8,000 independent triples: the estimate's own spread is about 0.006.
    np.testing.assert_allclose(found.transition, transition, atol=0.02)
    wrong = [np.mean(truth[hard == c] != c) for c in range(2)]
    np.testing.assert_allclose(found.shares, wrong, atol=0.03)


def test_two_classes_among_nearest_rows() -> None:
    """The check of the method's authors: errors (0.3, 0.1), 8,000 rows, neighbours by distance."""
    errors = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        truth = (rng.random(8_000) < 0.6).astype(np.int64)
        X = rng.normal(size=(8_000, 4)).astype(np.float32)
        X[:, 0] += 12 * truth
        wrong = rng.random(8_000) < np.where(truth == 0, 0.3, 0.1)
        hard = np.where(wrong, 1 - truth, truth)
        T = filters.hoc(hard, nearest_others(X, 2).index, 2).transition
        errors.append([T[0, 1] - wrong[truth == 0].mean(), T[1, 0] - wrong[truth == 1].mean()])
    # One estimate's spread is 0.016 and 0.007 over seeds: triples share rows. The mean's is half.
    assert (np.abs(np.mean(errors, axis=0)) < [0.02, 0.01]).all()


def test_three_classes_with_unequal_errors() -> None:
    transition = np.array([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.0, 0.1, 0.9]])
    _, hard, neighbors = planted(transition, 60_000, seed=2)
    found = filters.hoc(hard, neighbors, 3)
    np.testing.assert_allclose(found.transition, transition, atol=0.03)
    np.testing.assert_allclose(found.prior, [1 / 3] * 3, atol=0.02)


def test_neighbours_that_know_nothing_make_labels_unpredictable() -> None:
    """Control: with random neighbours the labels carry no more than their shares."""
    rng = np.random.default_rng(3)
    hard = rng.integers(0, 2, 8_000)
    found = filters.hoc(hard, rng.integers(0, 8_000, (8_000, 2)), 2)
    assert found.shares.max() > 0.3


def test_gradient_is_that_of_the_mismatch() -> None:
    rng = np.random.default_rng(4)
    counts = rng.dirichlet(np.ones(27)).reshape(3, 3, 3)
    targets = (counts.sum((1, 2)), counts.sum(2), counts)
    error = check_grad(
        lambda z: filters._mismatch(z, targets)[0],
        lambda z: filters._mismatch(z, targets)[1],
        rng.normal(size=12),
    )
    assert error < 1e-6  # finite differences of step 1.5e-8 are right to about that


def test_one_neighbour_is_too_few() -> None:
    with pytest.raises(ProbeError, match="two neighbours"):
        filters.hoc(np.array([0, 1]), np.array([[1], [0]]), 2)


def slow_confident_joint(hard: np.ndarray, proba: np.ndarray) -> np.ndarray:
    """The definition, row by row."""
    c = proba.shape[1]
    rows = list(zip(proba, hard, strict=True))
    thresholds = [np.mean([p[j] for p, h in rows if h == j]) for j in range(c)]
    joint = np.zeros((c, c))
    for p, h in rows:
        above = [j for j in range(c) if p[j] >= thresholds[j] - 1e-6]
        if above:
            joint[h, max(above, key=lambda j: p[j])] += 1
    for i in range(c):
        if joint[i].sum() == 0:
            joint[i, i] = 1
        joint[i] *= (hard == i).sum() / joint[i].sum()
    return joint


@pytest.mark.parametrize("c", [2, 4])
def test_confident_joint_is_its_definition(c: int) -> None:
    rng = np.random.default_rng(c)
    hard = rng.integers(0, c, 300)
    proba = rng.dirichlet(np.full(c, 0.5), 300)
    proba[np.arange(300), hard] += 0.3
    proba /= proba.sum(1, keepdims=True)
    joint = filters.confident_joint(hard, proba)
    np.testing.assert_allclose(joint, slow_confident_joint(hard, proba))
    np.testing.assert_allclose(joint.sum(1), np.bincount(hard))
    shares = filters.confident_shares(hard, proba)
    np.testing.assert_allclose(shares, 1 - np.diagonal(joint) / np.bincount(hard))
    assert 0 < shares.min() < 1


def test_confident_joint_finds_planted_noise_of_a_perfect_probe() -> None:
    transition = np.array([[0.7, 0.3], [0.1, 0.9]])
    truth, hard, _ = planted(transition, 6_000, seed=5)
    proba = np.where(np.eye(2)[truth] > 0, 0.95, 0.05)
    found = filters.confident_shares(hard, proba)
    wrong = [np.mean(truth[hard == c] != c) for c in range(2)]
    np.testing.assert_allclose(found, wrong, atol=1e-12)


def test_a_class_that_nobody_has_is_refused() -> None:
    with pytest.raises(ProbeError, match="weak class 1"):
        filters.confident_joint(np.array([0, 0, 2]), np.full((3, 3), 1 / 3))


@pytest.mark.parametrize("n_classes", [2, 4])
def test_pruning_is_cleanlabs(n_classes):
    """Cleanlab is the authors' own; its counts are rounded otherwise, by a row for each pair."""
    cleanlab = pytest.importorskip("cleanlab.filter")
    rng = np.random.default_rng(n_classes)
    truth = rng.integers(0, n_classes, 800)
    logits = rng.standard_normal((800, n_classes)) + 2.5 * np.eye(n_classes)[truth]
    proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    hard = np.where(rng.random(800) < 0.25, rng.integers(0, n_classes, 800), truth)
    ours = filters.prune_by_noise_rate(hard, proba).selected
    theirs = cleanlab.find_label_issues(hard, proba, filter_by="prune_by_noise_rate", n_jobs=1)
    assert (ours != theirs).sum() <= n_classes * (n_classes - 1)
    assert (hard != truth)[ours].mean() > 0.7 > 0.3 > (hard != truth).mean()
    assert not ours[proba.argmax(axis=1) == hard].any()


def test_pruning_by_hand():
    hard = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    second = np.array([0.1, 0.2, 0.9, 0.8, 0.9, 0.8, 0.7, 0.1])
    proba = np.column_stack([1 - second, second])
    # Confident of 0: P(0) >= 0.5; of 1: P(1) >= 0.625. So two of class 0 count for 1, one of 1 for
    # 0; the dropped ones are those furthest on the other side.
    assert filters.prune_by_noise_rate(hard, proba).selected.nonzero()[0].tolist() == [2, 3, 7]
