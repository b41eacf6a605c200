from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from probekit.cleaning.predict import filter_labels, relabel
from probekit.errors import DataError, ProbeError
from probekit.probes import (
    EnsembleProbe,
    KNNProbe,
    LogisticProbe,
    MassMeanProbe,
    TopoFilterProbe,
)
from probekit.probes.logistic_path import logistic_path
from probekit.probes.neighbors import nearest_others
from probekit.probes.ridge import RidgeStates, choose_penalty
from probekit.states import as_states, check_finite, constant_columns, finite_rows

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")

PROBES = [
    KNNProbe(3),
    LogisticProbe(),
    TopoFilterProbe(k_cc=3, k_zeta=5),
    EnsembleProbe(k=3),
    MassMeanProbe(),
]


def problem(n=60, d=6, seed=0):
    """Rows whose numbers all kinds of floats hold, and labels."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    X = rng.integers(-16, 17, (n, d)) / 8
    X[:, 0] += 2 * y
    return X.astype(np.float32), y


class OnlyArray:
    """What has ``__array__`` and nothing else, as arrays of other libraries."""

    def __init__(self, X):
        self.X = X

    def __array__(self, dtype=None, copy=None):
        return np.array(self.X, dtype=dtype)


class OnlyDlpack:
    """What has ``__dlpack__`` and no ``__array__``."""

    def __init__(self, X):
        self.X = X

    def __dlpack__(self, **options):
        return self.X.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.X.__dlpack_device__()


def frame(X, dtype):
    return pd.DataFrame(X, columns=[f"c{i}" for i in range(X.shape[1])]).astype(dtype)


CONTAINERS = {
    "bfloat16": lambda X: torch.tensor(X).bfloat16(),
    "float16 tensor": lambda X: torch.tensor(X).half(),
    "needs a gradient": lambda X: torch.tensor(X, requires_grad=True),
    "bfloat16 parameter": lambda X: torch.nn.Parameter(torch.tensor(X).bfloat16()),
    "turned": lambda X: torch.tensor(X.T.copy()).bfloat16().T,
    "sparse tensor": lambda X: torch.tensor(X).to_sparse(),
    "compressed tensor": lambda X: torch.tensor(X).to_sparse_csr(),
    "float16": lambda X: X.astype(np.float16),
    "float64": lambda X: X.astype(np.float64),
    "long double": lambda X: X.astype(np.longdouble),
    "other order of bytes": lambda X: X.astype(">f4"),
    "fortran": np.asfortranarray,
    "objects": lambda X: X.astype(object),
    "masked, nothing hidden": lambda X: np.ma.masked_array(X),
    "frame": lambda X: frame(X, "float32"),
    "nullable frame": lambda X: frame(X, "Float32"),
    "list": lambda X: X.tolist(),
    "list of tensors": lambda X: list(torch.tensor(X, requires_grad=True).bfloat16()),
    "__array__": OnlyArray,
    "__dlpack__": lambda X: OnlyDlpack(torch.tensor(X).bfloat16()),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_every_container_gives_the_same_numbers(kind):
    X, _ = problem()
    got = as_states(CONTAINERS[kind](X))
    assert type(got) is np.ndarray
    assert got.dtype in (np.float32, np.float64)
    assert got.dtype.isnative
    assert np.array_equal(got, X)


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("kind", ["bfloat16", "bfloat16 parameter", "sparse tensor", "__array__"])
def test_every_probe_takes_them(probe, kind):
    X, y = problem()
    want = probe.fit(X, y)
    proba, oof = want.predict_proba(X), want.oof_proba_
    probe.fit(CONTAINERS[kind](X), torch.tensor(y, dtype=torch.bfloat16, requires_grad=True))
    assert np.array_equal(probe.oof_proba_, oof)
    assert np.array_equal(probe.predict_proba(CONTAINERS[kind](X)), proba)


@pytest.mark.parametrize("kind", ["bfloat16 parameter", "nullable frame", "sparse tensor", "list"])
def test_filter_and_relabel_take_them(kind):
    X, y = problem()
    for act in (filter_labels, relabel):
        want, got = act(X, y, probe="logreg"), act(CONTAINERS[kind](X), y, probe="logreg")
        assert np.allclose(got.probe, want.probe, rtol=0, atol=1e-6)
        assert np.array_equal(got.keep, want.keep)


@pytest.mark.parametrize("kind", ["nullable frame", "sparse tensor", "masked, nothing hidden"])
def test_the_path_takes_them(kind):
    X, y = problem()
    want, got = (logistic_path(Z, y, [1e-2]) for Z in (X, CONTAINERS[kind](X)))
    assert np.allclose(got.coef_, want.coef_, rtol=0, atol=1e-5)


def test_a_frame_keeps_its_names():
    X, y = problem()
    probe = LogisticProbe().fit(frame(X, "Float64"), y)
    assert probe.feature_names_in_.tolist() == [f"c{i}" for i in range(6)]
    with pytest.raises(ValueError, match="feature names"):
        probe.predict(frame(X, "Float64").rename(columns={"c0": "other"}))


REFUSED = {
    "complex": (lambda X: X.astype(complex), "Complex data not supported.*X.real"),
    "complex tensor": (lambda X: torch.tensor(X) + 1j, "Complex data not supported"),
    "sparse": (scipy.sparse.csr_matrix, "sparse.*toarray"),
    "sparse array": (scipy.sparse.coo_array, "sparse.*toarray"),
    "strings": (lambda X: X.astype(str), "must be numbers"),
    "words": (lambda X: np.full(X.shape, "a", dtype=object), "must be a number"),
    "dates": (lambda X: X.astype("timedelta64[s]"), "must be numbers"),
    "structured": (
        lambda X: np.zeros(len(X), dtype=[("a", float), ("b", float)]),
        "numbers|states",
    ),
    "bytes": (lambda X: np.zeros(X.shape, dtype="V2"), "must be numbers"),
    "endless": (lambda X: [[10**400] * X.shape[1]] * len(X), "must be a number"),
    "dictionaries": (lambda X: np.full(X.shape, {}, dtype=object), "must be a number"),
    "ragged": (lambda X: [[1.0, 2.0], [3.0]] * (len(X) // 2), "cannot be read as an array"),
    "without data": (lambda X: torch.empty(X.shape, device="meta"), "cannot be read as an array"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize(
    "use",
    [
        as_states,
        lambda X: LogisticProbe().fit(X, [0, 1] * 30),
        lambda X: KNNProbe(3).fit(X, [0, 1] * 30),
        lambda X: filter_labels(X, [0, 1] * 30),
        lambda X: logistic_path(X, [0, 1] * 30, [1e-2]),
        lambda X: nearest_others(X, 3),
    ],
    ids=["states", "logistic", "kNN", "filter", "path", "neighbours"],
)
def test_what_are_no_real_numbers_is_reported_in_one_sentence(kind, use):
    make, words = REFUSED[kind]
    with pytest.raises(ProbeError, match=words) as caught:
        use(make(problem()[0]))
    assert "\n" not in str(caught.value)


HIDDEN = {
    "NaN": lambda X: np.where(np.isin(np.arange(60), [4, 9])[:, None], np.nan, X),
    "infinity": lambda X: np.where(np.isin(np.arange(60), [4, 9])[:, None], -np.inf, X),
    "masked": lambda X: np.ma.masked_array(X, np.isin(np.arange(60), [4, 9])[:, None] | (X > 99)),
    "NA": lambda X: frame(X, "Float32").mask(np.isin(np.arange(60), [4, 9])[:, None] | (X > 99)),
    "tensor": lambda X: torch.tensor(HIDDEN["NaN"](X)).bfloat16(),
}


@pytest.mark.filterwarnings("ignore:X has feature names")
@pytest.mark.parametrize("kind", HIDDEN)
@pytest.mark.parametrize(
    "use",
    [
        *(lambda X, p=probe: p.fit(X, [0, 1] * 30) for probe in PROBES),
        lambda X: LogisticProbe().fit(*problem()).predict(X),
        lambda X: filter_labels(X, [0, 1] * 30),
        lambda X: relabel(X, [0, 1] * 30),
        lambda X: logistic_path(X, [0, 1] * 30, [1e-2]),
        lambda X: nearest_others(X, 3),
        lambda X: check_finite(as_states(X)),
    ],
)
def test_rows_that_are_not_finite_are_named_in_one_sentence(kind, use):
    with pytest.raises(ProbeError) as caught:
        use(HIDDEN[kind](problem()[0]))
    assert isinstance(caught.value, DataError)
    words = r"X contains NaN or inf in 2 of 60 rows \(first: .*\); leave these rows out, or extract"
    caught.match(words)
    assert "4'" in str(caught.value)
    assert "9'" in str(caught.value)


def test_three_rows_are_named_by_their_ids():
    X = np.ones((6, 2))
    X[1:, 1] = np.nan
    assert finite_rows(X).tolist() == [True] + [False] * 5
    with pytest.raises(DataError, match=r"Layer 3 .* in 5 of 6 rows \(first: 'b', 'c', 'd', …\)"):
        check_finite(X, list("abcdef"), name="Layer 3")
    check_finite(X[:1])
    check_finite(np.zeros((0, 3)))


# Constant columns -------------------------------------------------------------------------------


def test_columns_are_constant_at_a_rounding_of_their_mean_or_of_the_largest():
    mean = np.array([0.0, 1.0, 1.0, 0.0, 0.0, 1e9])
    spread = np.array([1.0, 1e-7, 1e-5, 1e-8, 1e-6, 1.0])
    result = constant_columns(mean, spread, np.float32)
    # Columns from 1e-3 to 1e3 are all alive: 1e-6 of the largest is four times the floor.
    assert result.tolist() == [False, True, False, True, False, True]
    # float64 holds a spread of 1 about 1e9.
    assert not constant_columns(mean, spread, np.float64)[5]
    assert constant_columns(np.zeros(3), np.zeros(3), np.float32).all()


def dead_columns(n=400, d=30):
    """States as all-MiniLM's last layer has them: two columns that are rounding, and labels."""
    rng = np.random.default_rng(3)
    X = (0.2 * rng.normal(size=(n, d))).astype(np.float32)
    y = (X[:, 0] + 0.1 * rng.normal(size=n) > 0).astype(int)
    dead = X.copy()
    dead[:, 4] = 1.4e-9 * rng.normal(size=n) - 1e-7
    # Rounding that happens to say something of the labels.
    dead[:, 9] = 3e-9 * (y + 0.3 * rng.normal(size=n))
    still = dead.copy()
    still[:, [4, 9]] = still[0, [4, 9]]
    return dead, still, y


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: type(p).__name__)
def test_dead_columns_are_as_if_they_were_constant(probe):
    dead, still, y = dead_columns()
    # Folds are dealt by what the rows hold, so only fits to all rows can be compared.
    if isinstance(probe, LogisticProbe):
        probe = LogisticProbe(l2=1e-2)
    want = probe.fit(still, y).predict_proba(still)
    got = probe.fit(dead, y)
    assert np.allclose(got.predict_proba(dead), want, rtol=0, atol=1e-5)
    if hasattr(got, "coef_"):
        assert (got.coef_[:, [4, 9]] == 0).all()
        assert abs(got.coef_[-1]).argmax() == 0


def test_without_the_floor_the_direction_points_into_them(monkeypatch):
    dead, _, y = dead_columns()
    monkeypatch.setattr(
        "probekit.probes.logistic_design.constant_columns", lambda _, spread, __: spread == 0
    )
    assert abs(LogisticProbe().fit(dead, y).coef_[0]).argmax() in (4, 9)


def test_ridge_leaves_them_out_too():
    dead, still, y = dead_columns()
    Y = np.eye(2)[y]
    ridge = RidgeStates(dead)
    penalty, scores = choose_penalty(ridge, Y)
    assert np.allclose(scores, choose_penalty(RidgeStates(still), Y)[1], rtol=0, atol=1e-12)
    assert (ridge.fit(Y, penalty)[0][[4, 9]] == 0).all()
    few = RidgeStates(dead[:20])  # decomposed in the space of rows
    assert (few.fit(Y[:20], 0.1)[0][[4, 9]] == 0).all()


@pytest.mark.parametrize("probe", PROBES[1:2] + PROBES[3:], ids=lambda p: type(p).__name__)
def test_states_that_are_rounding_everywhere_say_nothing(probe):
    rng = np.random.default_rng(0)
    X = (1 + 5e-8 * rng.normal(size=(100, 8))).astype(np.float32)
    y = (X[:, 0] > 1).astype(int)  # readable from the rounding alone
    proba = probe.fit(X, y).oof_proba_
    assert np.ptp(proba, axis=0).max() < 0.05


def test_numbers_whose_squares_overflow_are_refused():
    X, y = problem()
    for probe in PROBES:
        with pytest.raises(ProbeError, match=r"up to 4e\+200, whose squares overflow float64"):
            probe.fit(np.where(X.max() == X, 4e200, X.astype(float)), y)
    check_finite(np.full((2, 2), 1e149))
