"""Audit: a few true labels show how many labels are wrong, and what to do about them.

Rows are asked about in one fixed order, suspicious ones earlier, and every beginning of it is a
sample with known probabilities: an audit can stop anywhere and resume later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from probekit.cleaning.answers import UNSURE
from probekit.cleaning.filter import PER_CLASS_SHARE
from probekit.cleaning.shares import Share, ask_order, asking_rates, chances, estimate_shares
from probekit.cuts import DECIMALS, by_key, count_of, disagreement_of, largest, prior_matched
from probekit.kinds import check

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from probekit.activations.store import ActivationStore
    from probekit.labels import WeakLabels

__all__ = ["Action", "Draw", "Finding", "audit", "draw_rows", "make_draw"]

Action = Literal["relabel", "filter", "leave"]
ACTIONS: tuple[Action, ...] = get_args(Action)
# An answer is settled if it is right with this probability, to within this share of the labels.
SETTLED, TOLERANCE = 0.95, 0.01
# What leave, filter (which loses rows) and relabel must save to be worth it.
WORTH = (0.0, TOLERANCE, TOLERANCE / 2)
POSTERIOR_DRAWS = 1000
# The probe's own opinion of a stratum counts for as many answers.
PRIOR = 1.0
# Smallest numbers of answers that are tried for how many more would settle it.
STEPS = 40


@dataclass(frozen=True, eq=False)
class Draw:
    """Distinct texts with weak labels, in the order to ask about them."""

    ids: Sequence[str]
    classes: tuple[str, ...]
    weak: NDArray[np.int64]
    """Weak class of each row (n,)."""
    probe: NDArray[np.int64]
    """The probe's class (n,), with the class shares of the weak labels."""
    keep: NDArray[np.bool_]
    """Rows (n,) that the default filter keeps."""
    suspicion: NDArray[np.float64]
    """q (n,): larger where the weak label is more likely wrong."""
    probe_suspicion: NDArray[np.float64]
    """The same of the probe's class (n,)."""
    rates: NDArray[np.float64]
    """Rates (n,) at which rows are asked about, summing to 1."""
    key: NDArray[np.float64]
    """What they are ordered by (n,)."""

    def __len__(self) -> int:
        return len(self.ids)

    def answered(self, answers: Mapping[str, str]) -> int:
        """Number of rows at the beginning of the order that all have an answer."""
        for number, name in enumerate(self.ids):
            if name not in answers:
                return number
        return len(self)

    def conclude(self, answers: Mapping[str, str], *, more: bool = True) -> Finding:
        """Conclude from answers (id -> true class, or ``?``).

        They count from the beginning of the order to the first row without one. The action is the
        one that leaves the smallest expected share of wrong labels, if it saves as much as it must:
        half a hundredth of all for a relabel, a hundredth for a filter. Without ``more``, the
        number of further answers is not computed.
        """
        m = self.answered(answers)
        given = [answers[name] for name in self.ids[:m]]
        number = {name: c for c, name in enumerate(self.classes)}
        # A true class that no weak label has: neither is right.
        truth = np.array([number.get(answer, -1) for answer in given], np.int64)
        told = np.flatnonzero([answer != UNSURE for answer in given])
        tau = self.key[m] if m < len(self) else np.inf
        chance = chances(self.rates[told], tau)
        truth = truth[told]
        weak_wrong, probe_wrong = self.weak[told] != truth, self.probe[told] != truth

        strata = self.weak * 2 + (self.weak != self.probe)

        def share(
            wrong: NDArray[np.bool_], q: NDArray[np.float64], rows: NDArray[np.bool_] | None = None
        ) -> Share:
            size = len(self) if rows is None else int(rows.sum())
            if not len(told):
                return Share(float("nan"), 0.0, 1.0, 0, size)
            value, low, high, n = estimate_shares(wrong, told, chance, q, rows, strata=strata)
            return Share(float(value), float(low), float(high), int(n), size)

        shares: dict[str, Share] = {
            "leave": share(weak_wrong, self.suspicion),
            "filter": share(weak_wrong, self.suspicion, self.keep),
            "relabel": share(probe_wrong, self.probe_suspicion),
        }
        by_class = {
            name: share(weak_wrong, self.suspicion, self.weak == c)
            for c, name in enumerate(self.classes)
        }
        action, probability, settled, further = None, float("nan"), False, 0
        if len(told):
            counts = self._counts(told, weak_wrong, probe_wrong, 1 / chance)
            action, probability = self._choose(counts)
            settled = probability >= SETTLED
            further = self._more(counts, m) if more and not settled else 0
        return Finding(
            action=action,
            probability=probability,
            settled=settled,
            more=further,
            shares=shares,
            by_class=by_class,
            answers=len(told),
            unsure=m - len(told),
            not_drawn=len(answers) - m,
            rows=len(self),
        )

    def _strata(self) -> NDArray[np.int64]:
        """Stratum (n,): 0 to 3, by whether probe and weak label differ and the filter drops."""
        return np.asarray((self.probe != self.weak) * 2 + ~self.keep, np.int64)

    def _counts(
        self,
        told: NDArray[np.int64],
        weak_wrong: NDArray[np.bool_],
        probe_wrong: NDArray[np.bool_],
        weight: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Effective numbers (4, 3) of answers: weak label right, else probe right, else neither."""
        stratum = self._strata()[told]
        outcome = np.where(~weak_wrong, 0, np.where(~probe_wrong, 1, 2))
        counts = np.zeros((4, 3))
        np.add.at(counts, (stratum, outcome), weight)
        total = np.bincount(stratum, weight, 4)
        square = np.bincount(stratum, weight**2, 4)
        # Kish's effective size (Σ w)² / Σ w² of a stratum's answers.
        scale: NDArray[np.float64] = total / np.maximum(square, 1e-12)
        return counts * scale[:, None]

    def _choose(self, counts: NDArray[np.float64]) -> tuple[Action, float]:
        """The action that leaves the fewest wrong labels, and the probability that it is right.

        The shares of a stratum have a Dirichlet posterior, whose prior is the probe's opinion.
        """
        stratum = self._strata()
        size = np.bincount(stratum, minlength=4)
        prior = np.where(size[:, None] > 0, 1e-6, 1.0) * np.ones(3)
        for h in np.flatnonzero(size):
            rows = stratum == h
            wrong, other = self.suspicion[rows].mean(), self.probe_suspicion[rows].mean()
            right = (
                (1 - wrong, 1 - other, max(wrong + other - 1, 0))
                if h > 1
                else (1 - wrong, 0, wrong)
            )
            prior[h] += PRIOR * np.clip(right, 0, 1)
        alpha = counts + prior
        gamma = np.random.default_rng(0).standard_gamma(alpha, size=(POSTERIOR_DRAWS, 4, 3))
        p = gamma / gamma.sum(axis=2, keepdims=True)
        mean = alpha / alpha.sum(axis=1, keepdims=True)
        left = self._left(np.concatenate([mean[None], p]), size)
        best = int((left[0] + WORTH).argmin())
        # Right to within a hundredth: no other action leaves fewer wrong labels by more.
        probability = float((left[1:, best] <= left[1:].min(axis=1) + TOLERANCE).mean())
        return ACTIONS[::-1][best], probability

    @staticmethod
    def _left(p: NDArray[np.float64], size: NDArray[np.int64]) -> NDArray[np.float64]:
        """Shares (…, 3) of wrong labels after leave, filter, relabel."""
        weak_wrong = 1 - p[..., 0]
        probe_wrong = np.where([False, False, True, True], 1 - p[..., 1], weak_wrong)
        kept = size * [1, 0, 1, 0]
        return np.stack(
            [
                (weak_wrong * size).sum(-1) / size.sum(),
                (weak_wrong * kept).sum(-1) / max(kept.sum(), 1),
                (probe_wrong * size).sum(-1) / size.sum(),
            ],
            axis=-1,
        )

    def _more(self, counts: NDArray[np.float64], m: int) -> int:
        """Number of further answers that would settle it if they go on alike."""
        left = len(self) - m
        for more in np.unique(np.geomspace(1, max(left, 1), STEPS).astype(int)).tolist():
            if self._choose(counts * (m + more) / m)[1] >= SETTLED:
                return int(more)
        return left


@dataclass(frozen=True, slots=True)
class Finding:
    """The conclusion from the answers so far."""

    action: Action | None
    """None if there is no answer yet."""
    probability: float
    """P(no other action leaves fewer wrong labels by more than a hundredth of all)."""
    settled: bool
    more: int
    """Number of further true labels that would settle it at the rate so far; 0 if settled."""
    shares: Mapping[str, Share]
    """Share of wrong labels if they are left alone (``leave``), after filter and after relabel.

    Both are of the ensemble alone, the filter of 20 % of each weak class: what trusted labels
    change cannot be judged by the same answers.
    """
    by_class: Mapping[str, Share]
    """The share of each weak class."""
    answers: int
    """Rows whose true label counts."""
    unsure: int
    not_drawn: int
    """Answers to rows after the first one without; they count when the order has reached them."""
    rows: int
    """Number of distinct texts with a weak label."""


def make_draw(
    ids: Sequence[str],
    classes: tuple[str, ...],
    weak: NDArray[np.int64],
    proba: NDArray[np.float64],
    keep: NDArray[np.bool_],
    ties: NDArray[np.uint64],
    *,
    suspicion: ArrayLike | None = None,
) -> Draw:
    """Order rows (n,) with weak classes and a probe's P (n, C).

    Parameters
    ----------
    ties
        A hash of each row's name, from which it is drawn.
    suspicion
        q (n,), by default 1 − P(weak class).
    """
    every = np.arange(len(weak))
    share = np.bincount(weak, minlength=len(classes)) / len(weak)
    probe = prior_matched(np.round(proba, DECIMALS), share, ties=ties)
    q = 1 - proba[every, weak] if suspicion is None else np.asarray(suspicion, np.float64)
    rates = asking_rates(np.round(q, DECIMALS))
    order, key = ask_order(rates, (ties.astype(np.float64) + 0.5) / 2.0**64)
    return Draw(
        ids=[ids[i] for i in order],
        classes=classes,
        weak=weak[order],
        probe=probe[order],
        keep=keep[order],
        suspicion=q[order],
        probe_suspicion=(1 - proba[every, probe])[order],
        rates=rates[order],
        key=key,
    )


def draw_rows(
    store: ActivationStore,
    labels: WeakLabels,
    *,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    only_labelled: bool = False,
    suspicion: ArrayLike | None = None,
) -> Draw:
    """Fit the ensemble out of fold and draw the order in which to ask about rows.

    Of several copies of a text one, drawn at random, stands for all.

    Parameters
    ----------
    layers
        Layers to choose from, by default all that are stored.
    seed
        Seed of the draw.
    suspicion : array-like of shape (n,), optional
        How likely each labelled row's weak label is wrong, by default 1 − P(weak class) of the
        ensemble. The estimates hold for any; a better one makes their intervals narrower.

    Raises
    ------
    LabelsError, DataError, StatesError, ProbeError
        As :func:`probekit.cleaning.predict.score_rows`.
    """
    from probekit.cleaning.predict import read_states
    from probekit.probes.ensemble import ensemble_for, plan_for

    check(store=store, labels=labels, layers=layers, seed=seed, only_labelled=only_labelled)
    read = plan_for(store, layers).layers
    rows, aligned = labels.align(store.keys, only_labelled=only_labelled)
    X = read_states(store, read, rows, stream=True)
    groups = store.copies(rows)
    ties = by_key(aligned.keys, seed=seed)
    proba = ensemble_for(store, layers).fit(X, aligned.probs, groups=groups).oof_proba_
    counts = [count_of(PER_CLASS_SHARE, int(n)) for n in np.bincount(aligned.hard)]
    dropped = largest(disagreement_of(proba, aligned.probs), counts, aligned.hard, ties=ties)
    # The copy with the smallest hash, whatever the rows' order is.
    first = np.argsort(ties, kind="stable")
    single = np.sort(first[np.unique(groups[first], return_index=True)[1]])
    return make_draw(
        [aligned.ids[i] for i in single],
        aligned.classes,
        aligned.hard[single],
        proba[single],
        ~dropped.selected[single],
        # Another hash: the first one chose among copies, where it is smaller than uniform.
        by_key(aligned.keys, seed=[seed, 1])[single],
        suspicion=None if suspicion is None else np.asarray(suspicion, np.float64)[single],
    )


def audit(
    store: ActivationStore,
    labels: WeakLabels,
    answers: Mapping[str, str],
    *,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    only_labelled: bool = False,
) -> Finding:
    """Estimate from true labels how many weak labels are wrong, and what to do about them.

    Ask about the first rows of :func:`draw_rows` with the same arguments.

    Parameters
    ----------
    answers : mapping of str to str
        Id -> true class, or ``"?"`` if it cannot be told.
    layers : sequence of int, optional
        Layers to choose from, by default all that are stored.
    seed : int, default=0
        Seed of the draw.
    only_labelled : bool, default=False
        Leave out rows without a label, instead of raising.

    Raises
    ------
    LabelsError, DataError, StatesError, ProbeError
        As :func:`draw_rows`.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from probekit import ActivationStore, WeakLabels, audit
    >>> from probekit.activations.create import Plan
    >>> from probekit.activations.writer import StoreWriter
    >>> from probekit.cleaning.audit import draw_rows
    >>> rng = np.random.default_rng(0)
    >>> truth = np.arange(400) % 2
    >>> X = np.float32(rng.normal(size=(400, 8)) + 2 * truth[:, None])
    >>> weak = np.where(rng.random(400) < 0.2, 1 - truth, truth)  # a fifth of them is wrong
    >>> ids = [f"r{i}" for i in range(400)]
    >>> path = Path(tempfile.mkdtemp()) / "acts.h5"
    >>> with StoreWriter.open(
    ...     path, Plan(spec={}, ids=ids, hashes=ids, widths={0: 8}, store_dtype="float32")
    ... ) as writer:
    ...     tokens, truncated = np.ones(400, "int32"), np.zeros(400, bool)
    ...     writer.write(np.arange(400), {0: X}, tokens, truncated)
    ...     writer.finish()
    >>> store, labels = ActivationStore(path), WeakLabels(ids, None, np.eye(2)[weak], ("0", "1"))
    >>> asked = draw_rows(store, labels).ids[:60]
    >>> finding = audit(store, labels, {name: str(truth[ids.index(name)]) for name in asked})
    >>> finding.action
    'relabel'
    >>> share = finding.shares["leave"]
    >>> bool(share.low < (weak != truth).mean() < share.high)
    True
    """
    draw = draw_rows(store, labels, layers=layers, seed=seed, only_labelled=only_labelled)
    return draw.conclude(answers)
