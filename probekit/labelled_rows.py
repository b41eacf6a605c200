"""A table with texts and noisy labels as rows and weak labels, without those that lack either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from probekit.annotators import Method, combine, has_vote_rows
from probekit.columns import Columns, guess_columns
from probekit.data import Rows
from probekit.errors import DataError
from probekit.joins import find_ids
from probekit.label_columns import READ
from probekit.labels import WeakLabels, load_labels
from probekit.sources import read_table
from probekit.tables import Table, dataset_table, frame_columns, record_columns
from probekit.tasks.reward import are_preferences, preference_columns

__all__ = ["LabelledRows", "as_table", "asked_label", "labelled_rows"]


class LabelledRows(NamedTuple):
    """Rows that have a text and a label, and what was left out."""

    rows: Rows
    labels: WeakLabels
    """Of these rows, in their order."""
    columns: Columns
    n_textless: int
    """Rows left out for want of a text."""
    n_unlabelled: int
    """Rows left out for want of a label."""
    notes: tuple[str, ...]
    """What was left out or read in an unusual way, in sentences."""


def as_table(data: Any) -> Table:
    """The data as named columns, with what the file says about them."""
    if isinstance(data, Table):
        return data
    if isinstance(data, str | Path):
        return read_table(data)
    if isinstance(data, Rows):
        return Table(data.columns, data.source, note=data.note)
    if hasattr(data, "iloc"):
        return Table(frame_columns(data), "the DataFrame")
    if hasattr(data, "features") and hasattr(data, "data"):
        return dataset_table(data)
    if isinstance(data, Mapping):
        return Table(dict(data), "the columns")
    if isinstance(data, Sequence) and all(isinstance(row, Mapping) for row in data):
        return Table(record_columns(data), "the rows")
    raise DataError(
        "Data to clean are a path, a DataFrame, a data set, Rows or a list of dicts, got a "
        f"{type(data).__name__}."
    )


def labelled_rows(
    table: Table,
    text: str | None,
    label: str | None,
    id_column: str | None,
    annotators: Method | None,
) -> LabelledRows:
    """Find the columns, and leave out rows without a text or a label."""
    if has_vote_rows(table.columns, id_column):
        text, label = guess_columns(table.columns, text=text, label=label, source=table.source)
    combined = combine(table, annotators, id_column=id_column, label_column=label, text_column=text)
    if combined is not None:
        table, label = combined, "probs"
    notes = [table.note] if table.note else []
    if text is None and are_preferences(table.columns):
        pairs = preference_columns(table.columns, source=table.source, id_column=id_column)
        table, id_column, label = replace(table, columns=pairs), "id", "label"
        text = "text"
    columns = guess_columns(table.columns, text=text, label=label, source=table.source)
    texts = list(table.columns[columns.text][:])
    empty = [i for i, value in enumerate(texts) if value is None or value == "" or value == []]
    if empty:
        notes.append(_left_out(len(empty), "text"))
        table = _select(table, sorted(set(range(len(texts))) - set(empty)), id_column)
    asked = asked_label(columns.label)
    keys: dict[str, Any] = {"id_column": id_column, "text_column": columns.text}
    labels = load_labels(table, label_column=asked, **keys)
    unlabelled = set(labels.missing)
    if unlabelled:
        notes.append(_left_out(len(unlabelled), "label"))
        ids = find_ids(table.columns, id_column=id_column, source=table.source).ids
        positions = [i for i, row_id in enumerate(ids) if row_id not in unlabelled]
        table = _select(table, positions, id_column)
        labels = load_labels(table, label_column=asked, **keys)
    rows = Rows(table.columns, text_column=columns.text, id_column=id_column, source=table.source)
    notes = list(dict.fromkeys((*notes, *labels.notes)))
    return LabelledRows(rows, labels, columns, len(empty), len(unlabelled), tuple(notes))


def _left_out(n_rows: int, what: str) -> str:
    if n_rows == 1:
        return f"1 row has no {what} and is left out."
    return f"{n_rows:,} rows have no {what} and are left out."


def asked_label(label: str) -> str | None:
    """None for a column that is found by itself, with what stands beside it."""
    return None if label in READ else label


def _select(table: Table, positions: Sequence[int], id_column: str | None) -> Table:
    """These rows of a table; without ids they are numbered as in the file."""
    columns = {name: list(values[:]) for name, values in table.columns.items()}
    chosen = {name: [values[i] for i in positions] for name, values in columns.items()}
    if id_column is None and not any(name.strip().casefold() == "id" for name in chosen):
        chosen = {"id": [str(i) for i in positions], **chosen}
    return replace(table, columns=chosen)
