"""Rows of text in a fixed order, each with an id and a hash of its own content.

What one row says, a text, a pair or chat messages, is brought into one form where it comes in.
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
from probekit.tables import dataset_table, frame_columns, read_file

__all__ = [
    "Content",
    "Kind",
    "Rows",
    "holds_messages",
    "normal",
    "other_parts",
    "rows_fingerprint",
    "text_hash",
    "without_none",
]

Messages: TypeAlias = list[dict[str, Any]]
Content: TypeAlias = "str | tuple[str, str] | Messages"
Kind: TypeAlias = Literal["text", "pair", "messages"]

UNIT_SEPARATOR = "\x1f"
# Types of a content part that is text: of chat completions, of OpenAI's responses, of none.
TEXT_PARTS = ("text", "input_text", "output_text", None)
# A conversation is no larger; Python's parser takes some hundred bytes for each character.
LONGEST_LITERAL = 1 << 22
CHUNK = 8192


def text_hash(content: Content) -> str:
    """Hash a row's own content, before any template: 16 hex digits of SHA-256 (docs/format.md).

    A message's keys whose value is None are left out: Arrow fills absent keys in with None, and the
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
    """Leave out keys whose value is None: Arrow fills absent ones in, templates test for them."""
    if isinstance(value, dict):
        return {k: without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [without_none(v) for v in value]
    return value


def holds_messages(value: Any) -> bool:
    """Whether a value is a list of chat messages, or such a list written out as text."""
    listed = _listed(value)
    return listed is not None and (
        not isinstance(value, str)
        or (bool(listed) and all(isinstance(m, Mapping) and "role" in m for m in listed))
    )


def normal(content: Any, kind: Kind) -> Content | None:
    """The content in the one form that is hashed and tokenised; None where it is none of its kind.

    Halves of characters are U+FFFD; messages that are written out as text are parsed, and a
    message's text parts are joined.
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
    found = [message for message in messages if message is not None]
    return found if len(found) == len(messages) else None


def other_parts(content: Any) -> list[str]:
    """Types of the parts in messages that are no text: images, sound, files."""
    return [
        str(part.get("type") or "of no type") if isinstance(part, Mapping) else type(part).__name__
        for message in _listed(content) or []
        if isinstance(message, Mapping)
        for part in _listed(message.get("content"), parse=False) or []
        if _part_text(part) is None
    ]


def _listed(value: Any, *, parse: bool = True) -> list[Any] | None:
    """A list, tuple or array as a list; of a text what it writes out; None for anything else."""
    if isinstance(value, list):
        return value
    if isinstance(value, str):
        return _parsed(value) if parse else None
    if isinstance(value, tuple):
        return list(value)
    if hasattr(value, "tolist"):
        found = value.tolist()
        return found if isinstance(found, list) else None
    return None


def _parsed(text: str) -> list[Any] | None:
    """The list that a text writes out in JSON, or as Python prints it (what pandas' CSV holds)."""
    if not text.lstrip().startswith("["):
        return None
    try:
        found = load_json(text, "messages")
    except DataError:
        if len(text) > LONGEST_LITERAL:
            return None
        try:
            found = ast.literal_eval(text.strip())
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return None
    return found if isinstance(found, list) else None


def _message(message: Any) -> dict[str, Any] | None:
    """A message with its content as text; None where it is none."""
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        return None
    content = message["content"]
    if content is not None and not isinstance(content, str):
        parts = [_part_text(part) for part in _listed(content, parse=False) or [None]]
        texts = [text for text in parts if text is not None]
        if len(texts) < len(parts):
            return None
        content = "".join(texts)
    found: dict[str, Any] = _repaired({**message, "content": content})
    return found


def _part_text(part: Any) -> str | None:
    """Text of a content part; None where it is something else."""
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
        Name to sequence; all of one length n. The text stands in ``text``, in ``text`` and
        ``text_pair``, or in ``messages`` (chat messages); ``id``, in any case, is optional (else
        the row number).
    text_column, id_column
        Other names for these columns; a text column that holds lists is read as messages.
    source
        Where the rows came from, for messages and provenance.
    note
        What reading left out, as a sentence for people.

    Attributes
    ----------
    ids, hashes
        n strings each.
    kind
        ``text``, ``pair`` or ``messages``.
    groups
        n names of what each row belongs to (:meth:`grouped`), or None.

    Raises
    ------
    DataError
        Where a column is missing, an id stands twice, or a text is empty or no text.
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
            raise DataError(f"{source} holds no rows.")
        self.kind, self._text_column = self._find_text(text_column)
        self._as_read = self.kind != "messages"  # until a text is found that is repaired
        found = find_ids(self.columns, id_column=id_column, source=source)
        self.ids: list[str] = list(found.ids)
        self._id_column = found.id_column
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
        names = dict.fromkeys(name for row in listed for name in row)
        return cls({name: [row.get(name) for row in listed] for name in names}, **options)

    def __len__(self) -> int:
        return self._length

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
        found = self._raw(start, stop)
        if self._as_read:
            return found
        return [each for raw in found if (each := normal(raw, self.kind)) is not None]

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
        """The rows, grouped by a column: rows of one question, dialogue or user belong together.

        Its values are told apart as text; a row without one is a group of its own ("").

        Raises
        ------
        DataError
            Where there is no such column, or it holds lists.
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
        """The rows at ``indices``, ids kept."""
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
        chosen._id_column = self._id_column  # row numbers stay row numbers, in a column as they are
        return chosen

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
        # A list that is written out as text is one, but a column called text holds texts.
        if holds_messages(first) and not (wanted == "text" and isinstance(first, str)):
            return "messages", wanted
        if wanted == "messages" and text_column is None:
            raise DataError(
                f"{self.source} has a column 'messages' that holds no lists of messages with role "
                "and content; repair it, or read it as plain text with --text-column messages."
            )
        return ("pair" if "text_pair" in names and wanted != "text_pair" else "text"), wanted

    def _check_and_hash(self) -> list[str]:
        hashes: list[str] = []
        empty: list[str] = []
        wrong: list[str] = []
        other: list[str] = []
        for start in range(0, self._length, CHUNK):
            for offset, content in enumerate(self._raw(start, start + CHUNK)):
                found = normal(content, self.kind)
                if found is None:
                    parts = other_parts(content) if self.kind == "messages" else []
                    other += parts
                    wrong.append(self.ids[start + offset])
                elif _is_empty(found):
                    empty.append(self.ids[start + offset])
                else:
                    self._as_read = self._as_read and found == content
                    hashes.append(text_hash(found))
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
    value = value.item() if hasattr(value, "item") else value  # NumPy's
    if type(value).__name__ in ("NAType", "NaTType"):
        return ""
    return (key_text(value) or "").replace("\0", "\ufffd").strip()


def _is_empty(content: Content) -> bool:
    if isinstance(content, str):
        return not content.strip()
    if isinstance(content, tuple):
        return not "".join(content).strip()
    return not content
