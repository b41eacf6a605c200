"""Rows of text in a fixed order, each with an id and a hash of its content.

The content of a row is a text, a pair of texts or chat messages, normalised on reading.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Literal, TypeAlias

from probekit.errors import DataError, first_few, repeated
from probekit.joins import Keys, find_ids, key_text
from probekit.safe import load_json, repaired
from probekit.tables import dataset_table, frame_columns, read_file, record_columns

__all__ = [
    "HASH",
    "Content",
    "Kind",
    "Rows",
    "holds_messages",
    "non_text_parts",
    "normalised",
    "rows_fingerprint",
    "text_hash",
    "without_none",
]

# A hash of 16 digits, or of digits and one e, is a number to a spreadsheet; with this it is not.
HASH = "hash:"

Messages: TypeAlias = list[dict[str, Any]]
Content: TypeAlias = "str | tuple[str, str] | Messages"
Kind: TypeAlias = Literal["text", "pair", "messages"]

UNIT_SEPARATOR = "\x1f"
# Types of a text part: in chat completions, in OpenAI's responses, without a type.
TEXT_PARTS = ("text", "input_text", "output_text", None)
# No conversation is longer; Python's parser needs about a hundred bytes per character.
LONGEST_LITERAL = 1 << 22
CHUNK = 8192


def text_hash(content: Content) -> str:
    """Hash a row's content, before any template: 16 hex digits of SHA-256 (docs/format.md).

    Keys of a message whose value is None are left out: Arrow fills missing keys with None, and the
    same row must have one hash in JSONL and in Parquet.
    """
    if isinstance(content, str):
        text = content
    elif isinstance(content, tuple):
        text = UNIT_SEPARATOR.join(content)
    else:
        text = json.dumps(
            without_none(content), sort_keys=True, ensure_ascii=False, separators=(",", ":")
        )
    return hashlib.sha256(repaired(text).encode()).hexdigest()[:16]


def without_none(value: Any) -> Any:
    """Leave out keys whose value is None: Arrow adds missing ones, and templates test for them."""
    if isinstance(value, dict):
        return {k: without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [without_none(v) for v in value]
    return value


def holds_messages(value: Any) -> bool:
    """Whether a value is a list of chat messages, or the text of such a list."""
    listed = _listed(value)
    return listed is not None and (
        not isinstance(value, str)
        or (bool(listed) and all(isinstance(m, Mapping) and "role" in m for m in listed))
    )


def normalised(content: Any, kind: Kind) -> Content | None:
    """The content as it is hashed and tokenised; None if it is not of the kind.

    Lone surrogates become U+FFFD; messages given as text are parsed, and the text parts of a
    message are joined.
    """
    if kind == "text":
        return repaired(content) if isinstance(content, str) else None
    if kind == "pair":
        if not all(isinstance(part, str) for part in content):
            return None
        return repaired(content[0]), repaired(content[1])
    listed = _listed(content)
    if listed is None:
        return None
    messages = [_message(message) for message in listed]
    complete = [message for message in messages if message is not None]
    return complete if len(complete) == len(messages) else None


def non_text_parts(content: Any) -> list[str]:
    """Types of the parts of messages that are not text: images, sound, files."""
    return [
        str(part.get("type") or "of no type") if isinstance(part, Mapping) else type(part).__name__
        for message in _listed(content) or []
        if isinstance(message, Mapping)
        for part in _listed(message.get("content"), parse=False) or []
        if _part_text(part) is None
    ]


def _listed(value: Any, *, parse: bool = True) -> list[Any] | None:
    """A list, tuple or array as a list, or the list that a text represents; else None."""
    if isinstance(value, list):
        return value
    if isinstance(value, str):
        return _parsed(value) if parse else None
    if isinstance(value, tuple):
        return list(value)
    if hasattr(value, "tolist"):
        values = value.tolist()
        return values if isinstance(values, list) else None
    return None


def _parsed(text: str) -> list[Any] | None:
    """The list that a text represents, in JSON or as Python prints it (as in CSV from pandas)."""
    if not text.lstrip().startswith("["):
        return None
    try:
        value = load_json(text, "messages")
    except DataError:
        if len(text) > LONGEST_LITERAL:
            return None
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return None
    return value if isinstance(value, list) else None


def _message(message: Any) -> dict[str, Any] | None:
    """A message with its content as text; None if it is not a message of text."""
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        return None
    content = message["content"]
    if content is not None and not isinstance(content, str):
        parts = [_part_text(part) for part in _listed(content, parse=False) or [None]]
        texts = [text for text in parts if text is not None]
        if len(texts) < len(parts):
            return None
        content = "".join(texts)
    normalised_message: dict[str, Any] = _repaired({**message, "content": content})
    return normalised_message


def _part_text(part: Any) -> str | None:
    """Text of a content part; None if it is another kind of part."""
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type") in TEXT_PARTS:
        text = part.get("text")
        return text if isinstance(text, str) else None
    return None


def _repaired(value: Any) -> Any:
    if isinstance(value, str):
        return repaired(value)
    if isinstance(value, Mapping):
        return {_repaired(key): _repaired(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_repaired(each) for each in value]
    return value


def rows_fingerprint(ids: Sequence[str], hashes: Sequence[str]) -> str:
    """Fingerprint ids and text hashes in their order: 16 hex digits of SHA-256."""
    digest = hashlib.sha256()
    for start in range(0, len(ids), CHUNK):
        pairs = zip(ids[start : start + CHUNK], hashes[start : start + CHUNK], strict=True)
        digest.update("".join(f"{i}\x1f{h}\x1e" for i, h in pairs).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


class Rows:
    """Rows of text in a fixed order.

    Parameters
    ----------
    columns
        Name to sequence; all of one length n. The text is in ``text``, in ``text`` and
        ``text_pair``, or in ``messages`` (chat messages); ``id``, in any letter case, is optional
        (else the row number).
    text_column, id_column
        Other names for these columns; a text column of lists is read as messages.
    source
        Origin of the rows, for messages and provenance.
    note
        A sentence for the user about what reading left out.

    Attributes
    ----------
    ids, hashes
        n strings each.
    kind
        ``text``, ``pair`` or ``messages``.
    groups
        n names of the group of each row (:meth:`grouped`), or None.

    Raises
    ------
    DataError
        If a column is missing, an id occurs twice, or a text is empty or not text.
    """

    def __init__(
        self,
        columns: Mapping[str, Sequence[Any]],
        *,
        text_column: str | None = None,
        id_column: str | None = None,
        source: str = "rows",
        note: str = "",
    ) -> None:
        self.columns = dict(columns)
        self.source, self.note = source, note
        lengths = {name: len(values) for name, values in self.columns.items()}
        self._length = next(iter(lengths.values()), 0)
        if len(set(lengths.values())) > 1:
            raise DataError(f"{source} has columns of different lengths: {lengths}.")
        if self._length == 0:
            raise DataError(f"{source} has no rows.")
        self.kind, self._text_column = self._find_text(text_column)
        self._as_read = self.kind != "messages"  # until a text has to be normalised
        keys = find_ids(self.columns, id_column=id_column, source=source)
        self.ids: list[str] = list(keys.ids)
        self._id_column = keys.id_column
        if len(set(self.ids)) != len(self.ids):
            twice = repeated(self.ids)
            raise DataError(
                f"{source} has {len(twice)} ids more than once ({first_few(twice)}); make ids "
                "unique."
            )
        self.hashes = self._check_and_hash()
        self.groups: list[str] | None = None

    @classmethod
    def from_any(cls, data: Any, **options: Any) -> Rows:
        """Take a path, Rows, data set, DataFrame, mapping of columns, list of dicts or of texts."""
        if isinstance(data, Rows):
            return data
        if isinstance(data, str | Path):
            table = read_file(data)
            return cls(table.columns, **{"source": str(data), "note": table.note, **options})
        if isinstance(data, Mapping):
            return cls(data, **options)
        if hasattr(data, "iloc"):
            return cls(frame_columns(data), **options)
        if hasattr(data, "data") and hasattr(data, "features"):
            return cls(dataset_table(data).columns, **options)
        try:
            listed = list(data)
        except TypeError:
            raise DataError(
                "Rows are a path, a data set, a DataFrame or a list of texts or of mappings, got a "
                f"{type(data).__name__}."
            ) from None
        if all(isinstance(row, str) for row in listed):
            return cls({"text": listed}, **options)
        if not all(isinstance(row, Mapping) for row in listed):
            raise DataError("Rows must be strings or mappings with a column 'text' or 'messages'.")
        return cls(record_columns(listed), **options)

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        """Show source, kind and columns instead of every row."""
        columns = first_few(self.columns, 8)
        return f"Rows({len(self):,} of {self.source}, {self.kind}, columns {columns})"

    @property
    def fingerprint(self) -> str:
        """Fingerprint of ids and text hashes in order."""
        return rows_fingerprint(self.ids, self.hashes)

    @property
    def keys(self) -> Keys:
        """What the rows can be joined by."""
        numbers = self._id_column is None
        return Keys(
            ids=self.ids,
            hashes=self.hashes,
            id_column=self._id_column,
            counted=numbers and "id" not in self.columns,
            columns={k: v for k, v in self.columns.items() if not (numbers and k == "id")},
            text_column=self._text_column,
            name=self.source,
        )

    def contents(self, start: int = 0, stop: int | None = None) -> list[Content]:
        """Contents of rows ``start`` to ``stop``: strings, pairs of strings or messages."""
        contents = self._raw(start, stop)
        if self._as_read:
            return contents
        return [each for raw in contents if (each := normalised(raw, self.kind)) is not None]

    def _raw(self, start: int, stop: int | None) -> list[Any]:
        part = slice(start, self._length if stop is None else min(stop, self._length))
        texts = self.columns[self._text_column][part]
        if self.kind == "pair":
            return list(zip(texts, self.columns["text_pair"][part], strict=True))
        return list(texts)

    def records(self) -> Iterator[dict[str, Any]]:
        """Every row as a dict of its own columns, in order."""
        for start in range(0, self._length, CHUNK):
            part = {name: values[start : start + CHUNK] for name, values in self.columns.items()}
            for i in range(min(CHUNK, self._length - start)):
                yield {name: values[i] for name, values in part.items()}

    def grouped(self, column: str) -> Rows:
        """The rows, grouped by a column, such as the question, dialogue or user.

        Its values are compared as text; a row without one ("") is its own group.

        Raises
        ------
        DataError
            If there is no such column, or its values are lists.
        """
        if column not in self.columns:
            raise DataError(
                f"{self.source} has no column {column!r}; it has {', '.join(self.columns)}: "
                "name one of them with --group-column."
            )
        values = self.columns[column][:]
        wrong = [i for i, v in zip(self.ids, values, strict=True) if isinstance(v, list | dict)]
        if wrong:
            raise DataError(
                f"{self.source} has {len(wrong)} rows whose {column!r} is a list (ids "
                f"{first_few(wrong)}); a group's name is a text or a number."
            )
        rows = copy(self)
        rows.groups = [_group_name(value) for value in values]
        return rows

    def select(self, indices: Sequence[int]) -> Rows:
        """The rows at ``indices``, with their ids."""
        columns = {name: [values[i] for i in indices] for name, values in self.columns.items()}
        if self._id_column is None:
            columns = {"id": [self.ids[i] for i in indices], **columns}
        chosen = Rows(
            columns,
            text_column=self._text_column,
            id_column=self._id_column,
            source=self.source,
            note=self.note,
        )
        chosen.groups = None if self.groups is None else [self.groups[i] for i in indices]
        chosen._id_column = self._id_column  # row numbers stay row numbers, now in a column
        return chosen

    def part(self, start: int, stop: int, columns: Sequence[str] = ()) -> Rows:
        """Rows ``start`` to ``stop``, without a second check.

        Of their columns they keep the text and ``columns``.
        """
        kept = {self._text_column, "text_pair" if self.kind == "pair" else "", *columns}
        rows = copy(self)
        rows.columns = {k: v[start:stop] for k, v in self.columns.items() if k in kept}
        rows.ids, rows.hashes = self.ids[start:stop], self.hashes[start:stop]
        rows.groups = None if self.groups is None else self.groups[start:stop]
        rows._length = len(rows.ids)
        return rows

    def _find_text(self, text_column: str | None) -> tuple[Kind, str]:
        names = list(self.columns)
        wanted = text_column or next((n for n in ("text", "messages") if n in names), None)
        if wanted is None or wanted not in names:
            asked = repr(text_column) if text_column else "'text' or 'messages'"
            raise DataError(
                f"{self.source} has no column {asked}; it has {', '.join(names)}: "
                "name the one to read with --text-column."
            )
        first = next((v for v in self.columns[wanted][:CHUNK] if v is not None and v != ""), None)
        # A text may represent a list of messages, but a column called text has texts.
        if holds_messages(first) and not (wanted == "text" and isinstance(first, str)):
            return "messages", wanted
        if wanted == "messages" and text_column is None:
            raise DataError(
                f"{self.source} has a column 'messages' without lists of messages with role and "
                "content; repair it, or read it as plain text with --text-column messages."
            )
        return ("pair" if "text_pair" in names and wanted != "text_pair" else "text"), wanted

    def _check_and_hash(self) -> list[str]:
        hashes: list[str] = []
        empty: list[str] = []
        wrong: list[str] = []
        other: list[str] = []
        for start in range(0, self._length, CHUNK):
            for offset, content in enumerate(self._raw(start, start + CHUNK)):
                text = normalised(content, self.kind)
                if text is None:
                    parts = non_text_parts(content) if self.kind == "messages" else []
                    other += parts
                    wrong.append(self.ids[start + offset])
                elif _is_empty(text):
                    empty.append(self.ids[start + offset])
                else:
                    self._as_read = self._as_read and text == content
                    hashes.append(text_hash(text))
        if other:
            raise DataError(
                f"{self.source} has {len(wrong)} rows whose messages hold more than text "
                f"({', '.join(sorted(set(other)))}; ids {first_few(wrong)}); only text is read: "
                "remove these parts or rows."
            )
        if wrong:
            raise DataError(
                f"{self.source} has {len(wrong)} rows whose {self._text_column!r} is not "
                f"{'a list of messages' if self.kind == 'messages' else 'text'} "
                f"(ids {first_few(wrong)}); remove or repair them."
            )
        if empty:
            raise DataError(
                f"{self.source} has {len(empty)} rows with an empty text (ids {first_few(empty)}); "
                "remove them."
            )
        return hashes


def _group_name(value: Any) -> str:
    value = value.item() if hasattr(value, "item") else value  # of NumPy
    if type(value).__name__ in ("NAType", "NaTType"):
        return ""
    return (key_text(value) or "").replace("\0", "\ufffd").strip()


def _is_empty(content: Content) -> bool:
    if isinstance(content, str):
        return not content.strip()
    if isinstance(content, tuple):
        return not "".join(content).strip()
    return not content
