"""Whether to filter, to relabel or to leave weak labels alone: a rule without ground truth.

The evidence is what the ensemble's members, each without the row itself, predict of hard weak
labels, since these are what an action changes. Hard weak labels alone cannot settle it: "right
labels, a concept that a quarter of the rows does not follow" and "a quarter of the labels wrong"
look alike and need opposite actions. The rule's constants were measured (docs/methods/advice.md,
Diagnose).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from probekit.cuts import by_key, class_counts, prior_matched
from probekit.errors import DataError, LabelsError
from probekit.kinds import check
from probekit.labels import WeakLabels
from probekit.states import finite_rows

if TYPE_CHECKING:
    from pathlib import Path

    from probekit.activations.store import ActivationStore
    from probekit.cleaning.audit import Finding
    from probekit.cleaning.student import Learner
    from probekit.probes.ridge import RidgeStates

__all__ = [
    "Advice",
    "Evidence",
    "Sample",
    "Signals",
    "advice_on",
    "advise",
    "agreement_needed",
    "concord",
    "confidence_allowed",
    "decide",
    "draw_sample",
    "read_signals",
    "weigh",
]

# The rule was measured on this number of rows, and pc changes with it; it takes about a second.
SAMPLE_ROWS = 2000
VOTES = 30
FEWEST = 20
# Below the first pc the labels are left alone; from the second on relabelling may help.
PC_LEAVE = 0.58
PC_RELABEL = 0.66
# Replaces both if rows are few or the strong model is not clearly the stronger one.
PC_CAUTIOUS = 0.72
FEW_ROWS = 1000
# Below this mean confidence the labels are left alone: an unsure supervisor taught the probes
# little. Fixed on one half of the grid (docs/methods/advice.md). It does not apply to a trusted
# accuracy: one that low may come from noise, which probes see through.
LEAST_CONFIDENCE = 0.65
# Relabelling needs an agreement that exceeds that of two independent sources by this margin.
AGREEMENT_MARGIN = 0.05
VIEWS = "a linear fit and the votes of neighbours, neither of which saw the row,"

DRAWS = 200

Confidence = Literal["confidences", "trusted accuracy", "unknown"]


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows of a store with weak labels, drawn within classes, and their states by layer."""

    states: Mapping[int, NDArray[np.float32]]
    """Layer -> (n, width), finite."""
    hard: NDArray[np.int64]
    """Weak classes (n,), numbered without gaps."""
    classes: tuple[str, ...]
    """Names of the classes that occur."""
    probs: NDArray[np.float64]
    """Weak labels (n, all classes) as given."""
    groups: NDArray[np.int64]
    """Rows with the same number are exact duplicates (n,)."""
    total: int
    """Number of labelled rows, from which the sample was drawn."""
    nonfinite: Mapping[int, int]
    """Layer -> number of drawn rows with NaN or infinity there; they are left out."""


def draw_sample(
    store: ActivationStore,
    labels: WeakLabels,
    *,
    layers: Sequence[int] | None = None,
    rows: int = SAMPLE_ROWS,
    seed: int = 0,
    only_labelled: bool = False,
) -> Sample:
    """Read at most ``rows`` rows of the layers that the ensemble uses, class shares kept.

    Parameters
    ----------
    layers
        Layers to choose from, by default all that are stored.

    Raises
    ------
    LabelsError, DataError, UsageError
        If labels do not fit, fewer than 20 usable rows or two classes are left, or a layer is not
        stored.
    """
    from probekit.probes.ensemble import plan_for

    check(store=store, labels=labels, layers=layers, rows=rows, seed=seed)
    check(only_labelled=only_labelled)
    plan = plan_for(store, layers)
    place, aligned = labels.align(store.keys, only_labelled=only_labelled)
    # By a hash of the id: the draw does not depend on the order of the rows.
    drawn = _draw(aligned.hard, rows, np.argsort(by_key(aligned.keys, seed=seed), kind="stable"))
    states = {layer: store.read(layer, place[drawn]) for layer in plan.layers}
    each = {layer: finite_rows(part) for layer, part in states.items()}
    finite = np.logical_and.reduce(list(each.values()))
    used = drawn[finite]
    if len(used) < FEWEST:
        raise DataError(
            f"{store.path} has {len(used)} rows with a weak label and finite states; at least "
            f"{FEWEST} are needed."
        )
    occur, hard = np.unique(aligned.hard[used], return_inverse=True)
    if len(occur) < 2:
        raise LabelsError(
            f"{labels.source} has the class {aligned.classes[occur[0]]!r} in all rows read from "
            f"{store.path}; at least two classes are needed."
        )
    return Sample(
        states={layer: part[finite] for layer, part in states.items()},
        hard=hard.ravel(),
        classes=tuple(aligned.classes[c] for c in occur),
        probs=aligned.probs[used],
        groups=store.copies(place[used]),
        total=len(aligned),
        nonfinite={layer: int((~good).sum()) for layer, good in each.items()},
    )


def _draw(hard: NDArray[np.int64], rows: int, order: NDArray[np.int64]) -> NDArray[np.int64]:
    if len(hard) <= rows:
        return order
    size = np.bincount(hard)
    # A rare class keeps enough rows to define its correlation and votes.
    wanted = np.maximum(class_counts(rows, size / len(hard)), np.minimum(size, 3))
    chosen = [order[hard[order] == c][:m] for c, m in enumerate(wanted)]
    return order[np.isin(order, np.concatenate(chosen))]


@dataclass(frozen=True, eq=False)
class Evidence:
    """The ensemble's members on a sample, ready to predict other labels too."""

    hard: NDArray[np.int64]
    """Weak classes (n,), 0 … C − 1, each of which occurs."""
    ridge: Mapping[int, RidgeStates]
    penalties: Mapping[int, float]
    near: Mapping[int, NDArray[np.int64]]
    """Layer -> row numbers (n, k) of the nearest other rows, which vote."""
    both: tuple[int, ...]
    """The last two layers that have a member of each kind."""
    scores: Mapping[tuple[str, int], NDArray[np.float64]]
    """(kind, layer) -> scores (n, C) without the row itself."""
    proba: NDArray[np.float64]
    """P (n, C), the average of the members."""

    @property
    def decided(self) -> NDArray[np.int64]:
        """Classes (n,) of the average, with the class shares of the weak labels."""
        return prior_matched(self.proba, np.bincount(self.hard) / len(self.hard))

    def shuffled(self, permutations: int, seed: int = 0) -> list[Evidence]:
        """The same members on shuffled labels, at the penalties chosen for the real ones."""
        rng = np.random.default_rng(seed)
        orders = [rng.permutation(len(self.hard)) for _ in range(permutations)]
        c = self.proba.shape[1]
        eye = np.eye(c)
        columns = np.hstack([eye[self.hard[order]] for order in orders])
        ridge = {
            layer: states.leave_out(columns, self.penalties[layer])
            for layer, states in self.ridge.items()
        }
        evidence = []
        for i, order in enumerate(orders):
            part = slice(i * c, (i + 1) * c)
            scores = {layer: score[:, part] for layer, score in ridge.items()}
            evidence.append(_with_labels(self, self.hard[order], scores))
        return evidence


def weigh(
    states: Mapping[int, NDArray[Any]], hard: NDArray[np.int64], groups: NDArray[np.int64]
) -> Evidence:
    """Fit the ensemble's members to hard weak labels.

    Parameters
    ----------
    states
        Layer -> states (n, width), as :func:`plan_layers` chooses them.
    hard, groups
        Weak classes 0 … C − 1, each of which occurs; group numbers of duplicates, which are left
        out together.

    Raises
    ------
    DataError
        If all rows are copies of one text.
    """
    from probekit.probes.ensemble import plan_layers
    from probekit.probes.neighbors import NeighborIndex
    from probekit.probes.ridge import RidgeStates, choose_penalty

    plan = plan_layers(sorted(states))
    ridge_layers = [plan.layers[i] for i in plan.ridge]
    knn_layers = [plan.layers[i] for i in plan.knn]
    Y = np.eye(int(hard.max()) + 1)[hard]
    left = len(hard) - int(np.bincount(groups).max())
    if left < 1:
        raise DataError(f"All {len(hard)} rows are copies of one text; nothing can be compared.")
    ridge, penalties, scores = {}, {}, {}
    for layer in ridge_layers:
        ridge[layer] = RidgeStates(states[layer], groups=groups)
        penalties[layer], scores[layer] = choose_penalty(ridge[layer], Y)
    near = {
        layer: NeighborIndex(states[layer]).others(min(VOTES, left), groups=groups).index
        for layer in knn_layers
    }
    both = tuple(sorted({*ridge_layers} & {*knn_layers})[-2:])
    empty = Evidence(hard, ridge, penalties, near, both, {}, Y)
    return _with_labels(empty, hard, scores)


def _with_labels(
    members: Evidence, hard: NDArray[np.int64], ridge: Mapping[int, NDArray[np.float64]]
) -> Evidence:
    from probekit.probes.ensemble import average

    Y = np.eye(members.proba.shape[1])[hard]
    scores = {("ridge", layer): score for layer, score in ridge.items()}
    scores |= {("knn", layer): Y[index].mean(axis=1) for layer, index in members.near.items()}
    return Evidence(
        hard=hard,
        ridge=members.ridge,
        penalties=members.penalties,
        near=members.near,
        both=members.both,
        scores=scores,
        proba=average(list(scores.values()), Y).proba,
    )


@dataclass(frozen=True, slots=True)
class Signals:
    """The quantities that the rule uses."""

    rows: int
    """Number of rows read."""
    n_classes: int
    pc: float
    """Agreement of two kinds of probe beyond the weak label; NaN if no layer has both."""
    pc_interval: tuple[float, float]
    """Central 95 % over bootstrap draws of the rows."""
    agreement: float
    """A: share of rows where the out-of-fold probe average equals the hard weak label."""
    confidence: float
    """c: the supervisor's accuracy by its own confidences or by trusted rows; 1 if unknown."""
    confidence_from: Confidence
    cautious: bool = False
    """Whether the strong model is not clearly stronger than the supervisor."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do about weak labels, and why."""

    action: Literal["leave", "filter", "relabel"]
    """The strongest action advised; relabel implies that a filter helps too."""
    filter: str
    """One line: do it, or leave the labels alone, and why."""
    relabel: str
    signals: Signals
    margins: dict[str, float]
    """Distance from each bound; negative if it is missed."""
    close: bool
    """Whether a bound is within the interval of pc."""

    def warning(self, action: Literal["filter", "relabel"]) -> str | None:
        """The warning for an action against the advice; None if the advice is: do it."""
        line = self.filter if action == "filter" else self.relabel
        if line.startswith("do it"):
            return None
        return (
            f"{action} is not advised here: {line} Weak labels alone cannot settle it; "
            "`probekit diagnose` reports more, `probekit audit` settles it with some true labels."
        )


def advise(
    store: ActivationStore,
    labels: WeakLabels,
    *,
    layers: Sequence[int] | None = None,
    trusted_accuracy: float | None = None,
    cautious: bool = False,
    rows: int = SAMPLE_ROWS,
    seed: int = 0,
    only_labelled: bool = False,
) -> Advice:
    """Advise from at most 2,000 rows of a store, without ground truth, in about a second.

    Parameters
    ----------
    store, labels
        States, and weak labels of their rows, joined by id.
    layers
        Layers to choose from, by default all that are stored.
    trusted_accuracy : float, optional
        The supervisor's accuracy on rows with ground truth, in (0, 1]; replaces its own
        confidences.
    cautious : bool, default=False
        Use the stricter bound, for a strong model that is not clearly stronger.

    Raises
    ------
    LabelsError, DataError, UsageError
        As :func:`draw_sample`.
    """
    check(cautious=cautious, trusted_accuracy=trusted_accuracy)
    sample = draw_sample(
        store, labels, layers=layers, rows=rows, seed=seed, only_labelled=only_labelled
    )
    evidence = weigh(sample.states, sample.hard, sample.groups)
    signals = read_signals(evidence, sample.probs, trusted_accuracy, seed=seed)
    return decide(signals if not cautious else replace(signals, cautious=True))


def advice_on(
    action: Literal["filter", "relabel"],
    store: ActivationStore,
    labels: WeakLabels,
    *,
    audit: Path,
    needed: bool = False,
    learner: Learner | None = None,
    seed: int = 0,
    only_labelled: bool = False,
) -> dict[str, Any] | None:
    """The best action for these labels, its source, and a warning if ``action`` is another.

    The answers of an audit overrule :func:`advise`. None for differences of pairs and for too few
    rows.

    Parameters
    ----------
    audit
        File with the answers of an audit.
    needed
        Whether an audit of another store's rows is an error; if not, it is ignored.
    learner
        What will train on the labels; None: the action that leaves the fewest of them wrong.
    """
    from probekit.cleaning.student import after_audit, after_diagnosis

    if needed or audit.is_file():
        try:
            finding = _audited(audit, store, labels, seed=seed, only_labelled=only_labelled)
        except DataError:
            if needed:
                raise
            finding = None
        if finding is not None and finding.action is not None:
            best: str = finding.action
            why = f"{best} is right with probability {finding.probability:.2f}"
            if learner is not None and (own := after_audit(learner, finding)) is not None:
                best, why = own.action, own.line.removesuffix(".")
            warning = None
            if best != action:
                warning = (
                    f"{action} is not what the audit found: {why}, from {finding.answers} true "
                    f"labels in {audit}."
                )
            return {"action": best, "by": str(audit), "warning": warning}
    if store.differences:
        return None
    try:
        advice = advise(store, labels, seed=seed, only_labelled=only_labelled)
    except (DataError, LabelsError):
        return None
    if learner is not None:
        advised = after_diagnosis(learner, advice)
        other = advised.action != action
        warning = f"{action} is not advised here. {advised.line}" if other else None
        return {"action": advised.action, "by": "diagnose", "warning": warning}
    return {"action": advice.action, "by": "diagnose", "warning": advice.warning(action)}


def _audited(path: Path, store: ActivationStore, labels: WeakLabels, **how: Any) -> Finding:
    from probekit.cleaning.audit import audit
    from probekit.cleaning.review import AuditFile

    hashes = dict(zip(store.ids, store.hashes, strict=True))
    return audit(store, labels, AuditFile(path, hashes, labels.classes).answers, **how)


def read_signals(
    evidence: Evidence,
    probs: NDArray[np.float64],
    trusted_accuracy: float | None = None,
    *,
    seed: int = 0,
) -> Signals:
    """Measure the rule's quantities from weak labels ``probs`` (n, C) and the evidence on them."""
    largest = probs.max(axis=1)
    soft = bool((largest < 1 - 1e-6).any())
    confidence, source = 1.0, "unknown"
    if trusted_accuracy is not None:
        confidence, source = trusted_accuracy, "trusted accuracy"
    elif soft:
        confidence, source = float(largest.mean()), "confidences"
    return Signals(
        rows=len(evidence.hard),
        n_classes=evidence.proba.shape[1],
        pc=concord(evidence),
        pc_interval=_interval(evidence, seed),
        agreement=float((evidence.decided == evidence.hard).mean()),
        confidence=confidence,
        confidence_from=source,  # type: ignore[arg-type]  # one of the three, as above
    )


def concord(evidence: Evidence, rows: NDArray[np.int64] | None = None) -> float:
    """pc: mean over the last two layers of Σ_k P(w=k) · corr(ridge score, kNN votes | w=k).

    Scores and votes are those of class k itself; for two classes those of either give the same. A
    class where one of the two is constant counts 0. NaN if no layer has both kinds.
    """
    if not evidence.both:
        return float("nan")
    hard = evidence.hard if rows is None else evidence.hard[rows]
    by_layer = []
    for layer in evidence.both:
        both = np.stack([evidence.scores[kind, layer] for kind in ("ridge", "knn")])
        both = both if rows is None else both[:, rows]
        by_layer.append(
            sum(
                (hard == k).mean() * _correlation(both[:, hard == k, k])
                for k in range(both.shape[2])
            )
        )
    return float(np.mean(by_layer))


def _correlation(pair: NDArray[np.float64]) -> float:
    if pair.shape[1] < 3:
        return 0.0
    centred = pair - pair.mean(axis=1, keepdims=True)
    length = np.sqrt((centred**2).sum(axis=1))
    if (length <= 1e-12 * np.abs(pair).max(axis=1) * np.sqrt(pair.shape[1])).any():
        return 0.0
    return float(centred[0] @ centred[1] / (length[0] * length[1]))


def _interval(evidence: Evidence, seed: int) -> tuple[float, float]:
    if np.isnan(concord(evidence)):
        return float("nan"), float("nan")
    rng, n = np.random.default_rng(seed), len(evidence.hard)
    drawn = [concord(evidence, rng.integers(0, n, n)) for _ in range(DRAWS)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def agreement_needed(confidence: float, n_classes: int = 2) -> float:
    """Agreement from which relabelling may help: c² + (1 − c)² / (C − 1) + 0.05.

    Without the 0.05 it is the rate at which two independent sources of accuracy c agree on C
    classes, their errors evenly spread.
    """
    return confidence**2 + (1 - confidence) ** 2 / (n_classes - 1) + AGREEMENT_MARGIN


def confidence_allowed(agreement: float, n_classes: int = 2) -> float:
    """Largest c whose needed agreement is reached: a bound for an unknown c; NaN if none is."""
    # C c² − 2 c + 1 = (C − 1) (A − 0.05), solved for c.
    spare = 1 - n_classes * (1 - (n_classes - 1) * (agreement - AGREEMENT_MARGIN))
    return (1 + spare**0.5) / n_classes if spare >= 0 else float("nan")


def least_confidence(n_classes: int) -> float:
    """Mean confidence below which labels are left alone: as far above chance as for two classes."""
    chance = 1 / n_classes
    return chance + (2 * LEAST_CONFIDENCE - 1) * (1 - chance)


def decide(signals: Signals) -> Advice:
    """Apply the rule."""
    if np.isnan(signals.pc):
        line = (
            "leave the labels alone: no layer has both kinds of probe, so the rule does not apply; "
            "`probekit audit` decides."
        )
        return Advice("leave", line, line, signals, {}, close=False)
    few = signals.rows < FEW_ROWS
    strict = few or signals.cautious
    leave, relabel = (PC_CAUTIOUS,) * 2 if strict else (PC_LEAVE, PC_RELABEL)
    needed = agreement_needed(signals.confidence, signals.n_classes)
    margins = {
        "pc_filter": signals.pc - leave,
        "pc_relabel": signals.pc - relabel,
        "agreement_relabel": signals.agreement - needed,
    }
    if signals.confidence_from == "confidences":
        margins["confidence"] = signals.confidence - least_confidence(signals.n_classes)
    action: Literal["leave", "filter", "relabel"] = "leave"
    if margins["pc_filter"] >= 0 and margins.get("confidence", 0) >= 0:
        both = margins["pc_relabel"] >= 0 and margins["agreement_relabel"] >= 0
        action = "relabel" if both else "filter"
    low, high = signals.pc_interval
    why = f"for fewer than {FEW_ROWS:,} rows" if few else "by --cautious"
    bounds = f" (the stricter bound, {why})" if strict else ""
    return Advice(
        action=action,
        filter=_filter_line(signals, leave, bounds),
        relabel=_relabel_line(signals, relabel, needed, bounds),
        signals=signals,
        margins=margins,
        close=any(low < bound < high for bound in {leave, relabel}),
    )


def _compared(value: float, bound: float) -> tuple[str, str]:
    """Both numbers with two decimals, or as many as show that they differ (0.7196 and 0.7200)."""
    apart = (d for d in range(2, 7) if f"{value:.{d}f}" != f"{bound:.{d}f}")
    digits = next(apart, 2)
    return f"{value:.{digits}f}", f"{bound:.{digits}f}"


def _unsure_line(signals: Signals) -> str | None:
    least = least_confidence(signals.n_classes)
    if signals.confidence_from != "confidences" or signals.confidence >= least:
        return None
    confidence, bound = _compared(signals.confidence, least)
    return (
        f"leave the labels alone: the supervisor is unsure of its own labels, mean confidence "
        f"{confidence} is below {bound}, and probes that learn from "
        "them have little to correct them with."
    )


def _filter_line(signals: Signals, bound: float, bounds: str) -> str:
    if unsure := _unsure_line(signals):
        return unsure
    pc, least = _compared(signals.pc, bound)
    if signals.pc < bound:
        return (
            f"leave the labels alone: {VIEWS} seldom doubt the same labels, so those that they "
            f"doubt need not be wrong (probe agreement {pc} is below {least}{bounds})."
        )
    return (
        f"do it: {VIEWS} doubt the same labels (probe agreement {pc} is at least {least}{bounds})."
    )


def _relabel_line(signals: Signals, bound: float, needed: float, bounds: str) -> str:
    if unsure := _unsure_line(signals):
        return unsure
    pc, least = _compared(signals.pc, bound)
    if signals.pc < bound:
        return (
            f"leave the labels alone: probe agreement {pc} is below {least}{bounds}, so the "
            "probes are not known to be better than the labels."
        )
    if signals.confidence_from == "unknown":
        return (
            "leave the labels alone: hard labels do not show how sure the supervisor was, and "
            "without that a probe is never known to be better than they are."
        )
    source = signals.confidence_from.removesuffix("s")
    agreement, enough = _compared(signals.agreement, needed)
    if signals.agreement < needed:
        return (
            f"leave the labels alone: the probe agrees with {agreement} of them; to be "
            f"known as better it must agree with {enough} at a {source} of "
            f"{signals.confidence:.2f}."
        )
    return (
        f"do it: probe agreement {pc} is at least {least}{bounds}, and the probe "
        f"agrees with {agreement} of the labels, at least the {enough} needed at a "
        f"{source} of {signals.confidence:.2f}; use soft labels, or --hard at the weak prior."
    )
