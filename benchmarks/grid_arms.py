"""One condition of the grid: a task's rows, a supervisor, a seed; every method's training set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from grid_candidates import fine, simifeat_vote, spread_labels
from grid_states import TaskStates

from probekit.cleaning.filter import prune_by_noise_rate
from probekit.cleaning.predict import score_rows
from probekit.cleaning.scored import Scored
from probekit.cuts import disagreement_of, largest, prior_matched
from probekit.labels import WeakLabels
from probekit.probes import LogisticProbe

Array = np.ndarray[Any, Any]

# Supervisors: a probe on a layer, fitted to this number of true labels, or planted wrong labels.
SUPERVISORS: dict[str, tuple[int, int] | float] = {
    "layer 1, 200 rows": (1, 200),
    "layer 2, 100 rows": (2, 100),
    "layer 3, 50 rows": (3, 50),
    "25 % planted": 0.25,
}
STUDENT_ROWS = 2000
SINGLE_LAYER = 4  # the best single layer in the experiments behind the defaults
LEAST, ATTEMPTS = 0.05, 50  # smallest weak class, and how often to draw for it
SHARE, BLEND, SURE = 0.2, 0.75, 0.9
PROBES = {
    "kNN": "knn",
    "logistic": "logreg",
    "TopoFilter": "topofilter",
    "mass-mean": "mass-mean",
    "ensemble": "ensemble",
}


@dataclass(frozen=True, eq=False)
class Condition:
    """Rows of the student with weak labels, and the supervisor's predictions of the test rows."""

    states: TaskStates
    supervisor: str
    seed: int
    rows: Array
    """Numbers in the pool (n,)."""
    weak: Array
    """P (n, 2); hard where planted."""
    floor: Array | None
    """The supervisor's P on the test rows, None where the noise was planted."""

    @property
    def truth(self) -> Array:
        """True classes of the rows (n,)."""
        return np.asarray(self.states.pool_truth[self.rows])

    @property
    def labels(self) -> WeakLabels:
        """Weak labels as a file would hold them."""
        ids = [self.states.pool.ids[i] for i in self.rows]
        return WeakLabels(ids, None, self.weak, ("0", "1"))


def make_condition(
    states: TaskStates, supervisor: str, seed: int, *, rows_wanted: int = STUDENT_ROWS
) -> Condition:
    """Draw rows and label them; repeat if a supervisor gives nearly all rows one class."""
    start = [seed, list(SUPERVISORS).index(supervisor)]
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng([*start, attempt] if attempt else start)
        condition = _draw(states, supervisor, rng, seed=seed, rows_wanted=rows_wanted)
        if np.bincount(condition.weak.argmax(axis=1), minlength=2).min() >= LEAST * len(
            condition.rows
        ):
            return condition
    raise SystemExit(f"{states.name}, {supervisor}: no supervisor tells the classes apart.")


def _draw(
    states: TaskStates, supervisor: str, rng: np.random.Generator, *, seed: int, rows_wanted: int
) -> Condition:
    order = rng.permutation(len(states.pool))
    what = SUPERVISORS[supervisor]
    if isinstance(what, float):
        rows = np.sort(order[:rows_wanted])
        truth = states.pool_truth[rows]
        wrong = rng.random(len(rows)) < what
        return Condition(
            states, supervisor, seed, rows, np.eye(2)[np.where(wrong, 1 - truth, truth)], None
        )
    layer, n_trained = what
    trained, rows = np.sort(order[:n_trained]), np.sort(order[n_trained : n_trained + rows_wanted])
    X = states.pool.layer(layer)
    probe = LogisticProbe(l2="auto", random_state=seed)
    probe.fit(X[trained], states.pool_truth[trained])
    floor = probe.predict_proba(states.test.layer(layer))
    return Condition(states, supervisor, seed, rows, probe.predict_proba(X[rows]), floor)


def training_sets(condition: Condition) -> Iterator[tuple[str, Array, Array]]:
    """Yield each method's name, the places of the rows kept, and labels (n, 2) of all rows."""
    weak, n = condition.weak, len(condition.rows)
    hard, every = weak.argmax(axis=1), np.arange(n)
    counts = np.floor(SHARE * np.bincount(hard, minlength=2) + 1e-9).astype(np.int64)
    yield "weak labels", every, weak
    for draw in range(3):
        rng = np.random.default_rng([condition.seed, draw])
        gone = largest(rng.random(n), counts, hard).selected
        yield f"random drop, {draw}", np.flatnonzero(~gone), weak
    for name, probe in PROBES.items():
        layer = None if probe == "ensemble" else SINGLE_LAYER
        scored = score_rows(
            condition.states.pool,
            condition.labels,
            probe,
            layer=layer,
            seed=condition.seed,
            only_labelled=True,
        )
        yield from _of_probe(name, scored, weak, counts)
    yield from _candidates(condition, weak, counts)


def _of_probe(
    name: str, scored: Scored, weak: Array, counts: Array
) -> Iterator[tuple[str, Array, Array]]:
    """Filter and relabel by one fit of a probe."""
    hard, every = weak.argmax(axis=1), np.arange(len(weak))
    if name == "TopoFilter":
        keep = scored.probe.keep_
    else:
        keep = ~largest(scored.disagreement, counts, hard, ties=scored.ties).selected
    yield f"filter, {name}", np.flatnonzero(keep), weak
    yield f"relabel, {name}", every, (1 - BLEND) * weak + BLEND * scored.proba
    if name == "ensemble":
        share = np.bincount(hard, minlength=2) / len(hard)
        yield "relabel hard, ensemble", every, np.eye(2)[prior_matched(scored.proba, share)]
        gone = prune_by_noise_rate(hard, scored.proba, ties=scored.ties).selected
        yield "filter confident, ensemble", np.flatnonzero(~gone), weak


def _candidates(
    condition: Condition, weak: Array, counts: Array
) -> Iterator[tuple[str, Array, Array]]:
    X = condition.states.pool.read(SINGLE_LAYER, condition.rows)
    hard, every = weak.argmax(axis=1), np.arange(len(weak))
    proba = spread_labels(X, hard)
    gone = largest(disagreement_of(proba, weak), counts, hard).selected
    yield "filter, label spreading", np.flatnonzero(~gone), weak
    yield "relabel, label spreading", every, (1 - BLEND) * weak + BLEND * proba
    yield "filter, SimiFeat", np.flatnonzero(simifeat_vote(X, hard, every)), weak
    yield "filter, FINE", np.flatnonzero(fine(X, hard, seed=condition.seed)), weak
