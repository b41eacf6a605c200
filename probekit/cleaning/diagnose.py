"""What stored states and weak labels show without ground truth, and the advice that follows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from probekit.cleaning.advice import (
    Advice,
    Evidence,
    Sample,
    agreement_needed,
    concord,
    decide,
    draw_sample,
    read_signals,
    weigh,
)
from probekit.cleaning.filter import confident_shares, hoc
from probekit.joins import match
from probekit.kinds import check
from probekit.metrics import auroc
from probekit.states import constant_columns
from probekit.strings import first_places, taken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from probekit.activations.store import ActivationStore
    from probekit.labels import WeakLabels

__all__ = ["ClassFindings", "Diagnosis", "LayerFindings", "Null", "diagnose"]

PERMUTATIONS = 99
# Maximum number of classes: HOC fits C² numbers to C³ shares.
HOC_CLASSES = 10
# Share of the weak labels below which a class is too rare to learn from.
RARE = 0.05


@dataclass(frozen=True, slots=True)
class Null:
    """A value and its null distribution over shuffled labels: mean and central 95 %."""

    value: float
    mean: float
    interval: tuple[float, float]
    p: float
    """Share of shuffles that reach the value, the value itself included."""


@dataclass(frozen=True, slots=True)
class ClassFindings:
    """One weak class among the rows read."""

    name: str
    rows: int
    share: float
    confident_joint: float
    """Share of these rows that cannot be told from another class; not a noise rate."""
    hoc: float
    """The same from labels of neighbours; NaN for over 10 classes or below two neighbours."""
    suspected: int
    """Rows that the probe puts in another class, at the class shares of the weak labels."""
    expansion: float
    """Mean share of a suspected row's neighbours whose weak label is the probe's class."""
    expansion_by_chance: float
    """The same for random neighbours: the share of that class among all rows."""


@dataclass(frozen=True, slots=True)
class LayerFindings:
    """One layer among the rows read."""

    layer: int
    width: int
    nonfinite: int
    """Rows with NaN or infinity."""
    constant: bool
    """Whether all rows have the same state."""
    constant_columns: int
    effective_rank: float
    """exp of the entropy of the covariance's eigenvalues; NaN if the layer has no ridge fit."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that ``probekit diagnose`` prints."""

    rows: int
    rows_read: int
    seed: int
    duplicates: int
    """Labelled rows whose text occurs more than once among them."""
    duplicates_unequal: int
    """Those of them whose copies have different weak classes."""
    classes: tuple[ClassFindings, ...]
    layers: tuple[LayerFindings, ...]
    predictable: Null
    """Out-of-fold AUROC of the hard weak labels."""
    concord: Null
    """pc."""
    agreement_needed: float
    """Smallest A for relabelling; above 1 if c is unknown."""
    alarms: tuple[str, ...]
    advice: Advice


def diagnose(
    store: ActivationStore,
    labels: WeakLabels,
    *,
    layers: Sequence[int] | None = None,
    trusted_accuracy: float | None = None,
    cautious: bool = False,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    only_labelled: bool = False,
) -> Diagnosis:
    """Measure what needs no ground truth, on at most 2,000 rows and in seconds.

    Parameters
    ----------
    store, labels, layers, trusted_accuracy, cautious, seed, only_labelled
        As :func:`probekit.cleaning.advice.advise`.
    permutations : int, default=99
        Number of shuffles of the labels for the null distribution.
    """
    check(cautious=cautious, permutations=permutations, trusted_accuracy=trusted_accuracy)
    sample = draw_sample(store, labels, layers=layers, seed=seed, only_labelled=only_labelled)
    evidence = weigh(sample.states, sample.hard, sample.groups)
    signals = replace(
        read_signals(evidence, sample.probs, trusted_accuracy, seed=seed), cautious=cautious
    )
    predictable, agreed = _nulls(evidence, permutations, seed)
    findings = _layers(sample, evidence)
    duplicates = _duplicates(store, labels)
    classes = _classes(sample, evidence)
    return Diagnosis(
        rows=sample.total,
        rows_read=len(sample.hard),
        seed=seed,
        duplicates=duplicates[0],
        duplicates_unequal=duplicates[1],
        classes=classes,
        layers=findings,
        predictable=predictable,
        concord=agreed,
        agreement_needed=agreement_needed(signals.confidence, signals.n_classes),
        alarms=(
            *_state_alarms(sample, findings),
            *_label_alarms(sample, evidence, predictable, classes),
        ),
        advice=decide(signals),
    )


def _nulls(evidence: Evidence, permutations: int, seed: int) -> tuple[Null, Null]:
    shuffled = evidence.shuffled(permutations, seed)
    values = [(auroc(e.hard, e.proba), concord(e)) for e in [evidence, *shuffled]]
    return _null([a for a, _ in values]), _null([pc for _, pc in values])


def _null(values: list[float]) -> Null:
    value, others = values[0], np.array(values[1:])
    if np.isnan(value) or not len(others):
        return Null(value, float("nan"), (float("nan"), float("nan")), float("nan"))
    low, high = np.quantile(others, [0.025, 0.975])
    reach = (1 + int((others >= value).sum())) / (1 + len(others))
    return Null(value, float(others.mean()), (float(low), float(high)), reach)


def _classes(sample: Sample, evidence: Evidence) -> tuple[ClassFindings, ...]:
    hard, decided = evidence.hard, evidence.decided
    share = np.bincount(hard) / len(hard)
    joint = confident_shares(hard, evidence.proba)
    near = evidence.near[max(evidence.near)]
    unlike = np.full(len(share), np.nan)
    if len(share) <= HOC_CLASSES and near.shape[1] >= 2:
        unlike = hoc(hard, near, len(share)).shares
    votes = (hard[near] == decided[:, None]).mean(axis=1)
    findings = []
    for c, name in enumerate(sample.classes):
        suspected = (hard == c) & (decided != c)
        findings.append(
            ClassFindings(
                name=name,
                rows=int((hard == c).sum()),
                share=float(share[c]),
                confident_joint=float(joint[c]),
                hoc=float(unlike[c]),
                suspected=int(suspected.sum()),
                expansion=_mean(votes[suspected]),
                expansion_by_chance=_mean(share[decided[suspected]]),
            )
        )
    return tuple(findings)


def _layers(sample: Sample, evidence: Evidence) -> tuple[LayerFindings, ...]:
    findings = []
    for layer, states in sample.states.items():
        wide = states.astype(np.float64)
        constant = int(constant_columns(wide.mean(axis=0), wide.std(axis=0), states.dtype).sum())
        ridge = evidence.ridge.get(layer)
        findings.append(
            LayerFindings(
                layer=layer,
                width=states.shape[1],
                nonfinite=sample.nonfinite[layer],
                constant=constant == states.shape[1],
                constant_columns=constant,
                effective_rank=float("nan") if ridge is None else _effective_rank(ridge.values),
            )
        )
    return tuple(findings)


def _effective_rank(values: NDArray[np.float64]) -> float:
    """Exp of the entropy of the shares of variance (Roy & Vetterli 2007)."""
    total = values.sum()
    if total <= 0:
        return 0.0
    share = values[values > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))


def _duplicates(store: ActivationStore, labels: WeakLabels) -> tuple[int, int]:
    hard, place = labels.hard, match(store.keys, labels.keys).place
    rows = np.flatnonzero((place >= 0) & store.hashes.known())
    first = first_places(taken(store.hashes, rows))
    copied = np.bincount(first, minlength=len(rows))[first] > 1
    first, own = first[copied], hard[place[rows[copied]]]
    pairs = np.unique(np.column_stack([first, own]), axis=0)
    n_classes = np.bincount(pairs[:, 0], minlength=len(rows))
    return len(first), int((n_classes[first] > 1).sum())


def _state_alarms(sample: Sample, layers: Sequence[LayerFindings]) -> list[str]:
    alarms = []
    for layer in layers:
        if layer.nonfinite:
            alarms.append(
                f"Layer {layer.layer} has NaN or infinity in {layer.nonfinite:,} of the rows read: "
                "extract again with --dtype float32; these rows are left out here, and filter and "
                "relabel stop at them."
            )
        if layer.constant:
            alarms.append(
                f"Layer {layer.layer} has the same state in every row: it carries no information."
            )
    for name, share in zip(
        sample.classes, np.bincount(sample.hard) / len(sample.hard), strict=True
    ):
        if share < RARE:
            alarms.append(
                f"Class {name!r} is the weak label of only {100 * share:.1f} % of the rows: too "
                "few to learn what its wrong labels look like."
            )
    return alarms


def _label_alarms(
    sample: Sample, evidence: Evidence, predictable: Null, classes: Sequence[ClassFindings]
) -> list[str]:
    alarms = []
    if predictable.value <= predictable.interval[1]:
        alarms.append(
            "The states predict the weak labels no better than shuffled ones: every change that a "
            "probe makes here is chance."
        )
    if not any(c.suspected for c in classes):
        alarms.append(
            "Relabelling is a no-op: the probe repeats the weak label of every row. The labels may "
            "have been made from these very states."
        )
    left = np.unique(evidence.proba.argmax(axis=1))
    if len(left) == 1:
        alarms.append(
            f"Relabelling at 0.5 collapses: every row would be {sample.classes[left[0]]!r}. Use "
            "--hard, which keeps the class shares, or the soft blend."
        )
    elif len(left) < len(sample.classes):
        lost = [repr(n) for c, n in enumerate(sample.classes) if c not in left]
        alarms.append(f"Relabelling by the most probable class loses {', '.join(lost)}.")
    return alarms


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")
