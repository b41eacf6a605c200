"""The logistic probe without a bias, on differences of states."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from probekit.errors import ProbeError
from probekit.probes import LogisticProbe, load_probe


def differences(n: int = 300, d: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, d)) * rng.uniform(0.2, 3, size=d) + 0.3
    p = 1 / (1 + np.exp(-X[:, 0] + X[:, 1]))
    return X, np.clip(p + rng.normal(scale=0.2, size=n), 0, 1)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("l2", [1e-3, 1e-1])
def test_it_is_the_optimum_that_scikit_learn_finds(standardize: bool, l2: float) -> None:
    X, y = differences()
    probe = LogisticProbe(l2=l2, standardize=standardize, fit_intercept=False, dtype="float64")
    probe.fit(X, y)
    scale = np.sqrt((X**2).mean(axis=0)) if standardize else np.ones(X.shape[1])
    model = LogisticRegression(
        C=1 / (2 * l2 * len(y)), fit_intercept=False, solver="newton-cholesky", tol=1e-12
    )
    # Soft labels: each row with both labels.
    model.fit(
        np.vstack([X, X]) / scale,
        np.repeat([1, 0], len(y)),
        sample_weight=np.concatenate([y, 1 - y]),
    )
    # Both are float64 optima; the gradient tolerance of the path is 1e-10.
    np.testing.assert_allclose(probe.coef_ * scale, model.coef_, atol=1e-7)
    assert probe.intercept_ == 0
    with_bias = LogisticProbe(l2=l2, standardize=standardize, dtype="float64").fit(X, y)
    assert np.abs(with_bias.coef_ - probe.coef_).max() > 1e-3  # the control


def test_turning_a_pair_round_turns_its_probability_round() -> None:
    X, y = differences()
    probe = LogisticProbe(fit_intercept=False).fit(X, y)
    np.testing.assert_allclose(probe.predict_proba(X), probe.predict_proba(-X)[:, ::-1])
    turned = LogisticProbe(fit_intercept=False).fit(
        np.where(np.arange(len(X))[:, None] % 2, -X, X), np.where(np.arange(len(X)) % 2, 1 - y, y)
    )
    # Which of two completions stands first says nothing; only the folds differ.
    np.testing.assert_allclose(
        LogisticProbe(l2=0.1, fit_intercept=False).fit(X, y).coef_,
        LogisticProbe(l2=0.1, fit_intercept=False)
        .fit(
            np.where(np.arange(len(X))[:, None] % 2, -X, X),
            np.where(np.arange(len(X)) % 2, 1 - y, y),
        )
        .coef_,
        atol=1e-4,
    )
    assert turned.oof_proba_.shape == (len(X), 2)


def test_out_of_fold_predictions_are_of_fits_without_the_fold() -> None:
    X, y = differences()
    probe = LogisticProbe(l2=0.05, fit_intercept=False, standardize=False).fit(X, y)
    for fold in np.unique(probe.fold_):
        held = probe.fold_ == fold
        alone = LogisticProbe(l2=0.05, fit_intercept=False, standardize=False).fit(
            X[~held], y[~held]
        )
        # float32 fits, tolerance 1e-6 on the gradient.
        np.testing.assert_allclose(probe.oof_proba_[held], alone.predict_proba(X[held]), atol=1e-3)


def test_it_is_saved(tmp_path) -> None:  # type: ignore[no-untyped-def]
    X, y = differences()
    probe = LogisticProbe(fit_intercept=False).fit(X, y)
    probe.save(tmp_path / "probe")
    again = load_probe(tmp_path / "probe")
    np.testing.assert_array_equal(again.predict_proba(X), probe.predict_proba(X))
    assert again.fit_intercept is False


def test_three_classes_are_refused() -> None:
    X, _ = differences()
    with pytest.raises(ProbeError, match="two classes, the labels have 3"):
        LogisticProbe(fit_intercept=False).fit(X, np.arange(len(X)) % 3)
