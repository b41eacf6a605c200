"""Arrow columns as Python values, slice by slice: in memory, or decoded when rows are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from probekit.errors import DataError
from probekit.safe import one_line
from probekit.sliced import Sliced, spans
from probekit.strings import Strings

CHUNK = 1 << 14
WIDER = 4  # times the mean size of a string that the longest may have, to be kept in one width


class ArrowColumn(Sliced):
    """An Arrow column that gives Python values, slice by slice."""

    def __init__(self, column: Any) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def values(self, start: int, stop: int) -> list[Any]:
        """Values of some rows."""
        some: list[Any] = self.column.slice(start, stop - start).to_pylist()
        return some

    def strings(self) -> Strings | None:
        """The column as :class:`Strings`; None if it has other values, or of very unequal size."""
        import pyarrow as pa
        import pyarrow.compute as pc

        kind = self.column.type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)) or not len(self):
            return None
        sizes = pc.binary_length(self.column)
        width, total = pc.max(sizes).as_py(), pc.sum(sizes).as_py()
        if self.column.null_count or not width or width * len(self) > WIDER * total:
            return None
        if pc.any(pc.ends_with(self.column, "\0")).as_py():
            return None
        encoded = np.empty(len(self), f"S{width}")
        for start in range(0, len(self), CHUNK):
            part = self.column.slice(start, CHUNK).cast(pa.large_binary())
            encoded[start : start + CHUNK] = part.to_pylist()
        return Strings(encoded)


class RowGroups:
    """Parquet files as one table, of which one row group of each column is in memory.

    Parameters
    ----------
    parts
        Paths in the order of their rows, each with columns of one value, which it has unless they
        are its own.

    Attributes
    ----------
    nbytes
        Bytes of the files without their compression, by their own account.
    """

    def __init__(self, parts: Mapping[Path, Mapping[str, str]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._groups: list[tuple[Path, int]] = []
        self._more: dict[Path, dict[str, str]] = {}
        self._schemas, self.nbytes, sizes = [], 0, []
        for path, more in parts.items():
            with pq.ParquetFile(path) as file:
                schema, described = file.schema_arrow, file.metadata
                self._more[path] = {n: v for n, v in more.items() if n not in schema.names}
                for name in self._more[path]:
                    schema = schema.append(pa.field(name, pa.string()))
                self._schemas.append(schema)
                for number in range(described.num_row_groups):
                    self._groups.append((path, number))
                    sizes.append(described.row_group(number).num_rows)
                    self.nbytes += described.row_group(number).total_byte_size
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._kept: dict[str, tuple[int, Any]] = {}

    @cached_property
    def schema(self) -> Any:
        """Columns of all files, with the type of each."""
        import pyarrow as pa

        return pa.unify_schemas(self._schemas, promote_options="default")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, name: str, start: int, stop: int) -> Any:
        """Rows ``start`` to ``stop`` of a column, as an Arrow column."""
        import pyarrow as pa

        pieces = []
        for number, first, last in spans(self._starts, start, stop):
            pieces += self._group(name, number).slice(first, last - first).chunks
        return pa.chunked_array(pieces, type=self.schema.field(name).type)

    def _group(self, name: str, number: int) -> Any:
        """The column of a row group; the last one asked for is kept."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        known, kept = self._kept.get(name, (-1, None))
        if known == number:
            return kept
        path, group = self._groups[number]
        count = int(np.diff(self._starts[number : number + 2])[0])
        kind = self.schema.field(name).type
        try:
            with pq.ParquetFile(path, memory_map=True) as file:
                if name in self._more[path]:
                    column = pa.chunked_array([[self._more[path][name]] * count])
                elif name in file.schema_arrow.names:
                    # A name with a point also reads the column that has such a field.
                    column = file.read_row_group(group, columns=[name]).column(name)
                else:
                    column = pa.chunked_array([pa.nulls(count, kind)])
                column.validate(full=True)
                column = column.cast(kind)
        except (pa.ArrowException, OSError) as error:
            raise damaged(path, error) from None
        self._kept[name] = number, column
        return column


class GroupColumn(Sliced):
    """A column of :class:`RowGroups` that gives Python values, slice by slice."""

    def __init__(self, groups: RowGroups, name: str) -> None:
        self._groups, self._name = groups, name

    def __len__(self) -> int:
        return len(self._groups)

    def values(self, start: int, stop: int) -> list[Any]:
        """Values of some rows."""
        some: list[Any] = []
        for begin in range(start, stop, CHUNK):
            some += self._groups.read(self._name, begin, min(stop, begin + CHUNK)).to_pylist()
        return some

    def strings(self) -> Strings | None:
        """As :meth:`ArrowColumn.strings`, of the whole column."""
        return ArrowColumn(self._groups.read(self._name, 0, len(self))).strings()


def damaged(path: Path, error: BaseException) -> DataError:
    """Return what to say of a file that Arrow cannot read as Parquet."""
    return DataError(f"{path} is damaged or not a Parquet file: {arrow_reason(error)}.")


def arrow_reason(error: BaseException) -> str:
    """Return the first line of what Arrow says."""
    return one_line(str(error).partition("\n")[0]).rstrip(".")
