from __future__ import annotations

import bz2
import gzip
import json
import os
import resource
import signal
import stat

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from probekit.errors import DataError, OutputExistsError
from probekit.files import (
    atomic_write,
    check_output,
    frame_columns,
    json_line,
    read_columns,
    suffix_of,
    write_table,
)

RECORDS = [{"id": "a", "n": 1, "t": "x"}, {"id": "b", "n": 2, "t": None}]


def as_lists(columns):
    return {name: list(values[:]) for name, values in columns.items()}


def test_suffix_names_the_format_below_the_packing():
    assert suffix_of("a/b.csv") == ".csv"
    assert suffix_of("b.JSONL.gz") == ".jsonl"
    assert suffix_of("v1.2.tsv.bz2") == ".tsv"
    assert suffix_of("name") == ""
    assert suffix_of("x.gz") == ""


@pytest.mark.parametrize("packing", ["", ".gz", ".bz2"])
@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "tsv"])
def test_text_formats_packed_or_not(tmp_path, form, packing):
    text = {
        "jsonl": "\n".join(map(json.dumps, RECORDS)) + "\n\n",
        "json": json.dumps(RECORDS, indent=1),
        "csv": "id,n,t\r\na,1,x\r\n\r\nb,2,\r\n",
        "tsv": "id\tn\tt\na\t1\tx\nb\t2\t\n",
    }[form]
    opener = {"": open, ".gz": gzip.open, ".bz2": bz2.open}[packing]
    path = tmp_path / f"f.{form}{packing}"
    with opener(path, "wt", encoding="utf-8-sig", newline="") as file:
        file.write(text)
    found = as_lists(read_columns(path))
    if form in ("csv", "tsv"):
        assert found == {"id": ["a", "b"], "n": ["1", "2"], "t": ["x", ""]}
    else:
        assert found == {"id": ["a", "b"], "n": [1, 2], "t": ["x", None]}


def test_binary_formats(tmp_path):
    table = pa.Table.from_pylist(RECORDS)
    pq.write_table(table, tmp_path / "t.parquet")
    with (
        pa.OSFile(str(tmp_path / "f.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as w,
    ):
        w.write_table(table)
    with (
        pa.OSFile(str(tmp_path / "s.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as w,
    ):
        w.write_table(table)
    datasets.Dataset.from_list(RECORDS).save_to_disk(tmp_path / "saved")
    for name in ("t.parquet", "f.arrow", "s.arrow", "saved"):
        found = read_columns(tmp_path / name)
        assert as_lists(found) == {"id": ["a", "b"], "n": [1, 2], "t": ["x", None]}, name
        assert found["n"][1] == 2
        assert found["n"][::-1] == [2, 1]
        assert found["n"][5:] == []


def test_quotes(tmp_path):
    (tmp_path / "q.csv").write_text('id,t\n1,"a, ""b""\nc"\n', encoding="utf-8")
    assert as_lists(read_columns(tmp_path / "q.csv"))["t"] == ['a, "b"\nc']
    (tmp_path / "q.tsv").write_text('id\tt\n1\t"a, b\n', encoding="utf-8")
    assert as_lists(read_columns(tmp_path / "q.tsv"))["t"] == ['"a, b']


def test_json_lines_with_different_keys_and_endings(tmp_path):
    (tmp_path / "k.jsonl").write_text('{"a": 1}\n{"b": 2}\n')
    assert as_lists(read_columns(tmp_path / "k.jsonl")) == {"a": [1, None], "b": [None, 2]}
    (tmp_path / "lines.json").write_text('{"a": 1}\n{"a": 2}\n')  # JSONL under another name
    assert as_lists(read_columns(tmp_path / "lines.json")) == {"a": [1, 2]}
    (tmp_path / "one.json").write_text('{"a": 1}')
    assert as_lists(read_columns(tmp_path / "one.json")) == {"a": [1]}


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("f.txt", b"x", r"ending '.txt'; allowed are .jsonl"),
        ("f", b"x", "ending 'none'"),
        ("e.csv", b"", "is empty"),
        ("d.csv", b"a,a\n1,2\n", "names a column twice in its header: a, a"),
        ("l.csv", b"a,b\n1,2\n3\n", "line 3: 1 fields where the header has 2"),
        ("q.csv", b'a,b\n1,"x"y\n', "line 2: "),
        ("u.csv", "a\nü\n".encode("utf-16"), r"not UTF-8 text \(byte 0\)"),
        ("j.jsonl", b'{"a": 1}\n{"a": \n', "line 2: no JSON"),
        ("n.jsonl", b'{"a": ' + b"1" * 5000 + b"}\n", "line 1: no JSON"),
        ("d.jsonl", b"[" * 100_000 + b"\n", "line 1: no JSON"),
        ("o.jsonl", b"[1]\n", "line 1: one JSON object per line"),
        ("o.json", b"[1, 2]", "must hold a list of JSON objects"),
        ("o2.json", b'"x"', "must hold a list of JSON objects"),
        ("x.json", b'{"a": 1', "line 1: no JSON"),
        ("t.parquet", b"PAR1 and then nothing", "damaged or no parquet file"),
        ("t.arrow", b"ARROW1 nothing", "damaged or no arrow file"),
        ("z.csv.gz", b"not packed", "cut off or damaged"),
        ("c.csv.gz", gzip.compress(b"a,b\n" * 9000, mtime=0)[:60], "cut off or damaged"),
        ("b.csv.bz2", b"not packed", "cannot be read"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=sentence) as told:
        read_columns(tmp_path / name)
    assert name in str(told.value)
    assert "\n" not in str(told.value)


def test_a_packed_file_with_a_flipped_bit(tmp_path):
    data = bytearray(gzip.compress(os.urandom(20_000), mtime=0))
    for place in range(100, len(data), 700):
        data[place] ^= 0x55
    (tmp_path / "x.csv.gz").write_bytes(data)
    with pytest.raises(DataError):
        read_columns(tmp_path / "x.csv.gz")


def test_paths_that_are_none(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_columns(tmp_path / "none.csv")
    with pytest.raises(DataError, match="a folder but no saved data set"):
        read_columns(tmp_path)
    datasets.DatasetDict({"train": datasets.Dataset.from_list(RECORDS)}).save_to_disk(
        tmp_path / "dict"
    )
    with pytest.raises(DataError, match="holds the splits train; name one"):
        read_columns(tmp_path / "dict")


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
    write_table({"a": [1]}, path, {})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
        with pytest.raises(OSError, match="too large"):
            write_table({"a": np.random.default_rng(0).random(9000)}, path, {})
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


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # whoever runs the tests may be root
    with pytest.raises(DataError, match="cannot be written to"):
        check_output(tmp_path / "x", overwrite=False)


def test_tables(tmp_path):
    columns = {"id": ["a", "b"], "p": np.array([0.5, 0.25]), "v": [[1.0, 0.0], [0.0, 1.0]]}
    write_table(columns, tmp_path / "t.parquet", {"probekit": "said"})
    assert pq.read_schema(tmp_path / "t.parquet").metadata[b"probekit"] == b"said"
    write_table(columns, tmp_path / "t.jsonl", {})
    for name in ("t.parquet", "t.jsonl"):
        assert as_lists(read_columns(tmp_path / name)) == {
            "id": ["a", "b"],
            "p": [0.5, 0.25],
            "v": [[1.0, 0.0], [0.0, 1.0]],
        }
    with pytest.raises(DataError, match=r"ending '.csv'; allowed are .parquet and .jsonl"):
        write_table(columns, tmp_path / "t.csv", {})
    with pytest.raises(DataError, match="no Unicode"):
        write_table({"id": ["a\ud800"]}, tmp_path / "s.parquet", {})
    assert not (tmp_path / "s.parquet").exists()


def test_json_lines():
    assert json_line({"t": "ü"}) == '{"t": "ü"}\n'
    assert json.loads(json_line({"t": "\ud800"})) == {"t": "\ud800"}
    json_line({"t": "\ud800"}).encode("utf-8")
    assert json_line({"d": pd.Timestamp("2020-01-02")}) == '{"d": "2020-01-02 00:00:00"}\n'


def test_frames(tmp_path):
    frame = pd.DataFrame({"m": [[{"role": "user"}], [{"role": "user"}]], "n": [1, 2]})
    frame.to_parquet(tmp_path / "f.parquet")
    back = pd.read_parquet(tmp_path / "f.parquet")
    assert isinstance(back["m"][0], np.ndarray)
    assert frame_columns(back) == {"m": [[{"role": "user"}]] * 2, "n": [1, 2]}
    with pytest.raises(DataError, match="names a column twice: a, a"):
        frame_columns(pd.DataFrame([[1, 2]], columns=["a", "a"]))
