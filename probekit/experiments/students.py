"""Linear students on frozen states: one per training set, between weak floor and ceiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.metrics import accuracy, auroc, paired_bootstrap, prior_matched
from probekit.probes import LogisticProbe

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["TrainingSet", "judge_students", "random_drops"]

FLOOR, CEILING = "weak supervisor", "ground truth"


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Rows of the student's half and what to train on."""

    name: str
    """Name in table and figure."""
    kind: str
    """``weak``, ``random``, ``filter``, ``relabel`` or ``ceiling``."""
    rows: NDArray[np.int64]
    """Row numbers (m,)."""
    Y: NDArray[np.float64]
    """Labels (m, C)."""


def random_drops(
    weak: NDArray[np.float64], dropped: Sequence[int], *, name: str, draws: int, seed: int = 0
) -> list[TrainingSet]:
    """Drop ``dropped[c]`` rows of weak class c at random, ``draws`` times.

    ``weak`` (n, C) are the weak labels. One control of equal size for a filter.
    """
    hard = weak.argmax(axis=1)
    sets = []
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        gone = [
            rng.choice(np.flatnonzero(hard == c), many, replace=False)
            for c, many in enumerate(dropped)
        ]
        rows = np.setdiff1d(np.arange(len(weak)), np.concatenate(gone))
        sets.append(TrainingSet(name, "random", rows, weak[rows]))
    return sets


def judge_students(
    X: ArrayLike,
    X_test: ArrayLike,
    sets: Sequence[TrainingSet],
    *,
    weak_test: ArrayLike,
    truth: ArrayLike,
    truth_test: ArrayLike,
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
    """Train a LogisticProbe on each training set and compare them on the test rows.

    Each chooses its penalty out of fold on the labels it trains on: no student sees ground truth,
    except the ceiling, which trains on the same rows with it.

    Parameters
    ----------
    X, X_test
        States (n, d) of the rows that ``sets`` number, and (t, d) of the test rows.
    sets
        The training sets. The first is the plain weak labels of all rows: their class shares make
        the prior-matched threshold. Several of one name are draws of one arm, and averaged.
    weak_test
        The weak supervisor's probabilities (t, C) on the test rows: the floor.
    truth, truth_test
        True class numbers (n,) and (t,).

    Returns
    -------
    Results as JSON can hold them, and each arm's test probabilities (t, C), of its first draw. One
    entry per arm, floor first, ceiling last: ``pgr`` between these two, ``gain`` over the student
    on the plain weak labels, each with its paired 95 % interval, at 0.5 and prior-matched.
    """
    true, test = np.asarray(truth), np.asarray(truth_test)
    floor = np.asarray(weak_test, dtype=np.float64)
    n_classes = floor.shape[1]
    share = np.bincount(sets[0].Y.argmax(axis=1), minlength=n_classes) / len(sets[0].Y)
    ceiling = TrainingSet(CEILING, "ceiling", np.arange(len(true)), np.eye(n_classes)[true])
    states, states_test = np.asarray(X), np.asarray(X_test)

    arms = {FLOOR: [_Trained(None, None, floor, test, share)]}
    for each in [*sets, ceiling]:
        probe = LogisticProbe(random_state=seed).fit(states[each.rows], each.Y)
        proba = probe.predict_proba(states_test)
        arms.setdefault(each.name, []).append(_Trained(each, probe.l2_, proba, test, share))
    return {
        "test_rows": len(test),
        "student_rows": len(true),
        "weak_prior": share.tolist(),
        "random_draws": max(len(draws) for draws in arms.values()),
        "seed": seed,
        "arms": [_arm(name, arms, true, seed) for name in arms],
    }, {name: draws[0].proba for name, draws in arms.items()}


class _Trained:
    """One student (or the supervisor): its test probabilities and what is right of them."""

    def __init__(
        self,
        trained_on: TrainingSet | None,
        l2: float | None,
        proba: NDArray[np.float64],
        truth: NDArray[Any],
        share: NDArray[np.float64],
    ) -> None:
        self.trained_on = trained_on
        self.l2 = l2
        self.proba = proba
        self.auroc = auroc(truth, proba)
        self.right = proba.argmax(axis=1) == truth
        self.right_matched = prior_matched(proba, share) == truth


def _arm(
    name: str, arms: Mapping[str, Sequence[_Trained]], true: NDArray[Any], seed: int
) -> dict[str, Any]:
    draws = arms[name]
    used = [draw.trained_on for draw in draws if draw.trained_on is not None]
    plain = list(arms)[1]
    arm: dict[str, Any] = {
        "name": name,
        "kind": used[0].kind if used else "floor",
        "draws": len(draws),
        "rows": len(used[0].rows) if used else None,
        "label_accuracy": None,
        "l2": draws[0].l2,
        "auroc": float(np.mean([draw.auroc for draw in draws])),
    }
    if used:
        right = [accuracy(true[s.rows], s.Y.argmax(axis=1)) for s in used]
        arm["label_accuracy"] = float(np.mean(right))
    for how, suffix in (("right", ""), ("right_matched", "_prior_matched")):
        values = {each: _mean_right(arms[each], how) for each in (FLOOR, plain, name, CEILING)}
        arm[f"accuracy{suffix}"] = float(values[name].mean())
        arm[f"pgr{suffix}"] = arm[f"gain{suffix}"] = None
        if name not in (FLOOR, CEILING):
            arm[f"pgr{suffix}"] = _recovered(values[FLOOR], values[name], values[CEILING], seed)
        if name not in (FLOOR, plain):
            found = _recovered(values[plain], values[name], values[CEILING], seed)
            arm[f"gain{suffix}"] = {key: found[key] for key in ("gain", "gain_low", "gain_high")}
    return arm


def _mean_right(draws: Sequence[_Trained], how: str) -> NDArray[np.float64]:
    return np.asarray(np.mean([getattr(draw, how) for draw in draws], axis=0))


def _recovered(
    weak: NDArray[Any], student: NDArray[Any], ceiling: NDArray[Any], seed: int
) -> dict[str, Any]:
    """PGR as JSON can hold it: what is not finite is null."""
    found = asdict(paired_bootstrap(weak, student, ceiling, seed=seed))
    return {
        key: None if isinstance(value, float) and not np.isfinite(value) else value
        for key, value in found.items()
    }
