"""Fits to rows in shares are those to all rows; the workers of a cluster are played here."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

from probekit import held
from probekit.probes import EnsembleProbe, LogisticProbe, logistic_design, ridge
from probekit.states import Streamed


@dataclass
class Sent:
    """A value in the cluster's memory: nobody can write to it."""

    value: Any

    def __post_init__(self) -> None:
        buffers: list[Any] = []
        data = pickle.dumps(self.value, protocol=5, buffer_callback=buffers.append)
        self.value = pickle.loads(data, buffers=[bytes(each) for each in buffers])


class Played:
    """Workers as :class:`probekit.engine.RayTasks` has them, of which some are lost."""

    gpus = 0.0

    def __init__(self, workers: int, room: float = 1e9, lost_at: int = -1) -> None:
        self.workers, self.room, self.lost_at = workers, room, lost_at
        self.asked = 0

    def put(self, value: Any) -> Sent:
        return value if isinstance(value, Sent) else Sent(value)

    def memory(self) -> float:
        return self.room

    def hold(self, make: Callable[..., Any], sent: list[Sent], *arguments: Any) -> list[Any]:
        again = lambda: make(*[each.value for each in sent], *arguments)  # noqa: E731
        return [again(), again]

    def ask(self, keeper: list[Any], work: Any, *arguments: Any) -> Any:
        self.asked += 1
        if self.asked == self.lost_at:
            keeper[0] = keeper[1]()
        values = [each.value if isinstance(each, Sent) else each for each in arguments]
        return Sent(work(keeper[0], *values)).value

    def result(self, reply: Any) -> Any:
        return reply


def problem(classes: int) -> tuple[Any, Any, dict[str, Any]]:
    """Rows off the origin, soft labels, weights, and groups whose rows lie in several shares."""
    rng = np.random.default_rng(classes)
    X = (rng.normal(size=(600, 12)) @ rng.normal(size=(12, 12)) + 5).astype(np.float32)
    z = X @ rng.normal(size=(12, classes)) / 4 + rng.normal(size=(600, classes))
    Y = np.exp(z - z.max(axis=1, keepdims=True))
    more = {
        "sample_weight": rng.random(600) + 0.5,
        "groups": np.r_[np.arange(400), np.arange(200)],
    }
    return X, Y / Y.sum(axis=1, keepdims=True), more


FITS: dict[str, tuple[Any, int, dict[tuple[Any, str], int]]] = {
    "two classes": (LogisticProbe(), 2, {}),
    "no bias": (LogisticProbe(fit_intercept=False, standardize=False), 2, {}),
    "sketch": (
        LogisticProbe(standardize=False),
        3,
        {(logistic_design, "WHOLE"): 8, (logistic_design, "SKETCH"): 4},
    ),
    "many classes": (LogisticProbe(penalties=[1e-3, 1e-2, 0.1], n_folds=3), 9, {}),
    "many classes, read again": (
        LogisticProbe(penalties=[1e-3, 0.1], n_folds=3),
        9,
        {(logistic_design, "COPY_BYTES"): 0},
    ),
    "float64": (LogisticProbe(dtype="float64"), 2, {}),
    "own Hessian": (LogisticProbe(l2=1e-6), 2, {}),
    "ridge": (EnsembleProbe(knn=(), widths=(5, 7)), 3, {}),
    "ridge in float32": (EnsembleProbe(knn=()), 2, {(ridge, "EXACT_BYTES"): 0}),
}


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[Played], None]:
    """Let the workers hold shares of whole cells of 64 rows."""
    monkeypatch.setattr(held, "CELL", 64)

    def begin(workers: Played) -> None:
        monkeypatch.setattr("probekit.held.engine.ray_tasks", lambda: workers)

    return begin


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("workers", [1, 3])
def test_fits_to_shares_are_those_to_all_rows(
    name: str, workers: int, play: Callable[[Played], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shares change the order of sums in float64 only; P may not differ by 1e-6."""
    probe, classes, limits = FITS[name]
    for (module, limit), value in limits.items():
        monkeypatch.setattr(module, limit, value)
    X, Y, more = problem(classes)
    expected = clone(probe).fit(X, Y, **more)
    # Control: half a row less of 600, and P is another.
    less = copy.deepcopy(more)
    less["sample_weight"][7] /= 2
    other = clone(probe).fit(X, Y, **less)
    assert np.abs(other.oof_proba_ - expected.oof_proba_).max() > 1e-5
    play(tasks := Played(workers))
    found = clone(probe).fit(X, Y, **more)
    assert tasks.asked >= 6 * workers
    np.testing.assert_allclose(found.oof_proba_, expected.oof_proba_, rtol=0, atol=1e-9)
    ahead = (fit.predict_proba(X[:50] + 1) for fit in (found, expected))
    np.testing.assert_allclose(*ahead, rtol=0, atol=1e-9)


class Store:
    """Rows as a store returns them, and how often."""

    def __init__(self, X: Any) -> None:
        self.X, self.rows = X, 0

    def read(self, rows: Any) -> Any:
        block = self.X[rows]
        self.rows += len(block)
        return block


@pytest.mark.parametrize("probe", [LogisticProbe(l2=0.1), EnsembleProbe(knn=())])
def test_workers_read_their_rows_once_and_again_where_they_are_lost(
    probe: Any, play: Callable[[Played], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    X, Y, more = problem(2)
    # What the driver itself reads: whether all is finite, and a few rows.
    more["groups"] = np.arange(600)
    monkeypatch.setattr(ridge, "EXACT_BYTES", 0)
    monkeypatch.setattr(logistic_design, "COPY_BYTES", 0)
    monkeypatch.setattr(Sent, "__post_init__", lambda _: None)  # one store counts for all workers
    results = []
    for tasks in (Played(3), Played(3, lost_at=9), Played(3, room=0)):
        play(tasks)
        store = Store(X)
        fit = clone(probe).fit(Streamed([store.read], [12], 600), Y, **more)
        results.append((fit.oof_proba_, store.rows))
    (once, rows), (lost, more_rows), (again, most_rows) = results
    assert rows <= 2 * 600 + 100
    assert rows < more_rows <= rows + 2 * 200 + 100
    assert most_rows >= 4 * 600
    assert np.array_equal(once, lost)
    assert np.array_equal(once, again)


def test_few_rows_stay_here(play: Callable[[Played], None]) -> None:
    X, Y, _ = problem(2)
    play(tasks := Played(2))
    LogisticProbe().fit(X[:64], Y[:64])
    assert tasks.asked == 0
    LogisticProbe().fit(X[:65], Y[:65])
    assert tasks.asked > 0
