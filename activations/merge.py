"""Merge stores: shares of the same rows, or different rows one after the other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from probekit.activations.layout import Array
from probekit.activations.store import ActivationStore
from probekit.activations.writer import StoreWriter
from probekit.errors import (
    NotAStoreError,
    StaleStoreError,
    StoreError,
    UsageError,
    first_few,
    repeated,
)
from probekit.files import refuse_reads
from probekit.joins import Keys
from probekit.safe import regular_file

__all__ = ["copy_rows", "merge"]

CHUNK = 4096


def merge(parts: Sequence[str | Path], output: str | Path, *, overwrite: bool = False) -> int:
    """Merge several stores of the same spec into one; returns its number of rows.

    Stores of the same rows, each with another share done (by processes that wrote to their own
    disks), become one store of these rows. Complete stores of different rows become one with the
    rows of the first, then of the second, and so on.

    Raises
    ------
    StaleStoreError
        If the parts differ in model, spec or groups.
    StoreError
        If rows are done in none of the parts, or are in two.
    """
    if len(parts) < 2:
        raise UsageError("Merging takes two stores or more.")
    paths = [regular_file(part, error=NotAStoreError) for part in parts]
    names = {os.path.realpath(path) for path in paths}
    if len(names) < len(paths):
        raise UsageError("A store is given twice among those to merge.")
    refuse_reads([Path(output)], paths, overwrite=overwrite)
    with ExitStack() as stack:
        stores = [
            stack.enter_context(ActivationStore(path, allow_incomplete=True)) for path in paths
        ]
        for store in stores[1:]:
            _check_spec(stores[0], store)
        same = len({store.rows_fingerprint for store in stores}) == 1
        ids, hashes, positions = _shares(stores) if same else _one_after_the_other(stores)
        first = stores[0]
        writer = stack.enter_context(
            StoreWriter.open(
                output,
                spec=first.spec,
                ids=ids,
                hashes=hashes,
                widths={layer: first.info(layer).width for layer in first.layers},
                store_dtype=first.info(first.layers[0]).dtype,
                source=first.source if same else None,
                keys=_keys(stores, ids, hashes, same=same),
                groups=_groups(stores, same=same),
                overwrite=overwrite,
            )
        )
        try:
            for store, (rows, targets) in zip(stores, positions, strict=True):
                copy_rows([store], rows, targets, writer)
        except KeyboardInterrupt as error:
            error.add_note(
                f"{int(writer.done.sum()):,} of {len(ids):,} rows are in {output}; the same "
                "command resumes from there."
            )
            raise
        writer.finish()
    return len(ids)


def _keys(
    stores: Sequence[ActivationStore], ids: list[str], hashes: list[str], *, same: bool
) -> Keys:
    """Return what the merged rows can be joined by: what all stores have."""
    first = stores[0].keys
    columns: dict[str, Sequence[Any]] = dict(first.columns)
    if not same:
        parts = [store.keys.columns for store in stores]
        shared = [name for name in first.columns if all(name in part for part in parts)]
        columns = {name: [v for part in parts for v in part[name]] for name in shared}
    return replace(first, ids=ids, hashes=hashes, columns=columns)


def _groups(stores: Sequence[ActivationStore], *, same: bool) -> list[str] | None:
    """Return the groups of the merged rows; a group's name means the same in all stores.

    Raises
    ------
    StaleStoreError
        If some stores have groups and others have none, or shares of the same rows differ in them.
    """
    first, parts = stores[0], [store.groups for store in stores]
    for store, groups in zip(stores, parts, strict=True):
        if (groups is None) != (first.groups is None) or (same and groups != first.groups):
            raise StaleStoreError(
                f"{store.path} differs from {first.path} in the groups of its rows; extract both "
                "with the same --group-column, or both without."
            )
    if same or first.groups is None:
        return first.groups
    return [name for groups in parts for name in groups or ()]


def _check_spec(first: ActivationStore, other: ActivationStore) -> None:
    different = [key for key in first.spec if first.spec[key] != other.spec.get(key)]
    if different or first.spec.keys() != other.spec.keys():
        raise StaleStoreError(
            f"{other.path} differs from {first.path} in {', '.join(different) or 'its spec'}; only "
            "stores of one model and one spec can be merged."
        )


Place = tuple[Array, Array]


def _shares(stores: Sequence[ActivationStore]) -> tuple[list[str], list[str], list[Place]]:
    """Return the rows to take from each store: those done in it and in none before it."""
    first = stores[0]
    left = np.ones(len(first), dtype=bool)
    positions = []
    for store in stores:
        rows = np.flatnonzero(store.done & left)
        left[rows] = False
        positions.append((rows, rows))
    if left.any():
        missing = [first.ids[i] for i in np.flatnonzero(left)[:4]]
        raise StoreError(
            f"{int(left.sum()):,} of {len(first):,} rows are done in none of the stores (ids "
            f"{first_few(missing)}); run the missing extraction again, then merge."
        )
    return first.ids, first.hashes, positions


def _one_after_the_other(
    stores: Sequence[ActivationStore],
) -> tuple[list[str], list[str], list[Place]]:
    ids: list[str] = []
    hashes: list[str] = []
    positions: list[Place] = []
    if numbered := [str(store.path) for store in stores if store.keys.id_column is None]:
        raise StoreError(
            f"The rows of {' and '.join(numbered)} have numbers and no ids, and row 0 of one "
            "is not row 0 of another; extract from rows with a column id (or name one with "
            "--id-column), then merge."
        )
    for store in stores:
        if not store.complete:
            raise StoreError(
                f"{store.path} is not complete and its rows are not those of {stores[0].path}; "
                "finish its extraction first."
            )
        rows = np.arange(len(store))
        positions.append((rows, rows + len(ids)))
        ids += store.ids
        hashes += store.hashes
    if twice := repeated(ids):
        raise StoreError(
            f"{len(twice)} ids are in two of the stores (ids {first_few(twice)}); merge stores "
            "whose ids differ."
        )
    return ids, hashes, positions


def copy_rows(
    stores: Sequence[ActivationStore], rows: Array, targets: Array, writer: StoreWriter
) -> None:
    """Copy rows of stores, which hold different layers of the same rows, to rows of ``writer``."""
    n_tokens, truncated = stores[0].n_tokens, stores[0].truncated
    places = [(layer, store) for store in stores for layer in store.layers]
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        states = {}
        for layer, store in places:
            block, dtype = store.read(layer, part), store.info(layer).dtype
            if dtype == "bfloat16":  # float32 holds its bits in the upper half
                block = (np.ascontiguousarray(block).view(np.uint32) >> 16).astype(np.uint16)
                states[layer] = block
            else:
                states[layer] = block.astype(dtype)
        writer.write(targets[start : start + CHUNK], states, n_tokens[part], truncated[part])
        writer.flush()
