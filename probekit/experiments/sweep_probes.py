"""Settings and rows of a sweep, and the predictions of each probe at every strength.

A path predicts all strengths of a probe on one layer at once, every row out of fold; the registry
of probes names it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

from probekit.cleaning.predict import read_states, score_rows
from probekit.cuts import by_key, disagreement_of
from probekit.errors import LabelsError, ProbeError, UsageError
from probekit.groups import NO_FOLDS, folds_to_learn, ordered_groups
from probekit.kinds import (
    COUNT,
    DISAGREEMENT,
    FLAG,
    FOLDS,
    METRIC,
    PENALTY,
    SEED,
    SHARE,
    Choice,
    Listed,
    Maybe,
    Number,
    Whole,
)
from probekit.labels import WeakLabels
from probekit.probes.base import hard_labels
from probekit.probes.knn import neighbor_means
from probekit.probes.logistic_path import logistic_path
from probekit.probes.neighbors import Metric, NeighborIndex, Neighbors
from probekit.probes.pairs import mirrored
from probekit.probes.registry import PUBLISHED, ProbeName, ProbeSpec, probe_spec
from probekit.probes.topofilter import (
    CONNECTION,
    check_kept,
    drop_ranked,
    drop_to_share,
    majority,
    nearest_kept,
    ranked_by,
)
from probekit.probes.topofilter_components import (
    HiddenComponents,
    hidden_means,
    largest_components,
    nearest_hidden,
)
from probekit.settings import configuration

if TYPE_CHECKING:
    from probekit.activations.store import ActivationStore

__all__ = ["LayerStates", "Prediction", "SweepRows", "SweepSettings", "join_rows", "predictions"]

COUNTS = Listed(COUNT, least=1)


@dataclass(frozen=True, eq=False)
class SweepRows:
    """The n rows that take part, in the order of the store."""

    store: ActivationStore
    numbers: NDArray[np.int64]
    """Their numbers in the store (n,)."""
    labels: WeakLabels
    """Weak labels in their order."""
    groups: NDArray[np.int64]
    """Rows of one number are copies (n,)."""
    truth: NDArray[np.int64] | None = None
    """True class numbers (n,), for scores only."""

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def ties(self) -> NDArray[np.uint64]:
        """Order of equal rows (n,), as in filter and relabel with seed 0."""
        return by_key(self.labels.keys)

    @property
    def most_neighbors(self) -> int:
        """Return the number of other rows of every row, duplicates left out."""
        largest = int(np.bincount(self.groups).max())
        return (2 if self.store.differences else 1) * (len(self) - largest)


def join_rows(
    store: ActivationStore,
    labels: WeakLabels,
    truth: WeakLabels | None = None,
    *,
    only_labelled: bool = False,
) -> SweepRows:
    """Join a store with weak labels and truth by id.

    Raises
    ------
    LabelsError
        If either does not fit the rows, or the weak labels are of one class.
    """
    numbers, aligned = labels.align(store.keys, only_labelled=only_labelled)
    used = np.flatnonzero(aligned.probs.max(axis=0) > 0)
    if len(used) < 2:
        raise LabelsError(
            f"{labels.source} holds one class only ({aligned.classes[used[0]]!r} in all "
            f"{len(aligned)} rows of {store.path}); a sweep needs labels of at least two classes."
        )
    if store.differences and len(aligned.classes) != 2:
        raise UsageError(
            f"{store.path} holds differences of pairs, whose classes are first and second, and the "
            f"labels have {len(aligned.classes)}."
        )
    codes = None
    if truth is not None:
        right = truth.align(aligned.keys, rows_name=f"the labelled rows of {store.path}")
        codes = right.labels.codes(aligned.classes)
    groups = store.copies(numbers)
    if not all(store.hashes[i] for i in numbers):
        groups = ordered_groups(groups, by_key(aligned.keys))  # the folds of `filter`
    return SweepRows(store, numbers, aligned, groups, codes)


@configuration
class SweepSettings:
    """Layers, probes and strengths to try."""

    layers: Annotated[tuple[int, ...], Listed(Whole(0, 9999), least=1)]
    probes: Annotated[tuple[str, ...], Listed(ProbeName(), least=1)] = PUBLISHED
    k: Annotated[tuple[int, ...], COUNTS] = (1, 2, 5, 10, 20, 50, 100, 200)
    l2: Annotated[tuple[float, ...], Listed(PENALTY, least=1)] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    k_cc: Annotated[tuple[int, ...], COUNTS] = (4, 8, 16)
    k_zeta: Annotated[tuple[int, ...], COUNTS] = (16, 32, 64)
    zeta: Annotated[tuple[float, ...], Listed(Number(0, 1e6), least=1)] = (0.5,)
    contaminations: Annotated[tuple[float, ...], Listed(SHARE)] = (0.05, 0.1, 0.2, 0.3)
    """Shares that `filter` drops; with ``eleuther`` also a strength of TopoFilter."""
    seeds: Annotated[tuple[int, ...], Listed(SEED, least=1)] = (0,)
    n_folds: Annotated[int, FOLDS] = 5
    metric: Annotated[Metric, METRIC] = "cosine"
    standardize: Annotated[bool, FLAG] = True
    variant: Annotated[Literal["paper", "eleuther"], Choice("paper", "eleuther")] = "paper"
    disagreement: Annotated[Literal["label", "distance"] | None, Maybe(DISAGREEMENT)] = None
    """What filtering ranks by; None: the label, and the distance for TopoFilter's ``eleuther``."""

    def width(self, most: int) -> int:
        """Return the neighbours of the one search on a layer; mostly enough for TopoFilter."""
        wanted = list(self.k) if self._uses("k") else [1]
        if self._uses("k_zeta"):
            # Neighbours that the component step dropped are skipped.
            wanted += [*self.k_cc, *(min(2 * k, most) for k in self.k_zeta)]
        return max(wanted)

    def _uses(self, name: str) -> bool:
        """Return whether the figures of any probe depend on a setting."""
        return any(name in probe_spec(probe).depends for probe in self.probes)

    def check(self, rows: SweepRows) -> None:
        """Raise UsageError if there are not enough rows for the neighbours."""
        for name in ("k", "k_cc", "k_zeta"):
            largest = max(getattr(self, name))
            if self._uses(name) and largest > rows.most_neighbors:
                raise UsageError(
                    f"--{name.replace('_', '-')}: k = {largest} is too large: "
                    f"n = {len(rows)} rows have {rows.most_neighbors} others each that are not "
                    f"duplicates; allowed are 1 to {rows.most_neighbors}."
                )


class Searched(NamedTuple):
    """States (m, d), weak labels (m, C) and groups (m,); m is n, or 2n of pairs."""

    X: NDArray[Any]
    Y: NDArray[np.float64]
    groups: NDArray[np.int64]


class LayerStates:
    """States of one layer, read when asked for, and their nearest rows, searched once.

    If the store holds differences of pairs, neighbours are searched among the n rows and their
    mirror images after them, as :class:`probekit.probes.PairProbe` does.
    """

    def __init__(self, rows: SweepRows, layer: int, *, metric: Metric = "cosine") -> None:
        self.rows, self.layer, self.metric = rows, layer, metric
        self._known: dict[bool, Neighbors] = {}

    @cached_property
    def X(self) -> NDArray[Any]:  # noqa: N802 (the field's name for states)
        """States (n, d), finite."""
        X: NDArray[Any] = read_states(self.rows.store, self.layer, self.rows.numbers)
        return X

    @cached_property
    def searched(self) -> Searched:
        """Rows that are searched for neighbours."""
        plain = self.X, self.rows.labels.probs, self.rows.groups
        return Searched(*(mirrored(*plain) if self.rows.store.differences else plain))

    @cached_property
    def index(self) -> NeighborIndex:
        """Index over the states of :attr:`searched`."""
        return NeighborIndex(self.searched.X, metric=self.metric)

    def neighbors(self, k: int, *, copies: bool = False) -> Neighbors:
        """Return at least the k nearest others of every row, with or without its copies.

        They are searched only if k has grown.
        """
        known = self._known.get(copies)
        if known is None or known.index.shape[1] < k:
            known = self.index.others(k, groups=None if copies else self.searched.groups)
            self._known[copies] = known
        return known


@dataclass(frozen=True, eq=False)
class Prediction:
    """One probe at one strength on one layer."""

    strength: Mapping[str, float]
    proba: NDArray[np.float64]
    """P (n, C) of every row without the row and its duplicates."""
    seed: int | None = None
    """Seed of the folds; None without folds."""
    votes: int | None = None
    """Number of neighbours whose mean label is P; None for other probes."""
    keep: NDArray[np.bool_] | None = None
    """Rows that the probe itself keeps (n,), if it is a filter."""
    keep_at: Mapping[float, NDArray[np.bool_]] = field(default_factory=dict)
    """Contamination -> rows that it keeps (n,)."""


# Predicts from states, settings, a receiver of notes, and the probe.
Note = Callable[[str], None]
Predictions = Callable[[LayerStates, SweepSettings, Note, ProbeSpec], Iterator[Prediction]]


def predictions(
    probe: str, states: LayerStates, settings: SweepSettings, note: Note
) -> Iterator[Prediction]:
    """Predict every row at every strength of a probe.

    ``note`` receives a sentence on what was left out.
    """
    spec = probe_spec(probe)
    module, _, function = spec.path.partition(":")
    path: Predictions = getattr(import_module(module), function)
    return path(states, settings, note, spec)


def knn(
    states: LayerStates, settings: SweepSettings, note: Note, spec: ProbeSpec
) -> Iterator[Prediction]:
    """Predict the mean label of the first k neighbours, for every k from one search."""
    del note, spec
    ks = [int(k) for k in settings.k]
    nearest = states.neighbors(settings.width(states.rows.most_neighbors))
    voters = nearest.index[: len(states.rows)]
    for k, proba in zip(ks, neighbor_means(voters, states.searched.Y, ks), strict=True):
        yield Prediction({"k": k}, proba, votes=k)


def logreg(
    states: LayerStates, settings: SweepSettings, note: Note, spec: ProbeSpec
) -> Iterator[Prediction]:
    """Predict with every penalty and every set of folds, from one path."""
    del spec
    Y = states.rows.labels.probs
    for seed in settings.seeds:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            path = logistic_path(
                states.X,
                Y,
                settings.l2,
                folds=make_folds(states, Y, n_folds=settings.n_folds, seed=seed),
                standardize=settings.standardize,
                fit_intercept=not states.rows.store.differences,
            )
        for warning in caught:
            note(f"layer {states.layer}, logreg: {warning.message}")
        proba = path.oof_proba
        assert proba is not None
        for l2, P in zip(settings.l2, proba, strict=True):
            yield Prediction({"l2": l2}, P, seed=seed)


def make_folds(
    states: LayerStates, Y: NDArray[np.float64], *, n_folds: int, seed: int
) -> NDArray[np.int16]:
    """Make folds (n,) as a logistic probe does: stratified, duplicates in one."""
    folds = folds_to_learn(hard_labels(Y), states.rows.groups, n_folds=n_folds, seed=seed)
    if folds is None:
        raise ProbeError(NO_FOLDS)
    return folds


def topofilter(
    states: LayerStates, settings: SweepSettings, note: Note, spec: ProbeSpec
) -> Iterator[Prediction]:
    """Predict with every k_cc and k_zeta, and zeta or contamination, from one search."""
    del spec
    _, Y, groups = states.searched
    published = settings.variant == "eleuther"
    wide = states.neighbors(settings.width(states.rows.most_neighbors), copies=published)
    apart = None if published else groups
    hard, n_classes = hard_labels(Y), Y.shape[1]
    connection = CONNECTION[settings.variant]
    for k_cc in map(int, settings.k_cc):
        index = wide.index[:, :k_cc]
        component, _ = largest_components(index, hard, connection=connection)
        hidden = HiddenComponents(index, hard, groups, component=component, connection=connection)
        for k_zeta in map(int, settings.k_zeta):
            try:
                check_kept(component, k_zeta, k_cc=k_cc)
            except ProbeError as error:
                note(f"layer {states.layer}, topofilter left out: {error}")
                continue
            near = nearest_kept(states.index, wide, component, k_zeta, groups=apart)
            proba = hidden_means(nearest_hidden(states.index, wide, hidden, k_zeta), Y)
            ranked = neighbor_means(near, Y, [k_zeta])[0] if published else proba
            score = disagreement_of(ranked, Y, ranked_by(settings.variant, settings.disagreement))
            ties = np.resize(states.rows.ties, len(Y))
            steps = _Steps(component, near, hard, score, n_classes, ties)
            yield from _topofilter_rows(steps, proba, settings, len(states.rows), k_cc=k_cc)


@dataclass(frozen=True, eq=False)
class _Steps:
    """Input of TopoFilter's last step: component, neighbours in it, classes, disagreement."""

    component: NDArray[np.bool_]
    near: NDArray[np.int64]
    hard: NDArray[np.int64]
    disagreement: NDArray[np.float64]
    n_classes: int
    ties: NDArray[Any]

    def to_share(self, share: float) -> NDArray[np.bool_]:
        cut, _ = drop_to_share(
            self.component,
            self.disagreement,
            self.hard,
            share=share,
            per_class=False,
            cap=False,
            ties=self.ties,
        )
        return ~cut.selected

    def ranked(self, accepted: NDArray[np.bool_], share: float) -> NDArray[np.bool_]:
        return ~drop_ranked(
            accepted, self.disagreement, self.hard, share=share, per_class=False, ties=self.ties
        ).selected


def _topofilter_rows(
    steps: _Steps, proba: NDArray[np.float64], settings: SweepSettings, n: int, *, k_cc: int
) -> Iterator[Prediction]:
    """One prediction for each zeta (``paper``) or contamination (``eleuther``)."""
    k_zeta = steps.near.shape[1]
    strength = {"k_cc": k_cc, "k_zeta": k_zeta}
    shares = settings.contaminations
    if settings.variant == "eleuther":
        at = {share: steps.to_share(share)[:n] for share in shares}
        for share in shares:
            yield Prediction(
                {**strength, "contamination": share},
                proba[:n],
                votes=k_zeta,
                keep=at[share],
                keep_at=at,
            )
        return
    for zeta in settings.zeta:
        accepted = steps.component & majority(steps.near, steps.hard, steps.n_classes, zeta=zeta)
        yield Prediction(
            {**strength, "zeta": zeta},
            proba[:n],
            votes=k_zeta,
            keep=accepted[:n],
            keep_at={share: steps.ranked(accepted, share)[:n] for share in shares},
        )


def as_filter(
    states: LayerStates, settings: SweepSettings, note: Note, spec: ProbeSpec
) -> Iterator[Prediction]:
    """Predict with a probe that has no strength to choose, as `filter` and `relabel` do."""
    del settings, note
    rows, layer = states.rows, None if spec.several_layers else states.layer
    whole = len(rows) == len(rows.store)
    scored = score_rows(rows.store, rows.labels, spec.name, layer=layer, only_labelled=not whole)
    yield Prediction({name: getattr(scored.probe, name) for name in spec.strengths}, scored.proba)
