"""Strings of many rows in one array, and what their joins and groups ask of them.

Ten million ids take 0.1 GB in place of 0.7 as a list. Every function here takes any sequence of
strings too, with the same result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Strings",
    "any_twice",
    "arrow_column",
    "first_places",
    "joined_strings",
    "places",
    "sorted_rows",
    "taken",
]

CHUNK = 1 << 14
ODD = np.uint64(0x9E3779B97F4A7C15)


class Strings(Sequence[str]):
    """n strings, kept as UTF-8 of one width.

    Parameters
    ----------
    encoded : ndarray of shape (n,)
        UTF-8 of each, filled up with zeros.

    Examples
    --------
    >>> names = Strings(np.array([b"a", b"bc", b"d"]))
    >>> names[1], list(names[1:]), names == ["a", "bc", "d"]
    ('bc', ['bc', 'd'], True)
    """

    __slots__ = ("encoded",)

    def __init__(self, encoded: NDArray[np.bytes_]) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Strings: ...

    def __getitem__(self, index: int | slice) -> str | Strings:
        found: Any = self.encoded[index]
        if isinstance(index, slice):
            return Strings(found)
        return str(found.decode("utf-8", "surrogatepass"))

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), CHUNK):
            for value in self.encoded[start : start + CHUNK].tolist():
                yield value.decode("utf-8", "surrogatepass")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Strings):
            return np.array_equal(self.encoded, other.encoded)
        if isinstance(other, list | tuple):
            return list(self) == list(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Strings({list(self[:3])}{', …' if len(self) > 3 else ''}, n={len(self):,})"

    def known(self) -> NDArray[np.bool_]:
        """Mask (n,) of those that are not empty."""
        return np.asarray(self.encoded != b"")

    def digests(self, width: int) -> NDArray[np.uint64]:
        """A number (n,) for each, equal for equal ones; up to ``width`` bytes are read."""
        words = -(-width // 8)
        mixed = np.zeros(len(self), np.uint64)
        for start in range(0, len(self), CHUNK):
            part = slice(start, start + CHUNK)
            padded = self.encoded[part].astype(f"S{8 * words}").view(np.uint64)
            for word in padded.reshape(-1, words).T:
                mixed[part] = (mixed[part] ^ word) * ODD
                mixed[part] ^= mixed[part] >> np.uint64(29)
        return mixed

    @property
    def width(self) -> int:
        """Bytes of each."""
        return int(self.encoded.dtype.itemsize)


def taken(values: Sequence[Any], rows: NDArray[np.int64]) -> Sequence[Any]:
    """The values at the places ``rows``; all of them, in their order, are not copied."""
    if len(rows) == len(values) and np.array_equal(rows, np.arange(len(values))):
        return values
    if isinstance(values, Strings):
        return Strings(values.encoded[rows])
    return [values[i] for i in rows.tolist()]


def any_twice(values: Sequence[str]) -> bool:
    """Whether a string occurs more than once."""
    if isinstance(values, Strings):
        ordered = np.sort(values.digests(values.width))
        if not (ordered[1:] == ordered[:-1]).any():
            return False
    return len(set(values)) < len(values)


def places(wanted: Sequence[str], among: Sequence[str]) -> NDArray[np.int64]:
    """Place (n,) of each wanted string among others, -1 for none, of equal ones the last."""
    if isinstance(wanted, Strings) and isinstance(among, Strings):
        if wanted == among and not any_twice(among):
            return np.arange(len(wanted))
        found = _places(wanted, among)
        if found is not None:
            return found
    place = {name: i for i, name in enumerate(among)}
    return np.fromiter((place.get(name, -1) for name in wanted), np.int64, len(wanted))


def _places(wanted: Strings, among: Strings) -> NDArray[np.int64] | None:
    """As :func:`places`; None if two of ``among`` have one digest."""
    width = max(wanted.width, among.width)
    keys = among.digests(width)
    order = np.argsort(keys)
    keys = keys[order]
    if not len(keys) or (keys[1:] == keys[:-1]).any():
        return None
    at = np.searchsorted(keys, wanted.digests(width))
    found = order[np.minimum(at, len(keys) - 1)]
    return np.where(among.encoded[found] == wanted.encoded, found, -1)


def first_places(values: Sequence[Any]) -> NDArray[np.int64]:
    """For each row the first row (n,) with the same entry; empty ones are all different."""
    if isinstance(values, Strings):
        rows = np.arange(len(values))
        keys = values.digests(values.width)
        order = np.argsort(keys, kind="stable")
        same = keys[order[1:]] == keys[order[:-1]]
        del keys
        if not (same & (values.encoded[order[1:]] != values.encoded[order[:-1]])).any():
            begins = np.flatnonzero(np.concatenate([[True], ~same]))[: len(values)]
            first = order[np.repeat(begins, np.diff(begins, append=len(values)))]
            rows[order] = first
            return np.where(values.known(), rows, np.arange(len(values)))
    first_of: dict[Any, int] = {}
    found = (first_of.setdefault(k, i) if k else i for i, k in enumerate(values))
    return np.fromiter(found, np.int64, len(values))


def sorted_rows(values: Sequence[Any], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Some rows in the order of their values, equal ones in the order given."""
    if isinstance(values, Strings):
        return rows[np.argsort(values.encoded[rows], kind="stable")]
    return np.array(sorted(rows.tolist(), key=values.__getitem__), np.int64)


def arrow_column(values: Sequence[str]) -> Any:
    """The strings as an Arrow array."""
    import pyarrow as pa

    if isinstance(values, Strings):
        return pa.array(values.encoded).cast(pa.string())
    return pa.array(list(values), pa.string())


def joined_strings(parts: Iterable[Strings]) -> Strings:
    """Strings of several parts, one after the other."""
    return Strings(np.concatenate([part.encoded for part in parts]))
