"""Files for people to label: reviews of verdicts, and the CSV of an audit.

Records of a review have Argilla's fields
(https://docs.argilla.io/latest/reference/argilla/records/records/): ``id``, ``fields``,
``metadata``, ``suggestions``, and ``responses`` for the answers.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probekit.cleaning.answers import ANSWER, UNSURE
from probekit.data import HASH, Content, text_hash
from probekit.errors import DataError, UsageError, first_few
from probekit.files import atomic_write, json_line
from probekit.sources import read_table
from probekit.tables import suffix_of
from probekit.verdicts import Verdicts

__all__ = [
    "AuditFile",
    "audit_path",
    "merge_review",
    "plain_text",
    "read_review",
    "review_records",
    "write_review",
]

# The question that suggestions and responses answer, and a CSV's column for the answer.
QUESTION = "label"
COLUMNS = ("id", "text_hash", "text", QUESTION)
AUDIT_COLUMNS = ("id", "text_hash", "text", ANSWER)
METADATA = ("weak_label", "weak_prob", "probe_label", "probe_prob", "disagreement", "verdict")

# Text that begins with one of these is a formula to a spreadsheet (blanks aside); an apostrophe
# before it marks it as text. Text that begins with an apostrophe itself gets one more.
FORMULA = re.compile("[\\s\u200b\ufeff]*['=+\\-@＝＋－＠|%]")
BREAKS = ("\t", "\r", "\n")
WHOLE_HASH = re.compile("[0-9a-f]{16}")


def review_records(
    verdicts: Verdicts, texts: Sequence[str] | None = None, *, limit: int | None = None
) -> list[dict[str, Any]]:
    """Records of the ``limit`` most disagreeing rows (all by default), in Argilla's form.

    ``texts`` are the texts of all n rows. The suggestion is the probe's class and its score the
    probe's probability; the metadata hold the weak label, both probabilities, the disagreement and
    the verdict.
    """
    order = verdicts.ranking[:limit]
    weak, probe = verdicts.weak.argmax(axis=1), verdicts.probe.argmax(axis=1)
    names = verdicts.classes
    records = []
    for i in order.tolist():
        verdict = "dropped" if not verdicts.keep[i] else "kept"
        if verdicts.keep[i] and verdicts.hard[i] != weak[i]:
            verdict = "changed"
        score = round(float(verdicts.probe[i, probe[i]]), 6)
        records.append(
            {
                "id": verdicts.ids[i],
                "fields": {} if texts is None else {"text": texts[i]},
                "metadata": {
                    "text_hash": verdicts.hashes[i],
                    "weak_label": names[weak[i]],
                    "weak_prob": round(float(verdicts.weak[i, weak[i]]), 6),
                    "probe_label": names[probe[i]],
                    "probe_prob": score,
                    "disagreement": round(float(verdicts.disagreement[i]), 6),
                    "verdict": verdict,
                },
                "suggestions": {
                    QUESTION: {"value": names[probe[i]], "score": score, "agent": _agent(verdicts)}
                },
                "responses": {},
            }
        )
    return records


def _agent(verdicts: Verdicts) -> str:
    return f"probekit {verdicts.provenance.get('probe', {}).get('name', 'probe')}"


def write_review(records: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write records as JSONL (as they are) or CSV (flat, the column ``label`` left empty).

    Raises
    ------
    UsageError
        If the path has another suffix.
    """
    suffix = suffix_of(path)
    if suffix == ".jsonl":
        with atomic_write(path, "w") as file:
            file.writelines(map(json_line, records))
    elif suffix == ".csv":
        _write_csv(path, (*COLUMNS, *METADATA), map(_csv_row, records))
    else:
        raise UsageError(f"{path} must end in .csv or .jsonl, the two formats of a review.")


def _csv_row(record: Mapping[str, Any]) -> list[Any]:
    metadata = record["metadata"]
    text = record["fields"].get("text", "")
    row = [record["id"], _hash_cell(metadata["text_hash"]), text, ""]
    return [*row, *(metadata[name] for name in METADATA)]


def read_review(path: str | Path) -> list[dict[str, str | None]]:
    """Read answers: ``id``, ``text_hash``, ``text`` (None if absent) and ``label``.

    A CSV has its answers in the column ``label``, a record in ``responses`` (a list of values, as
    Argilla writes it, or a plain value). Rows without an answer have the label None.

    Raises
    ------
    DataError
        If the file is not a review, has an id twice, or several people answer a row differently.
    """
    suffix = suffix_of(path)
    if suffix == ".csv":
        answers = list(_read_csv(path))
    elif suffix in (".jsonl", ".json"):
        answers = list(_read_records(path))
    else:
        raise DataError(f"{path} must end in .csv, .jsonl or .json to be a review.")
    seen: set[str | None] = set()
    for answer in answers:
        if answer["id"] in seen:
            raise DataError(f"{path} has the id {answer['id']!r} twice; keep one of them.")
        seen.add(answer["id"])
    return answers


def _read_csv(path: str | Path) -> Iterator[dict[str, str | None]]:
    columns = _csv_columns(path)
    missing = [name for name in ("id", QUESTION) if name not in columns]
    if missing:
        raise DataError(
            f"{path} has no column {' and no '.join(map(repr, missing))}, so it is not a review; "
            "make one with `probekit review`."
        )
    known = [name for name in COLUMNS if name in columns]
    for values in zip(*(columns[name] for name in known), strict=True):
        row: dict[str, str | None] = dict.fromkeys(COLUMNS)
        row |= dict(zip(known, values, strict=True))
        yield {name: row[name] or None for name in COLUMNS}


def _read_records(path: str | Path) -> Iterator[dict[str, str | None]]:
    columns = read_table(path).columns
    if "id" in columns and f"{QUESTION}.responses" in columns:
        columns = _nested(columns)
    if "id" not in columns or "responses" not in columns:
        raise DataError(
            f"{path} holds no records with id and responses, so it is not a review; make one with "
            "`probekit review`."
        )
    names = ("id", "responses", "fields", "metadata")
    parts = [columns.get(name) or [None] * len(columns["id"]) for name in names]
    for number, (name, responses, fields, metadata) in enumerate(zip(*parts, strict=True), 1):
        try:
            yield {
                "id": str(name),
                "text_hash": (metadata or {}).get("text_hash") or None,
                "text": (fields or {}).get("text") or None,
                QUESTION: _answer(responses),
            }
        except (AttributeError, LookupError, TypeError, ValueError):
            raise DataError(
                f"{path}, record {number} (id {name!r}): its responses are "
                f"{json.dumps(responses, ensure_ascii=False, default=str)[:80]}; one class is "
                f'allowed, as in {{"{QUESTION}": [{{"value": CLASS}}]}}.'
            ) from None


def _nested(columns: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Columns of records with flat fields, as Argilla's ``to_datasets`` writes them."""
    absent: list[Any] = [None] * len(columns["id"])
    values = columns[f"{QUESTION}.responses"][:]
    status = columns.get(f"{QUESTION}.responses.status", absent)[:]
    responses = [
        {
            QUESTION: [
                {"value": value, "status": state}
                for value, state in zip(_list(given), _padded(_list(states), given), strict=True)
            ]
        }
        for given, states in zip(values, status, strict=True)
    ]
    hashes = columns.get("text_hash", columns.get("metadata.text_hash", absent))[:]
    texts = columns.get("text", columns.get("fields.text", absent))[:]
    return {
        "id": columns["id"][:],
        "responses": responses,
        "fields": [{"text": text} for text in texts],
        "metadata": [{"text_hash": digest} for digest in hashes],
    }


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _padded(values: list[Any], like: Any) -> list[Any]:
    length = len(_list(like))
    return [*values, *[None] * length][:length]


def _answer(responses: Any) -> str | None:
    """The class on which all submitted answers agree, or None without an answer."""
    given = responses.get(QUESTION) if responses else None
    listed = given if isinstance(given, list) else [] if given in (None, "") else [given]
    values = []
    for each in listed:
        if isinstance(each, dict):
            if each.get("status") in ("draft", "discarded"):
                continue
            each = each["value"]
        if not isinstance(each, str | int | float):
            raise TypeError(each)
        values.append(str(each))
    if len(set(values)) > 1:
        raise ValueError(values)
    return values[0] if values else None


def merge_review(
    verdicts: Verdicts, answers: Sequence[Mapping[str, str | None]], *, source: str = "the review"
) -> Verdicts:
    """Verdicts with the corrected labels: certain and kept, with unchanged weights.

    Rows are joined by id, and the text hash, or the hash of the text, must match. Rows without an
    answer are unchanged.

    Raises
    ------
    DataError
        If ids or texts are those of other rows, or an answer is not a class.
    """
    place = {name: i for i, name in enumerate(verdicts.ids)}
    foreign = [str(a["id"]) for a in answers if a["id"] not in place]
    if foreign:
        raise DataError(
            f"{source} has {len(foreign)} ids that are not in the verdicts (ids "
            f"{first_few(foreign)}): it is a review of other rows; name the verdicts that it was "
            "made from."
        )
    _check_texts(verdicts, answers, place, source)
    given = [a for a in answers if a[QUESTION] is not None]
    rows = np.array([place[str(a["id"])] for a in given], dtype=np.int64)
    classes = np.array([_class_of(a, verdicts.classes, source) for a in given], dtype=np.int64)
    label, keep = verdicts.label.copy(), verdicts.keep.copy()
    label[rows] = np.eye(len(verdicts.classes), dtype=label.dtype)[classes]
    keep[rows] = True
    reviewed = {"source": Path(source).name, **_count(verdicts, rows, classes)}
    provenance = {**verdicts.provenance, "reviewed": reviewed}
    return replace(verdicts, label=label, keep=keep, provenance=provenance)


def _count(
    verdicts: Verdicts, rows: NDArray[np.int64], classes: NDArray[np.int64]
) -> dict[str, int]:
    return {
        "answers": len(rows),
        "changed": int((verdicts.hard[rows] != classes).sum()),
        "brought_back": int((~verdicts.keep[rows]).sum()),
        "as_weak_label": int((verdicts.weak[rows].argmax(axis=1) == classes).sum()),
        "as_probe": int((verdicts.probe[rows].argmax(axis=1) == classes).sum()),
    }


def _check_texts(
    verdicts: Verdicts,
    answers: Sequence[Mapping[str, str | None]],
    place: Mapping[str, int],
    source: str,
) -> None:
    hashes, other = set(verdicts.hashes), []
    for answer in answers:
        known, text = verdicts.hashes[place[str(answer["id"])]], answer["text"]
        read = None if text is None else text_hash(text)
        given = _hash_of_cell(answer["text_hash"]) or read
        # Another row's text shows that columns were sorted apart. A text of no row may be a pair,
        # or have lost a space in a spreadsheet: then the hash beside it counts.
        moved = read is not None and read != known and read in hashes
        if known and ((given is not None and given != known) or moved):
            other.append(str(answer["id"]))
    if other:
        raise DataError(
            f"{source} has another text than the verdicts in {len(other)} rows (ids "
            f"{first_few(other)}): it is a review of other rows; name the verdicts that it was "
            "made from."
        )


def _class_of(answer: Mapping[str, str | None], classes: Sequence[str], source: str) -> int:
    """Number of the class of an answer."""
    given = str(answer[QUESTION]).strip()
    name = _class_meant(given, classes)
    if name is None:
        raise DataError(
            f"{source} has {given!r} for the id {answer['id']!r}; allowed are "
            f"{first_few(classes, 20)}, or nothing to leave the row unchanged."
        )
    return list(classes).index(name)


def audit_path(labels: str) -> Path:
    """The default path of an audit of these labels."""
    return Path(f"{Path(labels).stem}.audit.csv")


def plain_text(content: Content) -> str:
    """A row's content as one text: the texts of a pair in order, messages with their roles."""
    if isinstance(content, str):
        return content
    if isinstance(content, tuple):
        return "\n\n".join(content)
    return "\n\n".join(f"[{message['role']}] {message['content']}" for message in content)


class AuditFile:
    """Rows and answers of an audit, written after every answer.

    Columns: id, text_hash, text, true_label (a class, ``?`` for "cannot tell", or empty); further
    columns are kept.

    Parameters
    ----------
    path
        A CSV file; if it exists, its answers are read.
    hashes
        Id -> text hash of every row of the store.
    classes
        Classes that an answer may be.
    what, flag
        What the file is, and the option that names another, for messages.

    Raises
    ------
    DataError
        If the file is not an audit of these rows, or holds an answer that is not a class.
    """

    def __init__(
        self,
        path: str | Path,
        hashes: Mapping[str, str],
        classes: Sequence[str],
        *,
        what: str = "an audit",
        flag: str = "-o",
    ) -> None:
        self.path, self._what, self._flag = Path(path), what, flag
        self._hashes = hashes
        self.classes = tuple(classes)
        self.answers: dict[str, str] = {}
        """Id -> class, or ``?``, in the order of the file."""
        self.records: dict[str, dict[str, str]] = {}
        if self.path.suffix.lower() != ".csv":
            raise DataError(f"{self.path} must end in .csv, the format of {what}.")
        if self.path.exists():
            self._read()

    def add(self, ids: Sequence[str], texts: Sequence[str]) -> int:
        """List further rows of the store and return the number of new ones."""
        before = len(self.records)
        for name, text in zip(ids, texts, strict=True):
            cell = _hash_cell(self._hashes[name])
            self.records.setdefault(name, {"id": name, "text_hash": cell, "text": text, ANSWER: ""})
        return len(self.records) - before

    def answer(self, name: str, answer: str | None) -> None:
        """Record an answer (None removes it) and write the file."""
        self.answers.pop(name, None)
        if answer is not None:
            self.answers[name] = answer
        self.records[name][ANSWER] = answer or ""
        self.write()

    def write(self) -> None:
        """Write everything atomically."""
        columns = dict.fromkeys(AUDIT_COLUMNS)
        for record in self.records.values():
            columns |= dict.fromkeys(record)
        rows = ([record.get(name, "") for name in columns] for record in self.records.values())
        _write_csv(self.path, list(columns), rows)

    def _read(self) -> None:
        hashes = self._hashes
        columns = _csv_columns(self.path)
        lacking = [name for name in ("id", ANSWER) if name not in columns]
        if lacking:
            raise DataError(
                f"{self.path} has no column {' and no '.join(map(repr, lacking))}, so it is not "
                f"{self._what}; name another file with {self._flag}."
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
                f"{first_few(unknown)}): it is {self._what} of other rows; name another "
                f"file with {self._flag}."
            )
        other = [
            name
            for name, record in self.records.items()
            if hashes[name] and _hash_of_cell(record.get("text_hash")) not in ("", hashes[name])
        ]
        if other:
            raise DataError(
                f"{self.path} has another text than the store in {len(other)} rows (ids "
                f"{first_few(other)}): it is {self._what} of other rows; name another "
                f"file with {self._flag}."
            )
        for name, record in self.records.items():
            answer = self._class_of(name, record[ANSWER])
            if answer is not None:
                self.answers[name] = answer

    def _class_of(self, name: str, given: str) -> str | None:
        """The class in a cell, or ``?``; None if it is empty."""
        text = given.strip()
        if text in ("", UNSURE):
            return text or None
        answer = _class_meant(text, self.classes)
        if answer is None:
            raise DataError(
                f"{self.path} has the answer {given!r} for the id {name!r}; allowed are "
                f"{first_few(self.classes, 20)}, {UNSURE!r} for cannot tell, or nothing."
            )
        return answer


def _class_meant(given: str, classes: Sequence[str]) -> str | None:
    """The class in a cell: in any letter case, and 1 also as 1.0, as spreadsheets write it."""
    for same in (
        [c for c in classes if c == given],
        [c for c in classes if c.casefold() == given.casefold()],
        [c for c in classes if f"{c}.0" == given],
    ):
        if len(same) == 1:
            return same[0]
    return None


# CSV that a spreadsheet shows, changes and saves. Every field is quoted, a byte order mark says
# UTF-8, and no cell is taken for a formula or a number (CWE-1236,
# https://owasp.org/www-community/attacks/CSV_Injection); reading undoes what that took.


def _write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write rows (of ``len(header)`` cells) as CSV that a spreadsheet leaves as it is."""
    with atomic_write(path, "w") as file:
        file.write("\ufeff")  # else Excel reads é as Ã©
        writer = csv.writer(file, lineterminator="\r\n", quoting=csv.QUOTE_ALL)
        writer.writerow(header)
        writer.writerows([_escaped(cell) for cell in row] for row in rows)


def _csv_columns(path: str | Path) -> dict[str, list[str]]:
    """Columns of a CSV that ``_write_csv`` wrote, whatever program saved it since."""
    columns = read_table(path).columns
    return {name: [_unescaped(cell) for cell in values[:]] for name, values in columns.items()}


def _hash_cell(text_hash: str) -> str:
    return f"{HASH}{text_hash}" if text_hash else ""


def _hash_of_cell(cell: Any) -> str:
    """The text hash of a cell; "" if it has none, or a spreadsheet made a number of it."""
    text_hash = str(cell or "").strip().removeprefix(HASH).strip().lower()
    return text_hash if WHOLE_HASH.fullmatch(text_hash) else ""


def _escaped(cell: Any) -> Any:
    """Text that a spreadsheet takes for text, whatever it begins with; a number as it is."""
    if not isinstance(cell, str):
        return cell
    return f"'{cell}" if cell.startswith(BREAKS) or FORMULA.match(cell) else cell


def _unescaped(cell: Any) -> str:
    text = "" if cell is None else str(cell)
    rest = text[1:]
    escaped = text[:1] == "'" and (rest.startswith(BREAKS) or FORMULA.match(rest))
    return rest if escaped else text
