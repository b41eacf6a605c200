"""A cheap weak supervisor: a probe on a weaker model's states labels rows it was not fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from probekit import __version__
from probekit.cuts import class_counts
from probekit.errors import LabelsError, UsageError, first_few
from probekit.joins import match
from probekit.kinds import Listed, Maybe, Text, check, checked
from probekit.labels import WeakLabels
from probekit.metrics import accuracy, auroc
from probekit.strings import taken

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from probekit.activations.store import ActivationStore

__all__ = ["Supervised", "score_labels", "split_rows", "weak_labels"]


class Supervised(NamedTuple):
    """Weak labels of the rows not trained on, the probe, and the row numbers of both parts."""

    labels: WeakLabels
    probe: Any
    trained: NDArray[np.int64]
    labelled: NDArray[np.int64]


def split_rows(
    hard: ArrayLike, groups: ArrayLike, *, rows: int, seed: int = 0
) -> NDArray[np.bool_]:
    """Choose at most ``rows`` rows at random: (n,) bool; class shares kept, groups kept whole.

    Exactly ``rows`` if no group has several rows.
    """
    labels, numbers = np.asarray(hard), np.unique(groups, return_inverse=True)[1].ravel()
    first = np.unique(numbers, return_index=True)[1]
    size = np.bincount(numbers)
    order = np.random.default_rng(seed).permutation(len(first))
    # A group counts for the class of its first row.
    shares = np.bincount(labels[first], weights=size) / len(labels)
    chosen = np.zeros(len(first), dtype=bool)
    for c, wanted in enumerate(class_counts(rows, shares)):
        mine = order[labels[first[order]] == c]
        chosen[mine[np.cumsum(size[mine]) <= wanted]] = True
    return np.asarray(chosen[numbers])


def weak_labels(
    store: ActivationStore,
    truth: WeakLabels,
    *,
    train_ids: Sequence[str] | None = None,
    train_share: float | None = None,
    train_rows: int | None = None,
    layer: int | None = None,
    l2: float | Literal["auto"] = "auto",
    fit_intercept: bool | None = None,
    seed: int = 0,
) -> Supervised:
    """Fit a LogisticProbe on the ground truth of some rows and label all others.

    Parameters
    ----------
    store
        A weaker model's states.
    truth
        Ground truth, joined by id; rows without it are never trained on.
    train_ids, train_share, train_rows
        Rows with ground truth to train on, at most one of the three: these ids, or a share (by
        default 0.5) or number of them at random, stratified, duplicates on one side.
    layer, l2, seed
        Layer of the store; penalty of the probe; seed of split and folds.
    fit_intercept
        Whether the probe has a bias. None: yes, except on differences of pairs, where P must not
        depend on which of the two is first.

    Raises
    ------
    UsageError, LabelsError
        If no row is left to label, the choice of rows is out of range, or they hold one class.
    """
    from probekit.cleaning.predict import layers_read, read_states
    from probekit.probes import LogisticProbe

    check(store=store, truth=truth, train_share=train_share, train_rows=train_rows, layer=layer)
    check(l2=l2, fit_intercept=fit_intercept, seed=seed)
    checked(("train_ids",), Maybe(Listed(Text("an id"), each_once=False)), train_ids)
    if sum(given is not None for given in (train_ids, train_share, train_rows)) > 1:
        raise UsageError("Give one of train ids, train share and train rows.")
    groups = store.copies()
    rows, known = truth.align(store.keys, only_labelled=True)
    if train_ids is not None:
        trained = _named_rows(train_ids, store, rows)
    else:
        n_rows = _number(train_share, train_rows, len(rows))
        trained = rows[split_rows(known.hard, groups[rows], rows=n_rows, seed=seed)]
    # A text that was trained on is not a new row, whichever id it has.
    labelled = np.flatnonzero(~np.isin(groups, groups[trained]))
    if not len(labelled):
        raise UsageError(
            f"Training on these rows leaves none of the {len(store)} to label; train on fewer."
        )
    X, Y = read_states(store, layer), known.probs[np.searchsorted(rows, trained)]
    if np.count_nonzero(Y.max(axis=0, initial=0) > 0) < 2:
        raise LabelsError(
            f"The {len(trained)} rows to train on hold one class only; choose more rows."
        )
    bias = not store.differences if fit_intercept is None else fit_intercept
    probe = LogisticProbe(l2=l2, fit_intercept=bias, random_state=seed)
    probe.fit(X[trained], Y, groups=groups[trained])
    labels = WeakLabels(
        ids=taken(store.ids, labelled),
        hashes=taken(store.hashes, labelled),
        probs=probe.predict_proba(X[labelled]),
        classes=known.classes,
        key=store.keys.take(labelled),
        provenance={
            "probekit": __version__,
            "supervisor": "LogisticProbe",
            "l2": probe.l2_,
            "fit_intercept": bias,
            "layers": layers_read(store, layer),
            "store": {"name": store.path.name, "fingerprint": store.fingerprint},
            "truth": {"source": Path(truth.source).name, "fingerprint": known.fingerprint},
            "trained_rows": len(trained),
            "seed": seed,
        },
    )
    return Supervised(labels, probe, trained, labelled)


def _key_of(train_ids: Sequence[str], store: ActivationStore) -> Sequence[str]:
    """The store's ids, or its only other key that holds all ``train_ids``."""
    if not set(train_ids).isdisjoint(store.ids):
        return store.ids
    others = [values for values in store.keys.columns.values() if set(train_ids) <= set(values)]
    return others[0] if len(others) == 1 else store.ids


def _named_rows(
    train_ids: Sequence[str], store: ActivationStore, rows: NDArray[np.int64]
) -> NDArray[np.int64]:
    place = {name: i for i, name in enumerate(_key_of(train_ids, store))}
    unknown = [name for name in train_ids if name not in place]
    if unknown:
        raise LabelsError(
            f"{len(unknown)} of {len(train_ids)} train ids are not in {store.path} (ids "
            f"{first_few(unknown)})."
        )
    chosen = np.unique([place[name] for name in train_ids]).astype(np.int64)
    without = chosen[~np.isin(chosen, rows)]
    if len(without):
        raise LabelsError(
            f"{len(without)} of {len(chosen)} train ids have no truth (ids "
            f"{first_few(store.ids[i] for i in without)})."
        )
    return chosen


def _number(share: float | None, rows: int | None, n: int) -> int:
    if rows is not None:
        if not 1 < rows <= n:
            raise UsageError(f"There are {n} rows with truth to train on, got {rows} to choose.")
        return rows
    part = 0.5 if share is None else share
    if not 0 < part <= 1:
        raise UsageError(f"The train share must lie in (0, 1], got {part}.")
    return round(n * part)


def score_labels(labels: WeakLabels, truth: WeakLabels) -> dict[str, Any]:
    """Accuracy and AUROC of weak labels on the rows that have ground truth."""
    place = match(labels.keys, truth.keys).place
    rows = np.flatnonzero(place >= 0)
    if not len(rows):
        return {"judged_rows": 0, "accuracy": None, "auroc": None}
    true = truth.codes(labels.classes)[place[rows]]
    order = auroc(true, labels.probs[rows])
    return {
        "judged_rows": len(rows),
        "accuracy": accuracy(true, labels.hard[rows]),
        "auroc": None if np.isnan(order) else order,
    }
