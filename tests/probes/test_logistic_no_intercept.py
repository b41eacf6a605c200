"""The logistic path without a bias: what differences of two states ask for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax
from sklearn.linear_model import LogisticRegression

from probekit.errors import ProbeError
from probekit.probes import LogisticProbe, load_probe, logistic_design
from probekit.probes.logistic_design import Design, StandardRows
from probekit.probes.logistic_path import logistic_path
from probekit.probes.logistic_solver import Objective, OwnHessian

PENALTIES = [1e-4, 1e-2, 1.0]
EXACT = {"fit_intercept": False, "dtype": "float64", "tol": 1e-12}


def differences(n=300, d=12, seed=0, sharp=1.0):
    """Columns of different size and off 0, P(second) that noise was added to."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * rng.uniform(0.2, 3, size=d) + 0.3
    p = expit(sharp * (X[:, 1] - X[:, 0]))
    return X, np.clip(p + rng.normal(scale=0.2, size=n), 0, 1)


def turned(X, y, which):
    """The same pairs, those of ``which`` with their two completions exchanged."""
    return np.where(which[:, None], -X, X), np.where(which, 1 - y, y)


def slope(X, Y, l2, coef):
    """Largest entry of the gradient by the definition, in float64; Y (n, V)."""
    z = X @ coef.T
    p = expit(z) if len(coef) == 1 else np.exp(log_softmax(z, axis=1))
    return np.abs((p - Y).T @ X / len(X) + 2 * l2 * coef).max()


@pytest.mark.parametrize("standardize", [False, True])
def test_scikit_learn_soft_labels_by_stacking(standardize):
    X, y = differences()
    path = logistic_path(X, y, PENALTIES, standardize=standardize, **EXACT)
    # Without centre the size of a column is its root mean square.
    scale = np.sqrt((X**2).mean(axis=0)) if standardize else np.ones(X.shape[1])
    for l2, coef in zip(PENALTIES, path.coef_, strict=True):
        peer = LogisticRegression(
            C=1 / (2 * l2 * len(y)), fit_intercept=False, solver="newton-cholesky", tol=1e-12
        )
        peer.fit(
            np.vstack([X, X]) / scale,
            np.repeat([1, 0], len(y)),
            sample_weight=np.concatenate([y, 1 - y]),
        )
        # Both stop at a gradient of 1e-12; the smallest curvature here is about 1e-4.
        assert np.allclose(coef * scale, peer.coef_, rtol=0, atol=1e-8)
    assert (path.intercept_ == 0).all()
    biased = logistic_path(X, y, PENALTIES, standardize=standardize, dtype="float64")
    assert np.abs(biased.coef_ - path.coef_).max() > 1e-3  # it does make a difference


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("shape", [(300, 12), (40, 90)], ids=["tall", "wide"])
def test_scikit_learn_weights_and_classes(shape, classes):
    X, _ = differences(*shape)
    rng = np.random.default_rng(1)
    y = (X[:, :classes] + rng.gumbel(size=(len(X), classes))).argmax(axis=1)
    weight = rng.exponential(size=len(X))
    path = logistic_path(X, y, PENALTIES, sample_weight=weight, **EXACT)
    for l2, coef in zip(PENALTIES, path.coef_, strict=True):
        peer = LogisticRegression(
            C=1 / (2 * l2 * weight.sum()), fit_intercept=False, solver="newton-cholesky", tol=1e-12
        ).fit(X, y, sample_weight=weight)
        assert np.allclose(coef, peer.coef_, rtol=0, atol=1e-7)
    assert (path.intercept_ == 0).all()


def test_folds_are_fits_without_them():
    X, y = differences()
    folds = np.arange(len(X)) % 3
    path = logistic_path(X, y, PENALTIES, folds=folds, **EXACT)
    for fold in range(3):
        held_out = folds == fold
        alone = logistic_path(X[~held_out], y[~held_out], PENALTIES, **EXACT)
        assert np.allclose(path.fold_coef_[:, fold], alone.coef_, rtol=0, atol=1e-8)
        logits = X[held_out] @ alone.coef_[:, 0].T
        assert np.allclose(path.oof_logits[:, held_out, 0], logits.T, rtol=0, atol=1e-7)
    assert (path.fold_intercept_ == 0).all()


@pytest.mark.parametrize("how", ["sketch", "streamed", "own hessian"])
def test_every_way_to_the_optimum(how, monkeypatch):
    X, y = differences(200, 60, sharp=1.0)
    l2 = [1e-3, 1e-1]
    if how == "sketch":
        monkeypatch.setattr(logistic_design, "WHOLE", 20)
        monkeypatch.setattr(logistic_design, "SKETCH", 10)
    elif how == "streamed":
        monkeypatch.setattr(logistic_design, "COPY_BYTES", 1)
        monkeypatch.setattr(logistic_design, "CHUNK_BYTES", 1)
    else:  # labels that the rows can fit: p(1 - p) differs so much that its mean says little
        X, y = differences(50, 90, sharp=40)
        l2 = [1e-5, 1e-3]
        created = []
        whole = OwnHessian.__init__
        monkeypatch.setattr(
            OwnHessian, "__init__", lambda self, *args: created.append(1) or whole(self, *args)
        )
    path = logistic_path(X, y, l2, **EXACT)
    assert (path.intercept_ == 0).all()
    assert how != "own hessian" or created
    assert path.converged_.all()
    assert path.n_iter_.max() < 150
    for penalty, coef in zip(l2, path.coef_, strict=True):
        # tol 1e-12 is for columns divided by their common size, about 2 here.
        assert slope(X, y[:, None], penalty, coef) < 1e-10


def test_hessian_leaves_the_bias_alone():
    X, y = differences(50, 4)
    weight = np.full(50, 0.02)
    rows = StandardRows(
        X,
        weight,
        standardize=False,
        dtype=torch.float64,
        device=torch.device("cpu"),
        centre=False,
    )
    tensors = [torch.as_tensor(v) for v in (y[None], weight[None], [0], [0.01])]
    objective = Objective(Design(rows), *tensors, bias=False)
    theta = torch.as_tensor(np.r_[np.random.default_rng(2).normal(size=4), 0.0])[None, None]
    hessian, step = objective.hessian(theta)[0], 1e-5
    for i in range(4):
        ahead, behind = theta.clone(), theta.clone()
        ahead[..., i] += step
        behind[..., i] -= step
        column = (objective(ahead).grad - objective(behind).grad)[0, 0] / (2 * step)
        # Central differences: an error of order step squared.
        assert np.allclose(column, hessian[:, i], rtol=0, atol=1e-8)
    assert (hessian[4, :4] == 0).all()
    assert (hessian[:4, 4] == 0).all()
    assert hessian[4, 4] > 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_pair_turned_round_has_the_other_probability(dtype):
    X, y = differences()
    X = X.astype(dtype)
    probe = LogisticProbe(fit_intercept=False, dtype=dtype).fit(X, y)
    # Exactly: every product changes its sign and nothing else.
    assert np.array_equal(probe.predict_proba(X), probe.predict_proba(-X)[:, ::-1])
    biased = LogisticProbe(dtype=dtype).fit(X, y)
    assert not np.allclose(biased.predict_proba(X), biased.predict_proba(-X)[:, ::-1], atol=1e-3)


@pytest.mark.parametrize("standardize", [False, True])
def test_which_completion_stands_first_says_nothing(standardize):
    X, y = differences()
    which = np.random.default_rng(3).random(len(X)) < 0.5
    folds = np.arange(len(X)) % 5
    one, other = (
        logistic_path(A, b, PENALTIES, folds=folds, standardize=standardize, **EXACT)
        for A, b in ((X, y), turned(X, y, which))
    )
    assert np.allclose(one.coef_, other.coef_, rtol=0, atol=1e-9)
    same = np.where(which, -1, 1) * other.oof_logits[..., 0]
    assert np.allclose(one.oof_logits[..., 0], same, rtol=0, atol=1e-8)


def test_penalty_is_chosen_out_of_fold():
    X, y = differences()
    probe = LogisticProbe(fit_intercept=False, dtype="float64").fit(X, y)
    path = logistic_path(
        X,
        y,
        probe.penalties_,
        folds=probe.fold_,
        standardize=True,
        fit_intercept=False,
        dtype="float64",
    )
    z = path.oof_logits[..., 0]
    loss = (np.logaddexp(0, z) - y * z).mean(axis=1)
    assert np.allclose(probe.l2_scores_, loss, rtol=0, atol=1e-9)
    assert probe.l2_ == probe.penalties_[loss.argmin()]
    assert probe.intercept_ == 0


def test_rows_that_make_no_folds_get_one_half():
    X, _ = differences(3, 4)
    probe = LogisticProbe(fit_intercept=False).fit(X, [0, 1, 1])
    assert (probe.oof_proba_ == 0.5).all()
    assert LogisticProbe().fit(X, [0, 1, 1]).oof_proba_[0, 1] == pytest.approx(2 / 3)


def test_it_is_saved(tmp_path):
    X, y = differences()
    probe = LogisticProbe(fit_intercept=False).fit(X, y).save(tmp_path / "probe")
    again = load_probe(tmp_path / "probe")
    assert np.array_equal(again.predict_proba(X), probe.predict_proba(X))
    assert again.fit_intercept is False


def test_states_far_from_zero_and_bad_ones():
    X, y = differences()
    far = np.c_[X, np.full(len(X), 1e3)]  # a constant column is a bias that is penalised
    path = logistic_path(far, y, [1e-2], **EXACT)
    assert slope(far, y[:, None], 1e-2, path.coef_[0]) < 1e-8
    X[4, 2] = np.nan
    with pytest.raises(ProbeError, match=r"NaN or inf in 1 of 300 rows \(first: '4'\)"):
        logistic_path(X, y, [1e-2], fit_intercept=False)
