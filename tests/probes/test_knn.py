from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from probekit.errors import ProbeError
from probekit.probes import KNNProbe


def expected_failures(probe):
    return {
        "check_sample_weight_equivalence_on_dense_data": "A row of weight 0 has no vote but keeps "
        "its place among the k nearest, and one of weight 2 takes one place, not two."
    }


@parametrize_with_checks([KNNProbe(k=3)], expected_failed_checks=expected_failures)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((150, 8)).astype(np.float32)
    return X, rng.random(150), rng.standard_normal((40, 8)).astype(np.float32)


@pytest.mark.parametrize("name", ["soft", "hard"])
def test_golden_probe(golden, name):
    data = golden(f"eleuther_probes_{name}")
    for k in data["knn_ks"].tolist():
        probe = KNNProbe(k=k, metric="euclidean", self_neighbor=True).fit(data["X"], data["y"])
        # The reference averages in float32.
        assert np.allclose(probe.predict_proba(data["X"])[:, 1], data[f"knn_train_k{k}"], atol=1e-6)
        assert np.allclose(probe.oof_proba_[:, 1], data[f"knn_train_k{k}"], atol=1e-6)
        query = probe.predict_proba(data["Xq"])
        assert np.allclose(query[:, 1], data[f"knn_query_k{k}"], atol=1e-6)
        assert np.array_equal(probe.predict(data["Xq"]), query[:, 1] > 0.5)


@pytest.mark.parametrize("name", ["soft", "hard"])
def test_golden_filter_cuts(golden, name):
    data = golden(f"eleuther_probes_{name}")
    for k in data["knn_ks"].tolist():
        proba = KNNProbe(k=k, metric="euclidean").fit(data["X"], data["y"]).predict_proba(data["X"])
        score = np.abs(data["y"] - proba[:, 1])
        for share in data["filter_contamination"]:
            keep = data[f"knn_keep_k{k}_c{share}"]
            # Where the cut is ambiguous, any choice among equal scores is right.
            assert score[keep].max() <= score[~keep].min() + 1e-6
            if not data[f"aux_knn_tie_k{k}_c{share}"]:
                ours = np.ones(len(keep), dtype=bool)
                ours[np.argsort(-score, kind="stable")[: int(share * len(keep))]] = False
                assert np.array_equal(ours, keep)


def test_golden_averages_and_quantile_filter(golden):
    data = golden("eleuther_knn_branches")
    probe = KNNProbe(k=5, metric="euclidean").fit(data["X"], data["y"])
    for k, proba in zip((5, 20), probe.oof_path([5, 20])[..., 1], strict=True):
        votes = KNNProbe(k=k, metric="euclidean").fit(data["X"], data["y"])
        average = votes.predict_proba(data["X"])[:, 1]
        assert np.allclose(average, data[f"knn_average_k{k}"], atol=1e-6)
        score = np.abs(data["y"] - proba)
        for q in (0.5, 0.8):
            assert np.array_equal(score <= np.quantile(score, q), data[f"zeta_keep_k{k}_q{q}"])


def test_golden_relabel_at_the_best_k(golden):
    data = golden("eleuther_knn_branches")
    probe = KNNProbe(k=1, metric="euclidean").fit(data["X"], data["y"])
    path = probe.oof_path(range(1, len(data["X"])))[..., 1]  # the reference tries every k
    best = ((path - data["y"]) ** 2).mean(axis=1).argmin()
    assert np.allclose(path[best], data["knn_relabel_loocv"], atol=1e-6)
    assert not np.allclose(path[best - 1], data["knn_relabel_loocv"], atol=1e-6)  # the control


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_agrees_with_scikit_learn(rows, labels):
    X, p, queries = rows
    probe = KNNProbe(k=7, metric="euclidean")
    if labels == "hard":
        y = np.where(p > 0.6, "yes", "no")
        reference = KNeighborsClassifier(7).fit(X.astype(float), y)
        probe.fit(X, y)
        assert np.allclose(probe.predict_proba(queries), reference.predict_proba(queries))
        assert np.array_equal(probe.predict(queries), reference.predict(queries))
    else:
        reference = KNeighborsRegressor(7).fit(X.astype(float), p)
        assert np.allclose(probe.fit(X, p).predict_proba(queries)[:, 1], reference.predict(queries))
        # Without a query, scikit-learn leaves each row out of its own neighbours.
        assert np.allclose(probe.oof_proba_[:, 1], reference.predict(None))


def test_a_stored_row_votes_for_itself_only_when_asked_as_new(rows):
    X, p, _ = rows
    y = (p > 0.5).astype(int)
    probe = KNNProbe(k=1).fit(X, y)
    assert np.array_equal(probe.predict(X), y)
    assert 0.3 < (probe.oof_proba_[:, 1] == y).mean() < 0.7  # random labels, left out
    assert np.array_equal(KNNProbe(k=1, self_neighbor=True).fit(X, y).oof_proba_[:, 1], y)


def test_copies_are_not_read_back(rows):
    X, p, _ = rows
    twice, y = np.vstack([X, X]), np.tile((p > 0.5).astype(int), 2)
    probe = KNNProbe(k=1).fit(twice, y)
    assert 0.3 < (probe.oof_proba_[:, 1] == y).mean() < 0.7
    blind = KNNProbe(k=1).fit(twice, y, groups=np.arange(len(y)))  # the control
    assert np.array_equal(blind.oof_proba_[:, 1], y)


def test_one_search_gives_every_k(rows):
    X, p, _ = rows
    probe = KNNProbe(k=3).fit(X, p)
    path = probe.oof_path([1, 3, 20])
    for k, proba in zip((1, 3, 20), path, strict=True):
        assert np.array_equal(proba, KNNProbe(k=k).fit(X, p).oof_proba_)


def test_weights_are_votes(rows):
    X, p, queries = rows
    weight = np.random.default_rng(1).random(len(p))
    probe = KNNProbe(k=5, weights="cosine").fit(X, p, sample_weight=weight)
    Z = X - X.mean(axis=0)
    Z /= np.linalg.norm(Z, axis=1, keepdims=True)
    Q = queries - X.mean(axis=0)
    cosine = Q / np.linalg.norm(Q, axis=1, keepdims=True) @ Z.T
    for i, row in enumerate(cosine):
        near = np.argsort(-row)[:5]
        expected = np.average(p[near], weights=weight[near] * np.maximum(row[near], 0))
        # Cosines come from float32 distances.
        assert probe.predict_proba(queries[i : i + 1])[0, 1] == pytest.approx(expected, abs=1e-5)


def test_votes_that_are_all_zero_count_alike():
    X = np.array([[1.0, 0], [-1, 0], [3, 0], [-3, 0]])
    y = [0.0, 1.0, 0.5, 0.2]
    square = KNNProbe(k=3, weights="cosine").fit(X, y)  # the row asked for lies square to all
    assert square.predict_proba([[0.0, 1]])[0, 1] == pytest.approx((0.0 + 1 + 0.5) / 3)
    silent = KNNProbe(k=2, metric="euclidean").fit(X, y, sample_weight=[0, 1, 0, 1])
    assert silent.predict_proba([[2.0, 0]])[0, 1] == pytest.approx((0.0 + 0.5) / 2)


def test_more_than_two_classes_hard_and_soft(rows):
    X, p, queries = rows
    y = np.digitize(p, [0.3, 0.6])
    hard = KNNProbe(k=9).fit(X, y)
    soft = KNNProbe(k=9).fit(X, np.eye(3)[y])
    assert np.array_equal(hard.predict_proba(queries), soft.predict_proba(queries))
    assert np.array_equal(hard.oof_proba_, soft.oof_proba_)
    assert np.allclose(hard.oof_proba_.sum(axis=1), 1, atol=1e-12)


def test_backends_give_the_same_probe(rows):
    X, p, queries = rows
    faiss, torch = (KNNProbe(k=9, backend=b).fit(X, p) for b in ("faiss", "torch"))
    assert np.array_equal(faiss.oof_proba_, torch.oof_proba_)
    assert np.array_equal(faiss.predict_proba(queries), torch.predict_proba(queries))


def test_works_in_pipelines_searches_and_clones(rows):
    X, _, queries = rows
    y = (X[:, 0] > 0).astype(int)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), KNNProbe(k=3)), {"knnprobe__k": [1, 5, 15]}, cv=3
    ).fit(X, y)
    assert search.best_score_ > 0.7
    assert search.predict(queries).shape == (40,)
    assert clone(KNNProbe(k=4, metric="euclidean")).get_params()["metric"] == "euclidean"


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"k": 150}, "k = 150 is too large: n = 150 rows have 149 others"),
        ({"k": 0}, "k is a whole number from 1 to"),
        ({"k": 3, "weights": "distance"}, "uniform, cosine, got 'distance'"),
        ({"k": 3, "weights": "cosine", "metric": "euclidean"}, "needs metric='cosine'"),
        ({"k": 3, "metric": "dot"}, "cosine, euclidean"),
    ],
)
def test_parameters_are_checked(rows, params, words):
    with pytest.raises(ProbeError, match=words):
        KNNProbe(**params).fit(rows[0], rows[1])


def test_a_path_needs_a_k(rows):
    with pytest.raises(ProbeError, match="at least one k"):
        KNNProbe(k=3).fit(rows[0], rows[1]).oof_path([])
