"""Rows that must not judge each other: copies, and rows of one group that the user named."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "content_digests",
    "digest_where",
    "duplicate_groups",
    "joined",
    "ordered_groups",
    "row_digests",
    "row_keys",
    "shared",
]

CHUNK = 4096


def duplicate_groups(
    X: ArrayLike | None = None,
    hashes: Sequence[str] | None = None,
    groups: Sequence[str | None] | None = None,
) -> NDArray[np.int64]:
    """Number rows so that copies, and rows of one group, share a number (n,): see :func:`joined`.

    Text hashes decide the order of the numbers where they are known, else groups, else states.

    Parameters
    ----------
    X
        States (n, d); rows are copies where all their numbers are equal.
    hashes
        n text hashes, "" where unknown; rows are copies where these are equal.
    groups
        n names of groups, such as questions or users; "" or None is a group of its own.
    """
    keys: list[Sequence[Any]] = [key for key in (hashes, groups) if key is not None]
    if X is not None:
        rows = np.asarray(X)
        known = hashes is not None and all(hashes)
        keys.append(digest_where(rows, shared(row_keys(rows))) if known else row_digests(rows))
    if not keys:
        raise UsageError("duplicate_groups needs states, text hashes or groups.")
    return joined(*keys)


def joined(*keys: Sequence[Any]) -> NDArray[np.int64]:
    """Number rows so that those that share any key share a number, and so whom these share with.

    Each of ``keys`` has n entries; what is empty (None, "") is shared with nobody. Numbers (n,) are
    from 0 in the order of each group's smallest key (of the first kind that is known, else its
    place): they, and the folds that follow from them, are the same for any order of the rows.
    """
    part = _parts([_first_places(key) for key in keys])
    names = [
        next(((kind, k) for kind, k in enumerate(own) if k), (len(keys), row))
        for row, own in enumerate(zip(*keys, strict=True))
    ]
    order = np.empty(len(part), dtype=np.int64)
    order[sorted(range(len(part)), key=names.__getitem__)] = np.arange(len(part))
    return ordered_groups(part, order)


def ordered_groups(groups: ArrayLike, order: NDArray[Any]) -> NDArray[np.int64]:
    """Number groups (n,) anew, from 0, by the smallest ``order`` (n,) among their rows."""
    numbers = np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    place = np.empty(len(numbers), dtype=np.int64)
    place[np.argsort(order, kind="stable")] = np.arange(len(numbers))
    first = np.full(int(numbers.max(initial=-1)) + 1, len(numbers))
    np.minimum.at(first, numbers, place)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return np.asarray(rank[numbers], dtype=np.int64)


def _parts(firsts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Join rows (n,) that lead to one row in any of ``firsts`` (n,)."""
    if len(firsts) == 1:
        return firsts[0]
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    n = len(firsts[0])
    rows, linked = np.tile(np.arange(n), len(firsts)), np.concatenate(firsts)
    graph = csr_matrix((np.ones(len(rows), dtype=np.int8), (rows, linked)), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1])


def _first_places(key: Sequence[Any]) -> NDArray[np.int64]:
    """For each row the first one with the same entry (n,)."""
    first: dict[Any, int] = {}
    places = (first.setdefault(k, i) if k else i for i, k in enumerate(key))
    return np.fromiter(places, np.int64, len(key))


def row_digests(X: ArrayLike) -> list[bytes | None]:
    """Digests of the rows of X (n, d), as :func:`content_digests`; None where not finite.

    Rows that could not be computed are no copies of each other.
    """
    rows = np.asarray(X)
    found: list[bytes | None] = list(content_digests(rows))
    for start in range(0, len(rows), CHUNK):
        finite = np.isfinite(rows[start : start + CHUNK]).reshape(
            len(found[start : start + CHUNK]), -1
        )
        for place in np.flatnonzero(~finite.all(axis=1)).tolist():
            found[start + place] = None
    return found


def row_keys(X: ArrayLike) -> NDArray[np.uint64]:
    """A number for each row of X (n, d), equal for equal rows: what differs in it is no copy.

    It reads eight columns, which takes a tenth of the time of a digest.
    """
    rows = np.asarray(X)
    rows = rows.reshape(len(rows), -1)
    columns = np.unique(np.linspace(0, max(rows.shape[1] - 1, 0), 8).astype(np.int64))
    some = rows[:, columns] if rows.shape[1] else np.zeros((len(rows), 1))
    bits = (some.astype(np.float64) + 0.0).view(np.uint64)
    # Powers of an odd number, so that the same numbers in other columns give another key.
    factors = np.uint64(0x9E3779B97F4A7C15) ** np.arange(1, bits.shape[1] + 1, dtype=np.uint64)
    mixed = bits ^ (bits >> np.uint64(29))  # the low bits of float32 numbers are all 0
    return np.asarray((mixed * factors).sum(axis=1, dtype=np.uint64))


def shared(keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether another row has the same key (n,)."""
    _, place, many = np.unique(keys, return_inverse=True, return_counts=True)
    return np.asarray(many[place.ravel()] > 1)


def digest_where(X: NDArray[Any], chosen: NDArray[np.bool_]) -> list[bytes | None]:
    """Digests of the chosen rows of X (n, d), None for the others."""
    found: list[bytes | None] = [None] * len(X)
    places = np.flatnonzero(chosen)
    for place, digest in zip(places.tolist(), row_digests(X[places]), strict=True):
        found[place] = digest
    return found


def content_digests(X: ArrayLike) -> list[bytes]:
    """16 bytes for each row of X (n, d): equal values, equal digests, whatever the float type."""
    rows = np.asarray(X)
    rows = rows.reshape(len(rows), -1)
    found = []
    for start in range(0, len(rows), CHUNK):
        # 0.0 is added so that -0.0 becomes 0.0.
        block = np.ascontiguousarray(rows[start : start + CHUNK], dtype=np.float64) + 0.0
        found += [hashlib.blake2b(row, digest_size=16).digest() for row in block]
    return found
