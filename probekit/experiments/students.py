"""Linear students on frozen states: one per training set, between weak floor and ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.experiments.judge import Arm, judge_arms
from probekit.metrics import accuracy
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
    """``plain``, ``random``, ``filter``, ``relabel`` or ``ceiling``."""
    rows: NDArray[np.int64]
    """Row numbers (m,)."""
    Y: NDArray[np.float64]
    """Labels (m, C)."""


_Trained = tuple[TrainingSet, float, "NDArray[np.float64]"]  # with its penalty and test (t, C)


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

    drawn: dict[str, list[_Trained]] = {}
    for each in [*sets, ceiling]:
        probe = LogisticProbe(random_state=seed).fit(states[each.rows], each.Y)
        drawn.setdefault(each.name, []).append((each, probe.l2_, probe.predict_proba(states_test)))
    arms = [Arm(FLOOR, "floor", [floor]), *(_arm(draws, true) for draws in drawn.values())]
    return {
        "test_rows": len(test),
        "student_rows": len(true),
        "weak_prior": share.tolist(),
        "random_draws": max(len(arm.probs) for arm in arms),
        "seed": seed,
        "arms": judge_arms(arms, truth=test, weak_prior=share, seed=seed),
    }, {arm.name: arm.probs[0] for arm in arms}


def _arm(draws: Sequence[_Trained], true: NDArray[Any]) -> Arm:
    """One row of the table: one training set, or several draws of one."""
    used = [trained_on for trained_on, _, _ in draws]
    return Arm(
        name=used[0].name,
        kind=used[0].kind,
        probs=[probs for _, _, probs in draws],
        label_accuracy=float(np.mean([accuracy(true[s.rows], s.Y.argmax(axis=1)) for s in used])),
        rows=len(used[0].rows),
        notes={"l2": draws[0][1]},
    )
