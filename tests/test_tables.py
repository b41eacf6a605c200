"""Tables in every format, as real programs write them; files that are not tables are named."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from probekit.errors import DataError
from probekit.tables import frame_columns, read_file, suffix_of

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
    result = as_lists(read_file(path).columns)
    if form in ("csv", "tsv"):
        assert result == {"id": ["a", "b"], "n": ["1", "2"], "t": ["x", ""]}
    else:
        assert result == {"id": ["a", "b"], "n": [1, 2], "t": ["x", None]}


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
        result = read_file(tmp_path / name).columns
        assert as_lists(result) == {"id": ["a", "b"], "n": [1, 2], "t": ["x", None]}, name
        assert result["n"][1] == 2
        assert result["n"][::-1] == [2, 1]
        assert result["n"][5:] == []


def test_quotes(tmp_path):
    (tmp_path / "q.csv").write_text('id,t\n1,"a, ""b""\nc"\n', encoding="utf-8")
    assert as_lists(read_file(tmp_path / "q.csv").columns)["t"] == ['a, "b"\nc']
    (tmp_path / "q.tsv").write_text('id\tt\n1\t"a, b\n', encoding="utf-8")
    assert as_lists(read_file(tmp_path / "q.tsv").columns)["t"] == ['"a, b']


def test_json_lines_with_different_keys_and_endings(tmp_path):
    (tmp_path / "k.jsonl").write_text('{"a": 1}\n{"b": 2}\n')
    assert as_lists(read_file(tmp_path / "k.jsonl").columns) == {"a": [1, None], "b": [None, 2]}
    (tmp_path / "lines.json").write_text('{"a": 1}\n{"a": 2}\n')  # JSONL under another name
    assert as_lists(read_file(tmp_path / "lines.json").columns) == {"a": [1, 2]}
    (tmp_path / "one.json").write_text('{"a": 1}')
    assert as_lists(read_file(tmp_path / "one.json").columns) == {"a": [1]}


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("f.txt", b"x", r"ending '.txt'; allowed are .jsonl"),
        ("f", b"x", "ending 'none'"),
        ("e.csv", b"", "is empty"),
        ("d.csv", b"a,a\n1,2\n", "names a column twice in its header: a, a"),
        ("l.csv", b"a,b\n1,2\n3\n", "line 3: 1 fields where the header has 2"),
        ("q.csv", b'a,b\n1,"x"y\n', "line 2: "),
        ("u.csv", "a\nü\n".encode("cp1252"), r"not UTF-8 text \(byte 2 is 0xfc; .*Windows-1252"),
        ("u2.csv", "a\nü\n".encode("utf-16")[:-1], "utf-16.* cut off or damaged"),
        ("j.jsonl", b'{"a": 1}\n{"a": \n', "line 2: not JSON"),
        ("n.jsonl", b'{"a": ' + b"1" * 5000 + b"}\n", "line 1: not JSON"),
        ("d.jsonl", b"[" * 100_000 + b"\n", "line 1: not JSON"),
        ("o.jsonl", b"[1]\n", "line 1: one JSON object per line"),
        ("o.json", b"[1, 2]", "must be a list of JSON objects"),
        ("o2.json", b'"x"', "must be a list of JSON objects"),
        ("x.json", b'{"a": 1', "not JSON"),
        ("t.parquet", b"PAR1 and then nothing", "damaged or not a Parquet file"),
        ("t.arrow", b"ARROW1 nothing", "damaged or not an Arrow file"),
        ("z.csv.gz", b"not packed", "cut off or damaged"),
        ("c.csv.gz", gzip.compress(b"a,b\n" * 9000, mtime=0)[:60], "cut off or damaged"),
        ("b.csv.bz2", b"not packed", "not compressed, but its ending is .bz2"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=sentence) as caught:
        read_file(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_packed_file_with_a_flipped_bit(tmp_path):
    data = bytearray(gzip.compress(os.urandom(20_000), mtime=0))
    for place in range(100, len(data), 700):
        data[place] ^= 0x55
    (tmp_path / "x.csv.gz").write_bytes(data)
    with pytest.raises(DataError):
        read_file(tmp_path / "x.csv.gz")


def test_paths_that_are_none(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_file(tmp_path / "none.csv")
    with pytest.raises(DataError, match="a folder but not a saved data set"):
        read_file(tmp_path)
    datasets.DatasetDict({"train": datasets.Dataset.from_list(RECORDS)}).save_to_disk(
        tmp_path / "dict"
    )
    with pytest.raises(DataError, match="has the splits train; name one"):
        read_file(tmp_path / "dict")


def test_frames(tmp_path):
    frame = pd.DataFrame({"m": [[{"role": "user"}], [{"role": "user"}]], "n": [1, 2]})
    frame.to_parquet(tmp_path / "f.parquet")
    back = pd.read_parquet(tmp_path / "f.parquet")
    assert isinstance(back["m"][0], np.ndarray)
    assert frame_columns(back) == {"m": [[{"role": "user"}]] * 2, "n": [1, 2]}
    with pytest.raises(DataError, match="names a column twice: a, a"):
        frame_columns(pd.DataFrame([[1, 2]], columns=["a", "a"]))


def lists(path):
    return as_lists(read_file(path).columns)


WANTED = {"id": ["a", "b"], "t": ["x", "é"]}


@pytest.mark.parametrize(
    "text",
    [
        "id,t\na,x\nb,é\n",
        "\ufeffid,t\r\na,x\r\nb,é\r\n",
        "id;t\na;x\nb;é\n",
        '"id";"t"\n"a";"x"\n"b";"é"\n',
        "id\tt\na\tx\nb\té\n",
        "id|t\na|x\nb|é\n",
        "sep=;\nid;t\na;x\nb;é\n",
        "\ufeffsep=:\r\nid:t\r\na:x\r\nb:é\r\n",
        "id, t\na, x\nb, é\n",
        " id , t \na,x\nb,é\n",
        "id,t,,\na,x,,\nb,é,,\n",
        "id,t\na,x\nb,é\n,\n,\n\n",
        "id,t\na,x,\nb,é,\n",
        '\ufeff\ufeff"id",t\na,x\nb,é\n',
        "\n\nid,t\na,x\n\nb,é\n",
    ],
)
def test_csv_as_spreadsheets_write_it(tmp_path, text):
    (tmp_path / "x.csv").write_bytes(text.encode())
    assert lists(tmp_path / "x.csv") == WANTED
    (tmp_path / "y.csv").write_bytes(text.encode("utf-16"))
    assert lists(tmp_path / "y.csv") == WANTED


def test_what_separates_is_said_where_it_is_unusual(tmp_path):
    (tmp_path / "a.csv").write_text("id;t\n1;2\n")
    (tmp_path / "b.csv").write_text("id,t\n1;2,3\n")
    assert "semicolons" in read_file(tmp_path / "a.csv").note
    assert read_file(tmp_path / "b.csv").note == ""
    # A separator inside quotes of the header separates nothing.
    (tmp_path / "c.csv").write_text('id,"a;b;c"\n1;2,3\n')
    assert lists(tmp_path / "c.csv") == {"id": ["1;2"], "a;b;c": ["3"]}


def test_a_blank_line_of_a_single_column_is_an_empty_cell(tmp_path):
    (tmp_path / "x.csv").write_text("label\n1\n\n0\n\n")
    assert lists(tmp_path / "x.csv") == {"label": ["1", "", "0"]}  # else labels would move up


def test_an_empty_record_in_the_middle_keeps_its_place(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n,\n3,4\n")
    assert lists(tmp_path / "x.csv") == {"a": ["1", "", "3"], "b": ["2", "", "4"]}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('t\tn\n"all of it"\t1\nx\t2\n', ['"all of it"', "x"]),  # its author's quotes
        ('"t"\t"n"\n"all of it"\t"1"\n"x"\t"2"\n', ["all of it", "x"]),
        ('t\tn\n"he said ""no"""\t1\nx\t2\n', ['he said "no"', "x"]),
        ('t\tn\n"two\nlines"\t1\nx\t2\n', ["two\nlines", "x"]),
        ('t\tn\n"open\t1\nshut"\t2\n', ['"open', 'shut"']),  # rectangular as it stands
        ('t\tn\n3" pipe\t1\nx\t2\n', ['3" pipe', "x"]),
    ],
)
def test_quotes_in_tsv_quote_only_where_they_must(tmp_path, text, wanted):
    (tmp_path / "x.tsv").write_text(text)
    assert lists(tmp_path / "x.tsv")["t"] == wanted


def test_commas_under_the_name_of_tabs_are_reported(tmp_path):
    (tmp_path / "x.tsv").write_text("id,t\na,x\n")
    with pytest.raises(DataError, match=r"no tab in its header .*name a comma-separated file .csv"):
        read_file(tmp_path / "x.tsv")


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.ndjson"])
def test_json_lines_end_with_line_feeds_only(tmp_path, mark, name):
    records = [{"id": "a", "t": f"x{mark}y"}, {"id": "b", "t": "z"}]
    lines = [json.dumps(r, ensure_ascii=False) for r in records]
    (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert lists(tmp_path / name) == {"id": ["a", "b"], "t": [f"x{mark}y", "z"]}


@pytest.mark.parametrize("packing", ["xz", "zst", "gz", "bz2"])
def test_packed_text_is_reported_by_its_bytes(tmp_path, packing):
    text = "id,t\n" + "a,x\n" * 20_000
    pack = {
        "xz": lzma.compress,
        "gz": gzip.compress,
        "bz2": bz2.compress,
        "zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
    }[packing]
    for name in (f"x.csv.{packing}", "x.csv"):
        (tmp_path / name).write_bytes(pack(text.encode()))
        assert lists(tmp_path / name) == {"id": ["a"] * 20_000, "t": ["x"] * 20_000}


def test_parquet_is_reported_by_its_bytes(tmp_path):
    frame = pd.DataFrame({"id": ["a"], "n": [1]})
    for name in ("x.parquet.gzip", "x.pq", "x.snappy.parquet", "x"):
        frame.to_parquet(tmp_path / name)
        assert lists(tmp_path / name) == {"id": ["a"], "n": [1]}


def test_a_folder_of_parquet_is_one_table_in_the_order_of_names(tmp_path):
    folder = tmp_path / "out"
    for name, ids in (("part-00001", ["c"]), ("part-00000", ["a", "b"])):
        part = folder / f"{name}.snappy.parquet"
        part.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"id": ids}), part)
    (folder / "_SUCCESS").touch()
    (folder / "_temporary").mkdir()
    pq.write_table(pa.table({"id": ["half"]}), folder / "_temporary/x.parquet")
    table = read_file(folder)
    assert as_lists(table.columns) == {"id": ["a", "b", "c"]}
    assert "2 Parquet files" in table.note


def test_folders_of_a_partition_are_a_column(tmp_path):
    for label in ("neg", "pos"):
        part = tmp_path / "out" / f"label={label}" / "0.parquet"
        part.parent.mkdir(parents=True)
        pq.write_table(pa.table({"id": [label[0]]}), part)
    assert lists(tmp_path / "out") == {"id": ["n", "p"], "label": ["neg", "pos"]}


def test_names_of_classes_come_with_saved_data_sets_and_parquet(tmp_path):
    features = datasets.Features({"label": datasets.ClassLabel(names=["no", "yes"])})
    saved = datasets.Dataset.from_dict({"label": [0, 1, -1]}, features=features)
    saved.save_to_disk(tmp_path / "saved")
    saved.to_parquet(tmp_path / "x.parquet")
    for name in ("saved", "x.parquet"):
        table = read_file(tmp_path / name)
        assert table.class_names == {"label": ("no", "yes")}
        assert as_lists(table.columns) == {"label": [0, 1, -1]}


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.csv", b"PK\x03\x04rest", "a zip archive or a spreadsheet"),
        ("x.xlsx", b"PK\x03\x04rest", "is damaged or not an Excel workbook"),
        ("x.csv", b"\x89HDF\r\n", "an HDF5 file"),
        ("x.csv", b"SQLite format 3\0", "an SQLite database"),
        ("x.csv", b"<!DOCTYPE html>", "a web page"),
        ("x.pkl", b"\x80\x04\x95abc", "a pickle, which is never opened"),
        ("x.parquet", b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        ("c.json", b'{"id": {"0": "a"}, "t": {"0": "x"}}', "a table by columns"),
        ("c.json", b'{"id": ["a"], "t": ["x"]}', "a table by columns, each a list"),
        ("c.json", b'{"n": 1, "data": [{"id": 1}]}', "rows in its field 'data'"),
        ("c.jsonl", b'[\n{"id": 1}\n]\n', "one JSON list, not one object per line"),
        ("x.parquet", b"id,label\n1,2\n", "not a Parquet file: it does not begin as one"),
    ],
)
def test_what_is_no_table_is_named(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=sentence) as caught:
        read_file(tmp_path / name)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_devices_and_loops_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    with pytest.raises(DataError, match="not a plain file"):
        read_file(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match=r"does not exist|cannot be read"):
        read_file(tmp_path / "loop.csv")


def a_saved_data_set(folder):
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(folder))
    return folder / "state.json"


@pytest.mark.parametrize("how", ["../other/{}", "{absolute}", "inner/{}", "missing.arrow"])
def test_a_saved_data_set_stays_in_its_folder(tmp_path, how):
    state = a_saved_data_set(tmp_path / "saved")
    a_saved_data_set(tmp_path / "other")
    assert list(read_file(tmp_path / "saved").columns["text"]) == ["a", "b"]  # the control
    content = json.loads(state.read_text())
    own = content["_data_files"][0]["filename"]
    content["_data_files"][0]["filename"] = how.format(own, absolute=tmp_path / "other" / own)
    state.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"not in its folder|does not exist"):
        read_file(tmp_path / "saved")


def test_splits_of_a_data_set_are_named_and_not_opened(tmp_path):
    a_saved_data_set(tmp_path / "other")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["../other"]}')
    with pytest.raises(DataError, match=r"has the splits \.\./other; name one"):
        read_file(tmp_path / "saved")


def test_pipes_in_a_folder_are_refused(tmp_path):
    (tmp_path / "parts").mkdir()
    os.mkfifo(tmp_path / "parts" / "x.parquet")
    state = a_saved_data_set(tmp_path / "saved")
    part = state.parent / json.loads(state.read_text())["_data_files"][0]["filename"]
    part.unlink()
    os.mkfifo(part)
    for folder in ("parts", "saved"):
        with pytest.raises(DataError, match="is a pipe"):
            read_file(tmp_path / folder)


def test_offsets_that_lead_astray_are_reported(tmp_path):
    """A memory map of an Arrow file is used as it is, so offsets and UTF-8 are checked first."""
    import pyarrow as pa

    path = tmp_path / "x.arrow"
    table = pa.table({"id": ["a" * 8, "b" * 8], "text": ["cccc", "dddd"]})
    with pa.ipc.new_file(path, table.schema) as file:
        file.write(table)
    whole = path.read_bytes()
    assert read_file(path).columns["text"][:] == ["cccc", "dddd"]  # the control
    path.write_bytes(whole.replace(b"ccccdddd", b"\xff\xfe\xfd\xfcdddd"))
    with pytest.raises(DataError, match="damaged or not an Arrow file"):
        read_file(path)
    offsets = b"\x08\0\0\0\x10\0\0\0"
    assert offsets in whole
    path.write_bytes(whole.replace(offsets, b"\x08\0\0\0\xff\xff\xff\x7f"))
    with pytest.raises(DataError, match="damaged or not an Arrow file"):
        read_file(path)
