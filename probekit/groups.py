"""Rows that must not predict each other (copies, groups), and folds that keep them together."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.errors import UsageError
from probekit.states import finite_rows
from probekit.strings import Strings, first_places, sorted_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "NO_FOLDS",
    "content_digests",
    "duplicate_groups",
    "folds_to_learn",
    "joined",
    "ordered_groups",
    "row_digests",
    "row_keys",
    "shared",
    "stratified_folds",
]

CHUNK = 4096
NO_FOLDS = (
    "Too few rows to predict any of them out of fold: at least two classes need two different rows "
    "each."
)


def duplicate_groups(
    X: ArrayLike | None = None,
    hashes: Sequence[str] | None = None,
    groups: Sequence[str | None] | None = None,
) -> NDArray[np.int64]:
    """Number rows so that copies, and rows of one group, share a number (n,): see :func:`joined`.

    Text hashes decide the order of the numbers if known, else groups, else states.

    Parameters
    ----------
    X
        States (n, d); rows whose numbers are all equal are copies.
    hashes
        n text hashes, "" if unknown; rows whose hashes are equal are copies.
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
    """Number rows so that rows that share any key, directly or through others, share a number.

    Each of ``keys`` has n entries; empty ones (None, "") are not shared. Numbers (n,) count from 0
    in the order of each group's smallest key (of the first kind that is known, else its place):
    they, and the folds made from them, are the same for any order of the rows.
    """
    part = _parts([first_places(key) for key in keys])
    ordered, left = [], np.arange(len(part))
    for key in keys:
        known = _known(key)[left]
        ordered.append(sorted_rows(key, left[known]))
        left = left[~known]
    order = np.empty(len(part), dtype=np.int64)
    order[np.concatenate([*ordered, left])] = np.arange(len(part))
    return ordered_groups(part, order)


def _known(key: Sequence[Any]) -> NDArray[np.bool_]:
    """Mask (n,) of the entries that are not empty."""
    if isinstance(key, Strings):
        return key.known()
    return np.fromiter(map(bool, key), bool, len(key))


def ordered_groups(groups: ArrayLike, order: NDArray[Any]) -> NDArray[np.int64]:
    """Renumber groups (n,) from 0 by the smallest ``order`` (n,) among their rows."""
    numbers = np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    place = np.empty(len(numbers), dtype=np.int64)
    place[np.argsort(order, kind="stable")] = np.arange(len(numbers))
    first = np.full(int(numbers.max(initial=-1)) + 1, len(numbers))
    np.minimum.at(first, numbers, place)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return np.asarray(rank[numbers], dtype=np.int64)


def _parts(firsts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Component (n,) of each row, if rows with the same entry in any of ``firsts`` are linked."""
    if len(firsts) == 1:
        return firsts[0]
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    n = len(firsts[0])
    rows, linked = np.tile(np.arange(n), len(firsts)), np.concatenate(firsts)
    graph = csr_matrix((np.ones(len(rows), dtype=np.int8), (rows, linked)), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1])


def row_digests(X: ArrayLike) -> list[bytes | None]:
    """Digests of the rows of X (n, d), as :func:`content_digests`; None for rows with NaN or inf.

    Rows that could not be computed are not copies of each other.
    """
    rows = np.asarray(X)
    both = zip(content_digests(rows), finite_rows(rows).tolist(), strict=True)
    return [digest if finite else None for digest, finite in both]


def row_keys(X: ArrayLike) -> NDArray[np.uint64]:
    """A number (n,) for each row of X (n, d), equal for equal rows: others are not copies.

    Reads eight columns, in a tenth of the time of a digest.
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
    _, place, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return np.asarray(counts[place.ravel()] > 1)


def digest_where(X: NDArray[Any], chosen: NDArray[np.bool_]) -> list[bytes | None]:
    """Digests of the chosen rows of X (n, d), None for the others."""
    digests: list[bytes | None] = [None] * len(X)
    places = np.flatnonzero(chosen)
    for place, digest in zip(places.tolist(), row_digests(X[places]), strict=True):
        digests[place] = digest
    return digests


def content_digests(X: ArrayLike) -> list[bytes]:
    """16 bytes for each row of X (n, d), equal for equal values, whatever the float type."""
    rows = np.asarray(X)
    rows = rows.reshape(len(rows), -1)
    digests = []
    for start in range(0, len(rows), CHUNK):
        # 0.0 is added so that -0.0 becomes 0.0.
        block = np.ascontiguousarray(rows[start : start + CHUNK], dtype=np.float64) + 0.0
        digests += [hashlib.blake2b(row, digest_size=16).digest() for row in block]
    return digests


def stratified_folds(
    hard: ArrayLike, *, n_folds: int = 5, groups: ArrayLike | None = None, seed: int = 0
) -> NDArray[np.int16]:
    """Assign every row to a fold (n,): class shares and sizes as equal as the groups allow.

    The same rows, groups and seed give the same folds in any order of the rows and for any names of
    the classes: only the groups' numbers count.

    Groups with the same number of rows of each class are interchangeable: all of a kind are dealt
    at once, largest kinds first, each group to the fold that has least of its classes (a water
    level in closed form). Single rows come last and even out what larger groups left uneven.

    Parameters
    ----------
    hard
        Class number of each row (n,), integers from 0.
    groups
        Rows with one number stay in one fold (n,); by default every row is its own group.
    seed
        Decides which of interchangeable groups goes to which fold.

    Raises
    ------
    UsageError
        If ``hard`` are not class numbers, ``n_folds`` is below 2, or ``groups`` has another length.

    Notes
    -----
    Without groups, fold sizes differ by at most one, and so do the counts of every class. A class
    with fewer groups than folds is spread over as many folds as it has groups; a class of one group
    is in one fold, so that no fit without this fold has seen it. Folds may be empty if there are
    fewer groups than folds.
    """
    labels = np.asarray(hard, dtype=np.int64)
    if labels.ndim != 1 or (len(labels) and labels.min() < 0):
        raise UsageError("stratified_folds needs class numbers (n,) from 0.")
    if n_folds < 2:
        raise UsageError(f"There must be at least 2 folds, got {n_folds}.")
    numbers = np.arange(len(labels)) if groups is None else np.asarray(groups)
    if numbers.shape != labels.shape:
        raise UsageError(
            f"groups must have one entry for each of {len(labels)} rows, got {numbers.shape}."
        )
    if not len(labels):
        return np.zeros(0, dtype=np.int16)
    if groups is not None:
        numbers = np.unique(numbers, return_inverse=True)[1].ravel()
    kind, counts = _kinds(labels, numbers)
    rng = np.random.default_rng(seed)
    fold_of_kind = _deal(counts, np.bincount(kind), n_folds, rng)
    order = rng.permutation(len(kind))
    order = order[np.argsort(kind[order], kind="stable")]
    fold = np.empty(len(kind), dtype=np.int16)
    fold[order] = fold_of_kind
    return fold[numbers]


def folds_to_learn(
    hard: NDArray[np.int64], groups: NDArray[Any], *, n_folds: int, seed: int
) -> NDArray[np.int16] | None:
    """As :func:`stratified_folds`; None unless two classes have two different rows each.

    With less, no fold could be predicted from the others.
    """
    pairs = np.unique(np.column_stack([hard, groups]), axis=0)
    if np.count_nonzero(np.bincount(pairs[:, 0]) >= 2) < 2:
        return None
    return stratified_folds(hard, n_folds=n_folds, groups=groups, seed=seed)


def _kinds(
    labels: NDArray[np.int64], numbers: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Kind of each group (g,), and the number of rows per class in a group of each kind (t, C).

    Kinds are numbered in the order of the first group of each.
    """
    n_classes = int(labels.max()) + 1
    size = np.bincount(numbers)
    kind = np.zeros(len(size), dtype=np.int64)
    single = size[numbers] == 1
    kind[numbers[single]] = labels[single]
    several = np.flatnonzero(size > 1)
    place = np.searchsorted(several, numbers[~single])
    table = np.bincount(place * n_classes + labels[~single], minlength=len(several) * n_classes)
    patterns, inverse = np.unique(table.reshape(-1, n_classes), axis=0, return_inverse=True)
    kind[several] = n_classes + inverse.ravel()
    counts = np.vstack([np.eye(n_classes, dtype=np.int64), patterns])
    used, first, kind = np.unique(kind, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank[kind.ravel()], counts[used[order]]


def _deal(
    counts: NDArray[np.int64], n_groups: NDArray[np.int64], n_folds: int, rng: np.random.Generator
) -> NDArray[np.int16]:
    """Fold of every group, kind by kind: ``n_groups[t]`` of kind t with ``counts[t]`` rows each."""
    # Rows count relative to their class, else a rare class would be dealt by chance.
    weight = 1 / np.maximum(n_groups @ counts, 1)
    loads = np.zeros((n_folds, counts.shape[1]))
    dealt: list[NDArray[np.int16]] = [np.zeros(0, dtype=np.int16)] * len(n_groups)
    for t in np.argsort(-counts.sum(axis=1), kind="stable"):
        pull = counts[t] * weight
        # Each further group of this kind raises a fold's squared load by one step of equal height.
        level = np.round(loads @ pull / (counts[t] @ pull), 9)
        order = rng.permutation(n_folds)
        order = order[np.lexsort((loads.sum(axis=1)[order], level[order]))]
        share = np.empty(n_folds, dtype=np.int64)
        share[order] = _fill(level[order], int(n_groups[t]), loads.sum(axis=1)[order])
        loads += share[:, None] * counts[t]
        dealt[t] = np.repeat(np.arange(n_folds, dtype=np.int16), share)
    return np.concatenate(dealt)


def _fill(level: NDArray[np.float64], amount: int, size: NDArray[np.float64]) -> NDArray[np.int64]:
    """Pour ``amount`` units into folds of ascending ``level``: the number that each gets."""
    line = (np.cumsum(level) + amount) / np.arange(1, len(level) + 1)
    wet = np.flatnonzero(line >= level)[-1]
    share: NDArray[np.int64] = np.floor(np.clip(line[wet] - level, 0, None)).astype(np.int64)
    rest = amount - int(share.sum())
    share[np.lexsort((size, np.round(level + share, 9)))[:rest]] += 1
    return share
