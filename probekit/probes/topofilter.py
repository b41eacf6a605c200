"""TopoFilter: keep each class's largest connected component, then rows their neighbours agree with.

Two published variants. ``paper`` is Wu et al. 2020, https://arxiv.org/abs/2012.04835; ``eleuther``
is https://github.com/EleutherAI/w2s. They are different filters: on 1,500 rows at k = 5 they keep
1,388 and 780.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from probekit.cuts import DECIMALS, Cut, by_content, count_of, disagreement_of, largest
from probekit.errors import ProbeError
from probekit.kinds import (
    BACKEND,
    COUNT,
    DISAGREEMENT,
    FLAG,
    METRIC,
    SHARE,
    Choice,
    Kind,
    Maybe,
    Number,
)
from probekit.probes.base import BaseProbe, Training, hard_labels
from probekit.probes.knn import neighbor_means
from probekit.probes.neighbors import Metric, NeighborIndex, Neighbors
from probekit.probes.topofilter_components import (
    Connection,
    HiddenComponents,
    Note,
    hidden_means,
    largest_components,
    nearest_hidden,
    with_outcome,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "CONNECTION",
    "TopoFilterProbe",
    "TopoFilterResult",
    "check_kept",
    "drop_ranked",
    "drop_to_share",
    "majority",
    "nearest_kept",
    "ranked_by",
]

Variant = Literal["paper", "eleuther"]
CONNECTION: dict[str, Connection] = {"paper": "weak", "eleuther": "strong"}
K_CC = {"paper": 4, "eleuther": 50}
K_ZETA = {"paper": 32, "eleuther": 50}
ZETA = 0.5
CONTAMINATION = {"paper": 0.2, "eleuther": 0.1}


@dataclass(frozen=True)
class TopoFilterResult:
    """What TopoFilter decided about n rows."""

    keep: NDArray[np.bool_]
    """Rows kept (n,)."""
    component: NDArray[np.bool_]
    """L (n,): rows of the largest component of their class."""
    proba: NDArray[np.float64]
    """Leave-one-out topolabel (n, C): mean label of the k_zeta nearest in L(G − g), the components
    that come out without the label of the row and its group g; with ``self_neighbor`` the nearest
    others in L, as published."""
    disagreement: NDArray[np.float64]
    """Disagreement of label and topolabel (n,), which orders what is dropped; ``eleuther``: as
    published, by the nearest others in L."""
    tied: NDArray[np.bool_]
    """Rows of which a tie decided whether they are kept (n,)."""
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)
    """Rows dropped by each step, ``"component"`` and ``"zeta"``, of each class."""
    notes: tuple[str, ...] = ()
    """What the user should know: overshoot, classes of one row, ties of components."""


class TopoFilterProbe(BaseProbe):
    """TopoFilter as a filter (``keep_``) and as a probe (P = mean label of near rows of L).

    Parameters
    ----------
    variant : {"paper", "eleuther"}, default="paper"
        ``"paper"`` [1]_: undirected graph, connected components; a row is kept if the majority of
        its k_zeta nearest candidates and itself has its label, with at least k_zeta · zeta votes
        (zeta above 1: majority only). ``"eleuther"`` [2]_: directed graph, strongly connected
        components; the rows of L that disagree most with their neighbours go until
        ``contamination`` is reached.
    k_cc, k_zeta : int, default=None
        Neighbours that make the graph and that vote; None: 4 and 32 (paper), 50 (eleuther).
    zeta : float, default=None
        ``paper`` only; None: 0.5.
    contamination : float, default=None
        Share of rows to drop, in (0, 1); ``eleuther`` (None: 0.1), or ``paper`` with ``rank``
        (None: 0.2). A target: the component step may drop more, as ``notes_`` says.
    per_class : bool, default=None
        Reach the share within each class rather than over all rows (None: over all rows).
    cap : bool, default=False
        ``eleuther``: where the component step dropped too many, take back those that disagree
        least until the share holds.
    rank : bool, default=False
        ``paper``: drop exactly ⌊c·n⌋ rows, those the filter rejects first, by disagreement.
    metric : {"cosine", "euclidean"}, default="cosine"
        As :class:`KNNProbe`.
    disagreement : {"label", "distance"}, default=None
        What rows are ranked by: ``"label"``, 1 − topolabel of the label's class, or ``"distance"``,
        ½ ‖Y − topolabel‖₁. None: the distance for ``eleuther``, as published, else the label.
    self_neighbor : bool, default=False
        ``oof_proba_`` lets each row of L vote for itself, and so its copies, to reproduce
        published numbers.
    backend : {"auto", "faiss", "torch"}, default="auto"
        As :class:`KNNProbe`.

    Attributes
    ----------
    oof_proba_ : ndarray of shape (n, C)
        Leave-one-out topolabel, also of rows outside L: no label of the row or its group has a part
        in it, not even in the components.
    result_ : TopoFilterResult
        What was decided; ``keep_``, ``tied_``, ``component_`` and ``notes_`` are short cuts to it.
        A loaded probe has it without notes.

    See Also
    --------
    KNNProbe : Votes of all neighbours.
    probekit.filter_labels : Filters rows with this or any other probe.

    Notes
    -----
    In ``fit(X, y, sample_weight=None, groups=None, previous=None, ties=None)`` weights weigh the
    votes of the topolabel only; rows of one group (by default, of the very same states) never vote
    for each other in ``oof_proba_``. They are neighbours in the filter of ``eleuther``, as
    published, and not in that of ``paper``. Of rows that disagree equally the smaller of ``ties``
    (n,) is dropped first (by default a hash of the row's states and label).

    References
    ----------
    .. [1] Wu et al. 2020, https://arxiv.org/abs/2012.04835
    .. [2] https://github.com/EleutherAI/w2s, branch topo

    Examples
    --------
    >>> import numpy as np
    >>> from probekit.probes import TopoFilterProbe
    >>> y = np.repeat([0, 1], 20)
    >>> X = np.random.default_rng(0).normal(size=(40, 2)) + 6 * y[:, None]
    >>> y[3] = 1  # a wrong label
    >>> probe = TopoFilterProbe(k_cc=8, k_zeta=5, metric="euclidean").fit(X, y)
    >>> np.flatnonzero(~probe.keep_).tolist()
    [3]
    >>> probe.oof_proba_[3].tolist()
    [1.0, 0.0]
    """

    leave_one_out = True
    _notes: list[Note]

    kinds: ClassVar[Mapping[str, Kind]] = {
        "variant": Choice("paper", "eleuther"),
        "k_cc": Maybe(COUNT),
        "k_zeta": Maybe(COUNT),
        "zeta": Maybe(Number(0, 1e6)),
        "contamination": Maybe(SHARE),
        "per_class": Maybe(FLAG),
        "cap": FLAG,
        "rank": FLAG,
        "disagreement": Maybe(DISAGREEMENT),
        "metric": METRIC,
        "self_neighbor": FLAG,
        "backend": BACKEND,
    }

    def __init__(
        self,
        variant: Variant = "paper",
        *,
        k_cc: int | None = None,
        k_zeta: int | None = None,
        zeta: float | None = None,
        contamination: float | None = None,
        per_class: bool | None = None,
        cap: bool = False,
        rank: bool = False,
        metric: Metric = "cosine",
        disagreement: str | None = None,
        self_neighbor: bool = False,
        backend: str = "auto",
    ) -> None:
        self.variant = variant
        self.k_cc = k_cc
        self.k_zeta = k_zeta
        self.zeta = zeta
        self.contamination = contamination
        self.per_class = per_class
        self.cap = cap
        self.rank = rank
        self.metric = metric
        self.disagreement = disagreement
        self.self_neighbor = self_neighbor
        self.backend = backend

    @property
    def decides_itself(self) -> bool:
        """Whether the rule itself says how many rows go, as that of the paper does."""
        return self.variant == "paper" and not self.rank

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        *,
        previous: ArrayLike | None = None,
        ties: ArrayLike | None = None,
    ) -> Self:
        """Filter the rows; see the class."""
        self._check_parameters()
        self._check_variant(previous)
        data = self._check_fit(X, y, sample_weight, groups)
        candidates = None if previous is None else _mask(previous, len(data.X))
        index = NeighborIndex(data.X, metric=self.metric, backend=self.backend)
        hard = hard_labels(data.Y)
        published = self.variant == "eleuther" or self.self_neighbor
        apart = None if published else data.groups
        wide = self._wide(index, apart)
        component, notes = largest_components(
            wide.index[:, : self._number("k_cc")], hard, connection=CONNECTION[self.variant]
        )
        near = self._among(index, component, wide, apart)
        proba = self._mean(near, data)
        form = ranked_by(self.variant, self.disagreement)
        disagreement = disagreement_of(proba, data.Y, form)
        order = None if ties is None else _tie_order(ties, len(data.X))
        if order is None and (self.variant == "eleuther" or self.rank):
            order = by_content(data.X, data.Y)
        if not self.self_neighbor:
            proba = self._hidden(index, data, component, wide)
        if self.variant == "eleuther":
            cut, more = drop_to_share(
                component, disagreement, hard, cap=self.cap, ties=order, **self._amount()
            )
        else:
            candidates = component if candidates is None else component | candidates
            if not np.array_equal(candidates, component):
                near = self._among(index, candidates, wide, apart)
            zeta = ZETA if self.zeta is None else self.zeta
            keep, more = candidates & majority(near, hard, len(self.classes_), zeta=zeta), []
            disagreement = disagreement_of(proba, data.Y, form)
            cut = Cut(~keep, np.zeros(len(keep), dtype=bool))
            if self.rank:
                cut = drop_ranked(keep, disagreement, hard, ties=order, **self._amount())
        keep = ~cut.selected
        self._notes = [*with_outcome(notes, component, keep, hard), *more]
        dropped = _dropped(keep, component, hard, self.classes_)
        sentences = tuple(self.notes_for(self.classes_.tolist()))
        self._store(data, index, component)
        self.result_ = TopoFilterResult(
            keep, component, proba, disagreement, cut.tied, dropped, sentences
        )
        self.oof_proba_ = self._topolabel(data.X) if self.self_neighbor else proba
        return self

    def notes_for(self, classes: Sequence[Any], ids: Sequence[str] | None = None) -> list[str]:
        """Return the notes with these names of classes (C,) and ids of rows (n,)."""
        return [note.sentence(classes, ids) for note in self._notes]

    @property
    def keep_(self) -> NDArray[np.bool_]:
        """Rows kept (n,)."""
        return self.result_.keep

    @property
    def tied_(self) -> NDArray[np.bool_]:
        """Rows of which a tie decided whether they are kept (n,)."""
        return self.result_.tied

    @property
    def component_(self) -> NDArray[np.bool_]:
        """Rows of L (n,)."""
        return self.result_.component

    @property
    def notes_(self) -> tuple[str, ...]:
        """What the user should know."""
        return self.result_.notes

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the topolabel (m, C) of new rows X (m, d): mean label of k_zeta near rows of L."""
        return self._topolabel(self._check_predict(X))

    def _topolabel(self, X: NDArray[Any]) -> NDArray[np.float64]:
        near = self._index.query(X, self._number("k_zeta"), among=self._component)
        return self._mean(near.index, self._data)

    def _mean(self, index: NDArray[np.int64], data: Training) -> NDArray[np.float64]:
        means = neighbor_means(index, data.Y, [index.shape[1]], weight=data.weight)
        return np.asarray(means[0])

    def _hidden(
        self,
        index: NeighborIndex,
        data: Training,
        component: NDArray[np.bool_],
        wide: Neighbors,
    ) -> NDArray[np.float64]:
        """Topolabel (n, C) of every row without its label and those of its group."""
        hidden = HiddenComponents(
            wide.index[:, : self._number("k_cc")],
            hard_labels(data.Y),
            data.groups,
            component=component,
            connection=CONNECTION[self.variant],
        )
        near = nearest_hidden(index, wide, hidden, self._number("k_zeta"))
        return hidden_means(near, data.Y, data.weight)

    def _wide(self, index: NeighborIndex, groups: NDArray[np.int64] | None) -> Neighbors:
        """Search once for the graph and, in most rows, for the k_zeta nearest of the kept set."""
        k_cc, k_zeta = self._number("k_cc"), self._number("k_zeta")
        largest_group = 1 if groups is None else int(np.bincount(groups).max())
        spare = min(k_zeta + k_zeta // 2, len(index) - largest_group)
        return index.others(max(k_cc, spare), groups=groups)

    def _among(
        self,
        index: NeighborIndex,
        kept: NDArray[np.bool_],
        wide: Neighbors,
        groups: NDArray[np.int64] | None,
    ) -> NDArray[np.int64]:
        k_cc, k_zeta = self._number("k_cc"), self._number("k_zeta")
        check_kept(kept, k_zeta, k_cc=k_cc, own=self.self_neighbor)
        # Where the row votes too, k_zeta may be all of them: then one fewer are others.
        others = min(k_zeta, max(1, int(kept.sum()) - 1))
        return nearest_kept(index, wide, kept, others, groups=groups)

    def _number(self, name: str) -> int:
        given = getattr(self, name)
        return int((K_CC if name == "k_cc" else K_ZETA)[self.variant] if given is None else given)

    def _amount(self) -> dict[str, Any]:
        share = CONTAMINATION[self.variant] if self.contamination is None else self.contamination
        return {"share": share, "per_class": bool(self.per_class)}

    def _store(self, data: Training, index: NeighborIndex, component: NDArray[np.bool_]) -> None:
        self._data, self._index, self._component = data, index, component

    def _check_variant(self, previous: ArrayLike | None) -> None:
        # cap and rank are off as False; per_class is off as None, for False means over all rows.
        given = {
            "zeta": self.zeta is not None,
            "rank": bool(self.rank),
            "previous": previous is not None,
            "contamination": self.contamination is not None,
            "per_class": self.per_class is not None,
            "cap": bool(self.cap),
        }
        foreign, repair = ["zeta", "rank", "previous"], "use variant='paper'"
        if self.variant == "paper":
            foreign = [] if self.rank else ["contamination", "per_class", "cap"]
            repair = "add rank=True, or use variant='eleuther'"
        wrong = [name for name in foreign if given[name]]
        if wrong:
            raise ProbeError(
                f"TopoFilter's variant {self.variant!r} has no {', '.join(wrong)}; {repair}."
            )

    def _arrays(self) -> dict[str, NDArray[Any]]:
        learned = ("keep", "component", "proba", "disagreement")
        arrays = {name: getattr(self.result_, name) for name in learned}
        return {**self._data.to_arrays(), **arrays, "oof_proba": self.oof_proba_}

    def _restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        data = Training.from_arrays(arrays)
        keep, component = arrays["keep"], arrays["component"]
        dropped = _dropped(keep, component, hard_labels(data.Y), self.classes_)
        self._notes = []
        self.result_ = TopoFilterResult(
            keep,
            component,
            arrays["proba"],
            arrays["disagreement"],
            np.zeros(len(keep), dtype=bool),  # as the notes: known when it was fitted only
            dropped,
        )
        self.oof_proba_ = arrays["oof_proba"]
        index = NeighborIndex(data.X, metric=self.metric, backend=self.backend)
        self._store(data, index, component)


def ranked_by(variant: str, form: str | None = None) -> str:
    """Form of the disagreement that a variant ranks by, unless another is asked for."""
    return form or ("distance" if variant == "eleuther" else "label")


def check_kept(kept: NDArray[np.bool_], k_zeta: int, *, k_cc: int, own: bool = False) -> None:
    """Refuse a k_zeta that the rows ``kept`` (n,) by the component step do not suffice for.

    ``own``: a row votes for itself.
    """
    size = int(kept.sum())
    most = size if own else size - 1
    if k_zeta > most:
        raise ProbeError(
            f"k_zeta = {k_zeta} is too large: the component step (k_cc = {k_cc}) "
            f"left {size} of {len(kept)} rows; allowed are 1 to {most}, and a larger k_cc "
            "leaves more rows."
        )


def nearest_kept(
    index: NeighborIndex,
    wide: Neighbors,
    kept: NDArray[np.bool_],
    k: int,
    *,
    groups: NDArray[np.int64] | None,
) -> NDArray[np.int64]:
    """Row numbers (n, k) of the nearest others in ``kept`` (n,), from ``wide`` where it suffices.

    ``wide`` are the nearest others of all rows; ``index`` is searched for the rows it is too short
    for.
    """
    rank = np.cumsum(kept[wide.index], axis=1)
    first = kept[wide.index] & (rank <= k)
    short = np.flatnonzero(rank[:, -1] < k)
    first[short] = False
    near = np.empty((len(kept), k), dtype=np.int64)
    near[rank[:, -1] >= k] = wide.index[first].reshape(-1, k)
    if len(short):
        near[short] = index.others(k, groups=groups, rows=short, among=kept).index
    return near


def majority(
    index: NDArray[np.int64], hard: NDArray[np.int64], n_classes: int, *, zeta: float
) -> NDArray[np.bool_]:
    """Return whose own label wins among itself and its k neighbours (n,).

    Winning is having the most votes, ties going to the smallest label, and, unless zeta > 1, at
    least k · zeta of the k + 1 votes.
    """
    n, k = index.shape
    cell = np.arange(n)[:, None] * n_classes + hard[index]
    votes = np.bincount(cell.ravel(), minlength=n * n_classes).reshape(n, n_classes)
    votes[np.arange(n), hard] += 1
    won = votes.argmax(axis=1) == hard
    if zeta <= 1:
        won &= votes.max(axis=1) >= k * zeta - 1e-9
    return np.asarray(won)


def _scopes(
    hard: NDArray[np.int64], *, per_class: bool
) -> Iterator[tuple[int | None, NDArray[np.int64]]]:
    if not per_class:
        yield None, np.arange(len(hard))
        return
    for number in np.unique(hard):
        yield int(number), np.flatnonzero(hard == number)


def drop_to_share(
    component: NDArray[np.bool_],
    disagreement: NDArray[np.float64],
    hard: NDArray[np.int64],
    *,
    share: float,
    per_class: bool,
    cap: bool,
    ties: NDArray[Any] | None = None,
) -> tuple[Cut, list[Note]]:
    """Drop the rows of the component that disagree most until ``share`` of all rows is gone.

    Where the component step dropped more than round(n · share) already, nothing more goes, and
    with ``cap`` the least-disagreeing of those it dropped come back. Equal ones go by ``ties``
    (n,), smaller first, by default by row number.
    """
    taken, tied = ~component, np.zeros(len(component), dtype=bool)
    score = np.round(disagreement, DECIMALS)
    notes = []
    for number, rows in _scopes(hard, per_class=per_class):
        whose = "" if number is None else " of class {name}"
        target = round(len(rows) * share)
        inside, outside = rows[component[rows]], rows[~component[rows]]
        more = target - len(outside)
        if more >= 0:
            cut = largest(score[inside], more, ties=None if ties is None else ties[inside])
            taken[inside[cut.selected]] = tied[inside[cut.tied]] = True
        elif cap:
            cut = largest(-score[outside], -more, ties=None if ties is None else ties[outside])
            taken[outside[cut.selected]] = False
            tied[outside[cut.tied]] = True
            text = (
                f"The component step dropped {len(outside)} of {len(rows)} rows{whose} where "
                f"{target} were asked for; {-more} that disagree least were taken back."
            )
            notes.append(Note(text, number))
        else:
            text = (
                f"The component step alone dropped {len(outside)} of {len(rows)} rows{whose} where "
                f"{target} were asked for; a larger k_cc drops fewer, cap=True holds the share."
            )
            notes.append(Note(text, number))
    return Cut(taken, tied), notes


def drop_ranked(
    accepted: NDArray[np.bool_],
    disagreement: NDArray[np.float64],
    hard: NDArray[np.int64],
    *,
    share: float,
    per_class: bool,
    ties: NDArray[Any] | None = None,
) -> Cut:
    """Drop exactly ⌊share · n⌋ rows: rejected ones first, each by disagreement, then by ``ties``.

    ``ties`` (n,) as in :func:`drop_to_share`.
    """
    taken, tied = np.zeros(len(hard), dtype=bool), np.zeros(len(hard), dtype=bool)
    # A disagreement is at most 1, so that every rejected row is above every accepted one.
    score = np.round(disagreement, DECIMALS) + 2 * ~accepted
    for _, rows in _scopes(hard, per_class=per_class):
        count = count_of(share, len(rows))
        cut = largest(score[rows], count, ties=None if ties is None else ties[rows])
        taken[rows[cut.selected]] = tied[rows[cut.tied]] = True
    return Cut(taken, tied)


def _tie_order(ties: ArrayLike, n: int) -> NDArray[Any]:
    order = np.asarray(ties)
    if order.shape != (n,):
        raise ProbeError(f"ties must be {n} numbers, got the shape {order.shape}.")
    return order


def _mask(previous: ArrayLike, n: int) -> NDArray[np.bool_]:
    mask = np.asarray(previous)
    if mask.shape != (n,) or mask.dtype != bool:
        raise ProbeError(
            f"previous must be a mask of {n} booleans, got {mask.dtype} of shape {mask.shape}."
        )
    return mask


def _dropped(
    keep: NDArray[np.bool_],
    component: NDArray[np.bool_],
    hard: NDArray[np.int64],
    classes: NDArray[Any],
) -> dict[str, dict[str, int]]:
    steps = {"component": ~keep & ~component, "zeta": ~keep & component}
    return {
        step: {str(name): int((gone & (hard == c)).sum()) for c, name in enumerate(classes)}
        for step, gone in steps.items()
    }
