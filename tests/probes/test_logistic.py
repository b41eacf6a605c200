from __future__ import annotations

import signal

import numpy as np
import pytest
from scipy.special import expit, xlogy
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from probekit.errors import ProbeError
from probekit.probes import LogisticProbe, load_probe, logistic_solver, out_of_fold
from probekit.probes import logistic_path as module
from probekit.probes.logistic import FALLBACK, PENALTIES
from probekit.probes.logistic_path import logistic_path

EXACT = {"dtype": "float64", "tol": 1e-12}


def expected_failures(probe):
    if probe.l2 != "auto":
        return {}
    return {
        "check_sample_weight_equivalence_on_dense_data": "The folds that choose the penalty are "
        "drawn over rows: a row of weight 2 is one row there, repeated rows are two. With a fixed "
        "penalty the check passes (below)."
    }


@parametrize_with_checks(
    [LogisticProbe(), LogisticProbe(l2=0.01, **EXACT)], expected_failed_checks=expected_failures
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def problem(n=240, d=10, classes=2, seed=0):
    """Columns of different size with an offset, some rows' labels against their side."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) * np.geomspace(0.1, 10, d) + 3
    scores = (X - 3) / np.geomspace(0.1, 10, d) @ rng.standard_normal((d, classes))
    return X, (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)


@pytest.mark.parametrize("name", ["soft", "hard"])
def test_golden_probe(golden, name):
    data = golden(f"eleuther_probes_{name}")
    for l2 in data["l2s"].tolist():
        probe = LogisticProbe(l2=l2, standardize=False).fit(data["X"], data["y"])
        exact = LogisticProbe(l2=l2, standardize=False, dtype="float64").fit(data["X"], data["y"])
        train, query = probe.predict_proba(data["X"])[:, 1], probe.predict_proba(data["Xq"])[:, 1]
        # The reference's own float32 optimiser stops early: 1e-3.
        assert np.allclose(train, data[f"log_train_l{l2}"], rtol=0, atol=1e-3)
        assert np.allclose(query, data[f"log_query_l{l2}"], rtol=0, atol=1e-3)
        assert np.allclose(probe.coef_[0], data[f"log_w_l{l2}"], rtol=0, atol=3e-3)
        p = exact.predict_proba(data["Xq"])[:, 1]
        assert np.allclose(p, data[f"opt_query_l{l2}"], rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["soft", "hard"])
def test_golden_filter(golden, name):
    data = golden(f"eleuther_probes_{name}")
    keys = [k for k in data if k.startswith("log_keep_")]
    assert keys
    for key in keys:
        l2, share = (float(part[1:]) for part in key.removeprefix("log_keep_").split("_"))
        probe = LogisticProbe(l2=l2, standardize=False).fit(data["X"], data["y"])
        score = np.abs(probe.predict_proba(data["X"])[:, 1] - data["y"])
        kept = data[key]
        assert np.count_nonzero(~kept) == int(len(kept) * share)
        # The reference's probabilities are off by up to 1e-3, so two scores by 2e-3.
        assert score[kept].max() <= score[~kept].min() + 2e-3


def test_hard_soft_and_matrix_labels_give_the_same_fit():
    X, y = problem()
    forms = {
        "integers": y,
        "booleans": y.astype(bool),
        "strings": np.array(["no", "yes"])[y],
        "floats": y.astype(float),
        "matrix": np.eye(2)[y],
        "float32 matrix": np.eye(2, dtype=np.float32)[y],
    }
    fits = {name: LogisticProbe().fit(X, labels) for name, labels in forms.items()}
    for name, fit in fits.items():
        assert np.array_equal(fit.coef_, fits["integers"].coef_), name
        assert np.array_equal(fit.intercept_, fits["integers"].intercept_), name
        assert np.array_equal(fit.oof_proba_, fits["integers"].oof_proba_), name
        assert fit.l2_ == fits["integers"].l2_, name
    named = np.array(["no", "yes"])[fits["integers"].predict(X)]
    assert np.array_equal(fits["strings"].predict(X), named)
    soft = np.random.default_rng(0).random(len(X))
    one = LogisticProbe(l2=1e-2).fit(X, soft)
    two = LogisticProbe(l2=1e-2).fit(X, np.column_stack([1 - soft, soft]))
    assert np.array_equal(one.coef_, two.coef_)
    assert one.coef_.shape == (1, 10)


@pytest.mark.parametrize("classes", [2, 3])
def test_penalty_is_the_one_of_least_out_of_fold_loss(classes):
    X, y = problem(classes=classes)
    probe = LogisticProbe(**EXACT).fit(X, y)
    scaled = (X - X.mean(axis=0)) / X.std(axis=0)
    Y = np.eye(classes)[y]
    loss = []
    for l2 in PENALTIES:
        oof = np.empty_like(Y)
        for fold in range(5):
            held_out = probe.fold_ == fold
            C = 1 / (2 * l2 * np.count_nonzero(~held_out))
            peer = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12, max_iter=1000)
            oof[held_out] = peer.fit(scaled[~held_out], y[~held_out]).predict_proba(
                scaled[held_out]
            )
        loss.append(-np.mean(np.sum(Y * np.log(oof), axis=1)))
        if l2 == probe.l2_:
            assert np.allclose(probe.oof_proba_, oof, rtol=0, atol=1e-8)
    assert np.allclose(probe.l2_scores_, loss, rtol=0, atol=1e-8)
    assert np.array_equal(probe.penalties_, PENALTIES)
    assert probe.l2_ == PENALTIES[int(np.argmin(loss))]
    assert min(loss) < min(loss[0], loss[-1]) - 1e-3  # the choice matters here
    alone = LogisticProbe(l2=probe.l2_, **EXACT).fit(X, y)
    assert np.allclose(alone.coef_, probe.coef_, rtol=0, atol=1e-8)
    assert np.allclose(alone.oof_proba_, probe.oof_proba_, rtol=0, atol=1e-8)


def test_equal_losses_go_to_the_larger_penalty():
    X, y = problem()
    assert LogisticProbe(penalties=[1e-2, 1e-2, 1e-2]).fit(X, y).l2_ == 1e-2
    constant = np.ones_like(X) + np.arange(len(X))[:, None] * 0.0
    groups = np.arange(len(X))
    assert LogisticProbe(penalties=[1.0, 10.0, 0.1]).fit(constant, y, groups=groups).l2_ == 10.0


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0], ids=["clean", "noisy", "without signal"])
def test_the_search_of_many_classes_finds_the_penalty_of_the_whole_path(noise, monkeypatch):
    X, y = problem(300, 12, classes=9)
    rng = np.random.default_rng(1)
    y = np.where(rng.random(len(y)) < noise, rng.integers(0, 9, len(y)), y)
    probe = LogisticProbe(**EXACT).fit(X, y)
    monkeypatch.setattr(module, "MAX_COLUMNS", 10_000)
    whole = LogisticProbe(**EXACT).fit(X, y)
    assert np.isfinite(whole.l2_scores_).all()
    assert probe.l2_ == whole.l2_
    # Tried are the best, all stronger ones and two weaker ones.
    best = int(np.argmin(whole.l2_scores_))
    assert np.isnan(probe.l2_scores_).tolist() == [i < best - 2 for i in range(len(PENALTIES))]
    # Fits of the search are exact to 3 tol.
    assert np.nanmin(probe.l2_scores_) == pytest.approx(whole.l2_scores_[best], abs=1e-8)
    # Both are the optimum to tol.
    assert np.allclose(probe.coef_, whole.coef_, rtol=0, atol=1e-7)
    assert np.allclose(probe.oof_proba_, whole.oof_proba_, rtol=0, atol=1e-8)


def test_a_large_search_asks_few_folds_and_ends_at_the_first_larger_loss(monkeypatch):
    X, y = problem(600, 12, classes=9)
    usual = LogisticProbe(**EXACT).fit(X, y)
    assert usual.notes_for(range(9)) == []
    monkeypatch.setattr(module, "LARGE", 1)
    probe = LogisticProbe(**EXACT).fit(X, y)
    best = PENALTIES.index(probe.l2_)
    # One weaker penalty was worse; usually there are two.
    assert 0 < best < usual.penalties_.argmax()
    assert np.isnan(probe.l2_scores_).tolist() == [i < best - 1 for i in range(len(PENALTIES))]
    (note,) = probe.notes_for(range(9))
    assert note.startswith(f"9 classes and 600 rows: the penalty {probe.l2_:.3g} was chosen on 2")
    # Loss over the rows of these two folds.
    some = probe.fold_ < 2
    loss = -np.log(probe.oof_proba_[some, y[some]]).mean()
    assert probe.l2_scores_[best] == pytest.approx(loss, abs=1e-7)
    # All five folds are fitted with it, to the same optimum.
    fixed = LogisticProbe(l2=probe.l2_, **EXACT).fit(X, y)
    assert np.allclose(probe.oof_proba_, fixed.oof_proba_, rtol=0, atol=1e-8)
    assert np.allclose(probe.coef_, fixed.coef_, rtol=0, atol=1e-7)


def test_a_huge_search_tries_every_second_penalty_and_says_so(monkeypatch):
    X, y = problem(600, 12, classes=9)
    monkeypatch.setattr(module, "LARGE", 1)
    large = LogisticProbe().fit(X, y)
    assert "every second" not in large.notes_for(range(9))[0]
    monkeypatch.setattr(module, "HUGE", 1)
    probe = LogisticProbe().fit(X, y)
    tried = np.flatnonzero(np.isfinite(probe.l2_scores_))
    assert len(tried) > 1
    assert (np.diff(tried) == 2).all()
    assert tried[-1] == len(PENALTIES) - 1  # from the strongest on
    # At most one step from the penalty that the whole list gives.
    assert abs(PENALTIES.index(probe.l2_) - PENALTIES.index(large.l2_)) <= 1
    assert "on 2 of 5 folds, of every second one, from" in probe.notes_for(range(9))[0]


def test_ctrl_c_ends_a_fit_between_two_passes(monkeypatch):
    passes = []
    evaluate = logistic_solver.Objective.__call__

    def interrupted(self, *arguments):
        passes.append(arguments)
        if len(passes) == 3:
            signal.raise_signal(signal.SIGINT)
        return evaluate(self, *arguments)

    monkeypatch.setattr(logistic_solver.Objective, "__call__", interrupted)
    X, y = problem(300, 12, classes=9)
    # A job in the background has SIGINT ignored from its start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            LogisticProbe().fit(X, y)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(passes) == 3  # none after it


def test_a_search_without_convergence_warns_of_tried_penalties_only():
    X, y = problem(300, 12, classes=9)
    with pytest.warns(ConvergenceWarning, match="l2 = ") as caught:
        probe = LogisticProbe(max_iter=2).fit(X, y)
    assert caught[0].filename == __file__  # the caller's line, not ours
    tried = probe.penalties_[np.isfinite(probe.l2_scores_)]
    named = str(caught[0].message).split("l2 = ")[1].split(" (")[0]
    assert set(named.split(", ")) <= {f"{l2:g}" for l2 in tried}


def test_score_is_weighted():
    X, y = problem()
    weight = np.random.default_rng(1).exponential(size=len(X))
    probe = LogisticProbe(l2=1e-2).fit(X, y, sample_weight=weight)
    loss = -xlogy(np.eye(2)[y], probe.oof_proba_).sum(axis=1)
    assert probe.l2_scores_[0] == pytest.approx(np.average(loss, weights=weight), rel=1e-9)
    assert probe.l2_scores_[0] != pytest.approx(loss.mean(), rel=1e-3)


def test_folds_are_stratified_and_seeded():
    X, y = problem(n=200)
    one, same, other = (LogisticProbe(l2=1.0, random_state=s).fit(X, y) for s in (0, 0, 1))
    assert np.array_equal(one.fold_, same.fold_)
    assert not np.array_equal(one.fold_, other.fold_)
    counts = np.array([np.bincount(y[one.fold_ == f], minlength=2) for f in range(5)])
    assert (np.ptp(counts, axis=0) <= 1).all()
    state = LogisticProbe(l2=1.0, random_state=np.random.RandomState(3)).fit(X, y)
    assert set(state.fold_) == set(range(5))


def test_out_of_fold_helper_agrees_where_nothing_is_scaled():
    X, y = problem()
    probe = LogisticProbe(l2=1e-2, standardize=False, **EXACT).fit(X, y)
    proba, fold = out_of_fold(LogisticProbe(l2=1e-2, standardize=False, **EXACT), X, y)
    assert np.array_equal(fold, probe.fold_)
    assert np.allclose(proba, probe.oof_proba_, rtol=0, atol=1e-8)


def test_duplicates_do_not_tell_each_others_labels():
    rng = np.random.default_rng(0)
    X = np.repeat(rng.standard_normal((60, 100)), 2, axis=0)
    y = np.repeat(rng.integers(0, 2, size=60), 2)
    probe = LogisticProbe(l2=1e-3).fit(X, y)
    assert np.array_equal(probe.fold_[::2], probe.fold_[1::2])
    right = np.mean(probe.oof_proba_.argmax(axis=1) == y)
    leaky = LogisticProbe(l2=1e-3).fit(X, y, groups=np.arange(120))
    read_back = np.mean(leaky.oof_proba_.argmax(axis=1) == y)
    # 60 coin flips: 0.5 with a standard error of 0.065.
    assert right < 0.7
    assert read_back > 0.8


def test_groups_stay_together():
    X, y = problem()
    groups = np.arange(240) // 3
    probe = LogisticProbe(l2=1.0).fit(X, y, groups=groups)
    assert all(len(set(probe.fold_[groups == g])) == 1 for g in range(80))


def test_coefficients_are_in_the_space_of_x():
    X, y = problem()
    probe = LogisticProbe().fit(X, y)
    z = X @ probe.coef_[0] + probe.intercept_[0]
    assert np.allclose(probe.decision_function(X), z, rtol=0, atol=1e-12)
    assert np.allclose(probe.predict_proba(X)[:, 1], expit(z), rtol=0, atol=1e-12)
    assert np.array_equal(probe.predict(X), (z > 0).astype(int))
    path = logistic_path(X, y, [probe.l2_], standardize=True)
    # The same float32 optimum, reached in another company of fits.
    assert np.allclose(path.coef_[0] * X.std(axis=0), probe.coef_ * X.std(axis=0), atol=1e-3)


def test_more_than_two_classes():
    X, y = problem(classes=4)
    names = np.array(["d", "b", "a", "c"])[y]
    probe = LogisticProbe().fit(X, names)
    assert probe.classes_.tolist() == ["a", "b", "c", "d"]
    assert probe.coef_.shape == (4, 10)
    assert probe.decision_function(X).shape == probe.predict_proba(X).shape == (240, 4)
    assert np.allclose(probe.predict_proba(X).sum(axis=1), 1, rtol=0, atol=1e-12)
    assert probe.oof_proba_.shape == (240, 4)
    assert np.mean(probe.predict(X) == names) > 0.6
    soft = LogisticProbe().fit(X, np.eye(4)[y])
    assert soft.classes_.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("rows", "y"),
    [
        ([0, 1], [0, 1]),
        ([0, 1, 2], [0, 1, 1]),
        ([0, 0, 0, 0], [0, 1, 0, 1]),
        ([0, 1, 1, 1], [0, 1, 1, 1]),
    ],
)
def test_too_few_different_rows_for_folds(rows, y):
    X = problem()[0][rows]
    probe = LogisticProbe().fit(X, y)
    assert probe.l2_ == FALLBACK
    assert (probe.fold_ == -1).all()
    assert np.isnan(probe.l2_scores_).all()
    assert np.allclose(probe.oof_proba_, [1 - np.mean(y), np.mean(y)], rtol=0, atol=1e-12)
    want = logistic_path(X, y, [FALLBACK], standardize=True).coef_[0]
    assert np.array_equal(probe.coef_, want)
    assert LogisticProbe(l2=3.0).fit(X, y).l2_ == 3.0


@pytest.mark.parametrize("rare", [1, 2, 3])
def test_a_class_with_fewer_rows_than_folds(rare):
    X, y = problem(n=60)
    y = np.where(np.arange(60) < rare, 2, y)
    probe = LogisticProbe().fit(X, y)
    assert probe.l2_ in PENALTIES
    assert set(probe.fold_) == set(range(5))
    assert np.isfinite(probe.oof_proba_).all()
    assert np.isfinite(probe.l2_scores_).all()
    if rare == 1:
        # No fit without that row knows its class.
        assert probe.oof_proba_[0, 2] < 1e-4


def test_weight_zero_removes_a_row():
    X, y = problem()
    weight = np.ones(240)
    weight[::3] = 0
    kept = weight > 0
    one = LogisticProbe(l2=1e-2, **EXACT).fit(X, y, sample_weight=weight)
    other = LogisticProbe(l2=1e-2, **EXACT).fit(X[kept], y[kept])
    assert np.allclose(one.coef_, other.coef_, rtol=0, atol=1e-9)
    assert one.oof_proba_.shape == (240, 2)


def test_in_pipelines_searches_and_clones():
    X, y = problem()
    pipeline = make_pipeline(StandardScaler(), LogisticProbe(l2=1e-2, standardize=False, **EXACT))
    plain = LogisticProbe(l2=1e-2, **EXACT).fit(X, y)
    assert np.allclose(
        pipeline.fit(X, y).predict_proba(X), plain.predict_proba(X), rtol=0, atol=1e-9
    )
    search = GridSearchCV(LogisticProbe(), {"l2": [1e-2, 100.0]}, scoring="neg_log_loss")
    assert search.fit(X, y).best_params_["l2"] == 1e-2
    probe = LogisticProbe(l2=0.5, n_folds=3, penalties=[1.0], random_state=4)
    copy = clone(probe.fit(X, y))
    assert copy.get_params() == probe.get_params()
    assert not hasattr(copy, "coef_")


def test_saved_probe_predicts_the_same(tmp_path):
    X, y = problem(classes=3)
    probe = LogisticProbe().fit(X, y)
    loaded = load_probe(probe.save(tmp_path / "probe") and tmp_path / "probe")
    assert np.array_equal(loaded.predict_proba(X), probe.predict_proba(X))
    for name in ("coef_", "intercept_", "oof_proba_", "fold_", "l2_scores_", "penalties_"):
        assert np.array_equal(getattr(loaded, name), getattr(probe, name)), name
    assert (loaded.l2_, loaded.n_iter_, loaded.grad_max_) == (
        probe.l2_,
        probe.n_iter_,
        probe.grad_max_,
    )


def test_memory_mapped_and_half_precision_states(tmp_path):
    X, y = problem()
    X = X.astype(np.float16)
    np.save(tmp_path / "x.npy", X.astype(np.float32))
    want = LogisticProbe(**EXACT).fit(X.astype(np.float64), y)
    for states in (X, np.load(tmp_path / "x.npy", mmap_mode="r")):
        probe = LogisticProbe(**EXACT).fit(states, y)
        assert np.allclose(probe.coef_, want.coef_, rtol=0, atol=1e-8)
        assert np.allclose(probe.predict_proba(states), want.predict_proba(X), rtol=0, atol=1e-8)


def test_blurred_states_are_refused_on_predict_too():
    X, y = problem()
    probe = LogisticProbe(l2=1.0).fit(X, y)
    X[5, 2] = np.inf
    with pytest.raises(ProbeError, match="NaN or inf in 1 of 240 rows"):
        probe.predict(X)
    with pytest.raises(ProbeError, match="NaN or inf in 1 of 240 rows"):
        LogisticProbe().fit(X, y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"l2": -1.0}, "l2 is auto or a number in .*, got -1.0"),
        ({"l2": "best"}, "l2 is auto"),
        ({"l2": np.nan}, "l2 is auto"),
        ({"n_folds": 1}, "n_folds is a whole number from 2 to 1,000, got 1"),
        ({"n_folds": 2.5}, "n_folds is a whole number"),
        ({"penalties": []}, "penalties is a list"),
        ({"penalties": [1.0, -1.0]}, "penalties is a list"),
        ({"dtype": "half"}, "dtype is one of"),
        ({"device": "nonsense"}, "device 'nonsense'"),
    ],
)
def test_bad_settings(options, message):
    X, y = problem()
    with pytest.raises(ProbeError, match=message):
        LogisticProbe(**options).fit(X, y)


def test_one_class_is_refused():
    X, _ = problem()
    with pytest.raises(ProbeError, match="one class only"):
        LogisticProbe().fit(X, np.zeros(len(X), dtype=int))


def test_a_search_over_classes_of_two_rows_is_exact_enough(monkeypatch):
    rng = np.random.default_rng(1)
    y = rng.integers(0, 40, 80)
    X = 0.7 * rng.standard_normal((40, 60))[y] + rng.standard_normal((80, 60))
    probe = LogisticProbe().fit(X, y)
    assert probe.l2_ == PENALTIES[0]
    assert np.isfinite(probe.l2_scores_).all()
    # A tolerance that many rows a class allow ends the search at the strongest penalty here.
    monkeypatch.setattr(module, "SEARCH_TOL", 30)
    assert LogisticProbe().fit(X, y).l2_ == PENALTIES[-1]
