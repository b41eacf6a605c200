"""Whether to filter, to relabel or to leave weak labels alone: a rule that needs no truth.

Hard weak labels alone cannot settle it: "right labels, a concept that a quarter of the rows does
not follow" and "a quarter of the labels wrong" look alike and ask for opposite actions. The rule's
numbers were measured (docs/methods.md, Diagnose); each is a named constant here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from probekit.cleaning.evidence import SAMPLE_ROWS, Evidence, draw_sample, weigh
from probekit.errors import DataError, LabelsError
from probekit.kinds import check

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from probekit.activations.store import ActivationStore
    from probekit.cleaning.audit import Finding
    from probekit.labels import WeakLabels

__all__ = [
    "Advice",
    "Signals",
    "advice_on",
    "advise",
    "agreement_needed",
    "concord",
    "confidence_allowed",
    "decide",
    "read_signals",
]

# Below this pc the labels are left alone; from the second on relabelling may help.
PC_LEAVE = 0.58
PC_RELABEL = 0.66
# Takes the place of both, where rows are few or the strong model is not clearly the stronger one.
PC_CAUTIOUS = 0.72
FEW_ROWS = 1000
# Below this mean confidence the labels are left alone: a supervisor that is hardly sure taught the
# probes little. Fixed on one half of the grid (docs/methods.md). A trusted accuracy that low may be
# that of noise, which probes see through.
LEAST_CONFIDENCE = 0.65
# Relabelling needs an agreement above that of two independent sources, by this much.
AGREEMENT_MARGIN = 0.05

DRAWS = 200

Confidence = Literal["confidences", "trusted accuracy", "unknown"]


@dataclass(frozen=True, slots=True)
class Signals:
    """What the rule reads."""

    rows: int
    """Rows that were read."""
    n_classes: int
    pc: float
    """Agreement of two kinds of probe beyond the weak label; NaN for more than two classes."""
    pc_interval: tuple[float, float]
    """95 % of bootstrap draws of the rows."""
    agreement: float
    """A: share of rows where the out-of-fold probe average equals the hard weak label."""
    confidence: float
    """c: how often the supervisor is right, as it says itself or trusted rows say; unknown: 1."""
    confidence_from: Confidence
    cautious: bool = False
    """Whether the strong model is not clearly stronger than the supervisor."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do about weak labels, and why."""

    action: Literal["leave", "filter", "relabel"]
    """The strongest thing that is advised; relabel includes that a filter helps too."""
    filter: str
    """One line: do it, or leave the labels alone, and why."""
    relabel: str
    signals: Signals
    margins: dict[str, float]
    """Distance from each bound; below 0 where it is missed."""
    close: bool
    """Whether a bound lies within the interval of pc."""

    def warning(self, what: Literal["filter", "relabel"]) -> str | None:
        """What to print where someone acts against the advice; None where it says: do it."""
        line = self.filter if what == "filter" else self.relabel
        if line.startswith("do it"):
            return None
        return (
            f"{what} is not advised here: {line} Weak labels alone cannot settle it; "
            "`probekit diagnose` says more, `probekit audit` settles it with some true labels."
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
    """Advise from at most 2,000 rows of a store; about a second, no truth.

    Parameters
    ----------
    store, labels
        States, and weak labels of their rows, joined by id.
    layers
        To choose from, by default all that are stored.
    trusted_accuracy
        The supervisor's accuracy on rows whose truth is known, in (0, 1]: takes the place of its
        own confidences.
    cautious
        Take the stricter bound, for a strong model that is not clearly stronger.

    Raises
    ------
    LabelsError, DataError, UsageError
        As :func:`probekit.cleaning.evidence.draw_sample`.
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
    seed: int = 0,
    only_labelled: bool = False,
) -> dict[str, Any] | None:
    """What is best for these labels, who says so, and a warning where ``action`` is another.

    The answers of an audit overrule :func:`advise`. None of differences of pairs, and of too few
    rows to say anything.

    Parameters
    ----------
    audit
        File of the answers.
    needed
        Whether a file of another store's rows is an error; else it counts as none.
    """
    if needed or audit.is_file():
        try:
            finding = _audited(audit, store, labels, seed=seed, only_labelled=only_labelled)
        except DataError:
            if needed:
                raise
            finding = None
        if finding is not None and finding.action is not None:
            warning = None
            if finding.action != action:
                warning = (
                    f"{action} is not what the audit found: {finding.action} is right with "
                    f"probability {finding.probability:.2f}, by {finding.tally.known:g} true "
                    f"labels in {audit}."
                )
            return {"action": finding.action, "by": str(audit), "warning": warning}
    if store.differences:
        return None
    try:
        advice = advise(store, labels, seed=seed, only_labelled=only_labelled)
    except (DataError, LabelsError):
        return None
    return {"action": advice.action, "by": "diagnose", "warning": advice.warning(action)}


def _audited(path: Path, store: ActivationStore, labels: WeakLabels, **how: Any) -> Finding:
    from probekit.cleaning.audit import conclude, find_disputed, tally
    from probekit.cleaning.audit_file import AuditFile

    disputed = find_disputed(store, labels, **how)
    known = dict(zip(store.ids, store.hashes, strict=True))
    answers = AuditFile(path, known, disputed.classes).answers
    return conclude(tally(disputed, answers), len(disputed))


def read_signals(
    evidence: Evidence,
    probs: NDArray[np.float64],
    trusted_accuracy: float | None = None,
    *,
    seed: int = 0,
) -> Signals:
    """Measure what the rule reads, of weak labels ``probs`` (n, C) and the evidence on them."""
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

    Two classes only, else NaN. A class where one of the two never varies counts 0.
    """
    if evidence.proba.shape[1] != 2 or not evidence.both:
        return float("nan")
    hard = evidence.hard if rows is None else evidence.hard[rows]
    found = []
    for layer in evidence.both:
        pair = np.stack([evidence.scores[kind, layer][:, 1] for kind in ("ridge", "knn")])
        pair = pair if rows is None else pair[:, rows]
        found.append(sum((hard == k).mean() * _correlation(pair[:, hard == k]) for k in (0, 1)))
    return float(np.mean(found))


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


def agreement_needed(confidence: float) -> float:
    """Agreement from which relabelling may help: c² + (1 − c)² + 0.05.

    The first part is how often two independent sources of accuracy c agree on one of two classes.
    """
    return confidence**2 + (1 - confidence) ** 2 + AGREEMENT_MARGIN


def confidence_allowed(agreement: float) -> float:
    """Largest c whose needed agreement is reached: what an unknown c would have to be; or NaN."""
    spare = 2 * (agreement - AGREEMENT_MARGIN) - 1
    return 0.5 + 0.5 * spare**0.5 if spare >= 0 else float("nan")


def decide(signals: Signals) -> Advice:
    """Apply the rule."""
    if np.isnan(signals.pc):
        line = (
            f"leave the labels alone: the rule was measured on two classes and knows nothing of "
            f"{signals.n_classes}; `probekit audit` decides."
        )
        return Advice("leave", line, line, signals, {}, close=False)
    few = signals.rows < FEW_ROWS
    strict = few or signals.cautious
    leave, relabel = (PC_CAUTIOUS,) * 2 if strict else (PC_LEAVE, PC_RELABEL)
    needed = agreement_needed(signals.confidence)
    margins = {
        "pc_filter": signals.pc - leave,
        "pc_relabel": signals.pc - relabel,
        "agreement_relabel": signals.agreement - needed,
    }
    if signals.confidence_from == "confidences":
        margins["confidence"] = signals.confidence - LEAST_CONFIDENCE
    action: Literal["leave", "filter", "relabel"] = "leave"
    if margins["pc_filter"] >= 0 and margins.get("confidence", 0) >= 0:
        both = margins["pc_relabel"] >= 0 and margins["agreement_relabel"] >= 0
        action = "relabel" if both else "filter"
    low, high = signals.pc_interval
    why = f"for fewer than {FEW_ROWS:,} rows" if few else "asked for"
    bounds = f" (the stricter bound, {why})" if strict else ""
    return Advice(
        action=action,
        filter=_filter_line(signals, leave, bounds),
        relabel=_relabel_line(signals, relabel, needed, bounds),
        signals=signals,
        margins=margins,
        close=any(low < bound < high for bound in {leave, relabel}),
    )


def _unsure_line(signals: Signals) -> str | None:
    if signals.confidence_from != "confidences" or signals.confidence >= LEAST_CONFIDENCE:
        return None
    return (
        f"leave the labels alone: the supervisor is hardly sure of its own labels, mean confidence "
        f"{signals.confidence:.2f} is below {LEAST_CONFIDENCE:.2f}, and probes that learn from it "
        "have little to correct them with."
    )


def _filter_line(signals: Signals, bound: float, bounds: str) -> str:
    if unsure := _unsure_line(signals):
        return unsure
    if signals.pc < bound:
        return (
            "leave the labels alone: two kinds of probe agree too little beyond the weak label, "
            f"pc {signals.pc:.2f} is below {bound:.2f}{bounds}, so what they object to need not be "
            "wrong."
        )
    return (
        f"do it: two kinds of probe agree beyond the weak label, pc {signals.pc:.2f} is at least "
        f"{bound:.2f}{bounds}."
    )


def _relabel_line(signals: Signals, bound: float, needed: float, bounds: str) -> str:
    if unsure := _unsure_line(signals):
        return unsure
    if signals.pc < bound:
        return (
            f"leave the labels alone: pc {signals.pc:.2f} is below {bound:.2f}{bounds}, the probes "
            "are not known to be better than the labels."
        )
    if signals.confidence_from == "unknown":
        return (
            "leave the labels alone: hard labels do not say how sure the supervisor was, and "
            "without that a probe is never known to be better than they are."
        )
    source = signals.confidence_from.removesuffix("s")
    if signals.agreement < needed:
        return (
            f"leave the labels alone: the probe agrees with {signals.agreement:.2f} of them, less "
            f"than the {needed:.2f} that its being better takes at a {source} of "
            f"{signals.confidence:.2f}."
        )
    return (
        f"do it: pc {signals.pc:.2f} is at least {bound:.2f}{bounds}, and the probe agrees with "
        f"{signals.agreement:.2f} of the labels, at least the {needed:.2f} that its being better "
        f"takes at a {source} of {signals.confidence:.2f}; soft, or --hard at the weak prior."
    )
