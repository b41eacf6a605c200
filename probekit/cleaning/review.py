"""Disagreeing rows as records for people to correct, and their corrections back into the verdicts.

Records have the fields of Argilla's (https://docs.argilla.io/latest/reference/argilla/records/
records/): ``id``, ``fields``, ``metadata``, ``suggestions``, and ``responses`` for the answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.data import text_hash
from probekit.errors import DataError, UsageError, first_few
from probekit.files import atomic_write, json_line
from probekit.sheets import read_hash, read_sheet, write_sheet, written_hash
from probekit.sources import read_table
from probekit.tables import suffix_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from probekit.verdicts import Verdicts

__all__ = ["QUESTION", "merge_review", "read_review", "review_records", "write_review"]

# The question that suggestions and responses answer, and the column of a CSV for the answer.
QUESTION = "label"
COLUMNS = ("id", "text_hash", "text", QUESTION)
METADATA = ("weak_label", "weak_prob", "probe_label", "probe_prob", "disagreement", "verdict")


def review_records(
    verdicts: Verdicts, texts: Sequence[str] | None = None, *, many: int | None = None
) -> list[dict[str, Any]]:
    """Records of the ``many`` most disagreeing rows (all by default), in Argilla's form.

    ``texts`` are the n rows' texts. The suggestion is what the probe says, its score the probe's
    probability; the metadata hold the weak label, both probabilities, the disagreement and what the
    verdict is.
    """
    order = verdicts.ranking[:many]
    weak, probe = verdicts.weak.argmax(axis=1), verdicts.probe.argmax(axis=1)
    names = verdicts.classes
    records = []
    for i in order.tolist():
        said = "dropped" if not verdicts.keep[i] else "kept"
        if verdicts.keep[i] and verdicts.hard[i] != weak[i]:
            said = "changed"
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
                    "verdict": said,
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
        Another ending.
    """
    suffix = suffix_of(path)
    if suffix == ".jsonl":
        with atomic_write(path, "w") as file:
            file.writelines(map(json_line, records))
    elif suffix == ".csv":
        write_sheet(path, (*COLUMNS, *METADATA), map(_csv_row, records))
    else:
        raise UsageError(f"{path} must end in .csv or .jsonl; these are what is written.")


def _csv_row(record: Mapping[str, Any]) -> list[Any]:
    said = record["metadata"]
    text = record["fields"].get("text", "")
    row = [record["id"], written_hash(said["text_hash"]), text, ""]
    return [*row, *(said[name] for name in METADATA)]


def read_review(path: str | Path) -> list[dict[str, str | None]]:
    """Read what came back: ``id``, ``text_hash``, ``text`` (None where not given) and ``label``.

    A CSV's answer stands in its column ``label``; a record's in ``responses`` (a list of values as
    Argilla has it, or a plain one). Rows without an answer have the label None.

    Raises
    ------
    DataError
        No review, an id twice, or several people answer one row differently.
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
    columns = read_sheet(path)
    missing = [name for name in ("id", QUESTION) if name not in columns]
    if missing:
        raise DataError(
            f"{path} has no column {' and no '.join(map(repr, missing))}, so it is no review; make "
            "one with `probekit review`."
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
            f"{path} holds no records with id and responses, so it is no review; make one with "
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
                f'meant, as {{"{QUESTION}": [{{"value": CLASS}}]}}.'
            ) from None


def _nested(columns: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Columns of records whose fields were written flat, as Argilla's ``to_datasets`` does."""
    many = len(columns["id"])
    nothing: list[Any] = [None] * many
    values = columns[f"{QUESTION}.responses"][:]
    status = columns.get(f"{QUESTION}.responses.status", nothing)[:]
    responses = [
        {
            QUESTION: [
                {"value": value, "status": said}
                for value, said in zip(_list(given), _padded(_list(how), given), strict=True)
            ]
        }
        for given, how in zip(values, status, strict=True)
    ]
    hashes = columns.get("text_hash", columns.get("metadata.text_hash", nothing))[:]
    texts = columns.get("text", columns.get("fields.text", nothing))[:]
    return {
        "id": columns["id"][:],
        "responses": responses,
        "fields": [{"text": text} for text in texts],
        "metadata": [{"text_hash": digest} for digest in hashes],
    }


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _padded(values: list[Any], like: Any) -> list[Any]:
    many = len(_list(like))
    return [*values, *[None] * many][:many]


def _answer(responses: Any) -> str | None:
    """The one class that all who submitted an answer give."""
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
    """Verdicts with the corrected labels: certain, kept, of weight as before.

    Rows are found by id; the text hash, or the hash of the text, must be theirs. Rows without an
    answer stay as they are.

    Raises
    ------
    DataError
        Ids or texts of other rows, or answers that are no class.
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
    told = {"source": Path(source).name, **_count(verdicts, rows, classes)}
    return replace(
        verdicts, label=label, keep=keep, provenance={**verdicts.provenance, "reviewed": told}
    )


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
        told = read_hash(answer["text_hash"]) or read
        # A text that is another row's shows that columns were sorted apart; one that is nobody's
        # may be a pair, or have lost a space in a spreadsheet: then the hash beside it counts.
        moved = read is not None and read != known and read in hashes
        if known and ((told is not None and told != known) or moved):
            other.append(str(answer["id"]))
    if other:
        raise DataError(
            f"{source} has another text than the verdicts in {len(other)} rows (ids "
            f"{first_few(other)}): it is a review of other rows; name the verdicts that it was "
            "made from."
        )


def _class_of(answer: Mapping[str, str | None], classes: Sequence[str], source: str) -> int:
    """Number of the class that is meant: letter case aside, and 1.0 for 1, as spreadsheets do."""
    given = str(answer[QUESTION]).strip()
    for same in (
        [c for c in classes if c == given],
        [c for c in classes if c.casefold() == given.casefold()],
        [c for c in classes if f"{c}.0" == given],
    ):
        if len(same) == 1:
            return list(classes).index(same[0])
    raise DataError(
        f"{source} says {given!r} for the id {answer['id']!r}; allowed are "
        f"{first_few(classes, 20)}, or nothing to leave the row as it is."
    )
