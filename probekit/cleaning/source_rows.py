"""The rows that a store or verdicts were made from: their columns and their texts."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from probekit.activations.store import ActivationStore
from probekit.cleaning.review import plain_text
from probekit.data import Rows
from probekit.errors import DataError, StoreError, UsageError, first_few
from probekit.joins import match, other_texts
from probekit.sources import load_rows
from probekit.strings import taken
from probekit.tasks.registry import task_names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from probekit.joins import Keys
    from probekit.verdicts import Verdicts

__all__ = ["find_rows", "find_texts", "places_in", "row_texts", "store_beside", "texts_of"]


def find_rows(
    store: ActivationStore,
    source: str | None = None,
    *,
    text_column: str | None = None,
    id_column: str | None = None,
    purpose: str = "--write-data needs the rows' own columns",
) -> Rows:
    """Read the rows that a store was made from, with their own columns.

    Parameters
    ----------
    source
        File or task; by default what the store names, if that is a task or a file beside the store.
    id_column
        Column of the ids; it may exist in the labels only.
    purpose
        Why the rows are needed: the start of the error message.

    Raises
    ------
    UsageError
        If the store does not name rows that can be read.
    DataError
        If the source lacks rows of the store or has other texts.
    """
    source = source or _recorded(store, purpose)
    rows = _read(source, text_column, id_column)
    # Verdicts and audits use the store's ids, so no other column may join these rows.
    keys = replace(store.keys, columns={})
    as_extracted = "name the rows that were extracted with --rows, and their"
    _every_place(
        keys,
        rows.keys,
        *(source, str(store.path)),
        ids=f"{as_extracted} id with --id-column",
        texts=f"{as_extracted} text with --text-column",
    )
    return rows


def _read(source: str, text_column: str | None, id_column: str | None) -> Rows:
    rows = load_rows(source, text_column=text_column)
    if id_column is None or id_column not in rows.columns:
        return rows
    return Rows(rows.columns, text_column=text_column, id_column=id_column, source=rows.source)


def _recorded(store: ActivationStore, purpose: str) -> str:
    """The source that the store names: a task, or a file beside the store.

    A store may come from a stranger, so no other path in it is followed.
    """
    source = store.source
    if source is not None and source.partition("@")[0] in task_names():
        return source
    if source is not None and not Path(source).is_absolute():
        folder = Path(os.path.realpath(store.path)).parent
        with contextlib.suppress(ValueError, OSError):  # a name that no file can have
            path = Path(os.path.realpath(folder / source))
            if path.is_relative_to(folder) and path.exists():
                return str(path)
    recorded = (
        "does not record the source of its rows"
        if source is None
        else f"names {source!r}, which is neither a task nor a file beside it"
    )
    raise UsageError(f"{purpose}, and {store.path} {recorded}; name them with --rows.")


def find_texts(
    verdicts: Verdicts,
    path: Path,
    *,
    acts: Path | None = None,
    source: str | None = None,
    text_column: str | None = None,
    id_column: str | None = None,
) -> list[str]:
    """The text of each verdict's row: from ``source``, ``acts`` or the store beside ``path``."""
    acts = acts or (None if source else store_beside(verdicts, path))
    columns = {"text_column": text_column, "id_column": id_column}
    if acts is None:
        return row_texts(verdicts, None, source, **columns)
    with ActivationStore(acts) as store:
        return row_texts(verdicts, store, source, **columns)


def row_texts(
    verdicts: Verdicts,
    store: ActivationStore | None,
    source: str | None = None,
    *,
    text_column: str | None = None,
    id_column: str | None = None,
) -> list[str]:
    """The text of each verdict's row, from ``source`` or the rows that the store names.

    Raises
    ------
    UsageError
        If neither is given; verdicts themselves hold no texts.
    """
    if source is not None:
        return texts_of(verdicts, _read(source, text_column, id_column))
    if store is None:
        raise UsageError(
            "Verdicts hold no texts; name the rows with --rows, or the store that they were made "
            "from with --acts, or do without with --no-text."
        )
    columns = {"text_column": text_column, "id_column": id_column}
    return texts_of(verdicts, find_rows(store, purpose="Verdicts hold no texts", **columns))


def texts_of(verdicts: Verdicts, rows: Rows) -> list[str]:
    """The rows' texts in the order of the verdicts."""
    texts = [""] * len(verdicts)
    for content, verdict in zip(rows.contents(), verdicts.join(rows), strict=True):
        if verdict is not None:
            texts[verdict] = plain_text(content)
    return texts


def store_beside(verdicts: Verdicts, path: Path) -> Path | None:
    """The store that the verdicts name, beside them or here, if its fingerprint is the same."""
    recorded = verdicts.provenance.get("store", {})
    name = Path(str(recorded.get("name", ""))).name
    for folder in (Path(os.path.realpath(path)).parent, Path.cwd()):
        candidate = folder / name
        if not name or not candidate.exists():
            continue
        try:
            with ActivationStore(candidate) as store:
                if store.fingerprint == recorded.get("fingerprint"):
                    return candidate
        except StoreError:
            continue
    return None


def places_in(store: ActivationStore, verdicts: Verdicts) -> NDArray[np.int64]:
    """Row numbers (n,) of all verdicts in the store.

    Raises
    ------
    DataError
        If the store lacks rows of the verdicts or has other texts.
    """
    repair = "name the store that they were made from with --acts"
    return _every_place(
        verdicts.keys, store.keys, str(store.path), "the verdicts", ids=repair, texts=repair
    )


def _every_place(
    wanted: Keys, keys: Keys, holder: str, wanted_by: str, *, ids: str, texts: str
) -> NDArray[np.int64]:
    """The row number in ``keys`` of each wanted row; ``ids`` and ``texts`` say how to repair.

    Raises
    ------
    DataError
        If rows are missing or have other texts.
    """
    place, n = match(wanted, keys).place, len(wanted.ids)
    missing = taken(wanted.ids, np.flatnonzero(place < 0))
    if len(missing):
        raise DataError(
            f"{holder} lacks {len(missing)} of {n} rows of {wanted_by} (ids {first_few(missing)}); "
            f"{ids}."
        )
    if other := other_texts(wanted, keys, place):
        raise DataError(
            f"{holder} has another text than {wanted_by} in {len(other)} of {n} rows (ids "
            f"{first_few(other)}); {texts}."
        )
    return place
