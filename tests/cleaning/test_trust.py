from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from probekit.cleaning.trust import (
    TrustModel,
    leave_one_out_losses,
    penalised_logistic,
)
from probekit.errors import ProbeError, UsageError
from probekit.metrics import auroc


@pytest.fixture
def regression():
    """Thirty rows, four features, an offset, and answers that follow both."""
    rng = np.random.default_rng(0)
    X, offset = rng.normal(size=(30, 4)), rng.normal(size=30)
    y = rng.random(30) < expit(offset + X @ [1, -1, 0.5, 0])
    return SimpleNamespace(X=X, offset=offset, y=y)


def loss(w, data, penalty):
    eta = data.offset + data.X @ w
    return np.logaddexp(0, eta).sum() - eta[data.y].sum() + penalty * w @ w


@pytest.mark.parametrize("penalty", [0.1, 1, 10])
def test_the_fit_is_the_optimum_that_scipy_finds(regression, penalty):
    coef = penalised_logistic(regression.X, regression.y, regression.offset, penalty)
    other = minimize(loss, np.zeros(4), args=(regression, penalty), tol=1e-12)
    assert np.abs(coef - other.x).max() < 1e-5  # BFGS stops at a gradient of about 1e-6
    assert loss(coef, regression, penalty) <= other.fun + 1e-9


def test_without_an_offset_it_is_scikit_learns_logistic_regression(regression):
    coef = penalised_logistic(regression.X, regression.y, np.zeros(30), 0.5)
    theirs = LogisticRegression(C=1 / (2 * 0.5), fit_intercept=False, tol=1e-10, max_iter=1000)
    assert np.abs(coef - theirs.fit(regression.X, regression.y).coef_[0]).max() < 1e-6


@pytest.mark.parametrize("penalty", [0.3, 1, 10, np.inf])
def test_leave_one_out_losses_are_those_of_fits_without_the_row(regression, penalty):
    X, y, offset = regression.X, regression.y, regression.offset
    coef = penalised_logistic(X, y, offset, penalty)
    quick = leave_one_out_losses(X, y, offset, penalty, coef)
    exact = np.empty(30)
    for i in range(30):
        rest = np.arange(30) != i
        eta = offset[i] + X[i] @ penalised_logistic(X[rest], y[rest], offset[rest], penalty)
        exact[i] = np.logaddexp(0, eta) - y[i] * eta
    # One Newton step of a fit of four weights to thirty rows.
    assert abs(quick.mean() - exact.mean()) < 0.01
    eta = offset + X @ coef
    in_sample = np.logaddexp(0, eta) - y * eta
    if penalty == 0.3:  # the control: losses of the fit itself would not do
        assert exact.mean() - in_sample.mean() > 0.05


@pytest.fixture
def case():
    """Rows with weak labels, a probe that is calibrated or not, and the truth of m rows."""

    def make(m=50, n=1000, slope=1.0, by_class=0.0, seed=0, soft=False, width=6, direction=0.0):
        rng = np.random.default_rng(seed)
        hard = np.arange(n) % 2
        X = rng.normal(size=(n, width))
        X[:, 0] *= 3  # the first component
        z = rng.normal(1.2, 1.5, n)
        sign = 2 * hard - 1
        right = rng.random(n) < expit(slope * z + by_class * sign + direction * sign * X[:, 0] / 3)
        P = np.empty((n, 2))
        P[np.arange(n), hard], P[np.arange(n), 1 - hard] = expit(z), expit(-z)
        weak = np.eye(2)[hard] * (0.6 if soft else 1) + (0.2 if soft else 0)
        truth = np.where(right, hard, 1 - hard)
        known = np.full(n, -1)
        drawn = rng.permutation(n)[:m]
        known[drawn] = truth[drawn]
        return SimpleNamespace(
            P=P, weak=weak, hard=hard, truth=truth, known=known, X=X, z=z, right=right
        )

    return make


def fitted(case, **how):
    states = case.X if how.get("components", 8) else None
    return TrustModel(**how).fit(case.P, case.weak, case.known, states)


def test_an_infinite_penalty_is_the_probe_itself(case):
    data = case(by_class=2.0)
    model = fitted(data, penalties=[np.inf])
    # Log-odds and back: a few roundings.
    assert np.allclose(model.right_, data.P[np.arange(1000), data.hard], atol=1e-12)
    assert np.allclose(model.proba_, data.P, atol=1e-12)
    assert set(model.coef_.values()) == {0}
    assert not np.allclose(fitted(data, penalties=[1.0]).proba_, data.P, atol=0.1)  # the control


def test_few_labels_do_no_harm_where_the_probe_is_calibrated(case):
    """Mean AUROC over draws; a penalty that is weak whatever the evidence does do harm."""
    change = {"chosen": [], "weak": []}
    for seed in range(60):
        data = case(seed=seed)
        before = auroc(data.right, data.z)
        for name, how in (("chosen", {}), ("weak", {"penalties": [0.01]})):
            after = auroc(data.right, fitted(data, **how).right_)
            change[name].append(after - before)
    # A standard error of the mean is about 0.002.
    assert np.mean(change["chosen"]) > -0.005
    assert np.mean(change["weak"]) < -0.02


def test_fifty_labels_find_errors_that_depend_on_the_class(case):
    gains = []
    for seed in range(20):
        data = case(seed=seed, by_class=1.5)
        gains.append(auroc(data.right, fitted(data).right_) - auroc(data.right, data.z))
    assert np.mean(gains) > 0.03


def test_components_of_the_states_are_signed_by_the_weak_class(case):
    """Where the concept that the probe missed is a direction of the states."""
    data = case(m=200, direction=2.0)
    with_states, without = fitted(data), fitted(data, components=0)
    assert auroc(data.right, with_states.right_) > auroc(data.right, without.right_) + 0.1
    assert without.components_penalty_ == np.inf
    # Another sign of a component, or another rotation of the states, changes nothing.
    turned = TrustModel().fit(data.P, data.weak, data.known, -data.X[:, ::-1])
    assert np.allclose(turned.right_, with_states.right_, atol=1e-4)


def test_another_probe_takes_over_where_it_is_clearly_better(case):
    """And is left alone where it knows nothing."""
    data = case(m=100, slope=0.0)
    other = np.empty((1000, 2))
    lean = expit(np.where(data.right, 1.0, -1.0) + np.random.default_rng(0).normal(size=1000))
    other[np.arange(1000), data.hard], other[np.arange(1000), 1 - data.hard] = lean, 1 - lean
    given = (data.P, data.weak, data.known)
    better = TrustModel().fit(*given, others=[other])
    assert auroc(data.right, better.right_) > 0.8
    assert auroc(data.right, TrustModel().fit(*given).right_) < 0.7
    data = case(m=100)
    model = TrustModel().fit(data.P, data.weak, data.known, others=[data.P[::-1]])
    assert auroc(data.right, model.right_) > auroc(data.right, data.z) - 0.02


def test_supervisor_states_add_components(case):
    data = case(m=200, direction=2.0)
    other = np.random.default_rng(1).normal(size=(1000, 5))
    model = TrustModel().fit(data.P, data.weak, data.known, other, data.X)
    assert auroc(data.right, model.right_) > auroc(data.right, fitted(data, components=0).right_)
    assert "component 10" in model.coef_


def test_slope_and_confidence_are_learned(case):
    data = case(m=400, slope=0.1, soft=True)
    model = fitted(data, components=0)
    assert model.coef_["log-odds"] < -0.5
    assert "confidence" in model.coef_
    assert "confidence" not in fitted(case(), components=0).coef_


def test_order_of_rows_and_numbers_of_classes_change_nothing(case):
    data = case(m=100, by_class=1.0, direction=1.0)
    first = fitted(data).right_
    order = np.random.default_rng(0).permutation(1000)
    again = TrustModel().fit(data.P[order], data.weak[order], data.known[order], data.X[order])
    # The randomised search for components sees the rows in another order.
    assert np.allclose(again.right_, first[order], atol=1e-3)
    swapped = np.where(data.known < 0, -1, 1 - data.known)
    other = TrustModel().fit(data.P[:, ::-1], data.weak[:, ::-1], swapped, data.X)
    assert np.allclose(other.right_, first, atol=1e-6)


def test_the_other_classes_share_the_rest_as_the_probe_has_them():
    rng = np.random.default_rng(0)
    n = 300
    P = rng.dirichlet(np.ones(4), n)
    hard = rng.integers(0, 4, n)
    truth = np.where(
        rng.random(n) < [0.9, 0.5, 0.9, 0.5][0] - 0.4 * (hard % 2), hard, (hard + 1) % 4
    )
    known = np.where(np.arange(n) < 100, truth, -1)
    model = TrustModel(components=2).fit(P, np.eye(4)[hard], known, rng.normal(size=(n, 5)))
    rows = np.arange(n)
    assert np.allclose(model.proba_.sum(axis=1), 1)
    assert np.allclose(model.proba_[rows, hard], model.right_)
    a, b = (hard + 1) % 4, (hard + 2) % 4
    assert np.allclose(model.proba_[rows, a] / model.proba_[rows, b], P[rows, a] / P[rows, b])
    assert model.right_[hard % 2 == 0].mean() > model.right_[hard % 2 == 1].mean() + 0.1
    assert len(model.coef_) == 1 + 1 + 4 + 2 * 4


def test_many_classes_are_not_corrected_from_four_labels_each():
    """Errors that do not depend on the class, and a probe that is far too unsure of all of them."""
    change = {"as it is": [], "classes as free as other features": []}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        n, C = 1200, 12
        hard, z = rng.permutation(np.arange(n) % C), rng.normal(0.5, 0.5, n)
        right = rng.random(n) < expit(4 * z)
        P = np.full((n, C), (1 - expit(z))[:, None] / (C - 1))
        P[np.arange(n), hard] = expit(z)
        known = np.full(n, -1)
        known[:50] = np.where(right, hard, (hard + 1) % C)[:50]
        weak, before = np.eye(C)[hard], auroc(right, z)
        model = TrustModel().fit(P, weak, known)
        change["as it is"].append(auroc(right, model.right_) - before)
        X = np.column_stack([np.ones(n), z - 0.5, weak - 1 / C])
        X[:, 1:] /= X[:, 1:].std(axis=0)
        coef = penalised_logistic(X[:50], right[:50], z[:50], model.penalty_)
        other = auroc(right, z + X @ coef)
        change["classes as free as other features"].append(other - before)
    means = {name: np.mean(each) for name, each in change.items()}
    assert means["as it is"] > -0.01
    assert means["classes as free as other features"] < -0.03


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.P.__setitem__(slice(0, 20), [1.0, 0.0]),
        lambda data: data.known.__setitem__(data.known >= 0, data.hard[data.known >= 0]),
        lambda data: data.known.__setitem__(data.known == 1, -1),
        lambda data: data.P.__setitem__(slice(None), 0.5),
        lambda data: data.X.__setitem__((slice(None), 0), 7.0),
        lambda data: data.X.__imul__(1e30),
    ],
    ids=["certain", "all right", "one class", "constant probe", "constant column", "large"],
)
def test_it_works_where_something_is_extreme(case, change):
    data = case()
    change(data)
    model = fitted(data)
    assert np.isfinite(model.proba_).all()
    assert np.isfinite(list(model.coef_.values())).all()


def test_fewer_than_ten_labels_are_refused(case):
    assert fitted(case(m=10)).n_trusted_ == 10
    with pytest.raises(ProbeError, match="9 true labels are known; 10 are needed"):
        fitted(case(m=9))


def test_wrong_arguments_are_refused(case):
    data = case()
    with pytest.raises(UsageError, match="components"):
        fitted(data, components=-1)
    with pytest.raises(UsageError, match="penalties are numbers above 0"):
        fitted(data, penalties=[0.0])
    with pytest.raises(ProbeError, match="must be of the same rows"):
        TrustModel().fit(data.P[:-1], data.weak, data.known)
