"""Large Parquet and JSONL files stay on the disk: the same rows, a slice at a time."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from probekit import json_lines, tables
from probekit.arrow_columns import GroupColumn
from probekit.data import Rows
from probekit.errors import DataError
from probekit.json_lines import LineColumn
from probekit.tables import Table, read_file

N = 100
RECORDS: list[dict[str, Any]] = [
    {
        "id": f"row-{i}",
        "text": f"the text of row {i}, which is \u2028 long" + "!" * (i % 7),
        "a.b": i if i % 9 else None,
        "a": {"b": i},
        "messages": [{"role": "user", "content": str(j)} for j in range(i % 3 + 1)],
    }
    for i in range(N)
]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is large, and few records are parsed at a time."""
    monkeypatch.setattr(tables, "LARGE", 0)
    monkeypatch.setattr(tables, "LARGE_JSON", 0)
    monkeypatch.setattr(json_lines, "CHUNK", 7)


def write(path: Path, records: list[dict[str, Any]]) -> None:
    """Write Parquet in row groups of eight, or JSONL with a mark and blank lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=8)
        return
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\ufeff" + "\n\n".join(lines) + "\n", encoding="utf-8")


def shards(folder: Path, suffix: str) -> Path:
    """Three files, the second of which lacks a column; a name comes before another's folder."""
    write(folder / f"part-0{suffix}", RECORDS[:30])
    some = [{k: v for k, v in record.items() if k != "a.b"} for record in RECORDS[30:41]]
    write(folder / f"part-1{suffix}", some)
    write(folder / "split=last" / f"part-0{suffix}", RECORDS[41:])
    return folder


def whole(table: Table) -> dict[str, list[Any]]:
    return {name: list(values[:]) for name, values in table.columns.items()}


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("folder", [True, False])
def test_rows_are_those_of_a_table_in_memory(
    folder: bool, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ("shards" if folder else f"rows{suffix}")
    if folder:
        shards(path, suffix)
    else:
        write(path, RECORDS)
    small = read_file(path)
    assert not isinstance(small.columns["id"], GroupColumn | LineColumn)  # the control
    monkeypatch.setattr(tables, "LARGE", 0)
    monkeypatch.setattr(tables, "LARGE_JSON", 0)
    monkeypatch.setattr(json_lines, "CHUNK", 7)
    read = read_file(path)
    assert isinstance(read.columns["id"], GroupColumn | LineColumn)
    assert (read.note, len(read)) == (small.note, N)
    expected = whole(small)
    assert whole(read) == expected
    assert expected["id"] == [record["id"] for record in RECORDS]
    if folder:
        assert expected["a.b"][29:42] == [29, *[None] * 11, 41]
        if suffix == ".parquet":
            assert expected["split"] == [None] * 41 + ["last"] * 59
    rng = random.Random(0)
    for name, values in read.columns.items():
        for _ in range(20):
            start, stop, step = rng.randrange(-N, N), rng.randrange(-N, N + 9), rng.choice([1, 3])
            assert values[start:stop:step] == expected[name][start:stop:step]
            assert values[start] == expected[name][start]
        assert values[5:5] == values[60:40] == []
        with pytest.raises(IndexError):
            values[N]
    rows, before = (Rows(table.columns, text_column="text") for table in (read, small))
    assert rows.fingerprint == before.fingerprint
    assert rows.contents(13, 47) == before.contents(13, 47)
    assert Rows(read.columns, text_column="messages").fingerprint == (
        Rows(small.columns, text_column="messages").fingerprint
    )


@pytest.mark.usefixtures("large")
def test_one_row_group_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.parquet"
    texts = [str(i) * 1000 for i in range(100, 900)]  # 2.4 MB
    pq.write_table(pa.table({"text": texts}), path, row_group_size=20)

    def most() -> int:
        before = pa.total_allocated_bytes()
        column, peak = read_file(path).columns["text"], 0
        for start in range(0, 800, 10):
            assert column[start : start + 10] == texts[start : start + 10]
            peak = max(peak, pa.total_allocated_bytes() - before)
        return peak

    # A group of 60 kB; Arrow takes memory in steps.
    assert most() < 300_000
    monkeypatch.setattr(tables, "LARGE", 1 << 28)
    assert most() > 2_000_000  # the control


@pytest.mark.usefixtures("large")
def test_damage_is_named_when_its_rows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({"text": [f"{i:0100d}" for i in range(80)]})
    pq.write_table(table, path, row_group_size=20, compression="zstd")
    column = read_file(path).columns["text"]
    content = bytearray(path.read_bytes())
    offset = pq.ParquetFile(path).metadata.row_group(3).column(0).data_page_offset
    content[offset : offset + 60] = b"\xff" * 60
    path.write_bytes(content)
    assert column[:60] == table["text"].to_pylist()[:60]
    with pytest.raises(DataError, match=r"rows.parquet is damaged or not a Parquet file"):
        column[60:]
    lines = tmp_path / "rows.jsonl"
    write(lines, RECORDS)
    column = read_file(lines).columns["text"]
    lines.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="has become shorter while it was read; start again"):
        column[:]
    lines.write_text('{"text": "a"}\n{"text": \n', encoding="utf-8")
    with pytest.raises(DataError, match=r"rows.jsonl, line 2"):
        read_file(lines)


def test_packed_files_and_utf16_are_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "LARGE", 0)
    monkeypatch.setattr(tables, "LARGE_JSON", 0)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": "é"}\n', encoding="utf-16")
    assert read_file(path).columns["text"] == ["a", "é"]


def test_a_folder_of_jsonl_and_other_tables_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", RECORDS)
    (tmp_path / "README.md").touch()
    assert len(read_file(tmp_path)) == N
    (tmp_path / "rows.csv").write_text("id\na\n", encoding="utf-8")
    with pytest.raises(DataError, match="no Parquet files, nor JSONL files alone; name one of"):
        read_file(tmp_path)
