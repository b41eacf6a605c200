"""Scores of a run's arms, as JSON types: figures, curves over a training, seeds combined.

Curves: Burns et al. 2023, section 5.1.1, https://arxiv.org/abs/2312.09390.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probekit.cuts import prior_matched
from probekit.errors import DataError
from probekit.metrics import (
    Bootstrap,
    agreement,
    auroc,
    bootstrap_summary,
    brier,
    calibration_error,
    cross_entropy,
    drawn_aurocs,
    log_loss,
    paired_bootstrap,
    pgr,
    pgr_undefined,
    recall_at_fpr,
)

__all__ = [
    "ALARMS",
    "FIGURES",
    "PERPLEXITY",
    "STARTS",
    "Arm",
    "combine_seeds",
    "plain_numbers",
    "score_arms",
    "score_curve",
    "spread",
]

ENDS = ("floor", "ceiling")
COMPARED = ("agreement", "pgr", "pgr_prior_matched", "pgr_auroc", "gain", "gain_prior_matched")
# Alarms of an arm.
ALARMS = {
    "failed": "a step of it failed",
    "missing": "no labels for the test rows",
    "degenerate": "the labels are of one class",
    "collapsed": "one class for every test row",
}
PERPLEXITY = ("perplexity_before", "perplexity_after")
# What a student starts from; each has a ceiling.
STARTS = ("pretrained", "language model")
PGRS = ("pgr", "pgr_prior_matched", "pgr_auroc")
FIGURES = (
    "accuracy",
    "accuracy_prior_matched",
    "auroc",
    "log_loss",
    "brier",
    "ece",
    "recall_at_1pct_fpr",
)
OF_PROBABILITIES = ("log_loss", "brier", "ece", "recall_at_1pct_fpr")
# Figures that are combined over seeds.
COMBINED = ("rows", "label_accuracy", *FIGURES)
GAINS = ("gain", "gain_prior_matched")
AGREEMENT = ("overall", "right", "wrong")
NO_BOOTSTRAP: dict[str, Any] = dict.fromkeys(each.name for each in fields(Bootstrap)) | {
    "unbounded": False
}


@dataclass(frozen=True, eq=False)
class Arm:
    """One row of a run's table: a model's predictions of the t test rows."""

    name: str
    kind: str
    """``floor``, ``plain``, ``loss``, ``filter``, ``relabel``, ``random``, ``probe``, ``round``,
    ``chain``, ``naive`` or ``ceiling``."""
    probs: Sequence[NDArray[Any]]
    """Class probabilities (t, C), or where there are none class numbers (t,), one array per draw;
    figures are means over draws."""
    label_accuracy: float | None = None
    """Share of the training labels that are right."""
    rows: int | None = None
    """Training rows."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    alarms: Mapping[str, str] = field(default_factory=dict)
    """What is wrong with it and why, of ``ALARMS``; one that ``failed`` or whose predictions are
    ``missing`` may have no ``probs``."""


class _Scored:
    """An arm's values on the test rows, from which every figure is computed."""

    def __init__(
        self,
        arm: Arm,
        truth: NDArray[np.int64],
        prior: NDArray[np.float64] | None,
        classes: Sequence[str],
        ties: NDArray[Any] | None,
    ) -> None:
        self.arm = arm
        self.graded_only = _decided(arm)
        draws = [] if self.graded_only else [np.asarray(p, np.float64) for p in arm.probs]
        self.decided = list(arm.probs) if self.graded_only else [p.argmax(axis=1) for p in draws]
        self.right = np.mean([d == truth for d in self.decided], axis=0)
        matched = [] if prior is None else [prior_matched(p, prior, ties=ties) for p in draws]
        self.right_matched = np.mean([d == truth for d in matched], axis=0) if matched else None
        # The one class that all test rows get at 0.5, and at the prior-matched threshold.
        self.constant = {
            "": _constant(self.decided, truth, classes),
            "_prior_matched": _constant(matched, truth, classes),
        }
        self.alarms = dict(arm.alarms)
        if self.constant[""] is not None:
            self.alarms["collapsed"] = f"every test row gets the class {self.constant['']!r}"
        if self.graded_only:  # no figure of probabilities is defined
            self.auroc, self.score, self.figures = np.nan, np.empty((len(truth), 0)), {}
            return
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


def _decided(arm: Arm) -> bool:
    """Return whether an arm has class numbers, not probabilities."""
    return bool(arm.probs) and all(np.ndim(draw) == 1 for draw in arm.probs)


def _constant(
    draws: Sequence[NDArray[np.int64]], truth: NDArray[np.int64], classes: Sequence[str]
) -> str | None:
    """Return the class that a draw gives every row, if the truth has several."""
    if len(np.unique(truth)) < 2:
        return None
    used = [np.unique(decided) for decided in draws]
    return next((classes[int(codes[0])] for codes in used if len(codes) == 1), None)


def score_arms(
    arms: Sequence[Arm],
    *,
    truth: ArrayLike,
    weak_prior: ArrayLike | None,
    classes: Sequence[str] | None = None,
    ties: NDArray[Any] | None = None,
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
        Class shares (C,) of the weak training labels, for the prior-matched threshold; None if
        their supervisor failed.
    classes
        Names of the C classes; None: their numbers.
    ties
        Order (t,) of test rows that are equal at the prior-matched threshold; None: by row number.
    seed, draws
        Seed and number of draws of the paired bootstrap over test rows.

    Returns
    -------
    One dict per arm, in order, of JSON types; undefined values are None. ``pgr``,
    ``pgr_prior_matched`` and ``pgr_auroc`` have the value, its 95 % interval, student − weak with
    its interval, and the reason if there is no value: no gap, or floor, ceiling or student failed
    or gives every row one class. ``alarms`` has the arm's alarms, by the names of ``ALARMS``.
    """
    true = np.asarray(truth, np.int64)
    prior = None if weak_prior is None else np.asarray(weak_prior, np.float64)
    if classes is None:
        n_classes = len(prior) if prior is not None else int(true.max(initial=0)) + 1
        classes = [str(number) for number in range(n_classes)]
    missing = [kind for kind in ENDS if all(arm.kind != kind for arm in arms)]
    if missing:
        raise DataError("A run is scored between a floor and a ceiling; one of them is missing.")
    scored = {
        place: _Scored(_checked(arm, (len(true), len(classes))), true, prior, classes, ties)
        for place, arm in enumerate(arms)
        if arm.probs or not {"failed", "missing"} & arm.alarms.keys()
    }
    ends = {kind: next((j for j in scored.values() if j.arm.kind == kind), None) for kind in ENDS}
    plain = next(
        (j for kind in ("plain", "naive") for j in scored.values() if j.arm.kind == kind), None
    )
    bootstrap = _Bootstrap(list(scored.values()), true, seed=seed, draws=draws)
    absent = next((arm for arm in arms if arm.kind == "floor" and "missing" in arm.alarms), None)
    compared = _Compared(
        ends["floor"], ends["ceiling"], plain, true, bootstrap, floor_missing=absent is not None
    )
    return [
        compared.row(scored[place]) if place in scored else _failed(arm)
        for place, arm in enumerate(arms)
    ]


def _checked(arm: Arm, shape: tuple[int, ...]) -> Arm:
    shapes = [np.shape(probs) for probs in arm.probs]
    if _decided(arm) and all(each == shape[:1] for each in shapes):
        return arm
    if not shapes or any(each != shape for each in shapes):
        raise DataError(
            f"The predictions of {arm.name!r} must be of {shape[0]} test rows and {shape[1]} "
            f"classes, got {', '.join(map(str, shapes)) or 'none'}."
        )
    return arm


def _failed(arm: Arm) -> dict[str, Any]:
    """Return the row of an arm without predictions: every figure is None."""
    row = _named(arm)
    row |= dict.fromkeys(FIGURES)
    row |= {"notes": dict(arm.notes), **dict.fromkeys(COMPARED), "alarms": dict(arm.alarms)}
    if arm.kind not in ENDS:
        reason = f"the student failed: {arm.alarms['failed']}"
        row |= {key: NO_BOOTSTRAP | {"reason": reason} for key in COMPARED if key in PGRS}
    return row


def _named(arm: Arm) -> dict[str, Any]:
    return {
        "name": arm.name,
        "kind": arm.kind,
        "draws": len(arm.probs),
        "rows": arm.rows,
        "label_accuracy": arm.label_accuracy,
    }


@dataclass(frozen=True, eq=False)
class _Compared:
    """The arms that every arm is compared with; None for one that failed."""

    floor: _Scored | None
    ceiling: _Scored | None
    plain: _Scored | None
    truth: NDArray[np.int64]
    bootstrap: _Bootstrap
    floor_missing: bool = False

    def row(self, each: _Scored) -> dict[str, Any]:
        """Return all figures of an arm."""
        floor, plain = self.floor, self.plain
        student = each is not floor and each is not self.ceiling
        row: dict[str, Any] = {
            **_named(each.arm),
            "accuracy": float(each.right.mean()),
            "accuracy_prior_matched": _mean(each.right_matched),
            "auroc": each.auroc,
            **dict.fromkeys(OF_PROBABILITIES),
            **each.figures,
            "notes": dict(each.arm.notes),
            "alarms": dict(each.alarms),
        }
        row |= dict.fromkeys(COMPARED)
        if each is not floor and floor is not None:
            shares = [asdict(agreement(self.truth, floor.decided[0], d)) for d in each.decided]
            row["agreement"] = {key: np.mean([s[key] for s in shares]) for key in shares[0]}
        for values, suffix in (("right", ""), ("right_matched", "_prior_matched")):
            if suffix and each.graded_only:
                continue
            if student:
                row[f"pgr{suffix}"] = self._pgr(each, values, suffix)
            if plain is not None and each is not plain and each is not floor:
                gained = self._means(plain, each, values)
                row[f"gain{suffix}"] = {k: gained[k] for k in ("gain", "gain_low", "gain_high")}
        if student and not each.graded_only:
            row["pgr_auroc"] = self._auroc(each)
        plain_row: dict[str, Any] = plain_numbers(row)
        return plain_row

    def _pgr(self, each: _Scored, values: str, suffix: str) -> dict[str, Any]:
        means = self._means(self.floor, each, values)
        reason = self._undefined(each, suffix)
        if reason is None:
            return means
        return {**means, "pgr": None, "pgr_low": None, "pgr_high": None, "reason": reason}

    def _means(self, weak: _Scored | None, each: _Scored, values: str) -> dict[str, Any]:
        """Return PGR and gain of a mean; without a ceiling only the gain is meaningful."""
        student = getattr(each, values)
        if weak is None or student is None:
            return dict(NO_BOOTSTRAP)
        top = self.ceiling or each
        return self.bootstrap.means(getattr(weak, values), student, getattr(top, values))

    def _auroc(self, each: _Scored) -> dict[str, Any]:
        if self.floor is None or self.ceiling is None:
            return NO_BOOTSTRAP | {"reason": self._undefined(each, "")}
        return self.bootstrap.auroc(self.floor, each, self.ceiling)

    def _undefined(self, each: _Scored, suffix: str) -> str | None:
        """Return why there is no PGR, other than a missing gap."""
        among = {"weak supervisor": self.floor, "ceiling": self.ceiling, "student": each}
        for name, arm in among.items():
            if arm is None and name == "weak supervisor" and self.floor_missing:
                return "there are no weak labels for the test rows"
            if arm is None:
                return f"the {name} failed"
            if arm.constant[suffix] is not None:
                return f"the {name} gives every test row the class {arm.constant[suffix]!r}"
        return None


def _mean(values: NDArray[np.float64] | None) -> float | None:
    return None if values is None else float(values.mean())


class _Bootstrap:
    """Draws of test rows, the same for all arms."""

    def __init__(
        self, scored: Sequence[_Scored], truth: NDArray[np.int64], *, seed: int, draws: int
    ) -> None:
        self._seed, self._draws = seed, draws
        self._place = {id(each): i for i, each in enumerate(scored)}
        scores = [each.score for each in scored]
        self._binary = bool(scores) and scores[0].shape[1] == 2 and len(np.unique(truth)) == 2
        if self._binary:
            seconds = np.column_stack([score[:, 1] for score in scores])
            self._aurocs = drawn_aurocs(truth, seconds, draws=draws, seed=seed)

    def means(self, weak: ArrayLike, student: ArrayLike, ceiling: ArrayLike) -> dict[str, Any]:
        """Return PGR of a metric that is the mean of values (t,)."""
        return asdict(paired_bootstrap(weak, student, ceiling, seed=self._seed, draws=self._draws))

    def auroc(self, floor: _Scored, each: _Scored, ceiling: _Scored) -> dict[str, Any]:
        """Return PGR on AUROC; for more than two classes without an interval."""
        values = floor.auroc, each.auroc, ceiling.auroc
        # For several draws of an arm: the mean of their figures, not the figure of their mean.
        point = {"pgr": pgr(*values), "gain": each.auroc - floor.auroc}
        if not self._binary:
            reason = pgr_undefined(floor.auroc, ceiling.auroc)
            return {**point, "reason": reason or "the bootstrap of AUROC is for two classes"}
        places = [self._place[id(which)] for which in (floor, each, ceiling)]
        whole, drawn = self._aurocs
        return {**asdict(bootstrap_summary(whole[places], drawn[:, places])), **point}


def plain_numbers(value: Any) -> Any:
    """Return numbers as JSON types; None for those that are not finite."""
    if isinstance(value, Mapping):
        return {key: plain_numbers(each) for key, each in value.items()}
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value


def score_curve(
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
        Accuracies of weak supervisor and ceiling, for PGR.

    Returns
    -------
    The curves, and ``stops``: step, accuracy and PGR at the last evaluation, at the one of best
    agreement with the weak labels (a stop that needs no truth), and at the one of best accuracy
    (oracle); among equals, the earlier.
    """
    tested, held_probs = np.asarray(test, np.float64), np.asarray(held_out, np.float64)
    Y = np.asarray(weak, np.float64)
    accuracy = (tested.argmax(axis=2) == np.asarray(truth)).mean(axis=1)
    agreement = (held_probs.argmax(axis=2) == Y.argmax(axis=1)).mean(axis=1)
    weak_log_loss = cross_entropy(Y, held_probs).mean(axis=1)
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


def combine_seeds(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Median, mean and standard error of every figure over seeds.

    Parameters
    ----------
    seeds
        Results of :func:`probekit.experiments.scores.score_arms` for each seed. Arms are matched by
        name; one that some seeds lack is combined over the others.

    Returns
    -------
    One dict per arm, in the order of the first seed that has it: ``figures`` from a name to median,
    mean, sem (None for one seed) and values; ``pgr`` and its kin also hold why seeds have none, and
    for a single seed its 95 % interval; ``alarms``: number of seeds that have each.
    """
    names: dict[str, list[Mapping[str, Any]]] = {}
    for arms in seeds:
        for arm in arms:
            names.setdefault(str(arm["name"]), []).append(arm)
    listed = sorted(names, key=lambda name: names[name][0]["kind"] == "ceiling")
    return [_combined(name, names[name]) for name in listed]


def _combined(name: str, arms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    combined: dict[str, Any] = {"name": name, "kind": arms[0]["kind"], "seeds": len(arms)}
    combined["figures"] = {key: spread([arm.get(key) for arm in arms]) for key in COMBINED}
    raised = [name for arm in arms for name in arm.get("alarms", {})]
    combined["alarms"] = {name: raised.count(name) for name in ALARMS if name in raised}
    combined["agreement"] = None
    if any(arm.get("agreement") is not None for arm in arms):
        known = [arm.get("agreement") or {} for arm in arms]
        combined["agreement"] = {
            key: spread([each.get(key) for each in known]) for key in AGREEMENT
        }
    for key in PGRS:
        given = [arm[key] for arm in arms if arm.get(key) is not None]
        combined[key] = _recovered(given) if given else None
    for key in GAINS:
        given = [arm[key] for arm in arms if arm.get(key) is not None]
        combined[key] = None
        if given:
            combined[key] = spread([each["gain"] for each in given])
            if len(arms) == 1:
                combined[key] |= {"low": given[0]["gain_low"], "high": given[0]["gain_high"]}
    return combined


def _recovered(given: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    recovered = spread([each["pgr"] for each in given])
    recovered["undefined"] = sum(each["pgr"] is None for each in given)
    recovered["unbounded"] = sum(bool(each.get("unbounded")) for each in given)
    recovered["reasons"] = sorted({each["reason"] for each in given if each.get("reason")})
    recovered["over_weak"] = spread([each["gain"] for each in given])
    if len(given) == 1:
        recovered |= {"low": given[0].get("pgr_low"), "high": given[0].get("pgr_high")}
    return recovered


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Return median, mean and standard error of the defined values; None if there are none."""
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if not len(known):
        return {"median": None, "mean": None, "sem": None, "values": list(values)}
    sem = float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else None
    return {
        "median": float(np.median(known)),
        "mean": float(known.mean()),
        "sem": sem,
        "values": list(values),
    }
