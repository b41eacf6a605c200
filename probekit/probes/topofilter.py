"""TopoFilter: keep the largest connected component of each class, then rows whose neighbours agree.

There are two published variants, ``paper`` (Wu et al. 2020, https://arxiv.org/abs/2012.04835) and
``eleuther`` (https://github.com/EleutherAI/w2s). They are different filters
(docs/methods/topofilter.md).
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
FEW = "k_zeta is {k_zeta}, as the component step left only {n_rows} rows."
ZETA = 0.5
CONTAMINATION = {"paper": 0.2, "eleuther": 0.1}


@dataclass(frozen=True)
class TopoFilterResult:
    """Decisions of TopoFilter on n rows."""

    keep: NDArray[np.bool_]
    """Rows kept (n,)."""
    component: NDArray[np.bool_]
    """L (n,): rows of the largest component of their class."""
    proba: NDArray[np.float64]
    """Leave-one-out topolabel (n, C): mean label of the k_zeta nearest rows in L(G − g), the
    components without the labels of the row and its group g; with ``self_neighbor`` of the nearest
    others in L, as published."""
    disagreement: NDArray[np.float64]
    """Disagreement of label and topolabel (n,), by which rows are dropped; for ``eleuther``, as
    published, with the nearest others in L."""
    tied: NDArray[np.bool_]
    """Rows (n,) for which a tie decided whether they are kept."""
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)
    """Number of rows dropped by each step, ``"component"`` and ``"zeta"``, of each class."""
    notes: tuple[str, ...] = ()
    """Sentences for the user: overshoot, classes of one row, ties of components."""


class TopoFilterProbe(BaseProbe):
    """TopoFilter as a filter (``keep_``) and as a probe.

    L is the set of rows in the largest component of their class, in the graph of each row's
    ``k_cc`` nearest neighbours with the same label. The probe's class probabilities, the topolabel,
    are the mean label of the ``k_zeta`` nearest rows of L.

    Parameters
    ----------
    variant : {"paper", "eleuther"}, default="paper"
        Published variant.

        - ``"paper"`` [1]_: undirected graph, connected components; a row is kept if the majority of
          its k_zeta nearest candidates and itself has its label, with at least k_zeta · zeta votes
          (zeta above 1: majority only).
        - ``"eleuther"`` [2]_: directed graph, strongly connected components; the rows of L that
          disagree most with their neighbours are dropped until ``contamination`` is reached.
    k_cc, k_zeta : int, default=None
        Number of neighbours in the graph, and of neighbours that vote; None: 4 and 32 (paper), 50
        (eleuther), and a third of L, which ``notes_`` reports, if L has too few rows for that many
        votes.
    zeta : float, default=None
        Share of votes that a row needs to be kept (``paper`` only); None: 0.5.
    contamination : float, default=None
        Share of rows to drop, in (0, 1), for ``eleuther`` (None: 0.1), or ``paper`` with ``rank``
        (None: 0.2). A target: the component step may drop more, which ``notes_`` reports.
    per_class : bool, default=None
        Drop that share of each class instead of all rows; None: of all rows.
    cap : bool, default=False
        ``eleuther``: if the component step dropped too many rows, keep those again that disagree
        least, up to the share.
    rank : bool, default=False
        ``paper``: drop exactly ⌊contamination · n⌋ rows, those that the filter rejects first, by
        disagreement.
    metric : {"cosine", "euclidean"}, default="cosine"
        As in :class:`KNNProbe`.
    disagreement : {"label", "distance"}, default=None
        Ranking of rows: by ``"label"``, 1 − topolabel of the label's class, or by ``"distance"``,
        ½ ‖Y − topolabel‖₁. None: distance for ``eleuther``, as published, else label.
    self_neighbor : bool, default=False
        Let each row of L, and its copies, vote for itself in ``oof_proba_``, to reproduce published
        numbers.
    backend : {"auto", "faiss", "torch"}, default="auto"
        As in :class:`KNNProbe`.

    Attributes
    ----------
    classes_ : ndarray of shape (C,)
        Classes in column order.
    n_features_in_ : int
        Number of columns d of X.
    oof_proba_ : ndarray of shape (n, C)
        Leave-one-out topolabel of all rows, also those outside L. It does not depend on the labels
        of the row and its group, not even through the components.
    result_ : TopoFilterResult
        Decisions; a loaded probe has them without notes.
    keep_, tied_, component_ : ndarray of shape (n,)
        Masks of rows that are kept, that a tie decided, and in L: those of ``result_``.
    notes_ : tuple of str
        Sentences for the user: those of ``result_``.

    See Also
    --------
    KNNProbe : All neighbours vote.
    probekit.filter_labels : Filters rows with this or any other probe.

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
    streams = True
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
        """Whether the rule itself decides the number of rows to drop, as that of the paper does."""
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
        """Filter the rows, and predict each without itself.

        Parameters
        ----------
        X : array-like of shape (n, d)
            States.
        y : array-like of shape (n,) or (n, C)
            Hard labels, P(second class), or class probabilities.
        sample_weight : array-like of shape (n,), default=None
            Weights of the rows' votes in the topolabel; None: 1.
        groups : array-like of shape (n,), default=None
            Rows of one group never vote for each other in ``oof_proba_``; None: rows with equal
            states. In the filter they are neighbours for ``eleuther``, as published, and not for
            ``paper``.
        previous : array-like of shape (n,), default=None
            ``paper``: mask of rows kept in an earlier round, which may be kept again.
        ties : array-like of shape (n,), default=None
            Of rows that disagree equally, the one with the smaller number is dropped first; None:
            a hash of the row's states and label.

        Returns
        -------
        self : TopoFilterProbe
        """
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
        k_zeta = self._votes(component)
        few = [Note(FEW.format(k_zeta=k_zeta, n_rows=int(component.sum())))]
        few = few if k_zeta < self._number("k_zeta") else []
        near = self._among(index, component, wide, apart, k_zeta)
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
                near = self._among(index, candidates, wide, apart, k_zeta)
            zeta = ZETA if self.zeta is None else self.zeta
            keep, more = candidates & majority(near, hard, len(self.classes_), zeta=zeta), []
            disagreement = disagreement_of(proba, data.Y, form)
            cut = Cut(~keep, np.zeros(len(keep), dtype=bool))
            if self.rank:
                cut = drop_ranked(keep, disagreement, hard, ties=order, **self._amount())
        keep = ~cut.selected
        self._notes = [*few, *with_outcome(notes, component, keep, hard), *more]
        dropped = _dropped(keep, component, hard, self.classes_)
        sentences = tuple(self.notes_for(self.classes_.tolist()))
        self._store(data, index, component)
        self.result_ = TopoFilterResult(
            keep, component, proba, disagreement, cut.tied, dropped, sentences
        )
        self.oof_proba_ = self._topolabel(data.X) if self.self_neighbor else proba
        return self

    def notes_for(self, classes: Sequence[Any], ids: Sequence[str] | None = None) -> list[str]:
        """Notes for the user, with names of classes (C,) and ids of rows (n,)."""
        return [note.sentence(classes, ids) for note in self._notes]

    @property
    def keep_(self) -> NDArray[np.bool_]:
        """Rows kept (n,)."""
        return self.result_.keep

    @property
    def tied_(self) -> NDArray[np.bool_]:
        """Rows (n,) for which a tie decided whether they are kept."""
        return self.result_.tied

    @property
    def component_(self) -> NDArray[np.bool_]:
        """Rows of L (n,)."""
        return self.result_.component

    @property
    def notes_(self) -> tuple[str, ...]:
        """Sentences for the user."""
        return self.result_.notes

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Topolabel (m, C) of new rows X (m, d): mean label of the k_zeta nearest rows of L."""
        return self._topolabel(self._check_predict(X))

    def _topolabel(self, X: NDArray[Any]) -> NDArray[np.float64]:
        near = self._index.query(X, self._votes(self._component), among=self._component)
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
        near = nearest_hidden(index, wide, hidden, self._votes(component))
        return hidden_means(near, data.Y, data.weight)

    def _wide(self, index: NeighborIndex, groups: NDArray[np.int64] | None) -> Neighbors:
        """One search for the graph and, for most rows, the k_zeta nearest of the kept rows."""
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
        k_zeta: int,
    ) -> NDArray[np.int64]:
        k_cc = self._number("k_cc")
        check_kept(kept, k_zeta, k_cc=k_cc, own=self.self_neighbor)
        # If the row votes too, k_zeta may be the number of all rows kept: one fewer are others.
        others = min(k_zeta, max(1, int(kept.sum()) - 1))
        return nearest_kept(index, wide, kept, others, groups=groups)

    def _votes(self, component: NDArray[np.bool_]) -> int:
        """Return k_zeta; of a default that is too large for the component (n,), a third of it."""
        size, k_zeta = int(component.sum()), self._number("k_zeta")
        most = size if self.self_neighbor else size - 1
        if self.k_zeta is not None or k_zeta <= most:
            return k_zeta
        return max(1, most // 3)

    def _number(self, name: str) -> int:
        given = getattr(self, name)
        return int((K_CC if name == "k_cc" else K_ZETA)[self.variant] if given is None else given)

    def _amount(self) -> dict[str, Any]:
        share = CONTAMINATION[self.variant] if self.contamination is None else self.contamination
        return {"share": share, "per_class": bool(self.per_class)}

    def _store(self, data: Training, index: NeighborIndex, component: NDArray[np.bool_]) -> None:
        self._data, self._index, self._component = data, index, component

    def _check_variant(self, previous: ArrayLike | None) -> None:
        # cap and rank are off if False; per_class is off if None, because False means all rows.
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
            np.zeros(len(keep), dtype=bool),  # not saved, like the notes
            dropped,
        )
        self.oof_proba_ = arrays["oof_proba"]
        index = NeighborIndex(data.X, metric=self.metric, backend=self.backend)
        self._store(data, index, component)


def ranked_by(variant: str, form: str | None = None) -> str:
    """Form of disagreement that a variant ranks by, unless another is given."""
    return form or ("distance" if variant == "eleuther" else "label")


def check_kept(kept: NDArray[np.bool_], k_zeta: int, *, k_cc: int, own: bool = False) -> None:
    """Raise ProbeError if the component step kept (n,) too few rows for k_zeta neighbours.

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
    """Row numbers (n, k) of the nearest others in ``kept`` (n,).

    They come from ``wide``, the nearest others of all rows; ``index`` is searched for the rows
    whose list is too short.
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
    """Mask (n,) of rows whose own label wins among the row and its k neighbours.

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
    """Drop the rows of the component that disagree most, until ``share`` of all rows is dropped.

    If the component step has dropped more than round(n · share) rows, no others are dropped, and
    with ``cap`` those that disagree least are kept again. Equal rows are ordered by ``ties`` (n,),
    smaller first, by default by row number.
    """
    selected, tied = ~component, np.zeros(len(component), dtype=bool)
    score = np.round(disagreement, DECIMALS)
    notes = []
    for number, rows in _scopes(hard, per_class=per_class):
        whose = "" if number is None else " of class {name}"
        target = round(len(rows) * share)
        inside, outside = rows[component[rows]], rows[~component[rows]]
        more = target - len(outside)
        if more >= 0:
            cut = largest(score[inside], more, ties=None if ties is None else ties[inside])
            selected[inside[cut.selected]] = tied[inside[cut.tied]] = True
        elif cap:
            cut = largest(-score[outside], -more, ties=None if ties is None else ties[outside])
            selected[outside[cut.selected]] = False
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
    return Cut(selected, tied), notes


def drop_ranked(
    accepted: NDArray[np.bool_],
    disagreement: NDArray[np.float64],
    hard: NDArray[np.int64],
    *,
    share: float,
    per_class: bool,
    ties: NDArray[Any] | None = None,
) -> Cut:
    """Drop exactly ⌊share · n⌋ rows: rejected ones first, both by disagreement, then by ``ties``.

    ``ties`` (n,) as in :func:`drop_to_share`.
    """
    selected, tied = np.zeros(len(hard), dtype=bool), np.zeros(len(hard), dtype=bool)
    # A disagreement is at most 1, so that every rejected row is above every accepted one.
    score = np.round(disagreement, DECIMALS) + 2 * ~accepted
    for _, rows in _scopes(hard, per_class=per_class):
        count = count_of(share, len(rows))
        cut = largest(score[rows], count, ties=None if ties is None else ties[rows])
        selected[rows[cut.selected]] = tied[rows[cut.tied]] = True
    return Cut(selected, tied)


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
        step: {str(name): int((dropped & (hard == c)).sum()) for c, name in enumerate(classes)}
        for step, dropped in steps.items()
    }
