"""Arrow columns as Python values, slice by slice: in memory, or decoded when rows are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from probekit.errors import DataError
from probekit.safe import one_line
from probekit.strings import Strings

CHUNK = 1 << 14
WIDER = 4  # times the mean size of a string that the longest may have, to be kept in one width


class ArrowColumn(Sequence[Any]):
    """An Arrow column that gives Python values, slice by slice."""

    def __init__(self, column: Any) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return self.column.to_pylist()[index]
            return self.column.slice(start, max(stop - start, 0)).to_pylist()
        return self.column[index].as_py()

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
        Paths in the order of their rows, each with columns of one value that it has beside its own.
    """

    def __init__(self, parts: Mapping[Path, Mapping[str, str]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schemas, sizes = [], []
        self._groups: list[tuple[Path, int]] = []
        self._more = dict(parts)
        for path, more in parts.items():
            with pq.ParquetFile(path) as file:
                schema, described = file.schema_arrow, file.metadata
                for name in more:
                    schema = schema.append(pa.field(name, pa.string()))
                schemas.append(schema)
                for number in range(described.num_row_groups):
                    self._groups.append((path, number))
                    sizes.append(described.row_group(number).num_rows)
        self.schema = pa.unify_schemas(schemas, promote_options="default")
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._kept: dict[str, tuple[int, Any]] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, name: str, start: int, stop: int) -> Any:
        """Rows ``start`` to ``stop`` of a column, as an Arrow column."""
        import pyarrow as pa

        pieces = []
        number = int(np.searchsorted(self._starts, start, "right")) - 1
        while start < stop:
            first, last = self._starts[number : number + 2].tolist()
            end = min(stop, last)
            pieces += self._group(name, number).slice(start - first, end - start).chunks
            start, number = end, number + 1
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
            reason = one_line(str(error).partition("\n")[0]).rstrip(".")
            raise DataError(f"{path} is damaged or not a Parquet file: {reason}.") from None
        self._kept[name] = number, column
        return column


class GroupColumn(Sequence[Any]):
    """A column of :class:`RowGroups` that gives Python values, slice by slice."""

    def __init__(self, groups: RowGroups, name: str) -> None:
        self._groups, self._name = groups, name

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, slice):
            place = range(len(self))[index]
            return self._groups.read(self._name, place, place + 1)[0].as_py()
        start, stop, step = index.indices(len(self))
        if step != 1:
            return self[:][index]
        values: list[Any] = []
        for begin in range(start, stop, CHUNK):
            values += self._groups.read(self._name, begin, min(stop, begin + CHUNK)).to_pylist()
        return values

    def strings(self) -> Strings | None:
        """As :meth:`ArrowColumn.strings`, of the whole column."""
        return ArrowColumn(self._groups.read(self._name, 0, len(self))).strings()


def decoded_bytes(paths: Sequence[Path]) -> int:
    """Bytes that Parquet files take without their compression, by their own account."""
    import pyarrow.parquet as pq

    total = 0
    for path in paths:
        with pq.ParquetFile(path) as file:
            groups = range(file.metadata.num_row_groups)
            total += sum(file.metadata.row_group(i).total_byte_size for i in groups)
    return total


def field_names(path: Path) -> list[str]:
    """Names of a Parquet file's columns."""
    import pyarrow.parquet as pq

    return list(pq.read_schema(path).names)
