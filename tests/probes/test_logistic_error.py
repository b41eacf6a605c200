"""How far probabilities of new rows are from the optimum's, against Newton's method in float64."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.exceptions import ConvergenceWarning

from probekit.probes import logistic_design, logistic_solver
from probekit.probes import logistic_path as path_module
from probekit.probes.logistic import LogisticProbe
from probekit.probes.logistic_path import logistic_path

PENALTIES = [1e-4, 1e-3, 1e-2, 1.0]
TOLERATED = 1e-4


def newton(X, Y, l2, *, weight=None, bias=True):
    """Coefficients (V, d) and intercepts (V,) by damped Newton steps in the space of the rows."""
    X = X.astype(np.float64)
    n, vectors = len(X), 1 if Y.shape[1] == 2 else Y.shape[1]
    weight = np.full(n, 1 / n) if weight is None else weight / weight.sum()
    centre = weight @ X if bias else np.zeros(X.shape[1])
    U, S, V = np.linalg.svd(X - centre, full_matrices=False)
    kept = np.divide(S, S[0]) > 1e-12  # the others are rounding
    A = np.column_stack([U[:, kept] * S[kept], np.full(n, float(bias))])
    width = A.shape[1]
    penalty = np.full(width, 2 * l2)
    penalty[-1] = 0
    target = Y[:, -vectors:]

    def parts(theta):
        z = A @ theta.T
        p = expit(z) if vectors == 1 else softmax(z, axis=1)
        full = np.column_stack([np.zeros(n), z]) if vectors == 1 else z
        losses = np.logaddexp.reduce(full, axis=1) - (Y * full).sum(axis=1)
        return weight @ losses + 0.5 * (penalty * theta**2).sum(), p

    theta = np.zeros((vectors, width))
    for _ in range(200):
        loss, p = parts(theta)
        gradient = ((p - target) * weight[:, None]).T @ A + penalty * theta
        hessian = np.zeros((vectors, width, vectors, width))
        for k in range(vectors):
            for m in range(vectors):
                mass = weight * p[:, k] * (float(k == m) - p[:, m])
                hessian[k, :, m] = (A * mass[:, None]).T @ A + np.diag(penalty) * (k == m)
        size = vectors * width
        step = np.linalg.lstsq(hessian.reshape(size, size), gradient.ravel(), rcond=1e-15)[0]
        step, length = step.reshape(theta.shape), 1.0
        while parts(theta - length * step)[0] > loss + 1e-15 * abs(loss) and length > 1e-6:
            length /= 2
        theta = theta - length * step
        if np.abs(A @ step.T).max() < 1e-10:
            break
    coef = theta[:, :-1] @ V[kept]
    return coef, theta[:, -1] * bias - coef @ centre


def proba(coef, intercept, X):
    z = X.astype(np.float64) @ coef.T + intercept
    return np.column_stack([expit(-z), expit(z)]) if len(coef) == 1 else softmax(z, axis=1)


def problem(n, d, *, labels="hard", classes=2, span=0.0, seed=5):
    """float32 rows, as many new ones, and labels (n, C); columns' sizes 10 ** ±span."""
    rng = np.random.default_rng(seed)
    size = 10.0 ** rng.uniform(-span, span, d)
    Z = rng.normal(size=(n + 500, d))
    scores = Z[:n] @ rng.normal(size=(d, classes)) / np.sqrt(d)
    if labels == "hard":
        scores += 0.5 * rng.gumbel(size=scores.shape)
    Y = softmax(6 * scores, axis=1) if labels == "soft" else np.eye(classes)[scores.argmax(1)]
    states = (Z * size).astype(np.float32)
    return states[:n], states[n:], Y


def off(path, X, Y, Q, penalties, **options):
    """Largest difference of a new row's P from the optimum's, for each penalty (P,)."""
    best = [newton(X, Y, l2, **options) for l2 in penalties]
    pairs = zip(path.coef_, path.intercept_, best, strict=True)
    return np.array([np.abs(proba(c, b, Q) - proba(*o, Q)).max() for c, b, o in pairs])


CASES = {
    "tall": {"n": 500, "d": 60},
    "tall, separable": {"n": 400, "d": 150, "labels": "separable"},
    "wide": {"n": 150, "d": 300},
    "wide, separable": {"n": 100, "d": 200, "labels": "separable"},
    "wide, soft": {"n": 150, "d": 200, "labels": "soft"},
    "about square": {"n": 200, "d": 190},
    "three classes": {"n": 300, "d": 40, "classes": 3},
    "three classes, wide": {"n": 50, "d": 80, "classes": 3},
    "twelve classes": {"n": 150, "d": 15, "classes": 12},
    "twelve classes, wide, soft": {"n": 30, "d": 40, "classes": 12, "labels": "soft"},
    "five classes, soft": {"n": 50, "d": 70, "classes": 5, "labels": "soft"},
    "unequal columns, tall": {"n": 300, "d": 60, "span": 3},
    "unequal columns, wide": {"n": 60, "d": 150, "span": 3},
    "unequal columns, three classes": {"n": 50, "d": 80, "classes": 3, "span": 2},
}


SLOW = (
    "three classes, wide",
    "twelve classes",
    "twelve classes, wide, soft",
    "five classes, soft",
    "unequal columns, three classes",
)


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] if c in SLOW else []) for c in CASES]
)
def test_new_rows_are_within_what_is_owed(case):
    X, Q, Y = problem(**CASES[case])
    path = logistic_path(X, Y, PENALTIES)
    assert path.converged_.all()
    assert (path.error_ <= TOLERATED).all()
    assert (off(path, X, Y, Q, PENALTIES) <= TOLERATED).all()


@pytest.mark.parametrize("case", ["wide", "unequal columns, wide"])
def test_the_step_weighted_by_p_times_1_minus_p_stops_too_early(case, monkeypatch):
    X, Q, Y = problem(**CASES[case])

    def decrement(run):
        step = -(run.point.grad * run.ahead).sum((1, 2))
        return step.clamp(min=0).sqrt()

    monkeypatch.setattr(logistic_solver._Run, "error", decrement)
    path = logistic_path(X, Y, PENALTIES)
    assert off(path, X, Y, Q, PENALTIES).max() > 2 * TOLERATED


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("read_in_passes", [False, True])
def test_without_a_bias_with_weights_and_read_in_passes(standardize, read_in_passes, monkeypatch):
    X, Q, Y = problem(100, 160, span=1)
    weight = np.random.default_rng(1).exponential(size=len(X))
    if read_in_passes:
        monkeypatch.setattr(logistic_design, "COPY_BYTES", 0)
    for bias in (True, False):
        path = logistic_path(
            X, Y, PENALTIES, sample_weight=weight, standardize=standardize, fit_intercept=bias
        )
        share = weight / weight.sum()
        mean = share @ X.astype(np.float64) * bias
        scale = np.sqrt(share @ (X - mean) ** 2) if standardize else 1.0
        got = off(
            LogisticPathOf(path, scale),
            X / scale,
            Y,
            Q / scale,
            PENALTIES,
            weight=weight,
            bias=bias,
        )
        assert (got <= TOLERATED).all()


class LogisticPathOf:
    """A path's fits for columns that are divided by ``scale``."""

    def __init__(self, path, scale):
        self.coef_, self.intercept_ = path.coef_ * scale, path.intercept_


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.slow
def test_fits_without_a_fold_too(classes):
    X, _, Y = problem(60, 80, classes=classes)
    folds = np.arange(len(X)) % 3
    path = logistic_path(X, Y, PENALTIES, folds=folds)
    assert (path.fold_error_ <= TOLERATED).all()
    for i, l2 in enumerate(PENALTIES):
        for fold in range(3):
            held_out = folds == fold
            best = proba(*newton(X[~held_out], Y[~held_out], l2), X[held_out])
            assert np.abs(path.oof_proba[i, held_out] - best).max() <= TOLERATED


def test_golden_sets(golden):
    for name in ("soft", "hard"):
        data = golden(f"eleuther_probes_{name}")
        path = logistic_path(data["X"], data["y"], data["l2s"])
        for i, l2 in enumerate(data["l2s"].tolist()):
            p = proba(path.coef_[i], path.intercept_[i], data["Xq"])[:, 1]
            assert np.allclose(p, data[f"opt_query_l{l2}"], rtol=0, atol=TOLERATED)


def test_what_float32_cannot_reach_is_finished_in_float64(monkeypatch):
    X, _, Y = problem(60, 150, classes=3, span=3)
    path = logistic_path(X, Y, PENALTIES)
    assert path.converged_.all()
    monkeypatch.setattr(path_module._Path, "finish", lambda *_, **__: None)
    with pytest.warns(ConvergenceWarning, match="probabilities may be off by"):
        rough = logistic_path(X, Y, PENALTIES)
    assert not rough.converged_.all()
    assert np.array_equal(rough.error_ <= TOLERATED, rough.converged_)


def test_too_few_passes_are_reported_with_the_error():
    X, Q, Y = problem(150, 300)
    for passes in (3, 6, 10, 15):
        with pytest.warns(ConvergenceWarning, match=r"l2 = 0.0001.* off by .*raise max_iter"):
            path = logistic_path(X, Y, PENALTIES, max_iter=passes)
        # An estimate, but on the safe side.
        assert (off(path, X, Y, Q, PENALTIES) <= path.error_).all()


def test_the_default_probe_has_the_probabilities_of_float64():
    X, Q, Y = problem(150, 300)
    for l2 in ("auto", 1e-4):
        quick = LogisticProbe(l2=l2).fit(X, Y)
        exact = LogisticProbe(l2=l2, dtype="float64").fit(X, Y)
        assert quick.l2_ == exact.l2_
        assert np.abs(quick.predict_proba(Q) - exact.predict_proba(Q)).max() <= TOLERATED
        assert np.abs(quick.oof_proba_ - exact.oof_proba_).max() <= TOLERATED


GOLDEN = ["knn_branches", "probes_hard", "probes_soft", "topo_A", "topo_B", "topo_C"]


@pytest.mark.parametrize("unequal", [False, True], ids=["equal columns", "unequal columns"])
@pytest.mark.parametrize(
    "name",
    [
        *(f"eleuther_{each}" for each in GOLDEN),
        pytest.param("topofilter_orig3", marks=pytest.mark.slow),
    ],
)
def test_float32_is_within_the_tolerance_on_every_golden_set(golden, name, unequal):
    data = golden(name)
    X, y = data["X"].astype(np.float64), data["y"]
    if unequal:
        X = X * np.geomspace(1e-2, 1e2, X.shape[1])
    Y = np.eye(int(y.max()) + 1)[y] if y.dtype.kind == "i" else np.column_stack([1 - y, y])
    penalties = np.logspace(-4, 1, 11)
    assert (off(logistic_path(X, Y, penalties), X, Y, X, penalties) <= TOLERATED).all()
    # The control: after three passes they are further off.
    with pytest.warns(ConvergenceWarning):
        early = logistic_path(X, Y, penalties, max_iter=3)
    assert off(early, X, Y, X, penalties).max() > TOLERATED
