"""Read a store: one layer as an array, some rows of it, or batches larger than memory."""

from __future__ import annotations

import itertools
import operator
import resource
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from probekit.activations.index import read_index
from probekit.activations.layout import GROUP, STORE_DTYPES, Array, LayerInfo, widen
from probekit.activations.part import Part, single
from probekit.activations.spec import DIFFERENCE
from probekit.data import rows_fingerprint
from probekit.engine import ray_tasks
from probekit.errors import IncompleteStoreError, NotAStoreError, StoreError, UsageError, repeated
from probekit.groups import joined, row_digests, row_keys, shared
from probekit.joins import Keys
from probekit.safe import expand
from probekit.states import COPY_BYTES, Streamed
from probekit.strings import Strings, any_twice, joined_strings, taken

__all__ = ["ActivationStore", "columns_of_all"]

Selection: TypeAlias = "slice | Array | list[int]"

READ_DTYPES = ("float16", "float32", "float64")
# Parts of a folder that are open at once: each takes two of the files that a process may open.
OPEN_PARTS = max(16, min(512, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))


def columns_of_all(parts: Sequence[Mapping[str, Sequence[str]]]) -> dict[str, list[str]]:
    """Return the columns that all parts have, with the values of one part after the other."""
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: [value for part in parts for value in part[name]] for name in names}


class ActivationStore:
    """A frozen model's hidden states of n rows, read layer by layer (docs/format.md).

    Opening reads only the header; a layer is read on demand, by memory map if possible.

    Parameters
    ----------
    path
        The file or folder that ``probekit extract`` wrote.
    allow_incomplete
        Also open a file whose extraction has not finished; see ``done``.

    Attributes
    ----------
    layers
        Numbers of the stored layers, as in ``hidden_states``: 0 is the embeddings.
    spec
        How the states were computed: model, layers, pooling, …
    complete
        Whether every row is done.
    fingerprint
        16 hex digits that identify this extraction.
    rows_fingerprint
        16 hex digits over ids and text hashes.
    source
        Where the rows came from, if recorded.

    Raises
    ------
    NotAStoreError
        If the file is missing, damaged, of a newer version or of another kind.
    IncompleteStoreError
        If the extraction has not finished, unless ``allow_incomplete``.
    """

    def __init__(self, path: str | Path, *, allow_incomplete: bool = False) -> None:
        self.path = Path(path)
        folder = expand(path, error=NotAStoreError)
        self._index = read_index(folder) if folder.is_dir() else None
        self._places = [self.path] if self._index is None else self._index.paths(self.path)
        self._open: dict[int, Part] | None = {}
        self._opening = threading.Lock()
        if self._index is None:
            header = self._part(0).header
            self._starts = np.array([0, header.n_rows])
        else:
            self._starts = self._index.starts
            self._index.check_complete(self.path)
            header = self._index.header(self._part(0).header)
        self._header = header
        self.spec = header.spec
        self.complete = header.complete
        self.source = header.source
        self.rows_fingerprint = header.rows_fingerprint
        self.fingerprint = header.fingerprint
        self.layers = list(header.layers)
        if not (header.complete or allow_incomplete):
            done = int(self.done.sum())
            self.close()
            raise IncompleteStoreError(
                f"{self.path} is incomplete: {done} of {len(self)} rows are done; run the same "
                "extract command again to finish it."
            )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        # For processes on other nodes, which open it there.
        return ActivationStore, (expand(self.path, error=NotAStoreError).absolute(),)

    def __repr__(self) -> str:
        return f"ActivationStore({str(self.path)!r}, rows={len(self)}, layers={self.layers})"

    @cached_property
    def ids(self) -> Strings:
        """N row ids."""
        ids = self._strings("id")
        if len(self._starts) > 2 and any_twice(ids):
            raise StoreError(self._repeated(ids))
        return ids

    @cached_property
    def keys(self) -> Keys:
        """What the rows can be joined by: ids, text hashes, further columns of their table."""
        id_column = self._header.id_column
        if id_column is None:  # a store of an older version: ids 0, 1, … are row numbers
            counted = all(name == str(i) for i, name in enumerate(self.ids))
            id_column = "" if counted else "id"
        return Keys(
            ids=self.ids,
            hashes=self.hashes,
            id_column=id_column or None,
            columns=columns_of_all([part.keys() for _, part in self._parts()]),
            text_column=self._header.text_column or None,
            name=str(self.path),
        )

    @cached_property
    def hashes(self) -> Strings:
        """N text hashes, 16 hex digits each."""
        return self._strings("text_hash")

    @cached_property
    def groups(self) -> Strings | None:
        """N names of what the rows belong to (question, user), "" for none; None: not stored."""
        return None if self._header.groups_fingerprint is None else self._strings(GROUP)

    @cached_property
    def n_tokens(self) -> Array:
        """(n,) int32, number of tokens that the model read of each row."""
        return self._column("n_tokens")

    @cached_property
    def truncated(self) -> Array:
        """(n,) bool, rows whose text was longer than the model read."""
        return self._column("truncated").astype(bool)

    @cached_property
    def done(self) -> Array:
        """(n,) bool, rows whose states are stored; the states of other rows are undefined."""
        return self._column("done").astype(bool)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self._places)

    def copies(self, rows: Array | None = None) -> Array:
        """Return group numbers (n,) of all rows or ``rows``, equal for rows that belong together.

        Rows belong together if they have the same text, the same states in the deepest stored layer
        (a model may not see all of a text) or the same group, or share such a row. States that are
        the same in every row are ignored. In a store of differences, a pair and its reverse belong
        together.
        """
        numbers = np.arange(len(self)) if rows is None else self._numbers(rows)
        hashes = Strings(self.hashes.encoded[numbers])
        states = self._digests(numbers, all_rows=not hashes.known().all())
        keys: list[Sequence[Any]] = [hashes]
        if self.groups is not None:
            keys.append(taken(self.groups, numbers))
        return joined(*keys, states) if len(set(states)) > 1 else joined(*keys)

    def _digests(self, numbers: Array, *, all_rows: bool) -> list[bytes | None]:
        """Return digests of states in the deepest layer; None if no other row can be equal."""
        deepest = max(self.layers)
        size = self._part(0).block_rows(deepest)
        blocks = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        chosen = np.ones(len(numbers), dtype=bool)
        if not all_rows and blocks:
            # A pair and its reverse have the same absolute values.
            states = (self._gather(deepest, rows) for rows in blocks)
            keys = [row_keys(np.abs(part) if self.differences else part) for part in states]
            chosen = shared(np.concatenate(keys))
        result: list[bytes | None] = [None] * len(numbers)
        candidates = np.flatnonzero(chosen)
        for start in range(0, len(candidates), size):
            part = candidates[start : start + size]
            block = self._gather(deepest, numbers[part])
            digests = row_digests(block)
            if self.differences:  # a pair and its reverse are the same
                reverse = zip(digests, row_digests(-block), strict=True)
                digests = [min(a, b) if a and b else None for a, b in reverse]
            for row, digest in zip(part.tolist(), digests, strict=True):
                result[row] = digest
        return result

    @property
    def differences(self) -> bool:
        """Whether the states are differences between the two texts of each row."""
        return DIFFERENCE.items() <= self.spec.items()

    def info(self, layer: int | None = None) -> LayerInfo:
        """Return dtype, width and offset of a layer.

        Raises
        ------
        UsageError
            If the layer is not stored, or not given although several are stored.
        """
        return self._header.layers[self.choose_layer(layer)]

    def layer(self, layer: int | None = None, *, dtype: str | None = "float32") -> Array:
        """Return all states of one layer, (n, width).

        A layer of a file stored in ``dtype`` comes as a read-only memory map. Any other, and one of
        a folder, is copied block by block, so that memory holds no more than the result.
        ``dtype=None`` returns the stored numbers: for bfloat16 its bits, as uint16. ``layer`` is
        optional if only one is stored.
        """
        layer = self.choose_layer(layer)
        stored = self._header.layers[layer].dtype
        if dtype not in (None, stored, *READ_DTYPES):
            raise UsageError(
                f"States can be read as {', '.join(READ_DTYPES)}, or as {stored} as they are "
                f"stored, not as {dtype!r}."
            )
        as_stored = dtype is None or dtype == stored
        if as_stored and self._index is None:
            raw = self._part(0).raw(layer)
            if isinstance(raw, np.ndarray):
                return raw
        kind = STORE_DTYPES[stored] if as_stored else dtype
        out = np.empty((len(self), self._header.layers[layer].width), kind)
        for start, part in self._parts():
            size = part.block_rows(layer)
            for at in range(0, len(part), size):
                block = part.slice(layer, at, min(at + size, len(part)))
                widen(block, out[start + at : start + at + len(block)])
        return out

    def read(self, layer: int | None, rows: Selection) -> Array:
        """Return states of some rows, float32; ``rows`` is a slice, row numbers or a (n,) mask.

        A slice of a float32 layer within one file is a view of its memory map; anything else is a
        copy.
        """
        layer = self.choose_layer(layer)
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            number = int(np.searchsorted(self._starts, start, "right")) - 1
            if step != 1 or not start < stop <= self._starts[number + 1]:
                return self._gather(layer, np.arange(start, stop, step))
            first = int(self._starts[number])
            return single(self._part(number).slice(layer, start - first, stop - first))
        return self._gather(layer, self._numbers(rows))

    def streamed(self, layers: Sequence[int], rows: Array | None = None) -> Streamed | None:
        """Return layers side by side that are read, part by part, when rows are asked for.

        None if that is not needed: a copy of ``rows`` (numbers (n,), by default all) takes at most
        ``COPY_BYTES``, or the layer can be mapped and no cluster shares the work.
        """
        infos = [self.info(layer) for layer in layers]
        plain = len(infos) == 1 and infos[0].dtype == "float32" and infos[0].offset is not None
        # A cluster's workers would get a map as a copy.
        mapped = plain and self._index is None and rows is None and ray_tasks() is None
        n, widths = len(self) if rows is None else rows, [info.width for info in infos]
        X = Streamed([partial(self.read, layer) for layer in layers], widths, n)
        return None if mapped or 4 * X.size <= COPY_BYTES else X

    def batches(
        self,
        layer: int | None = None,
        batch_size: int = 1024,
        *,
        shuffle: bool = False,
        seed: int = 0,
    ) -> Iterator[tuple[Array, Array]]:
        """Yield row numbers (b,) and their states (b, width) float32, every row that is done once.

        Memory holds one batch, however large the layer.
        """
        layer = self.choose_layer(layer)
        if operator.index(batch_size) < 1:
            raise UsageError(f"A batch has at least one row, not {batch_size}.")
        order = np.flatnonzero(self.done) if not self.complete else np.arange(len(self))
        if shuffle:
            order = np.random.default_rng(seed).permutation(order)
        parts = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
        for rows, following in itertools.zip_longest(parts, parts[1:], fillvalue=order[:0]):
            states = self._gather(layer, rows)
            for part, _, places in self._by_part(following):
                part.prefetch(layer, places)  # the disk reads while the caller works
            yield rows, states

    def rows_intact(self) -> bool:
        """Whether ids, text hashes and groups still have the fingerprints stored with them."""
        groups = None if self.groups is None else rows_fingerprint(self.ids, self.groups)
        intact = rows_fingerprint(self.ids, self.hashes) == self.rows_fingerprint
        return intact and groups == self._header.groups_fingerprint

    def close(self) -> None:
        """Close the file; arrays read before, memory maps too, stay usable."""
        for part in (self._open or {}).values():
            part.close()
        self._open = None

    def __enter__(self) -> ActivationStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def choose_layer(self, layer: int | None) -> int:
        """Return the number of a stored layer; None stands for the only one.

        Raises UsageError if it is not stored, or several are and none is named.
        """
        stored = ", ".join(map(str, self.layers))
        if layer is None:
            if len(self.layers) > 1:
                raise UsageError(
                    f"{self.path} holds the layers {stored}; choose one with --layer (layer=)."
                )
            return self.layers[0]
        if layer not in self._header.layers:
            raise UsageError(f"{self.path} has no layer {layer}; it has {stored}.")
        return int(layer)

    def _part(self, number: int) -> Part:
        """Return an open part; one that is dropped for it closes when nothing uses it."""
        with self._opening:
            if self._open is None:
                raise StoreError(f"{self.path} is closed; open it again to read more of it.")
            if number not in self._open:
                part = Part(self._places[number])
                if self._index is not None:
                    self._index.check(number, part)
                while len(self._open) >= OPEN_PARTS:
                    self._open.pop(next(iter(self._open)))
                self._open[number] = part
            return self._open[number]

    def _parts(self) -> Iterator[tuple[int, Part]]:
        """Yield the number of each part's first row, and the part."""
        for number, start in enumerate(self._starts[:-1].tolist()):
            yield start, self._part(number)

    def _by_part(self, rows: Array) -> Iterator[tuple[Part, Array, Array]]:
        """Yield each part that holds some of ``rows``, their positions there, and in the part."""
        if len(self._starts) == 2:
            yield self._part(0), np.arange(len(rows)), rows
            return
        numbers = np.searchsorted(self._starts, rows, "right") - 1
        for number in np.unique(numbers).tolist():
            positions = np.flatnonzero(numbers == number)
            yield self._part(number), positions, rows[positions] - self._starts[number]

    def _strings(self, name: str) -> Strings:
        return joined_strings(part.strings(name) for _, part in self._parts())

    def _column(self, name: str) -> Array:
        return np.concatenate([part.column(name) for _, part in self._parts()])

    def _repeated(self, ids: Strings) -> str:
        """Return a sentence that names two parts with one id."""
        name = repeated(ids)[0]
        rows = [row for row, other in enumerate(ids) if other == name][:2]
        numbers = (np.searchsorted(self._starts, rows, "right") - 1).tolist()
        one, other = (self._places[number].name for number in numbers)
        return (
            f"{one} and {other} of {self.path} both have the id {name!r}, and ids are unique in a "
            "store; extract rows with unique ids into another folder."
        )

    def _gather(self, layer: int, rows: Array) -> Array:
        """Return states of ``rows`` in their order."""
        if len(self._starts) == 2:
            return self._part(0).gather(layer, rows)
        out = np.empty((len(rows), self._header.layers[layer].width), np.float32)
        for part, positions, places in self._by_part(rows):
            out[positions] = part.gather(layer, places)
        return out

    def _numbers(self, rows: Any) -> Array:
        rows = np.asarray(rows)
        if rows.dtype == bool and rows.shape == (len(self),):
            return np.flatnonzero(rows)
        if rows.size == 0:
            return np.zeros(0, np.int64)
        if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
            raise UsageError(
                f"Rows are a slice, a list of numbers or a mask of {len(self)} booleans, not an "
                f"array of shape {rows.shape} and dtype {rows.dtype}."
            )
        rows = rows.astype(np.int64)
        outside = rows[(rows < -len(self)) | (rows >= len(self))]
        if len(outside):
            raise UsageError(
                f"{self.path} has {len(self)} rows, numbered from 0, and no row {outside[0]}."
            )
        numbers: Array = np.where(rows < 0, rows + len(self), rows)
        return numbers
