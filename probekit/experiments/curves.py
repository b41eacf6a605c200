"""Overfitting curves: a student at every evaluation, against the truth and its supervisor.

Burns et al. 2023, section 5.1.1, https://arxiv.org/abs/2312.09390.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.metrics import pgr, pgr_undefined

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["judge_curve"]


def judge_curve(
    steps: Sequence[int],
    test: ArrayLike,
    truth: ArrayLike,
    held_out: ArrayLike,
    weak: ArrayLike,
    *,
    floor: float,
    ceiling: float,
) -> dict[str, Any]:
    """Accuracy on test rows and agreement with held-out weak labels at every evaluation.

    Parameters
    ----------
    steps
        Optimizer steps of the s evaluations.
    test, truth
        Probabilities (s, t, C) and class numbers (t,) of the test rows.
    held_out, weak
        Probabilities (s, v, C) and weak labels (v, C) of the held-out rows.
    floor, ceiling
        Accuracies between which PGR is measured.

    Returns
    -------
    The curves, and ``stops``: step, accuracy and PGR at the last evaluation, at the one of best
    agreement with the weak labels (a stop that needs no truth), and at the one of best accuracy
    (oracle). Of equal evaluations the earlier one.
    """
    tested, held = np.asarray(test, np.float64), np.asarray(held_out, np.float64)
    Y = np.asarray(weak, np.float64)
    accuracy = (tested.argmax(axis=2) == np.asarray(truth)).mean(axis=1)
    agreement = (held.argmax(axis=2) == Y.argmax(axis=1)).mean(axis=1)
    logs = np.log(np.clip(held, np.finfo(np.float64).eps, 1))
    weak_log_loss = -(Y * logs).sum(axis=2).mean(axis=1)
    chosen = {
        "last": len(steps) - 1,
        "weak_early_stop": int(agreement.argmax()),
        "oracle": int(accuracy.argmax()),
    }

    def at(place: int) -> dict[str, Any]:
        value = pgr(floor, float(accuracy[place]), ceiling)
        return {
            "step": int(steps[place]),
            "accuracy": float(accuracy[place]),
            "pgr": None if np.isnan(value) else value,
        }

    return {
        "steps": [int(step) for step in steps],
        "accuracy": accuracy.tolist(),
        "weak_agreement": agreement.tolist(),
        "weak_log_loss": weak_log_loss.tolist(),
        "stops": {name: at(place) for name, place in chosen.items()},
        "reason": pgr_undefined(floor, ceiling),
    }
