"""Any states and any labels give probabilities for every row, or one sentence."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

from probekit.cleaning.predict import filter_labels, relabel
from probekit.errors import ProbekitError
from probekit.probes import (
    EnsembleProbe,
    KNNProbe,
    LogisticProbe,
    MassMeanProbe,
    TopoFilterProbe,
)

PROBES = {
    "knn": KNNProbe(3),
    "logreg": LogisticProbe(max_iter=60),
    "logreg without bias": LogisticProbe(l2=1e-2, fit_intercept=False, max_iter=60),
    "logreg of raw columns": LogisticProbe(l2=1e-4, standardize=False, max_iter=60),
    "topofilter": TopoFilterProbe(k_cc=2, k_zeta=3),
    "topofilter of eleuther": TopoFilterProbe("eleuther", k_cc=2, k_zeta=3),
    "ensemble": EnsembleProbe(k=3),
    "mass-mean": MassMeanProbe(),
}
REFUSALS = (ProbekitError, ValueError)  # scikit-learn's own, of too few rows
SCALES = (1e-300, 1e-45, 1e-30, 1e-12, 1.0, 1e12, 1e30, 1e38, 1e300)
LIKE = settings(
    derandomize=True,
    deadline=None,
    max_examples=40,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@st.composite
def states(draw):
    """Arrays with every oddity at once or none: sizes, scales, constants, copies, NaN."""
    n, d = draw(st.integers(1, 24)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    X = rng.normal(size=(n, d))
    X *= draw(st.sampled_from([*SCALES, 1.0, 1.0, 1.0]))
    if draw(st.booleans()):  # columns of unequal scale
        X *= 10.0 ** rng.uniform(-3, 3, d)
    kind = draw(st.sampled_from(["", "", "shift", "constant", "equal", "copies", "zero", "signs"]))
    if kind == "shift":
        X += draw(st.sampled_from([1.0, 1e6, 1e30]))
    if kind == "constant":
        X[:, rng.random(d) < 0.5] = draw(st.sampled_from([0.0, 0.1, -1e30]))
    if kind == "equal":
        X[:] = X[0]
    if kind == "copies":
        X = X[rng.integers(0, max(1, n // 3), n)]
    if kind == "zero":
        X[rng.random((n, d)) < 0.8] = 0
    if kind == "signs":
        X = np.sign(X)
    if draw(st.integers(0, 7)) == 7:
        X[rng.integers(n), rng.integers(d)] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    with np.errstate(over="ignore"):
        return X.astype(draw(st.sampled_from([np.float64, np.float32, np.float32, np.float16])))


@st.composite
def labels(draw, n):
    """Labels of ``n`` rows: hard or soft, of up to four classes, one of them rare or alone."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    kind = draw(st.sampled_from(["hard", "hard", "binary", "soft", "P", "one", "rare", "names"]))
    classes = draw(st.integers(2, 4))
    if kind == "P":
        return draw(st.sampled_from([rng.random(n), np.full(n, 0.5), rng.random(n).round()]))
    if kind == "soft":
        return rng.dirichlet(np.full(classes, draw(st.sampled_from([0.01, 1.0]))), size=n)
    y = rng.integers(0, 2 if kind == "binary" else classes, n)
    if kind == "one":
        y[:] = 1
    if kind == "rare":
        y[:] = 0
        y[0] = 1
    return np.array(["no", "yes", "maybe", "later"])[y] if kind == "names" else y


@st.composite
def problems(draw):
    X = draw(states())
    y = draw(labels(len(X)))
    weight = None
    if draw(st.integers(0, 3)) == 3:
        weight = np.random.default_rng(0).integers(0, 3, len(X)).astype(float)
    return X, y, weight


def assert_probabilities(P, n):
    assert P.shape[0] == n
    assert np.isfinite(P).all()
    assert (P >= 0).all()
    assert np.allclose(P.sum(axis=1), 1, rtol=0, atol=1e-6)


def sentence(error):
    """One line that does not end in the middle."""
    text = str(error)
    assert "\n" not in text
    assert text.endswith(".")


@pytest.mark.parametrize("name", PROBES)
@LIKE
@given(problem=problems())
def test_a_probe_is_fitted_or_says_why_not(name, problem):
    X, y, weight = problem
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            probe = PROBES[name].fit(X, y, sample_weight=weight)
        except REFUSALS as error:
            sentence(error)
            return
        assert_probabilities(probe.oof_proba_, len(X))
        assert_probabilities(probe.predict_proba(X), len(X))


@pytest.mark.parametrize("name", ["knn", "logreg", "topofilter", "ensemble", "mass-mean"])
@LIKE
@given(problem=problems())
def test_verdicts_come_out_or_a_sentence(name, problem):
    X, y, _ = problem
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for act in (filter_labels, relabel):
            try:
                verdicts = act(X, y, probe=PROBES[name])
            except REFUSALS as error:
                sentence(error)
                continue
            assert_probabilities(verdicts.probe, len(X))
            assert_probabilities(verdicts.label, len(X))
            assert np.isfinite(verdicts.disagreement).all()
            assert verdicts.keep.any()
