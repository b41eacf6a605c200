from __future__ import annotations

import hashlib
import json

import datasets
import pandas as pd
import pytest

from probekit.data import Rows, rows_fingerprint, text_hash
from probekit.errors import DataError

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_text_hashes_are_the_documented_ones():
    assert text_hash("some text") == sha("some text")
    assert text_hash(("a", "b")) == sha("a\x1fb")
    assert text_hash(CHAT) == sha(
        '[{"content":"hi","role":"user"},{"content":"yes","role":"assistant"}]'
    )
    assert text_hash([{"role": "user", "content": "ü"}]) == sha('[{"content":"ü","role":"user"}]')
    assert text_hash("ab") != text_hash(("a", "b")) != text_hash("a b")
    assert len(text_hash("lone \ud800 surrogate")) == 16


def test_message_keys_that_arrow_fills_in_do_not_count(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "hi", "name": "x"}]},
        {"messages": [{"role": "user", "content": "ho"}]},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "m.parquet")
    lines = Rows.from_any(tmp_path / "m.jsonl")
    parquet = Rows.from_any(tmp_path / "m.parquet")
    assert lines.hashes == parquet.hashes
    assert parquet.contents()[1][0].keys() == {"role", "content", "name"}  # Arrow did fill it in
    assert lines.kind == "messages"


def test_fingerprint_sees_order_and_borders():
    whole = rows_fingerprint(["a", "b"], ["1", "2"])
    assert whole != rows_fingerprint(["b", "a"], ["2", "1"])
    assert whole != rows_fingerprint(["ab", ""], ["1", "2"])
    many = [str(i) for i in range(20_000)]  # several blocks
    text = "".join(f"{i}\x1f{i}\x1e" for i in many)
    assert rows_fingerprint(many, many) == sha(text)


def sources(tmp_path):
    records = [{"id": 5, "text": "a", "x": 1}, {"id": 7, "text": "b", "x": 2}]
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    yield path
    yield str(path)
    yield records
    yield {"id": [5, 7], "text": ["a", "b"], "x": [1, 2]}
    yield pd.DataFrame(records)
    yield datasets.Dataset.from_list(records)
    yield datasets.Dataset.from_list(records[::-1]).select([1, 0])
    yield Rows.from_any(records)


def test_rows_from_anything(tmp_path):
    for source in sources(tmp_path):
        rows = Rows.from_any(source)
        assert rows.ids == ["5", "7"]
        assert rows.hashes == [sha("a"), sha("b")]
        assert rows.kind == "text"
        assert list(rows.records()) == [
            {"id": 5, "text": "a", "x": 1},
            {"id": 7, "text": "b", "x": 2},
        ]
        assert len(rows) == 2
        assert rows.fingerprint == rows_fingerprint(rows.ids, rows.hashes)


def test_texts_alone_are_numbered():
    rows = Rows.from_any(["a", "b"])
    assert rows.ids == ["0", "1"]
    assert rows.contents(1) == ["b"]
    assert rows.contents(0, 1) == ["a"]


def test_a_frame_whose_columns_are_called_data_and_features():
    frame = pd.DataFrame({"data": [1], "features": [2], "text": ["a"]})
    assert Rows.from_any(frame).hashes == [sha("a")]


def test_pairs():
    rows = Rows({"text": ["a", "b"], "text_pair": ["", "d"]})
    assert rows.kind == "pair"
    assert rows.contents() == [("a", ""), ("b", "d")]
    assert rows.hashes[1] == sha("b\x1fd")
    single = Rows({"text": ["a"], "text_pair": ["b"]}, text_column="text_pair")
    assert single.kind == "text"
    assert single.hashes == [sha("b")]


def test_selected_rows_keep_their_ids():
    chosen = Rows.from_any(["a", "b", "c"]).select([2, 0])
    assert chosen.ids == ["2", "0"]
    assert chosen.contents() == ["c", "a"]
    named = Rows({"id": [1, 2], "key": ["x", "y"], "body": ["a", "b"]}, id_column="key",
                 text_column="body")  # fmt: skip
    assert named.ids == ["x", "y"]
    assert named.select([1]).ids == ["y"]  # not those of the column that is called id
    assert named.select([1]).contents() == ["b"]


@pytest.mark.parametrize(
    ("columns", "options", "sentence"),
    [
        ({"body": ["a"], "n": [1]}, {}, r"no column 'text' or 'messages'; it has body, n: "),
        ({"text": ["a"]}, {"text_column": "body"}, "no column 'body'; it has text"),
        ({"text": ["a"]}, {"id_column": "key"}, r"no column 'key'; it has text.*--id-column"),
        ({"text": ["a", "b"], "id": [1]}, {}, "columns of different lengths"),
        ({"text": []}, {}, "holds no rows"),
        ({}, {}, "holds no rows"),
        ({"text": ["a", " \n", "", "b", "\t"], "id": list("vwxyz")}, {},
         r"3 rows with an empty text \(ids 'w', 'x', 'z'\)"),
        ({"text": ["a", None, 3]}, {}, r"2 rows whose 'text' is not text \(ids '1', '2'\)"),
        ({"text": ["a", "b"], "text_pair": ["c", None]}, {}, "1 rows whose 'text' is not text"),
        ({"text": [" "], "text_pair": [""]}, {}, "1 rows with an empty text"),
        ({"messages": [CHAT, []]}, {}, r"1 rows with an empty text \(ids '1'\)"),
        ({"messages": [CHAT, "hi"]}, {}, "1 rows whose 'messages' is not a list of messages"),
        ({"messages": [CHAT, [{"role": "user"}]]}, {}, "is not a list of messages"),
        ({"text": ["a", "b", "c"], "id": [1, 2, 1]}, {}, r"1 ids more than once.*\('1'\)"),
        ({"text": ["a", "b"], "id": [None, ""]}, {}, r"2 rows without an id \(rows '0', '1'\)"),
    ],
)  # fmt: skip
def test_rows_that_are_none(columns, options, sentence):
    with pytest.raises(DataError, match=sentence) as told:
        Rows(columns, source="here.jsonl", **options)
    assert str(told.value).startswith("here.jsonl ")
    assert "\n" not in str(told.value)


def test_what_is_no_rows_at_all():
    with pytest.raises(DataError, match="strings or mappings"):
        Rows.from_any([1, 2])


def test_rows_belong_to_the_groups_of_a_column():
    users = ["ann", None, float("nan"), "", 3, 3.0, "3", pd.NA]
    rows = Rows({"text": list("abcdefgh"), "user": users})
    assert rows.groups is None
    grouped = rows.grouped("user")
    assert grouped.groups == ["ann", "", "", "", "3", "3", "3", ""]
    assert rows.groups is None  # the rows themselves stay as they are
    assert grouped.fingerprint == rows.fingerprint
    assert grouped.select([6, 0]).groups == ["3", "ann"]
    with pytest.raises(DataError, match=r"no column 'question'; it has text, user: .*--group-col"):
        rows.grouped("question")
    with pytest.raises(DataError, match="1 rows whose 'user' is a list"):
        Rows({"text": ["a"], "user": [["b"]]}).grouped("user")
