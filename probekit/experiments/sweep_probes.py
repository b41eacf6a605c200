"""What each probe of a sweep predicts, for every strength at once, never having seen the row."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.cuts import disagreement_of
from probekit.errors import ProbeError
from probekit.groups import stratified_folds
from probekit.probes.base import hard_labels
from probekit.probes.knn import neighbor_means
from probekit.probes.registry import ProbeSpec, probe_spec
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

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from probekit.experiments.sweep import SweepSettings
    from probekit.experiments.sweep_rows import LayerStates

__all__ = ["Prediction", "Predictions", "as_filter", "knn", "logreg", "predictions", "topofilter"]


@dataclass(frozen=True, eq=False)
class Prediction:
    """One probe at one strength on one layer."""

    strength: Mapping[str, float]
    proba: NDArray[np.float64]
    """P (n, C) of every row without the row and its duplicates."""
    seed: int | None = None
    """Seed of the folds; None where there are none."""
    votes: int | None = None
    """How many neighbours P is the mean label of; None for other probes."""
    keep: NDArray[np.bool_] | None = None
    """What the probe itself keeps (n,), where it is a filter."""
    keep_at: Mapping[float, NDArray[np.bool_]] = field(default_factory=dict)
    """Contamination -> what it keeps (n,) then."""


# From states, settings, a place for sentences on what was left out, and the probe.
Note = Callable[[str], None]
Predictions = Callable[["LayerStates", "SweepSettings", Note, ProbeSpec], Iterator[Prediction]]


def predictions(
    probe: str, states: LayerStates, settings: SweepSettings, note: Note
) -> Iterator[Prediction]:
    """Predict every row at every strength of a probe.

    ``note`` is called with a sentence on what was left out.
    """
    spec = probe_spec(probe)
    module, _, function = spec.path.partition(":")
    path: Predictions = getattr(import_module(module), function)
    return path(states, settings, note, spec)


def knn(
    states: LayerStates, settings: SweepSettings, note: Note, spec: ProbeSpec
) -> Iterator[Prediction]:
    """The mean label of the first k neighbours, for every k from one search."""
    del note, spec
    ks = [int(k) for k in settings.k]
    found = states.neighbors(settings.width(states.rows.most_neighbors))
    voters = found.index[: len(states.rows)]
    for k, proba in zip(ks, neighbor_means(voters, states.searched.Y, ks), strict=True):
        yield Prediction({"k": k}, proba, votes=k)


def logreg(
    states: LayerStates, settings: SweepSettings, note: Note, spec: ProbeSpec
) -> Iterator[Prediction]:
    """Every penalty of every set of folds, from one path."""
    from sklearn.exceptions import ConvergenceWarning

    from probekit.probes.logistic import logistic_path

    del spec
    Y = states.rows.labels.probs
    for seed in settings.seeds:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", ConvergenceWarning)
            path = logistic_path(
                states.X,
                Y,
                settings.l2,
                folds=make_folds(states, Y, n_folds=settings.n_folds, seed=seed),
                standardize=settings.standardize,
                fit_intercept=not states.rows.store.differences,
            )
        for warning in told:
            note(f"layer {states.layer}, logreg: {warning.message}")
        proba = path.oof_proba
        assert proba is not None
        for l2, P in zip(settings.l2, proba, strict=True):
            yield Prediction({"l2": l2}, P, seed=seed)


def make_folds(
    states: LayerStates, Y: NDArray[np.float64], *, n_folds: int, seed: int
) -> NDArray[np.int16]:
    """Folds (n,) as a logistic probe makes them: stratified, duplicates in one."""
    hard = hard_labels(Y)
    groups = states.rows.groups
    pairs = np.unique(np.column_stack([hard, groups]), axis=0)
    if np.count_nonzero(np.bincount(pairs[:, 0]) >= 2) < 2:
        raise ProbeError(
            "Too few rows to predict any of them out of fold: at least two classes need two "
            "different rows each."
        )
    return stratified_folds(hard, n_folds=n_folds, groups=groups, seed=seed)


def topofilter(
    states: LayerStates, settings: SweepSettings, note: Note, spec: ProbeSpec
) -> Iterator[Prediction]:
    """Every k_cc and k_zeta, and zeta or contamination, from one search."""
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
            judged = neighbor_means(near, Y, [k_zeta])[0] if published else proba
            score = disagreement_of(judged, Y, ranked_by(settings.variant, settings.disagreement))
            ties = np.resize(states.rows.ties, len(Y))
            steps = _Steps(component, near, hard, score, n_classes, ties)
            yield from _topofilter_rows(steps, proba, settings, len(states.rows), k_cc=k_cc)


@dataclass(frozen=True, eq=False)
class _Steps:
    """What TopoFilter's last step reads: component, neighbours in it, classes, disagreement."""

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
        return ~cut.taken

    def ranked(self, accepted: NDArray[np.bool_], share: float) -> NDArray[np.bool_]:
        return ~drop_ranked(
            accepted, self.disagreement, self.hard, share=share, per_class=False, ties=self.ties
        ).taken


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
    """A probe without a strength to choose, as `filter` and `relabel` call it."""
    from probekit.cleaning.scoring import score_rows

    del settings, note
    rows, layer = states.rows, None if spec.several_layers else states.layer
    whole = len(rows) == len(rows.store)
    scored = score_rows(rows.store, rows.labels, spec.name, layer=layer, only_labelled=not whole)
    yield Prediction({name: getattr(scored.probe, name) for name in spec.strengths}, scored.proba)
