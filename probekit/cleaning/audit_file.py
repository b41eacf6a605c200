"""The audit as a CSV: rows to label by hand, in a terminal or a spreadsheet, and answers back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from probekit.cleaning.audit import UNSURE
from probekit.errors import DataError, first_few
from probekit.sheets import read_hash, read_sheet, write_sheet, written_hash

if TYPE_CHECKING:
    from probekit.data import Content

__all__ = ["ANSWER", "AuditFile", "audit_path", "plain_text"]

ANSWER = "true_label"
COLUMNS = ("id", "text_hash", "text", ANSWER)


def audit_path(labels: str) -> Path:
    """Where an audit of these labels is kept unless another file is named."""
    return Path(f"{Path(labels).stem}.audit.csv")


def plain_text(content: Content) -> str:
    """A row's content as one text: pairs one after the other, messages with their roles."""
    if isinstance(content, str):
        return content
    if isinstance(content, tuple):
        return "\n\n".join(content)
    return "\n\n".join(f"[{message['role']}] {message['content']}" for message in content)


class AuditFile:
    """Rows and answers of an audit, written after every answer.

    Columns: id, text_hash, text, true_label (a class, ``?`` where nobody can tell, or empty);
    columns of one's own are kept.

    Parameters
    ----------
    path
        A CSV file; what is there already is read.
    hashes
        Id -> text hash of every row of the store.
    classes
        Classes that an answer may be.

    Raises
    ------
    DataError
        The file is no audit of these rows, or holds an answer that is no class.
    """

    def __init__(self, path: str | Path, hashes: Mapping[str, str], classes: Sequence[str]) -> None:
        self.path = Path(path)
        self.classes = tuple(classes)
        self.answers: dict[str, str] = {}
        """Id -> class, or ``?``, in the order of the file."""
        self.records: dict[str, dict[str, str]] = {}
        if self.path.suffix.lower() != ".csv":
            raise DataError(f"{self.path} must end in .csv; the audit is written so.")
        if self.path.exists():
            self._read(hashes)

    def add(self, ids: Sequence[str], hashes: Sequence[str], texts: Sequence[str]) -> int:
        """List further rows; returns how many were not listed yet."""
        before = len(self.records)
        for name, digest, text in zip(ids, hashes, texts, strict=True):
            record = {"id": name, "text_hash": written_hash(digest), "text": text, ANSWER: ""}
            self.records.setdefault(name, record)
        return len(self.records) - before

    def answer(self, name: str, answer: str | None) -> None:
        """Take an answer (None takes it back) and write the file."""
        self.answers.pop(name, None)
        if answer is not None:
            self.answers[name] = answer
        self.records[name][ANSWER] = answer or ""
        self.write()

    def write(self) -> None:
        """Write everything, at once or not at all."""
        columns = dict.fromkeys(COLUMNS)
        for record in self.records.values():
            columns |= dict.fromkeys(record)
        rows = ([record.get(name, "") for name in columns] for record in self.records.values())
        write_sheet(self.path, list(columns), rows)

    def _read(self, hashes: Mapping[str, str]) -> None:
        columns = read_sheet(self.path)
        lacking = [name for name in ("id", ANSWER) if name not in columns]
        if lacking:
            raise DataError(
                f"{self.path} has no column {' and no '.join(map(repr, lacking))}, so it is no "
                "audit; name another file with -o."
            )
        names = list(columns)
        for values in zip(*columns.values(), strict=True):
            record = dict(zip(names, values, strict=True))
            if record["id"] in self.records:
                raise DataError(f"{self.path} has the id {record['id']!r} twice; keep one of them.")
            self.records[record["id"]] = record
        unknown = [name for name in self.records if name not in hashes]
        if unknown:
            raise DataError(
                f"{self.path} has {len(unknown)} ids that are not in the store (ids "
                f"{first_few(unknown)}): it is an audit of other rows; name another file with -o."
            )
        other = [
            name
            for name, record in self.records.items()
            if hashes[name] and read_hash(record.get("text_hash")) not in ("", hashes[name])
        ]
        if other:
            raise DataError(
                f"{self.path} has another text than the store in {len(other)} rows (ids "
                f"{first_few(other)}): it is an audit of other rows; name another file with -o."
            )
        for name, record in self.records.items():
            answer = self._class_of(name, record[ANSWER])
            if answer is not None:
                self.answers[name] = answer

    def _class_of(self, name: str, given: str) -> str | None:
        """The class that a cell means: letter case aside, and 1.0 for 1, as spreadsheets do."""
        text = given.strip()
        if text in ("", UNSURE, *self.classes):
            return text or None
        alike = [c for c in self.classes if c.casefold() == text.casefold()]
        if not alike and text.endswith(".0"):
            alike = [c for c in self.classes if c == text[:-2]]
        if len(alike) != 1:
            raise DataError(
                f"{self.path} answers {given!r} for the id {name!r}; allowed are "
                f"{first_few(self.classes, 20)}, {UNSURE!r} where nobody can tell, or nothing."
            )
        return alike[0]
