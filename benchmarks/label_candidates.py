"""Changes of the ensemble that were tried: other members, weights by stacking, a second round."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from label_methods import Case, Family, Found
from scipy.optimize import minimize

from probekit.activations.store import ActivationStore
from probekit.cuts import count_of, disagreement_of, largest
from probekit.probes import EnsembleProbe, MassMeanProbe
from probekit.probes.calibration import calibrate
from probekit.probes.ensemble import KNN_DEPTHS, RIDGE_DEPTHS, average, plan_layers, stack_layers
from probekit.probes.knn import neighbor_means
from probekit.probes.neighbors import nearest_others
from probekit.probes.ridge import RidgeStates, choose_penalty

__all__ = ["FAMILIES"]

Array = np.ndarray[Any, Any]

VOTERS = 30
UPPER, PENALTY = (5 / 6, 1.0), 3.0
SHRUNK = "penalty 3, kNN on the last layer"
DROPPED = 0.2  # of each weak class, before the second round
# Name -> depths of the layers with a ridge fit, with a kNN vote, and with a mass-mean probe.
COMBINED: dict[str, tuple[tuple[float, ...], ...]] = {
    "kNN on the last layer": (RIDGE_DEPTHS, (1,), ()),
    "upper layers": (UPPER, (1,), ()),
    "upper layers, mass-mean": (UPPER, (1,), (1,)),
    "mass-mean": (RIDGE_DEPTHS, KNN_DEPTHS, (1,)),
    "last layer, mass-mean": ((1,), (1,), (1,)),
}


class Layer(NamedTuple):
    """What does not depend on the labels."""

    X: Array
    ridge: RidgeStates
    near: Array


@lru_cache(maxsize=1)
def _layers(path: str, rows: bytes) -> dict[int, Layer]:
    """Prepare the layers for all kinds of wrong labels of the same rows."""
    with ActivationStore(path) as store:
        prepared = {}
        for layer in store.layers:
            if layer > 0:
                X = store.read(layer, np.frombuffer(rows, np.int64))
                prepared[layer] = Layer(X, RidgeStates(X), nearest_others(X, VOTERS).index)
    return prepared


def members(case: Case) -> dict[str, Found]:
    """Members of all layers, leave-one-out; combined in several ways."""
    layers = _layers(str(case.store.path), case.rows.astype(np.int64).tobytes())
    Y = case.weak
    ridge = {i: choose_penalty(layer.ridge, Y)[1] for i, layer in layers.items()}
    knn = {i: neighbor_means(layer.near, Y, [VOTERS])[0] for i, layer in layers.items()}
    mean = {i: np.log(MassMeanProbe().fit(layer.X, Y).oof_proba_) for i, layer in layers.items()}
    found = {}
    for name, depths in COMBINED.items():
        scores = [
            scores[i]
            for scores, of in zip((ridge, knn, mean), depths, strict=True)
            for i in _nearest(list(layers), of)
        ]
        found[name] = Found(disagreement_of(average(scores, Y).proba, Y))
    upper = _nearest(list(layers), UPPER)
    strong = [layers[i].ridge.leave_out(Y, PENALTY) for i in upper] + [knn[max(layers)]]
    found["upper layers, penalty 3"] = Found(disagreement_of(average(strong, Y).proba, Y))
    every = [*ridge.values(), *knn.values()]
    found["stacked, all layers"] = Found(disagreement_of(_stacked(every, Y), Y))
    return found


def _nearest(stored: list[int], depths: tuple[float, ...]) -> list[int]:
    deepest = max(stored)
    return sorted({min(stored, key=lambda i: (abs(i - x * deepest), -i)) for x in depths})


def _stacked(scores: list[Array], Y: Array) -> Array:
    """P (n, C) with weights ≥ 0 of the members that minimise the weak labels' log-loss."""
    logits = np.stack([calibrate(score, Y).log_odds(score) for score in scores])

    def loss(weights: Array) -> tuple[float, Array]:
        z = np.tensordot(weights, logits, 1)
        log_p = z - np.logaddexp.reduce(z, axis=1)[:, None]
        gradient = np.tensordot(logits, np.exp(log_p) - Y, ((1, 2), (0, 1)))
        return -float((Y * log_p).sum()) / len(Y), gradient / len(Y)

    start = np.full(len(scores), 1 / len(scores))
    best = minimize(loss, start, jac=True, bounds=[(0, None)] * len(scores), method="L-BFGS-B").x
    z = np.tensordot(best, logits, 1)
    return np.asarray(np.exp(z - np.logaddexp.reduce(z, axis=1)[:, None]))


def rounds(case: Case) -> dict[str, Found]:
    """Fit the ensemble again, to the rows that a filter keeps by its first scores."""
    plan = plan_layers(case.store.layers)
    widths = [case.store.info(i).width for i in plan.layers]
    X = stack_layers(case.store, plan.layers, case.rows)
    probe = EnsembleProbe(widths=widths, ridge=plan.ridge, knn=plan.knn)
    first = disagreement_of(probe.fit(X, case.weak).oof_proba_, case.weak)
    counts = [count_of(DROPPED, n) for n in np.bincount(case.hard)]
    kept = ~largest(first, counts, case.hard).selected
    again = probe.fit(X, case.weak, sample_weight=kept.astype(np.float64)).oof_proba_
    return {"second round": Found(disagreement_of(again, case.weak))}


def shrunk(case: Case) -> dict[str, Found]:
    """The ensemble's ridge fits with one strong penalty, and the votes of the last layer only."""
    prepared = _shrunk_layers(str(case.store.path), case.rows.astype(np.int64).tobytes())
    scores = [ridge.leave_out(case.weak, PENALTY) for ridge in prepared.ridge]
    scores.append(neighbor_means(prepared.near, case.weak, [VOTERS])[0])
    return {SHRUNK: Found(disagreement_of(average(scores, case.weak).proba, case.weak))}


class Shrunk(NamedTuple):
    """Three layers with a ridge fit, and the neighbours on the last one."""

    ridge: list[RidgeStates]
    near: Array


@lru_cache(maxsize=1)
def _shrunk_layers(path: str, rows: bytes) -> Shrunk:
    number = np.frombuffer(rows, np.int64)
    with ActivationStore(path) as store:
        ridge = [RidgeStates(store.read(i, number)) for i in _nearest(store.layers, RIDGE_DEPTHS)]
        near = nearest_others(store.read(max(store.layers), number), VOTERS).index
    return Shrunk(ridge, near)


FAMILIES = {
    "shrunk": Family((SHRUNK,), shrunk),
    "members": Family((*COMBINED, "upper layers, penalty 3", "stacked, all layers"), members),
    "rounds": Family(("second round",), rounds),
}
