"""Judge students between weak floor and ceiling: figures as JSON can hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.errors import DataError
from probekit.metrics import (
    agreement,
    auroc,
    brier,
    calibration_error,
    log_loss,
    paired_bootstrap,
    prior_matched,
    recall_at_fpr,
)
from probekit.pgr import bootstrap_summary, drawn_aurocs, pgr, pgr_undefined

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Arm", "judge_arms", "plain_numbers"]

ENDS = ("floor", "ceiling")
COMPARED = ("agreement", "pgr", "pgr_prior_matched", "pgr_auroc", "gain", "gain_prior_matched")


@dataclass(frozen=True, eq=False)
class Arm:
    """One row of a run's table: what a model predicts for the t test rows."""

    name: str
    kind: str
    """``floor``, ``plain``, ``loss``, ``filter``, ``relabel``, ``random``, ``probe``, ``round``,
    ``chain``, ``naive`` or ``ceiling``."""
    probs: Sequence[NDArray[np.float64]]
    """Class probabilities (t, C), one array per draw; figures are means over draws."""
    label_accuracy: float | None = None
    """Share of the training labels that are right."""
    rows: int | None = None
    """Training rows."""
    notes: Mapping[str, Any] = field(default_factory=dict)


class _Judged:
    """An arm's values on the test rows, from which every figure is made."""

    def __init__(self, arm: Arm, truth: NDArray[np.int64], prior: NDArray[np.float64]) -> None:
        self.arm = arm
        draws = [np.asarray(probs, np.float64) for probs in arm.probs]
        self.decided = [probs.argmax(axis=1) for probs in draws]
        self.right = np.mean([d == truth for d in self.decided], axis=0)
        self.right_matched = np.mean([prior_matched(p, prior) == truth for p in draws], axis=0)
        self.auroc = float(np.mean([auroc(truth, probs) for probs in draws]))
        # Draws of a random drop are averaged; their mean score stands for them in the bootstrap.
        self.score = np.mean(draws, axis=0)
        self.figures = {
            "log_loss": np.mean([log_loss(truth, probs) for probs in draws]),
            "brier": np.mean([brier(truth, probs) for probs in draws]),
            "ece": np.mean([calibration_error(truth, probs) for probs in draws]),
            "recall_at_1pct_fpr": np.mean([recall_at_fpr(truth, probs[:, 1]) for probs in draws])
            if draws[0].shape[1] == 2
            else np.nan,
        }


def judge_arms(
    arms: Sequence[Arm],
    *,
    truth: ArrayLike,
    weak_prior: ArrayLike,
    seed: int = 0,
    draws: int = 10_000,
) -> list[dict[str, Any]]:
    """Compare arms on the test rows.

    Parameters
    ----------
    arms
        The first of kind ``floor`` is the weak supervisor, the last of kind ``ceiling`` the
        ceiling; ``plain`` (or, of a chain, ``naive``) is what gains are measured from.
    truth
        Class numbers (t,).
    weak_prior
        Class shares (C,) of the weak training labels, for the prior-matched threshold.
    seed, draws
        Of the paired bootstrap over test rows.

    Returns
    -------
    One dict per arm, in order, that JSON can hold: what is not defined is None. ``pgr``,
    ``pgr_prior_matched`` and ``pgr_auroc`` hold the value, its 95 % interval, student − weak with
    its interval, and the reason where there is no gap to recover.
    """
    true, prior = np.asarray(truth, np.int64), np.asarray(weak_prior, np.float64)
    for arm in arms:
        _check(arm, (len(true), len(prior)))
    judged = [_Judged(arm, true, prior) for arm in arms]
    ends = {kind: next((j for j in judged if j.arm.kind == kind), None) for kind in ENDS}
    floor, ceiling = ends["floor"], ends["ceiling"]
    if floor is None or ceiling is None:
        raise DataError("A run is judged between a floor and a ceiling; one of them is missing.")
    plain = next((j for kind in ("plain", "naive") for j in judged if j.arm.kind == kind), None)
    bootstrap = _Bootstrap(judged, true, seed=seed, draws=draws)
    return [_row(each, floor, ceiling, plain, true, bootstrap) for each in judged]


def _check(arm: Arm, shape: tuple[int, int]) -> None:
    found = [np.shape(probs) for probs in arm.probs]
    if not found or any(each != shape for each in found):
        raise DataError(
            f"The predictions of {arm.name!r} must be of {shape[0]} test rows and {shape[1]} "
            f"classes, got {', '.join(map(str, found)) or 'none'}."
        )


def _row(
    each: _Judged,
    floor: _Judged,
    ceiling: _Judged,
    plain: _Judged | None,
    truth: NDArray[np.int64],
    bootstrap: _Bootstrap,
) -> dict[str, Any]:
    arm = each.arm
    row: dict[str, Any] = {
        "name": arm.name,
        "kind": arm.kind,
        "draws": len(arm.probs),
        "rows": arm.rows,
        "label_accuracy": arm.label_accuracy,
        "accuracy": float(each.right.mean()),
        "accuracy_prior_matched": float(each.right_matched.mean()),
        "auroc": each.auroc,
        **each.figures,
        "notes": dict(arm.notes),
    }
    row |= dict.fromkeys(COMPARED)
    if each is not floor:
        supervisor = floor.decided[0]
        found = [asdict(agreement(truth, supervisor, decided)) for decided in each.decided]
        row["agreement"] = {key: np.mean([f[key] for f in found]) for key in found[0]}
    for values, suffix in (("right", ""), ("right_matched", "_prior_matched")):
        weak, student, best = (getattr(which, values) for which in (floor, each, ceiling))
        if each is not floor and each is not ceiling:
            row[f"pgr{suffix}"] = bootstrap.means(weak, student, best)
        if plain is not None and each is not plain and each is not floor:
            gained = bootstrap.means(getattr(plain, values), student, best)
            row[f"gain{suffix}"] = {k: gained[k] for k in ("gain", "gain_low", "gain_high")}
    if each is not floor and each is not ceiling:
        row["pgr_auroc"] = bootstrap.auroc(floor, each, ceiling)
    found_row: dict[str, Any] = plain_numbers(row)
    return found_row


class _Bootstrap:
    """Draws of test rows that all arms are judged on."""

    def __init__(
        self, judged: Sequence[_Judged], truth: NDArray[np.int64], *, seed: int, draws: int
    ) -> None:
        self._seed, self._draws = seed, draws
        self._place = {id(each): i for i, each in enumerate(judged)}
        self._binary = judged[0].score.shape[1] == 2 and len(np.unique(truth)) == 2
        if self._binary:
            scores = np.column_stack([each.score[:, 1] for each in judged])
            self._aurocs = drawn_aurocs(truth, scores, draws=draws, seed=seed)

    def means(self, weak: ArrayLike, student: ArrayLike, ceiling: ArrayLike) -> dict[str, Any]:
        """PGR of a metric that is the mean of the values given, each (t,)."""
        return asdict(paired_bootstrap(weak, student, ceiling, seed=self._seed, draws=self._draws))

    def auroc(self, floor: _Judged, each: _Judged, ceiling: _Judged) -> dict[str, Any]:
        """PGR on AUROC; of more than two classes without an interval."""
        values = floor.auroc, each.auroc, ceiling.auroc
        # Of several draws of an arm, the mean of their figures, not the figure of their mean.
        point = {"pgr": pgr(*values), "gain": each.auroc - floor.auroc}
        if not self._binary:
            reason = pgr_undefined(floor.auroc, ceiling.auroc)
            return {**point, "reason": reason or "the bootstrap of AUROC is for two classes"}
        places = [self._place[id(which)] for which in (floor, each, ceiling)]
        whole, drawn = self._aurocs
        return {**asdict(bootstrap_summary(whole[places], drawn[:, places])), **point}


def plain_numbers(value: Any) -> Any:
    """Numbers as JSON knows them: what is not finite is None."""
    if isinstance(value, Mapping):
        return {key: plain_numbers(each) for key, each in value.items()}
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value
