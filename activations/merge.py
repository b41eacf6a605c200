"""Merge stores of different rows, or the parts of a folder, into one file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from probekit.activations.create import Plan
from probekit.activations.layout import STORE_DTYPES
from probekit.activations.spec import differing
from probekit.activations.store import ActivationStore, columns_of_all
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
from probekit.safe import expand

CHUNK = 4096


def merge(parts: Sequence[str | Path], output: str | Path, *, overwrite: bool = False) -> int:
    """Merge complete stores of one spec into one file; returns its number of rows.

    It has the rows of the first, then of the second, and so on. A folder of parts is one store.

    Raises StaleStoreError if the stores differ in model, spec or groups, and StoreError if one is
    incomplete or an id is in two of them.
    """
    paths = [expand(part, error=NotAStoreError) for part in parts]
    if len(paths) < 2 and not all(path.is_dir() for path in paths):
        raise UsageError("Merging takes a folder of parts, or two stores or more.")
    names = {os.path.realpath(path) for path in paths}
    if len(names) < len(paths):
        raise UsageError("A store is given twice among those to merge.")
    refuse_reads([Path(output)], paths, overwrite=overwrite)
    with ExitStack() as stack:
        stores = [stack.enter_context(ActivationStore(path)) for path in paths]
        first = stores[0]
        for store in stores[1:]:
            if keys := differing(first.spec, store.spec):
                raise StaleStoreError(
                    f"{store.path} differs from {first.path} in {', '.join(keys)}; only "
                    "stores of one model and one spec can be merged."
                )
        ids, hashes = _rows(stores)
        columns = columns_of_all([store.keys.columns for store in stores])
        writer = stack.enter_context(
            StoreWriter.open(
                output,
                Plan(
                    first.spec,
                    ids,
                    hashes,
                    widths={layer: first.info(layer).width for layer in first.layers},
                    store_dtype=first.info(first.layers[0]).dtype,
                    source=first.source if len(stores) == 1 else None,
                    keys=replace(first.keys, ids=ids, hashes=hashes, columns=columns),
                    groups=_groups(stores),
                ),
                overwrite=overwrite,
            )
        )
        try:
            start = 0
            for store in stores:
                copy_rows([store], start, writer)
                start += len(store)
        except KeyboardInterrupt as error:
            error.add_note(
                f"{int(writer.done.sum()):,} of {len(ids):,} rows are in {output}; the same "
                "command resumes from there."
            )
            raise
        writer.finish()
    return len(ids)


def _groups(stores: Sequence[ActivationStore]) -> list[str] | None:
    """Return the groups of the merged rows; a group's name means the same in all stores.

    Raises StaleStoreError if some stores have groups and others have none.
    """
    first = stores[0]
    for store in stores:
        if (store.groups is None) != (first.groups is None):
            raise StaleStoreError(
                f"{store.path} differs from {first.path} in the groups of its rows; extract both "
                "with the same --group-column, or both without."
            )
    return None if first.groups is None else [g for store in stores for g in store.groups or ()]


def _rows(stores: Sequence[ActivationStore]) -> tuple[list[str], list[str]]:
    """Return ids and text hashes of all stores, one after the other."""
    numbered = [str(store.path) for store in stores if store.keys.id_column is None]
    if numbered and len(stores) > 1:
        raise StoreError(
            f"The rows of {' and '.join(numbered)} have numbers and no ids, and row 0 of one "
            "is not row 0 of another; extract from rows with a column id (or name one with "
            "--id-column), then merge."
        )
    ids = [name for store in stores for name in store.ids]
    if twice := repeated(ids):
        raise StoreError(
            f"{len(twice)} ids are in two of the stores (ids {first_few(twice)}); merge stores "
            "whose ids differ."
        )
    return ids, [text_hash for store in stores for text_hash in store.hashes]


def copy_rows(stores: Sequence[ActivationStore], first: int, writer: StoreWriter) -> None:
    """Copy stores, which hold layers of the same rows, to the rows of ``writer`` from ``first``."""
    n_tokens, truncated = stores[0].n_tokens, stores[0].truncated
    places = {layer: store for store in stores for layer in store.layers}
    n = len(stores[0])
    for start in range(0, n, CHUNK):
        rows = np.arange(start, min(start + CHUNK, n))
        states = {}
        for layer, store in places.items():
            block, dtype = store.read(layer, rows), store.info(layer).dtype
            if dtype == "bfloat16":  # float32 holds its bits in the upper half
                block = np.ascontiguousarray(block).view(np.uint32) >> 16
            states[layer] = block.astype(STORE_DTYPES[dtype])
        writer.write(first + rows, states, n_tokens[rows], truncated[rows])
        writer.flush()
