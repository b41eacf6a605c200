"""Rows by name: a task, a local file or folder, or a data set on the Hugging Face hub."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from probekit.data import Rows
from probekit.errors import UsageError
from probekit.files import SUFFIXES, read_columns, suffix_of

__all__ = ["load_rows"]

_HUB = re.compile(r"hf:(?P<name>[^:@\s]+)(:(?P<config>[^:@\s]+))?(@(?P<split>\S+))?")


class _Columns(TypedDict):
    text_column: str | None
    id_column: str | None


def load_rows(
    source: str | Path, *, text_column: str | None = None, id_column: str | None = None
) -> Rows:
    """Read rows by the name that a user gives on the command line.

    Parameters
    ----------
    source
        A registered task (``docstrings`` or ``docstrings@student``), a path (JSONL, JSON, CSV, TSV,
        Parquet, Arrow or a saved data set), or ``hf:org/name[:config]@split``. What exists as a
        path is read as one. A table with ``chosen`` and ``rejected`` becomes pairs with a label, as
        :func:`probekit.tasks.reward.preference_rows` deals them.
    text_column, id_column
        Names of these columns where they are others.

    Raises
    ------
    DataError
        Where nothing of that name can be read.
    UsageError
        Where a name is no task (the nearest ones are named) or ``hf:`` is not followed by a data
        set and its split.
    """
    columns = _Columns(text_column=text_column, id_column=id_column)
    if isinstance(source, Path) or Path(source).exists():
        return _load_file(Path(source), columns)
    if source.startswith("hf:"):
        return _load_hub(source, columns)
    if suffix_of(source) in SUFFIXES or "/" in source or source.startswith((".", "~")):
        return _load_file(Path(source).expanduser(), columns)
    return _load_task(source, columns)


def _load_file(path: Path, columns: _Columns) -> Rows:
    return _rows(read_columns(path), str(path), columns)


def _rows(found: Mapping[str, Sequence[Any]], source: str, columns: _Columns) -> Rows:
    """Rows of columns; preference pairs become first and second text with a label."""
    from probekit.tasks.reward import are_preferences, preference_rows

    if columns["text_column"] is None and are_preferences(found):
        return preference_rows(found, source=source, id_column=columns["id_column"])
    return Rows(found, source=source, **columns)


def _load_task(source: str, columns: _Columns) -> Rows:
    # A task may read packages and files of its own; nobody else should wait for them.
    from probekit.tasks.registry import load_task_rows, task_names

    names = task_names()
    name = source.partition("@")[0]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}" if near else f"tasks are {', '.join(names)}"
        raise UsageError(
            f"{source!r} is neither a file here nor a task; {hint}? "
            "(Data sets on the hub are written hf:org/name@split.)"
        )
    rows = load_task_rows(source)
    if any(columns.values()):
        return Rows(rows.columns, source=rows.source, **columns)
    return rows


def _load_hub(source: str, columns: _Columns) -> Rows:
    matched = _HUB.fullmatch(source)
    if matched is None or matched["split"] is None:
        raise UsageError(
            f"{source!r} does not name a split of a data set on the hub; write "
            "hf:org/name@split or hf:org/name:config@split, e.g. hf:stanfordnlp/sst2@train."
        )
    from probekit.tasks.hub import read_hub

    found = read_hub(matched["name"], matched["config"], matched["split"])
    return _rows(found, source, columns)
