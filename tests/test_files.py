from __future__ import annotations

import json
import os
import resource
import signal
import stat

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from probekit.errors import DataError, OutputExistsError, WriteError
from probekit.files import atomic_write, check_output, json_line
from probekit.output_tables import check_format, save_table, write_table
from probekit.tables import read_file

RECORDS = [{"id": "a", "n": 1, "t": "x"}, {"id": "b", "n": 2, "t": None}]


def as_lists(columns):
    return {name: list(values[:]) for name, values in columns.items()}


def test_a_written_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "f.txt"
    path.write_text("before")

    def fail(kind):
        with atomic_write(path, "w") as file:
            file.write("half")
            raise kind

    for kind in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(kind):
            fail(kind)
        assert path.read_text() == "before"
        assert list(tmp_path.iterdir()) == [path]
    with atomic_write(path, "w") as file:
        file.write("after ü")
        assert path.read_text() == "before"
    assert path.read_text(encoding="utf-8") == "after ü"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_has_the_usual_rights_and_a_link_stays_one(tmp_path):
    old = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "f") as file:
            file.write(b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640
    (tmp_path / "link").symlink_to("f")
    with atomic_write(tmp_path / "link") as file:
        file.write(b"y")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "f").read_bytes() == b"y"


def test_a_full_disk_leaves_what_was_there(tmp_path):
    path = tmp_path / "t.parquet"
    write_table({"a": [1]}, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
        with pytest.raises(WriteError, match=r"t\.parquet needs \d.*; raise that limit"):
            write_table({"a": np.random.default_rng(0).random(9000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_outputs_are_checked_before_work(tmp_path):
    assert check_output(tmp_path / "new", overwrite=False) == tmp_path / "new"
    (tmp_path / "old").touch()
    with pytest.raises(OutputExistsError, match="--overwrite"):
        check_output(tmp_path / "old", overwrite=False)
    assert check_output(tmp_path / "old", overwrite=True) == tmp_path / "old"
    with pytest.raises(OutputExistsError, match="is a folder"):
        check_output(tmp_path, overwrite=True)
    with pytest.raises(DataError, match=r"folder .*none of the output x does not exist"):
        check_output(tmp_path / "none" / "x", overwrite=False)


def test_a_folder_that_cannot_be_written_to_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # whoever runs the tests may be root
    with pytest.raises(DataError, match="cannot be written to"):
        check_output(tmp_path / "x", overwrite=False)


def test_tables(tmp_path):
    columns = {"id": ["a", "b"], "p": np.array([0.5, 0.25]), "v": [[1.0, 0.0], [0.0, 1.0]]}
    write_table(columns, tmp_path / "t.parquet", {"said": 1})
    assert pq.read_schema(tmp_path / "t.parquet").metadata[b"probekit"] == b'{"said": 1}'
    write_table(columns, tmp_path / "t.jsonl")
    for name in ("t.parquet", "t.jsonl"):
        assert as_lists(read_file(tmp_path / name).columns) == {
            "id": ["a", "b"],
            "p": [0.5, 0.25],
            "v": [[1.0, 0.0], [0.0, 1.0]],
        }
    with pytest.raises(DataError, match=r"ending '.csv'; allowed are .parquet, .jsonl, and none"):
        write_table(columns, tmp_path / "t.csv")
    with pytest.raises(DataError, match="not Unicode"):
        write_table({"id": ["a\ud800"]}, tmp_path / "s.parquet")
    assert not (tmp_path / "s.parquet").exists()


@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl"])
def test_a_saved_table_says_its_format_and_version(tmp_path, name):
    save_table({"id": ["ü"]}, tmp_path / name, "probekit-labels", 1, classes=["ä", "b"])
    table = read_file(tmp_path / name)
    assert list(table.columns["id"]) == ["ü"]
    about = {key: table.metadata[key] for key in ("format", "version", "classes")}
    assert about == {"format": "probekit-labels", "version": 1, "classes": ["ä", "b"]}
    repair = {"repair": "`probekit weak-labels`"}
    check_format(table.metadata, "t", "probekit-labels", 1, **repair)
    with pytest.raises(DataError, match=r"t has version 1 of the labels .* reads version 2"):
        check_format(table.metadata, "t", "probekit-labels", 2, **repair)
    with pytest.raises(DataError, match=r"t has no verdicts metadata; make it with `probekit"):
        check_format(table.metadata, "t", "probekit-verdicts", 1, **repair)


def test_json_lines():
    assert json_line({"t": "ü"}) == '{"t": "ü"}\n'
    assert json.loads(json_line({"t": "\ud800"})) == {"t": "\ud800"}
    json_line({"t": "\ud800"}).encode("utf-8")
    assert json_line({"d": pd.Timestamp("2020-01-02")}) == '{"d": "2020-01-02 00:00:00"}\n'
