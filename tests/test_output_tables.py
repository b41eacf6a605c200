"""Tables that are written as a folder of Parquet files."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from probekit import output_tables
from probekit.errors import OutputExistsError, WriteError
from probekit.files import TEMPORARY, atomic_write, check_output, locked_part
from probekit.output_tables import save_table, write_table
from probekit.tables import read_file

IDS = [f"row-{i}" for i in range(25)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a table of ten rows a file is to be written."""
    monkeypatch.setattr(output_tables, "ROWS_OF_A_FILE", 10)
    return tmp_path / "table"


def columns(ids: list[str] = IDS) -> dict[str, list[Any]]:
    return {"id": ids, "label": list(range(len(ids)))}


def names(folder: Path) -> list[str]:
    """All names, the hidden ones of killed writers as well."""
    return sorted(os.listdir(folder))


def test_the_files_of_a_folder_are_one_table(folder: Path) -> None:
    save_table(columns(), folder, "probekit-test", 1, classes=["a", "b"])
    assert names(folder) == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert [pq.read_metadata(folder / name).num_rows for name in names(folder)] == [10, 10, 5]
    table = read_file(folder)
    assert {name: list(values[:]) for name, values in table.columns.items()} == columns()
    assert table.metadata["classes"] == ["a", "b"]
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_older_table_is_replaced_whole(folder: Path) -> None:
    write_table(columns(), folder)
    write_table(columns(IDS[:7]), folder)
    assert names(folder) == ["part-00000.parquet"]
    assert list(read_file(folder).columns["id"][:]) == IDS[:7]
    assert names(folder.parent) == ["table"]


def test_no_rows_are_a_table_too(folder: Path) -> None:
    write_table({"id": [], "label": []}, folder)
    assert names(folder) == ["part-00000.parquet"]


def test_a_folder_of_other_files_is_left_alone(folder: Path) -> None:
    folder.mkdir()
    assert check_output(folder, overwrite=False) == folder  # the control: an empty one
    (folder / "part-00000.parquet").write_text("mine")
    with pytest.raises(OutputExistsError, match="exists already; pass --overwrite"):
        check_output(folder, overwrite=False)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="is a folder, not a file"):
        check_output(folder, overwrite=True)
    with pytest.raises(OutputExistsError, match="holds other files than those of a table"):
        write_table(columns(), folder)
    assert (folder / "notes.txt").read_text() == "mine"
    assert names(folder.parent) == ["table"]


def test_a_failure_leaves_the_older_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(columns(IDS[:7]), folder)
    write: Callable[..., None] = pq.write_table

    def full(table: Any, file: Any) -> None:
        if file.name.endswith("part-00001.parquet"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(table, file)

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(WriteError, match="table"):
        write_table(columns(), folder)
    assert list(read_file(folder).columns["id"][:]) == IDS[:7]
    assert names(folder.parent) == ["table"]


def test_what_killed_writers_leave_is_removed_and_no_other(folder: Path) -> None:
    """A writer that lives holds the lock of its hidden folder."""
    leftover = folder.parent / f".table.abcdefgh{TEMPORARY}"
    alive = folder.parent / f".table.ijklmnop{TEMPORARY}"
    other = folder.parent / f".other.abcdefgh{TEMPORARY}"
    for place in (leftover, alive, other):
        place.mkdir()
        (place / "part-00000.parquet").touch()
    hold = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX); "
    writer = subprocess.Popen(
        [sys.executable, "-c", hold + "print(flush=True); input()", str(alive)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    write_table(columns(), folder)
    writer.communicate(b"\n")
    assert names(folder.parent) == sorted(["table", alive.name, other.name])


def test_a_part_that_another_writer_removes_is_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making it and locking it, it looks like a leftover."""
    made: list[str] = []
    make = tempfile.mkdtemp

    def removed_twice(**options: Any) -> str:
        made.append(make(**options))
        if len(made) <= 2:
            os.rmdir(made[-1])
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", removed_twice)
    handle, name = locked_part(folder, folder=True)
    os.close(handle)
    assert [name] == made[2:]
    assert Path(name).is_dir()
    Path(name).rmdir()
    made.clear()
    write_table(columns(), folder)
    assert names(folder.parent) == ["table"]


def test_a_link_in_place_of_a_leftover_is_not_followed(folder: Path) -> None:
    precious = folder.parent / "precious"
    precious.mkdir()
    (precious / "part-00000.parquet").write_text("mine")
    link = folder.parent / f".table.abcdefgh{TEMPORARY}"
    link.symlink_to(precious)
    write_table(columns(), folder)
    with atomic_write(folder.parent / "table.x", "w") as file:
        file.write("")
    assert names(precious) == ["part-00000.parquet"]
