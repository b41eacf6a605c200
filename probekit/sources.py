"""Tables and rows by name: a task, a local file or folder, or a data set on the hub."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TypedDict

from probekit.data import Rows
from probekit.errors import DataError, UsageError
from probekit.safe import expand, regular_file
from probekit.tables import SUFFIXES, Table, read_file, suffix_of

__all__ = ["check_source", "load_rows", "read_table"]

_HUB = re.compile(r"hf:(?P<name>[^:@\s]+)(:(?P<config>[^:@\s]+))?(@(?P<split>\S+))?")

LONGEST_NAME = 4096


class _Columns(TypedDict):
    text_column: str | None
    id_column: str | None


def load_rows(
    source: str | Path | Table, *, text_column: str | None = None, id_column: str | None = None
) -> Rows:
    """Read rows from a source that a user names on the command line.

    Parameters
    ----------
    source
        A registered task (``docstrings``, ``docstrings@student``, or the variant
        ``docstrings:numpy,scipy@student``), a path (JSONL, JSON, CSV, TSV,
        Parquet, Arrow or a saved data set), or ``hf:org/name[:config]@split``; a path if one of
        that name exists. A table with ``chosen`` and ``rejected`` becomes pairs with a label
        (:func:`probekit.tasks.reward.preference_rows`). Or a table that has been read.
    text_column, id_column
        Names of these columns, if they are not the usual ones.

    Raises
    ------
    DataError
        If it cannot be read.
    UsageError
        If a name is neither a file nor a task (the nearest tasks are named), or ``hf:`` is not
        followed by a data set and its split.
    """
    columns = _Columns(text_column=text_column, id_column=id_column)
    if isinstance(source, Table):
        return _rows(source, columns)
    if _is_task(source):
        # Imported late: a task may import packages that other sources do not need.
        from probekit.tasks.registry import load_task_rows

        rows = load_task_rows(str(source))
        if not any(columns.values()):
            return rows
        named = Rows(rows.columns, source=rows.source, **columns)
        named.groups = rows.groups
        return named
    return _rows(read_table(source), columns)


def read_table(source: str | Path) -> Table:
    """Read the table of rows or labels that a user names.

    Parameters
    ----------
    source
        As in :func:`load_rows`. A task has its own columns, ``id`` and ``text_hash``.

    Raises
    ------
    DataError
        If it cannot be read.
    UsageError
        If a name is neither a task nor a file.
    """
    if _is_task(source):
        from probekit.tasks.registry import load_task_rows

        rows = load_task_rows(str(source))
        columns = {**rows.columns, "id": rows.ids, "text_hash": rows.hashes}
        return Table(columns, rows.source, note=rows.note)
    if isinstance(source, str) and source.startswith("hf:") and not Path(source).exists():
        return _read_hub(source)
    return read_file(_path(source))


def check_source(source: str | Path) -> None:
    """Check that a source exists, without reading it.

    Raises
    ------
    DataError, UsageError
        As :func:`read_table`; the hub is not asked.
    """
    if _is_task(source):
        from probekit.tasks.registry import get_task

        name, _, split = str(source).partition("@")
        if split:
            get_task(name).check_split(split)
        return
    path = _path(source)
    if isinstance(source, str) and source.startswith("hf:") and not path.exists():
        return
    if not path.is_dir() and not regular_file(path).stat().st_size:
        raise DataError(f"{source} is empty.")


def _path(source: str | Path) -> Path:
    """The file or folder, with ``~`` expanded unless it exists as it is."""
    path = Path(source)
    try:
        return path if path.exists() else expand(path)
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}.") from None


def _is_task(source: str | Path) -> bool:
    """Whether a name is that of a task, not a path that exists or looks like one."""
    if isinstance(source, Path) or source.startswith("hf:"):
        return False
    if "\0" in source or len(source) > LONGEST_NAME:
        raise UsageError(f"{source[:60]!r} is not the name of a file or task.")
    if suffix_of(source) in SUFFIXES or "/" in source or source.startswith((".", "~")):
        return False
    if Path(source).exists():
        return False
    from probekit.tasks.registry import task_names

    names = task_names()
    name = source.partition("@")[0].partition(":")[0]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}" if near else f"tasks are {', '.join(names)}"
        raise UsageError(
            f"{source!r} is neither a file here nor a task; {hint}? "
            "(Data sets on the hub are written hf:org/name@split.)"
        )
    return True


def _rows(table: Table, columns: _Columns) -> Rows:
    """Rows of a table; preference pairs become first and second text with a label."""
    from probekit.tasks.reward import are_preferences, preference_rows

    if columns["text_column"] is None and are_preferences(table.columns):
        return preference_rows(
            table.columns, source=table.source, id_column=columns["id_column"], note=table.note
        )
    return Rows(table.columns, source=table.source, note=table.note, **columns)


def _read_hub(source: str) -> Table:
    matched = _HUB.fullmatch(source)
    if matched is None or matched["split"] is None:
        raise UsageError(
            f"{source!r} does not name a split of a data set on the hub; write "
            "hf:org/name@split or hf:org/name:config@split, e.g. hf:stanfordnlp/sst2@train."
        )
    from probekit.tasks.hub import read_hub

    table = read_hub(matched["name"], matched["config"], matched["split"])
    return Table(dict(table.columns), source, class_names=table.class_names)
