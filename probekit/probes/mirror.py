"""Probes on differences of two states: which of the two comes first must not matter.

A difference x with label y says the same as −x with the classes exchanged. A logistic probe without
a bias knows that; any other is fitted on every row and its mirror image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.errors import ProbeError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["mirrored", "needs_mirror"]


def mirrored(
    X: NDArray[Any], Y: NDArray[np.float64], groups: ArrayLike
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[Any]]:
    """Rows (2n, d), class probabilities (2n, 2) and groups (2n,): each row, then each turned round.

    A row and its image are of one group, so that neither predicts the other.

    Raises
    ------
    ProbeError
        Where there are not two classes.
    """
    if Y.shape[1] != 2:
        raise ProbeError(
            f"Differences of pairs have two classes, first and second, and the labels have "
            f"{Y.shape[1]}."
        )
    return np.concatenate([X, -X]), np.concatenate([Y, Y[:, ::-1]]), np.tile(groups, 2)


def needs_mirror(probe: Any) -> bool:
    """Whether a probe must see both images; a logistic one has ``fit_intercept`` for that."""
    return not getattr(probe, "odd_without_bias", False)
