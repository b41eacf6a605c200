"""Probes on differences of two states, for which the order of the two must not matter.

A difference x with label y means the same as −x with the classes exchanged. A logistic probe
without a bias respects that; any other classifier is fitted on every row and its mirror image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

from probekit.errors import ProbeError
from probekit.groups import duplicate_groups
from probekit.probes.base import BaseProbe, hard_labels, label_matrix, out_of_fold
from probekit.states import as_array, as_states

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["PairProbe", "mirrored"]

NOTE = "The states are differences of pairs, "
LEARNED = ("oof_proba_", "fold_", "keep_", "tied_")


def mirrored(X: NDArray[Any], Y: NDArray[Any], *of_rows: ArrayLike) -> tuple[NDArray[Any], ...]:
    """Rows (2n, d), class probabilities (2n, 2) and other arrays of the rows (2n,).

    The n rows come first, then their mirror images.

    Raises
    ------
    ProbeError
        If there are not two classes.
    """
    if Y.shape[1] != 2:
        raise ProbeError(
            f"Differences of pairs have two classes, first and second, and the labels have "
            f"{Y.shape[1]}."
        )
    twice = (np.tile(values, 2) for values in of_rows)
    return np.concatenate([X, -X]), np.concatenate([Y, Y[:, ::-1]]), *twice


class PairProbe(BaseProbe):
    """Classifier of differences x of two states for which P(−x) = 1 − P(x).

    A :class:`LogisticProbe` is fitted as it is: without a bias it is symmetric, and with one the
    user wants the order to matter. Any other classifier is fitted on the n rows and their mirror
    images; a row and its image are one group, so that neither predicts the other.

    Parameters
    ----------
    probe : classifier
        Any probe or scikit-learn classifier; it is cloned, not fitted itself.

    Attributes
    ----------
    probe_ : classifier
        The fitted clone.
    oof_proba_, fold_, keep_, tied_ : ndarray
        Those of the clone, if it has them, for the n rows without their images.

    See Also
    --------
    probekit.filter_labels, probekit.relabel : Wrap their probe so if a store holds differences.

    Examples
    --------
    >>> import numpy as np
    >>> from probekit.probes import KNNProbe, PairProbe
    >>> X = np.random.default_rng(0).normal(size=(40, 3))
    >>> probe = PairProbe(KNNProbe(k=5)).fit(X, X[:, 0] > 0)
    >>> np.allclose(probe.predict_proba(-X), 1 - probe.predict_proba(X))
    True
    """

    def __init__(self, probe: Any) -> None:
        self.probe = probe

    @property
    def mirrors(self) -> bool:
        """Whether the probe is fitted on mirror images too."""
        return not getattr(self.probe, "odd_without_bias", False)

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        *,
        ties: ArrayLike | None = None,
    ) -> Self:
        """Fit a clone of the probe on X (n, d) and y.

        ``sample_weight``, ``groups`` and ``ties``, each (n,), are passed on if its ``fit`` accepts
        them.
        """
        optional = {"sample_weight": sample_weight, "groups": groups, "ties": ties}
        rows = {name: a for name, a in optional.items() if has_fit_parameter(self.probe, name)}
        classes, Y = _labels(y)
        X, targets, rows = self._training_rows(X, Y, rows)
        if not isinstance(self.probe, BaseProbe):
            targets = hard_labels(targets)
        self.probe_ = clone(self.probe).fit(X, targets, **rows)
        self.classes_ = classes[self.probe_.classes_]
        for name in LEARNED:
            if hasattr(self.probe_, name):
                setattr(self, name, getattr(self.probe_, name)[: len(Y)])
        return self

    def out_of_fold(
        self, X: ArrayLike, y: ArrayLike, *, groups: ArrayLike | None = None, **how: Any
    ) -> tuple[NDArray[np.float64], NDArray[np.int16]]:
        """As :func:`probekit.probes.out_of_fold`; a row and its image share a fold."""
        Y = _labels(y)[1]
        weight = how.pop("sample_weight", None)
        X, targets, rows = self._training_rows(X, Y, {"sample_weight": weight, "groups": groups})
        proba, fold = out_of_fold(self.probe, X, targets, **rows, **how)
        return proba[: len(Y)], fold[: len(Y)]

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Class probabilities (m, 2) of new differences X (m, d)."""
        check_is_fitted(self)
        proba: NDArray[np.float64] = self.probe_.predict_proba(X)
        return proba

    def notes_for(self, classes: Sequence[Any], ids: Sequence[str]) -> list[str]:
        """Notes for the user, with names of classes (2,) and ids of rows (n,)."""
        probe = getattr(self, "probe_", self.probe)
        if self.mirrors:
            how = "so the probe is fitted on each pair in both orders; its counts are of both."
        elif probe.fit_intercept:
            how = "yet the probe has a bias: its predictions depend on which of the two is first."
        else:
            how = "so the probe is fitted without a bias."
        # Notes of a probe fitted on images refer to 2n rows.
        more = probe.notes_for(classes, [*ids, *ids]) if hasattr(probe, "notes_for") else []
        return [NOTE + how, *more]

    def _training_rows(
        self, X: ArrayLike, Y: NDArray[np.float64], rows: Mapping[str, ArrayLike | None]
    ) -> tuple[Any, NDArray[Any], dict[str, Any]]:
        """States, labels and other arrays by name that the probe is fitted on."""
        if not self.mirrors:
            return X, Y, dict(rows)
        states = as_states(X)
        arrays = {name: array for name, array in rows.items() if array is not None}
        if "groups" in rows:
            arrays.setdefault("groups", duplicate_groups(states))
        X, Y, *twice = mirrored(states, Y, *arrays.values())
        return X, Y, dict(zip(arrays, twice, strict=True))


def _labels(y: ArrayLike) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Classes (C,) and class probabilities (n, C), which are kept if given."""
    values = as_array(y, name="y")
    return (np.arange(values.shape[1]), values) if values.ndim == 2 else label_matrix(values)
