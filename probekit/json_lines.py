"""JSON Lines: all records at once, or, of large files, those that are asked for."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from probekit.errors import DataError
from probekit.safe import load_json
from probekit.sliced import Sliced, spans

CHUNK = 1 << 14  # records that are parsed at a time
MARK = b"\xef\xbb\xbf"  # of UTF-8, as spreadsheets write it

Record = Mapping[str, Any]


def json_records(path: Path, lines: Iterable[str]) -> list[Record]:
    """Parse the lines of a file; blank ones are left out.

    Raises
    ------
    DataError
        If a line is not a JSON object; the message has its number.
    """
    return [json_record(path, i, line) for i, line in enumerate(lines, 1) if line.strip()]


def json_record(path: Path, number: int, line: str) -> Record:
    """Parse a line."""
    try:
        record = load_json(line, f"{path}, line {number}")
    except DataError:
        if number == 1 and line.strip() in ("[", "[{"):
            raise DataError(
                f"{path} is one JSON list, not one object per line; call it .json."
            ) from None
        raise
    if not isinstance(record, dict):
        raise DataError(f"{path}, line {number}: one JSON object per line is expected.")
    return record


class Lines:
    """Files of UTF-8 JSON Lines as one table, of which ``CHUNK`` records are in memory.

    Every line is parsed once to find the columns, and again when it is asked for.

    Attributes
    ----------
    names
        Columns, in the order of their first appearance.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.names: dict[str, None] = {}
        self._paths = list(paths)
        self._places: list[Any] = []  # where each line that is not blank begins, file by file
        for path in self._paths:
            found, place = [], 0
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if text := _text(line, number).strip():
                        self.names |= dict.fromkeys(json_record(path, number, text))
                        found.append(place)
                    place += len(line)
            self._places.append(np.array(found, np.int64))
        self._starts = np.concatenate([[0], np.cumsum([len(each) for each in self._places])])
        self._kept: tuple[int, list[Record]] = (-1, [])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def chunk(self, number: int) -> list[Record]:
        """Records ``number`` · CHUNK and the following; the last ones asked for are kept."""
        if self._kept[0] != number:
            records: list[Record] = []
            start, stop = number * CHUNK, min((number + 1) * CHUNK, len(self))
            for file, first, last in spans(self._starts, start, stop):
                records += self._parsed(file, first, last)
            self._kept = number, records
        return self._kept[1]

    def _parsed(self, file: int, start: int, stop: int) -> list[Record]:
        path, places = self._paths[file], self._places[file]
        with path.open("rb") as opened:
            opened.seek(int(places[start]))
            lines = (line for line in opened if line.strip())
            texts = [_text(line, 1) for line in itertools.islice(lines, stop - start)]
        if len(texts) < stop - start:
            raise DataError(f"{path} has become shorter while it was read; start again.")
        return [json_record(path, start + i, text) for i, text in enumerate(texts, 1)]


class LineColumn(Sliced):
    """A column of :class:`Lines`; None where a record lacks it."""

    def __init__(self, lines: Lines, name: str) -> None:
        self._lines, self._name = lines, name

    def __len__(self) -> int:
        return len(self._lines)

    def values(self, start: int, stop: int) -> list[Any]:
        """Values of some rows."""
        some: list[Any] = []
        while start < stop:
            number, place = divmod(start, CHUNK)
            records = self._lines.chunk(number)[place : place + stop - start]
            some += [record.get(self._name) for record in records]
            start += len(records)
        return some


def _text(line: bytes, number: int) -> str:
    return (line.removeprefix(MARK) if number == 1 else line).decode("utf-8")
