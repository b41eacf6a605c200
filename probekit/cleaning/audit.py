"""Audit: a few true labels of rows where probe and weak label disagree settle what to do.

Rows are asked about in one fixed order, and every prefix of it is a stratified sample, so an audit
can stop anywhere and resume later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from probekit.cuts import DECIMALS, by_key, prior_matched
from probekit.errors import DataError
from probekit.kinds import check

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from probekit.activations.store import ActivationStore
    from probekit.labels import WeakLabels

__all__ = [
    "UNSURE",
    "Disputed",
    "Finding",
    "Tally",
    "audit",
    "conclude",
    "find_disputed",
    "tally",
]

UNSURE = "?"
# Dropping the disputed rows helps if more than this share of their weak labels is wrong.
FILTER_WRONG = 0.45
# An answer is settled if it is right with this probability.
SETTLED = 0.95
EXACT_ROWS = 5000


@dataclass(frozen=True, eq=False)
class Disputed:
    """Rows where the probe contradicts the weak label, in the order to ask about them."""

    ids: Sequence[str]
    hashes: Sequence[str]
    weak: Sequence[str]
    """Weak class of each row."""
    probe: Sequence[str]
    """The probe's class of each row, at the class shares of the weak labels."""
    classes: tuple[str, ...]
    rows: int
    """Number of rows with a weak label."""

    def __len__(self) -> int:
        return len(self.ids)

    def conclude(self, answers: Mapping[str, str]) -> Finding:
        """Conclude from answers (id -> true class, or ``?``); see :func:`conclude`."""
        return conclude(tally(self, answers), len(self))


def find_disputed(
    store: ActivationStore,
    labels: WeakLabels,
    *,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    only_labelled: bool = False,
) -> Disputed:
    """Fit the ensemble out of fold and list the rows where it contradicts the weak label.

    Of several copies of a text one is listed.

    Parameters
    ----------
    layers
        Layers to choose from, by default all that are stored.
    seed
        Seed of the order within each stratum (weak class and probe's class).

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
    X = read_states(store, read, rows)
    hashes = [store.hashes[i] for i in rows]
    groups = store.copies(rows)
    ties = by_key(aligned.keys, seed=seed)
    proba = ensemble_for(store, layers).fit(X, aligned.probs, groups=groups).oof_proba_
    weak = aligned.hard
    share = np.bincount(weak, minlength=len(aligned.classes)) / len(weak)
    decided = prior_matched(np.round(proba, DECIMALS), share, ties=ties)
    disputed = np.flatnonzero(weak != decided)
    disputed = disputed[np.argsort(ties[disputed], kind="stable")]  # whatever the rows' order is
    disputed = disputed[np.unique(groups[disputed], return_index=True)[1]]
    disputed = disputed[np.argsort(ties[disputed], kind="stable")]
    order = disputed[stratified_order(weak[disputed] * len(share) + decided[disputed], seed)]
    names = aligned.classes
    return Disputed(
        ids=[aligned.ids[i] for i in order],
        hashes=[hashes[i] for i in order],
        weak=[names[weak[i]] for i in order],
        probe=[names[decided[i]] for i in order],
        classes=names,
        rows=len(weak),
    )


def stratified_order(strata: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Order rows at random so that every prefix holds each stratum in its share."""
    shuffled = np.random.default_rng(seed).permutation(len(strata))
    place = np.empty(len(strata))
    for number in np.unique(strata):
        mine = shuffled[strata[shuffled] == number]
        place[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    return shuffled[np.argsort(place[shuffled], kind="stable")]


@dataclass(frozen=True, slots=True)
class Tally:
    """The number of rows asked about, by who was right."""

    probe: float = 0
    weak: float = 0
    neither: float = 0
    unsure: float = 0

    @property
    def known(self) -> float:
        """Rows whose true label is known."""
        return self.probe + self.weak + self.neither


def tally(disputed: Disputed, answers: Mapping[str, str]) -> Tally:
    """Count answers (id -> true class, or ``?``) to disputed rows; others are ignored."""
    counts = dict.fromkeys(("probe", "weak", "neither", "unsure"), 0)
    for name, weak, probe in zip(disputed.ids, disputed.weak, disputed.probe, strict=True):
        answer = answers.get(name)
        if answer is None:
            continue
        kinds = {UNSURE: "unsure", weak: "weak", probe: "probe"}
        counts[kinds.get(answer, "neither")] += 1
    return Tally(**counts)


@dataclass(frozen=True, slots=True)
class Finding:
    """The conclusion from the answers so far."""

    action: Literal["relabel", "filter", "leave"] | None
    """None if there is no answer yet."""
    probability: float
    """Probability that the action is right, from the two probabilities below."""
    relabel: float
    """P(the probe is right on more of the disputed rows than the weak labels)."""
    filter: float
    """P(more than 45 % of the disputed weak labels are wrong)."""
    settled: bool
    more: int
    """Number of further true labels that would settle it at the rate so far; 0 if settled."""
    tally: Tally
    disputed: int


def conclude(counts: Tally, disputed: int) -> Finding:
    """Conclude from a tally of the rows asked about, out of ``disputed`` rows.

    The prior of the shares is uniform, Beta(1, 1), and rows not asked about are beta-binomial, so
    that asking about all rows leaves no doubt. Relabel if the probe probably wins the majority,
    else filter if more than 45 % of the weak labels are probably wrong, else leave. A row on which
    neither is right counts as a wrong label, and as a win of neither.

    Raises
    ------
    DataError
        If there are more answers than rows.
    """
    if counts.known + counts.unsure > disputed:
        raise DataError(
            f"{counts.known + counts.unsure:g} answers do not fit {disputed} disputed rows."
        )
    relabel, drop = _probabilities(counts, disputed)
    if not counts.known:
        return Finding(None, float("nan"), relabel, drop, False, 0, counts, disputed)
    action, probability = _choose(relabel, drop)
    settled = probability >= SETTLED
    more = 0 if settled else _more(counts, disputed)
    return Finding(action, probability, relabel, drop, settled, more, counts, disputed)


def audit(
    store: ActivationStore,
    labels: WeakLabels,
    answers: Mapping[str, str],
    *,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    only_labelled: bool = False,
) -> Finding:
    """Conclude from true labels of disputed rows: relabel, filter or leave the weak labels alone.

    Ask about the first rows of :func:`find_disputed` with the same arguments: 20 often settle it.

    Parameters
    ----------
    answers : mapping of str to str
        Id -> true class, or ``"?"`` if it cannot be told. Rows that are not disputed do not count.
    layers : sequence of int, optional
        Layers to choose from, by default all that are stored.
    seed : int, default=0
        Seed of the order within each stratum (weak class and probe's class).
    only_labelled : bool, default=False
        Leave out rows without a label, instead of raising.

    Raises
    ------
    LabelsError, DataError, StatesError, ProbeError
        As :func:`find_disputed`.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from probekit import ActivationStore, WeakLabels, audit
    >>> from probekit.activations.writer import StoreWriter
    >>> from probekit.cleaning.audit import find_disputed
    >>> rng = np.random.default_rng(0)
    >>> truth = np.arange(200) % 2
    >>> X = np.float32(rng.normal(size=(200, 8)) + 2 * truth[:, None])
    >>> weak = np.where(rng.random(200) < 0.2, 1 - truth, truth)  # a fifth of them is wrong
    >>> ids = [f"r{i}" for i in range(200)]
    >>> path = Path(tempfile.mkdtemp()) / "acts.h5"
    >>> with StoreWriter.open(
    ...     path, spec={}, ids=ids, hashes=ids, widths={0: 8}, store_dtype="float32"
    ... ) as writer:
    ...     tokens, truncated = np.ones(200, "int32"), np.zeros(200, bool)
    ...     writer.write(np.arange(200), {0: X}, tokens, truncated)
    ...     writer.finish()
    >>> store, labels = ActivationStore(path), WeakLabels(ids, None, np.eye(2)[weak], ("0", "1"))
    >>> asked = find_disputed(store, labels).ids[:12]
    >>> finding = audit(store, labels, {name: str(truth[ids.index(name)]) for name in asked})
    >>> finding.action, finding.settled
    ('relabel', True)
    """
    disputed = find_disputed(store, labels, layers=layers, seed=seed, only_labelled=only_labelled)
    return disputed.conclude(answers)


def _choose(relabel: float, drop: float) -> tuple[Literal["relabel", "filter", "leave"], float]:
    if relabel > 0.5 + 1e-9:  # an even score is no majority, whatever rounding says
        return "relabel", relabel
    return ("filter", drop) if drop > 0.5 else ("leave", 1 - drop)


def _probabilities(counts: Tally, disputed: int) -> tuple[float, float]:
    """P(probe wins more rows than the weak label), P(share of wrong labels above FILTER_WRONG)."""
    left = disputed - counts.known - counts.unsure
    # Rows on which neither is right do not count for the majority; rows not asked about are
    # assumed to hold the share of them that was seen.
    contest = (counts.probe + counts.weak + 2) / (counts.known + (3 if counts.neither else 2))
    undecided = round(left * contest)
    majority = (counts.probe + counts.weak + undecided) / 2
    relabel = _exceeds(counts.probe, counts.weak, undecided, majority)
    wrong = counts.probe + counts.neither
    total = counts.known + left
    return relabel, _exceeds(wrong, counts.weak, round(left), FILTER_WRONG * total)


def _exceeds(yes: float, no: float, left: int, bound: float) -> float:
    """P(yes + X > bound), ties half, X of ``left`` rows being beta-binomial after yes and no."""
    from scipy.special import betainc, betaln, gammaln

    spare = bound - yes
    if left > EXACT_ROWS:  # the share itself, which this number of rows fixes to 0.001
        return float(1 - betainc(1 + yes, 1 + no, min(max(spare / left, 0.0), 1.0)))
    k = np.arange(left + 1)
    choose = gammaln(left + 1) - gammaln(k + 1) - gammaln(left - k + 1)
    chance = np.exp(choose + betaln(k + 1 + yes, left - k + 1 + no) - betaln(1 + yes, 1 + no))
    above, tie = k > spare + 1e-9, np.abs(k - spare) <= 1e-9
    return float(min(1.0, chance[above].sum() + 0.5 * chance[tie].sum()))


def _more(counts: Tally, disputed: int) -> int:
    left = int(disputed - counts.known - counts.unsure)
    seen = np.array([counts.probe, counts.weak, counts.neither])
    likely = seen + np.array([1, 1, 1 if counts.neither else 0])
    share = likely / likely.sum()
    # One by one up to 100, then in growing steps.
    steps = np.unique(np.r_[np.arange(1, 101), np.geomspace(100, max(left, 100), 150).astype(int)])
    for more in steps[steps <= left].tolist():
        probe, weak, neither = seen + more * share
        later = Tally(probe, weak, neither, counts.unsure)
        if _choose(*_probabilities(later, disputed))[1] >= SETTLED:
            return int(more)
    return left
