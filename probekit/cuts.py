"""Where a ranking is cut: how far labels and probe disagree, how many rows go, which of equals.

Equal scores are common (a mean of k votes takes k + 1 values). Which of the equal rows at a cut are
taken is decided by a hash of seed and id, or of the text or states where there are no ids, so that
the order of the rows, which may mean something, decides nothing.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from probekit.errors import UsageError
from probekit.groups import content_digests

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from probekit.joins import Keys

__all__ = [
    "DISAGREEMENTS",
    "Cut",
    "by_content",
    "by_id",
    "by_key",
    "check_disagreement",
    "count_of",
    "disagreement_of",
    "largest",
    "names_of",
    "tied_decisions",
]

DISAGREEMENTS = ("label", "distance")
# Scores that differ by less are sums of the same numbers in another order.
DECIMALS = 12
CHUNK = 4096


class Cut(NamedTuple):
    """The rows taken (n,), and those of which a tie decided whether they are (n,)."""

    taken: NDArray[np.bool_]
    tied: NDArray[np.bool_]

    def told(self) -> dict[str, int]:
        """How many verdicts a tie decided, and how many of these rows were taken."""
        return {"rows": int(self.tied.sum()), "taken": int((self.tied & self.taken).sum())}


def check_disagreement(form: str) -> None:
    """Refuse a form of disagreement that there is not."""
    if form not in DISAGREEMENTS:
        raise UsageError(f"disagreement is {' or '.join(DISAGREEMENTS)}, got {form!r}.")


def disagreement_of(
    proba: NDArray[np.floating[Any]], Y: NDArray[np.floating[Any]], form: str = "label"
) -> NDArray[np.float64]:
    """How far a probe contradicts weak labels (n,), in [0, 1], to 12 decimals.

    Parameters
    ----------
    proba, Y
        The probe's P and the weak labels (n, C).
    form
        ``"label"``: 1 − P[argmax Y], how little the probe believes the weak label's class.
        ``"distance"``: ½ ‖P − Y‖₁, as published. For hard labels they are the same; with soft ones
        the distance is largest where either side is unsure, not where the label is wrong.
    """
    check_disagreement(form)
    P = np.asarray(proba, np.float64)
    if form == "distance":
        found = 0.5 * np.abs(P - Y).sum(axis=1)
    else:
        found = 1 - P[np.arange(len(P)), np.argmax(Y, axis=1)]
    # Rounding may leave -0.0, which is no number to print.
    return np.asarray(np.maximum(np.round(found, DECIMALS), 0.0) + 0.0)


def by_id(ids: Iterable[str], *, seed: int | Sequence[int] = 0) -> NDArray[np.uint64]:
    """Order of equals (n,): a hash of seed and id, the same for any order of the rows."""
    start = f"{seed if isinstance(seed, int | np.integer) else list(seed)}\x1f"
    digests = (
        hashlib.blake2b(f"{start}{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for name in ids
    )
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def names_of(keys: Keys) -> Sequence[str] | None:
    """What tells n rows apart in any order: ids, else text hashes; None where there are neither."""
    if keys.id_column is not None:
        return keys.ids
    return keys.hashes if keys.hashes and all(keys.hashes) else None


def by_key(keys: Keys, *, seed: int | Sequence[int] = 0) -> NDArray[np.uint64]:
    """Order of equals (n,) by ids, else text hashes, else row numbers: as :func:`by_id`."""
    return by_id(names_of(keys) or keys.ids, seed=seed)


def by_content(X: ArrayLike, Y: ArrayLike, *, seed: int | Sequence[int] = 0) -> NDArray[np.int64]:
    """Order of equals (n,) where rows have no ids: by a hash of seed and states X (n, d).

    Copies follow each other by a hash of their labels Y (n, C), exact ones by row number.
    """
    keys = [by_id((d.hex() for d in content_digests(part)), seed=seed) for part in (Y, X)]
    place = np.empty(len(keys[0]), dtype=np.int64)
    place[np.lexsort(keys)] = np.arange(len(place))
    return place


def count_of(share: float, n: int) -> int:
    """Return ⌊share · n⌋ as the numbers are written: 0.29 of 100 rows are 29.

    In floats 0.29 · 100 is 28.999999999999996, which EleutherAI's ``int(c * n)`` makes 28.
    """
    return math.floor(share * n + 1e-9)


def largest(
    score: NDArray[np.floating[Any]],
    counts: ArrayLike,
    number: NDArray[np.int64] | None = None,
    *,
    ties: NDArray[Any] | None = None,
) -> Cut:
    """Take the rows of largest score (n,): ``counts[k]`` of those numbered k, or so many of all.

    Of equal scores the row with the smaller of ``ties`` (n,) is taken; by default, and where these
    are equal too, the one with the smaller row number.
    """
    taken = np.zeros(len(score), dtype=bool)
    tied = np.zeros(len(score), dtype=bool)
    numbers = np.zeros(len(score), dtype=np.int64) if number is None else number
    last = np.arange(len(score)) if ties is None else ties
    for k, count in enumerate(np.atleast_1d(np.asarray(counts)).tolist()):
        rows = np.flatnonzero(numbers == k)
        order = rows[np.lexsort((last[rows], -score[rows]))]
        taken[order[:count]] = True
        if 0 < count < len(order) and score[order[count - 1]] == score[order[count]]:
            tied[rows[score[rows] == score[order[count]]]] = True
    return Cut(taken, tied)


def tied_decisions(
    proba: NDArray[np.floating[Any]], decided: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Mark the rows (n,) whose probabilities (n, C) are those of a row decided otherwise."""
    same = np.unique(proba, axis=0, return_inverse=True)[1].ravel()
    pairs = np.unique(np.column_stack([same, decided]), axis=0)
    return np.asarray((np.bincount(pairs[:, 0]) > 1)[same])
