"""What frozen states say about weak labels: members of the ensemble, each without the row itself.

Shared by the diagnosis and the advice. Labels are taken hard: these are what gets changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.cuts import by_key, class_counts, prior_matched
from probekit.errors import DataError, LabelsError, UsageError
from probekit.kinds import check
from probekit.states import finite_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from probekit.activations.store import ActivationStore
    from probekit.labels import WeakLabels
    from probekit.probes.ridge import RidgeStates

__all__ = ["SAMPLE_ROWS", "VOTES", "Evidence", "Sample", "draw_sample", "weigh"]

# The rule was measured on so many rows; pc changes with their number, and this takes a second.
SAMPLE_ROWS = 2000
VOTES = 30
FEWEST = 20


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
    """Rows of one number are exact duplicates (n,)."""
    total: int
    """Rows with a label, of which these were drawn."""
    nonfinite: Mapping[int, int]
    """Layer -> rows drawn with NaN or infinity there; they are left out."""


def draw_sample(
    store: ActivationStore,
    labels: WeakLabels,
    *,
    layers: Sequence[int] | None = None,
    rows: int = SAMPLE_ROWS,
    seed: int = 0,
    only_labelled: bool = False,
) -> Sample:
    """Read at most ``rows`` rows of the layers that the ensemble takes, class shares kept.

    Parameters
    ----------
    layers
        Layers to choose from, by default all that are stored.

    Raises
    ------
    LabelsError, DataError, UsageError
        Labels that do not fit, fewer than 20 usable rows or two classes, a layer not stored.
    """
    from probekit.probes.ensemble import plan_layers

    check(store=store, labels=labels, layers=layers, rows=rows, seed=seed)
    check(only_labelled=only_labelled)
    missing = [str(layer) for layer in layers or () if layer not in store.layers]
    if missing:
        raise UsageError(
            f"{store.path} holds no layer {', '.join(missing)}; it holds "
            f"{', '.join(map(str, store.layers))}."
        )
    place, aligned = labels.align(store.keys, only_labelled=only_labelled)
    # By a hash of the id: neither the order of the rows nor what lies between decides.
    drawn = _draw(aligned.hard, rows, np.argsort(by_key(aligned.keys, seed=seed), kind="stable"))
    plan = plan_layers(layers or store.layers)
    states = {layer: store.read(layer, place[drawn]) for layer in plan.layers}
    each = {layer: finite_rows(part) for layer, part in states.items()}
    finite = np.logical_and.reduce(list(each.values()))
    used = drawn[finite]
    if len(used) < FEWEST:
        raise DataError(
            f"{store.path} has {len(used)} rows with a weak label and finite states; at least "
            f"{FEWEST} are needed to say anything."
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
    # A rare class keeps enough rows for its correlation and votes to exist.
    wanted = np.maximum(class_counts(rows, size / len(hard)), np.minimum(size, 3))
    chosen = [order[hard[order] == c][:m] for c, m in enumerate(wanted)]
    return order[np.isin(order, np.concatenate(chosen))]


@dataclass(frozen=True, eq=False)
class Evidence:
    """The ensemble's members on a sample, ready to be asked again with other labels."""

    hard: NDArray[np.int64]
    """Weak classes (n,), 0 … C − 1, each of which occurs."""
    ridge: Mapping[int, RidgeStates]
    penalties: Mapping[int, float]
    near: Mapping[int, NDArray[np.int64]]
    """Layer -> row numbers (n, k) of the nearest others that vote."""
    both: tuple[int, ...]
    """The last two layers that have a member of each kind."""
    scores: Mapping[tuple[str, int], NDArray[np.float64]]
    """(kind, layer) -> scores (n, C) without the row."""
    proba: NDArray[np.float64]
    """P (n, C) of the average."""

    @property
    def decided(self) -> NDArray[np.int64]:
        """Classes (n,) that the average decides for, with the class shares of the weak labels."""
        return prior_matched(self.proba, np.bincount(self.hard) / len(self.hard))

    def shuffled(self, times: int, seed: int = 0) -> list[Evidence]:
        """The same members asked for shuffled labels, at the penalties chosen for the real ones."""
        rng = np.random.default_rng(seed)
        orders = [rng.permutation(len(self.hard)) for _ in range(times)]
        c = self.proba.shape[1]
        eye = np.eye(c)
        columns = np.hstack([eye[self.hard[order]] for order in orders])
        ridge = {
            layer: states.leave_out(columns, self.penalties[layer])
            for layer, states in self.ridge.items()
        }
        found = []
        for i, order in enumerate(orders):
            part = slice(i * c, (i + 1) * c)
            fixed = {layer: score[:, part] for layer, score in ridge.items()}
            found.append(_ask(self, self.hard[order], fixed))
        return found


def weigh(
    states: Mapping[int, NDArray[Any]], hard: NDArray[np.int64], groups: NDArray[np.int64]
) -> Evidence:
    """Fit the ensemble's members to hard weak labels.

    Parameters
    ----------
    states
        Layer -> states (n, width), as :func:`plan_layers` chooses them.
    hard, groups
        Weak classes 0 … C − 1, each of which occurs; numbers of duplicates, left out together.
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
    ridge, penalties, fixed = {}, {}, {}
    for layer in ridge_layers:
        ridge[layer] = RidgeStates(states[layer], groups=groups)
        penalties[layer], fixed[layer] = choose_penalty(ridge[layer], Y)
    near = {
        layer: NeighborIndex(states[layer]).others(min(VOTES, left), groups=groups).index
        for layer in knn_layers
    }
    both = tuple(sorted({*ridge_layers} & {*knn_layers})[-2:])
    empty = Evidence(hard, ridge, penalties, near, both, {}, Y)
    return _ask(empty, hard, fixed)


def _ask(
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
