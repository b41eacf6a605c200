"""Score rows with a probe that has not seen their weak labels, then filter or relabel them.

``scored = score_rows(store, labels)`` fits once; ``scored.filter(...)`` and ``scored.relabel(...)``
are verdicts from that fit. :func:`filter_labels` and :func:`relabel` do both steps at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.utils.validation import has_fit_parameter

from probekit import __version__
from probekit.cleaning.filter import check_amount
from probekit.cleaning.relabel import check_form
from probekit.cleaning.scored import OWN_RULE, Scored
from probekit.cleaning.trusted import with_trust
from probekit.cuts import Cut, by_content, by_id, check_disagreement, names_of
from probekit.errors import LabelsError, ProbeError, UsageError
from probekit.groups import NO_FOLDS, duplicate_groups, ordered_groups
from probekit.kinds import Like, check, checked
from probekit.labels import WeakLabels, load_labels
from probekit.probes.base import BaseProbe, label_matrix, out_of_fold
from probekit.probes.ensemble import stack_layers
from probekit.probes.neighbors import shared_searches
from probekit.probes.pairs import PairProbe
from probekit.probes.registry import make_probe, parameter_kinds, probe_class
from probekit.states import as_states, check_finite
from probekit.strings import taken
from probekit.verdicts import NO_FOLD, Verdicts

if TYPE_CHECKING:
    from probekit.activations.store import ActivationStore
    from probekit.cleaning.trusted import Trusted

__all__ = [
    "ELEUTHER",
    "default_probe",
    "filter_labels",
    "layers_read",
    "read_states",
    "relabel",
    "score_rows",
    "shared_rows",
    "with_layers",
]

CLASSIFIER = Like("a probe's name or a scikit-learn classifier", "fit", "get_params")
TIES = ("hash", "index")
ESTIMATED = ("auto", "confident")

# Settings of EleutherAI's published experiments: of both actions and of each. Those of the probes
# stand in the registry.
ELEUTHER: dict[str, dict[str, Any]] = {
    "both": {"in_sample": True, "disagreement": "distance", "ties": "index"},
    "filter": {"contamination": 0.1},
    "relabel": {"blend": 1.0},
}


def default_probe(states: ActivationStore | ArrayLike, layer: int | None = None) -> str:
    """Return the default probe: the ensemble if a store holds several layers, else kNN."""
    return "ensemble" if layer is None and len(getattr(states, "layers", ())) > 1 else "knn"


def score_rows(
    states: ActivationStore | ArrayLike,
    labels: WeakLabels | ArrayLike | str | Path,
    probe: Any = None,
    *,
    layer: int | None = None,
    in_sample: bool = False,
    n_folds: int = 5,
    seed: int = 0,
    only_labelled: bool = False,
    disagreement: str = "label",
    ties: str = "hash",
    trusted: Trusted | None = None,
    supervisor_states: ActivationStore | ArrayLike | None = None,
) -> Scored:
    """Join rows and labels, fit the probe, and predict every row without its own label.

    If the store holds differences of pairs, a logistic probe given by name has no bias; any other
    probe is fitted on every row and its mirror image, so that P(−x) = 1 − P(x).

    Parameters
    ----------
    states
        An :class:`ActivationStore`, or states (n, d).
    labels
        Weak labels or a file of them, joined to a store by id; for plain states WeakLabels, hard
        labels (n,), P(second class) (n,) or class probabilities (n, C), in the order of the rows.
    probe
        ``"knn"``, ``"logreg"``, ``"topofilter"``, ``"ensemble"``, ``"mass-mean"``, the name of an
        installed probe, ``"package.module:Class"``, or any scikit-learn classifier, which is
        cloned; by default the ensemble if a store holds several layers and none is chosen, else
        kNN. The ensemble reads several layers of a store.
    layer : int, optional
        Layer of the store; the ensemble needs none.
    in_sample : bool, default=False
        Predict rows that the probe was fitted on, as EleutherAI does: it repeats wrong labels.
    n_folds : int, default=5
        Folds of a probe given by name, and of other scikit-learn classifiers.
    seed : int, default=0
        Seed of such a probe and of its folds; it also decides between equal rows.
    disagreement
        ``"label"``: 1 − P(the weak label's class); ``"distance"``: ½ ‖P − Y‖₁, as published. For
        hard labels they are equal.
    ties
        What decides between equal rows at a cut: ``"hash"`` of seed and id (of the content if
        there are no ids), or ``"index"``, the smaller row number first.
    trusted : WeakLabels, path or mapping of id to class, optional
        True labels of some rows, from which :class:`probekit.cleaning.trust.TrustModel` corrects
        the probe's P. These rows get their true label and are never dropped. For plain states the
        ids are those of the weak labels, or the row numbers.
    supervisor_states : ActivationStore or array-like of shape (n, d), optional
        The weak supervisor's own states of the rows (of a store the last layer), which help to
        tell where it errs; with ``trusted`` only.

    Raises
    ------
    LabelsError, StatesError, ProbeError, UsageError
        If labels do not fit the rows, states are not finite, or the probe cannot be fitted.
    """
    check(layer=layer, in_sample=in_sample, n_folds=n_folds, seed=seed)
    check(only_labelled=only_labelled)
    check_disagreement(disagreement)
    if ties not in TIES:
        raise UsageError(f"ties must be {' or '.join(TIES)}, got {ties!r}.")
    if supervisor_states is not None and trusted is None:
        raise UsageError("The supervisor's states are of use with trusted labels only; give these.")
    probe = default_probe(states, layer) if probe is None else probe
    pairs = bool(getattr(states, "differences", False))
    if isinstance(probe, str):
        folds = {"n_folds": n_folds} if "n_folds" in parameter_kinds(probe) else {}
        probe = make_probe(probe, seed=seed, pairs=pairs, **folds)
    else:
        checked(("probe",), CLASSIFIER, probe)
    probe, layers = with_layers(states, probe, layer)
    joined = _join(states, labels, layers, only_labelled=only_labelled)
    X, aligned, hashes, groups, where, names = joined
    order = joined.order(seed) if ties == "hash" else np.arange(len(X))
    if names is not None and not all(hashes):
        groups = ordered_groups(groups, by_id(names))  # the same folds on every layer
    fitted, proba, fold = _predict(
        PairProbe(probe) if pairs else probe,
        *(X, aligned.probs, groups),
        ties=order,
        in_sample=in_sample,
        n_folds=n_folds,
        seed=seed,
    )
    provenance = {
        "probekit": __version__,
        "probe": {"name": type(probe).__name__, "parameters": _parameters(probe)},
        "in_sample": in_sample,
        "seed": seed,
        "disagreement": disagreement,
        "ties_by": ties,
        "labels": {"source": Path(aligned.source).name, "fingerprint": aligned.fingerprint},
        **where,
    }
    if "annotators" in aligned.provenance:
        provenance["annotators"] = aligned.provenance["annotators"]
    if pairs:
        provenance["pairs"] = True
    notes = fitted.notes_for(aligned.classes, aligned.ids) if hasattr(fitted, "notes_for") else []
    if notes:
        provenance["notes"] = notes
    cut = Cut(~fitted.keep_, fitted.tied_) if hasattr(fitted, "keep_") else None
    if pairs:
        fitted = getattr(fitted, "probe_", probe)
    if hasattr(fitted, "l2_"):
        provenance["probe"]["l2"] = fitted.l2_
    scored = Scored(
        *(X, groups, aligned, hashes, proba, fold, fitted, order),
        cut=cut,
        form=disagreement,
        provenance=provenance,
    )
    if trusted is None:
        return scored
    return with_trust(scored, trusted, states, supervisor_states)


def filter_labels(
    states: ActivationStore | ArrayLike,
    labels: WeakLabels | ArrayLike | str | Path,
    *,
    probe: Any = None,
    layer: int | None = None,
    contamination: float | Literal["auto", "confident"] | None = None,
    per_class: bool = True,
    threshold: float | None = None,
    in_sample: bool = False,
    n_folds: int = 5,
    seed: int = 0,
    only_labelled: bool = False,
    disagreement: Literal["label", "distance"] | None = None,
    ties: Literal["hash", "index"] = "hash",
    trusted: Trusted | None = None,
    supervisor_states: ActivationStore | ArrayLike | None = None,
    on_scored: Callable[[Scored], None] | None = None,
) -> Verdicts:
    """Keep the rows whose weak label agrees with a probe that has not seen it.

    Parameters
    ----------
    states, labels, probe, layer, in_sample, n_folds, seed, only_labelled, ties, trusted
        As :func:`score_rows`.
    disagreement
        As there; by default ``"label"``. If given, a TopoFilter probe uses it too.
    contamination
        Share to drop, in (0, 1): the ⌊c · n⌋ most disagreeing rows; by default 0.2 of each weak
        class, or 0.1 of all rows (there ``int(c * n)`` in floats, as EleutherAI). With trusted
        labels that is the least of each weak class: all rows go whose label they make likelier
        wrong than right, up to half of the class. ``"auto"``: for
        each class the smaller of two estimates of the share that cannot be told from other classes.
        ``"confident"``: confident learning's count for each pair of classes, by margin. A
        TopoFilter probe uses a share as its own contamination.
    per_class
        Drop within each weak class rather than over all rows (EleutherAI).
    threshold
        Instead of a share: drop rows whose disagreement exceeds it.
    on_scored
        Receives the scored rows, with the fitted probe, before the verdicts are made.

    Returns
    -------
    Verdicts whose ``label`` is the weak label; ``provenance`` records the settings.
    """
    check_amount(contamination, threshold, per_class=per_class)
    probe = _with_amount(
        probe, contamination, threshold, per_class=per_class, disagreement=disagreement
    )
    scored = score_rows(
        *(states, labels, probe),
        layer=layer,
        in_sample=in_sample,
        n_folds=n_folds,
        seed=seed,
        only_labelled=only_labelled,
        disagreement=disagreement or "label",
        ties=ties,
        trusted=trusted,
        supervisor_states=supervisor_states,
    )
    if on_scored is not None:
        on_scored(scored)
    return scored.filter(contamination=contamination, per_class=per_class, threshold=threshold)


def relabel(
    states: ActivationStore | ArrayLike,
    labels: WeakLabels | ArrayLike | str | Path,
    *,
    probe: Any = None,
    layer: int | None = None,
    blend: float | None = None,
    hard: bool = False,
    threshold: float | None = None,
    only_above: float | None = None,
    prior: Sequence[float] | None = None,
    flip: float | None = None,
    in_sample: bool = False,
    n_folds: int = 5,
    seed: int = 0,
    only_labelled: bool = False,
    disagreement: Literal["label", "distance"] = "label",
    ties: Literal["hash", "index"] = "hash",
    trusted: Trusted | None = None,
    supervisor_states: ActivationStore | ArrayLike | None = None,
    on_scored: Callable[[Scored], None] | None = None,
) -> Verdicts:
    """Give every row a new label.

    Parameters
    ----------
    states, labels, probe, layer, in_sample, n_folds, seed, only_labelled, disagreement, ties
        As :func:`score_rows`.
    blend
        β of the soft label (1 − β) Y + β P, in (0, 1]; by default 0.75.
    hard
        Hard labels instead, with the class shares of the weak labels: for two classes P is cut at
        the weak-prior quantile, for more the assigned classes maximise the sum of their P.
    threshold
        Hard labels instead: the second of two classes if its probability exceeds this
        (EleutherAI: 0.5).
    only_above
        Keep the weak label unless the disagreement is above this.
    prior
        Hard labels with these class shares (C,) in the order of the classes, where they are known:
        the weak labels' own mislead if one class is mislabelled more often than another.
    flip
        Hard labels instead: this share of each weak class, the most disagreeing as in
        :func:`filter_labels`, gets its most probable other class, and the rest keep theirs.
    on_scored
        As :func:`filter_labels`.

    Returns
    -------
    Verdicts that keep every row.
    """
    check_form(blend, threshold, only_above, prior, flip, hard=hard)
    scored = score_rows(
        *(states, labels, probe),
        layer=layer,
        in_sample=in_sample,
        n_folds=n_folds,
        seed=seed,
        only_labelled=only_labelled,
        disagreement=disagreement,
        ties=ties,
        trusted=trusted,
        supervisor_states=supervisor_states,
    )
    if on_scored is not None:
        on_scored(scored)
    return scored.relabel(
        blend=blend,
        hard=hard,
        threshold=threshold,
        only_above=only_above,
        prior=prior,
        flip=flip,
    )


def _with_amount(
    probe: Any,
    contamination: float | str | None,
    threshold: float | None,
    *,
    per_class: bool,
    disagreement: str | None,
) -> Any:
    """Set the amount on a TopoFilter probe, which drops rows itself; return others unchanged."""
    kind = probe_class(probe) if isinstance(probe, str) else type(probe)
    if not hasattr(kind, "keep_"):
        return probe
    probe = make_probe(probe) if isinstance(probe, str) else clone(probe)
    if contamination in ESTIMATED or threshold is not None:
        raise UsageError(OWN_RULE)
    if contamination is not None:
        probe.set_params(contamination=contamination)
    if disagreement is not None:
        probe.set_params(disagreement=disagreement)
    if probe.decides_itself and (contamination is not None or not per_class):
        name = "share to drop" if contamination is not None else "choice of all rows or each class"
        raise UsageError(
            f"TopoFilter's variant 'paper' has no {name}; add --rank (rank=True), or use "
            "--variant eleuther."
        )
    return probe


def with_layers(
    states: Any, probe: Any, layer: int | None = None
) -> tuple[Any, int | tuple[int, ...] | None]:
    """Return the probe, set up for the layers that it reads side by side, and the layer or layers.

    A probe without ``for_store`` reads the one ``layer``.
    """
    if layer is not None or not hasattr(states, "layers") or not hasattr(probe, "for_store"):
        return probe, layer
    adapted: tuple[Any, tuple[int, ...] | None] = probe.for_store(states)
    return adapted


def read_states(
    store: ActivationStore,
    layer: int | tuple[int, ...] | None,
    rows: NDArray[np.int64] | None = None,
    *,
    stream: bool = False,
) -> Any:
    """Read states (n, d) of a layer, or of several side by side, for all rows or ``rows``.

    With ``stream`` they are :class:`probekit.states.Streamed` if a copy would be large.

    Raises
    ------
    StatesError
        If any state is NaN or infinite.
    """
    if rows is not None and len(rows) == len(store):
        rows = None
    layers = layers_read(store, layer)
    X: Any = store.streamed(layers, rows) if stream else None
    if isinstance(layer, tuple):
        X = stack_layers(store, layer, rows) if X is None else X
    elif X is None:
        X = store.layer(layer) if rows is None else store.read(layer, rows)
    ids = store.ids if rows is None else taken(store.ids, rows)
    check_finite(X, ids, name=f"Layer {', '.join(map(str, layers))}")
    return X


def layers_read(store: ActivationStore, layer: int | tuple[int, ...] | None) -> list[int]:
    """Return the numbers of these layers; None stands for the only one."""
    if isinstance(layer, tuple):
        return list(layer)
    return [store.choose_layer(layer)]


class _Joined(NamedTuple):
    """States, labels, text hashes, copies and source of the joined rows, and their names if any."""

    X: Any
    labels: WeakLabels
    hashes: Sequence[str]
    groups: NDArray[np.int64]
    where: dict[str, Any]
    names: Sequence[str] | None

    def order(self, seed: int) -> NDArray[Any]:
        """Order of equal rows (n,) by a hash of their names, or of their content without names."""
        if self.names is None:
            return by_content(self.X, self.labels.probs, seed=seed)
        return by_id(self.names, seed=seed)


_ROWS: ContextVar[dict[Any, tuple[Any, _Joined]] | None] = ContextVar("shared rows", default=None)


@contextmanager
def shared_rows() -> Iterator[None]:
    """Within it, calls with the same store and labels read the states once, and search once.

    Their results are those of separate calls, except that distances between neighbours, which the
    votes of ``KNNProbe(weights="cosine")`` use, may differ in the last digit.

    Examples
    --------
    >>> import numpy as np
    >>> from probekit import filter_labels
    >>> X = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    >>> y = (X[:, 0] > 0).astype(int)
    >>> with shared_rows():
    ...     kept = [filter_labels(X, y, probe=name).keep.sum() for name in ("knn", "topofilter")]
    >>> len(kept)
    2
    """
    token = _ROWS.set({})
    try:
        with shared_searches():
            yield
    finally:
        _ROWS.reset(token)


def _join(
    states: Any, labels: Any, layer: int | tuple[int, ...] | None, *, only_labelled: bool
) -> _Joined:
    """Join rows and labels; within ``shared_rows`` once, of several layers the last."""
    known = _ROWS.get()
    key = (id(states), id(labels), layer, only_labelled)
    if known is not None and key in known:
        return known[key][1]
    joined = _join_once(states, labels, layer, only_labelled=only_labelled)
    if known is not None:
        known.clear()
        known[key] = (states, labels), joined  # kept, so that no other has its place
    return joined


def _join_once(
    states: Any, labels: Any, layer: int | tuple[int, ...] | None, *, only_labelled: bool
) -> _Joined:
    if isinstance(labels, str | Path):
        labels = load_labels(labels)
    if not hasattr(states, "layer"):
        return _join_array(as_states(states), labels, layer)
    if not isinstance(labels, WeakLabels):
        raise UsageError(
            "Labels for a store are joined by id: give WeakLabels or a file, not an array."
        )
    rows, aligned = labels.align(states.keys, only_labelled=only_labelled)
    X = read_states(states, layer, rows, stream=True)
    where = {
        "id_column": states.keys.id_column,
        "layers": layers_read(states, layer),
        "store": {
            "name": states.path.name,
            "fingerprint": states.fingerprint,
            "rows_fingerprint": states.rows_fingerprint,
        },
    }
    hashes, names = taken(states.hashes, rows), names_of(aligned.keys)
    return _Joined(X, aligned, hashes, states.copies(rows), where, names)


def _join_array(X: NDArray[Any], labels: Any, layer: Any) -> _Joined:
    if layer is not None:
        raise UsageError("A layer can be chosen from a store only, not from an array of states.")
    names = names_of(labels.keys) if isinstance(labels, WeakLabels) else None
    if not isinstance(labels, WeakLabels):
        classes, Y = label_matrix(labels)
        ids = [str(i) for i in range(len(Y))]
        labels = WeakLabels(ids, None, Y, tuple(map(str, classes.tolist())))
    if X.ndim != 2 or len(X) != len(labels):
        raise LabelsError(
            f"States of shape {X.shape} and {len(labels)} labels do not have the same rows."
        )
    check_finite(X, labels.ids)
    hashes = list(labels.hashes or [""] * len(labels))
    return _Joined(X, labels, hashes, duplicate_groups(X, hashes), {}, names)


def _predict(
    probe: Any,
    X: Any,
    Y: NDArray[np.float64],
    groups: NDArray[np.int64],
    *,
    ties: NDArray[Any],
    in_sample: bool,
    n_folds: int,
    seed: int,
) -> tuple[Any, NDArray[np.float64], NDArray[np.int16]]:
    """Fit the probe; return it, its probabilities for its own rows, and their folds."""
    none = np.full(len(X), NO_FOLD, dtype=np.int16)
    fitted = clone(probe)
    inner = fitted.probe if isinstance(fitted, PairProbe) else fitted
    if not in_sample and not isinstance(inner, BaseProbe):
        return probe, *out_of_fold(probe, X, Y, groups=groups, n_folds=n_folds, seed=seed)
    votes_itself = in_sample and hasattr(inner, "self_neighbor")
    if votes_itself:
        # Then fit needs no leave-one-out, for which k = n leaves too few other rows.
        inner.set_params(self_neighbor=True)
    if isinstance(fitted, BaseProbe):
        # A probe that drops rows itself needs the order of equal ones.
        more = {"ties": ties} if has_fit_parameter(fitted, "ties") else {}
        fitted.fit(X, Y, groups=groups, **more)
    else:
        fitted.fit(X, Y.argmax(axis=1))
    if votes_itself:
        return fitted, fitted.oof_proba_, none
    if in_sample:
        proba = np.zeros_like(Y)
        proba[:, np.asarray(fitted.classes_, dtype=np.int64)] = fitted.predict_proba(X)
        return fitted, proba, none
    fold = getattr(fitted, "fold_", none)
    if hasattr(fitted, "fold_") and (fold == NO_FOLD).all():
        raise ProbeError(NO_FOLDS)
    return fitted, fitted.oof_proba_, fold


def _parameters(probe: Any) -> dict[str, Any]:
    """Parameters as JSON values."""
    plain = (str, int, float, bool, type(None))
    return {
        name: value if isinstance(value, plain) else repr(value)
        for name, value in probe.get_params(deep=False).items()
    }
