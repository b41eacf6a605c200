"""Rows and what they say in one form: ids, hashes, halves of characters, messages, parts."""

from __future__ import annotations

import csv
import hashlib
import json

import datasets
import numpy as np
import pandas as pd
import pytest

from probekit.cleaning.predict import filter_labels
from probekit.data import Rows, non_text_parts, normalised, rows_fingerprint, text_hash
from probekit.errors import DataError
from probekit.labels import WeakLabels
from probekit.safe import repaired

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
        ({"text": []}, {}, "has no rows"),
        ({}, {}, "has no rows"),
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
    with pytest.raises(DataError, match=sentence) as caught:
        Rows(columns, source="here.jsonl", **options)
    assert str(caught.value).startswith("here.jsonl ")
    assert "\n" not in str(caught.value)


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


MESSAGES = [
    {"role": "user", "content": "It's \"ten\" o'clock.\nYes?"},
    {"role": "assistant", "content": "ok 😀"},
]


def parts_of(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


# Which half is left over, and what must become of it.
HALVES = [
    ("a \ud83d b", "a \ufffd b"),
    ("\ude00", "\ufffd"),
    ("end \ud83d", "end \ufffd"),
    ("\ud83d\ude00", "😀"),  # both halves, escaped one by one
    ("\ude00\ud83d", "\ufffd\ufffd"),
    ("\ud83d\ud83d\ude00x", "\ufffd😀x"),
]


@pytest.mark.parametrize(("broken", "whole"), HALVES)
def test_half_a_character_is_the_replacement_character(broken: str, whole: str) -> None:
    assert repaired(broken) == whole
    rows = Rows({"text": ["x", broken]})
    assert rows.contents() == ["x", whole]
    assert rows.hashes == Rows({"text": ["x", whole]}).hashes
    pair = Rows({"text": ["x"], "text_pair": [broken]})
    assert pair.contents() == [("x", whole)]
    spoken = Rows({"messages": [[{"role": "user", "content": broken}]]})
    assert spoken.contents() == [[{"role": "user", "content": whole}]]
    for result in (rows, pair, spoken):
        json.dumps(result.contents(), ensure_ascii=False).encode()  # control: this raised


def test_whole_texts_are_left_as_they_are() -> None:
    text = "naïve 😀 \ufffd \x00"
    assert repaired(text) is text
    assert text_hash("A film worth seeing.") == "6fefc040c4c43cb2"  # docs/format.md


def test_ids_are_repaired_too() -> None:
    assert Rows({"id": ["a\ud83d", "b"], "text": ["x", "y"]}).ids == ["a\ufffd", "b"]


WRITTEN = {
    "JSON": json.dumps(MESSAGES),
    "JSON, indented": json.dumps(MESSAGES, indent=1),
    "Python, as pandas writes a list into CSV": repr(MESSAGES),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_messages_written_out_as_text_are_those_messages(how: str, tmp_path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "messages"], ["a", WRITTEN[how]]])
    result, plain = Rows.from_any(path), Rows({"id": ["a"], "messages": [MESSAGES]})
    assert result.kind == plain.kind == "messages"
    assert result.contents() == plain.contents() == [MESSAGES]
    assert result.hashes == plain.hashes
    assert result.select([0]).contents() == [MESSAGES]
    renamed = Rows({"talk": [WRITTEN[how]]}, text_column="talk")
    assert renamed.contents() == [MESSAGES]


def test_a_column_of_texts_holds_texts_whatever_they_look_like() -> None:
    for rows in (
        Rows({"text": [WRITTEN["JSON"]]}),
        Rows({"text": [WRITTEN["JSON"]]}, text_column="text"),
    ):
        assert rows.kind == "text"
        assert rows.contents() == [WRITTEN["JSON"]]


@pytest.mark.parametrize("broken", ["hello", '[{"role": "user"', "[1, 2]", "[" * 100_000])
def test_messages_that_are_none_are_refused(broken: str) -> None:
    with pytest.raises(DataError, match=r"without lists of messages.*--text-column messages"):
        Rows({"messages": [broken]})
    assert Rows({"messages": [broken]}, text_column="messages").contents() == [broken]
    with pytest.raises(DataError, match=r"1 rows whose 'messages' is not a list of messages \(ids"):
        Rows({"messages": [WRITTEN["JSON"], broken]})


@pytest.mark.parametrize(
    "content",
    [
        parts_of("one two"),
        [{"type": "text", "text": "one "}, {"type": "text", "text": "two", "image_url": None}],
        ["one", " two"],
        ({"text": "one two"},),
        np.array([{"type": "input_text", "text": "one two"}], dtype=object),
    ],
)
def test_text_parts_are_joined(content: object) -> None:
    result = Rows({"messages": [[{"role": "user", "content": content}]]})
    plain = Rows({"messages": [[{"role": "user", "content": "one two"}]]})
    assert result.contents() == plain.contents()
    assert result.hashes == plain.hashes


def test_parts_that_are_no_text_are_refused_by_their_kind() -> None:
    image = {"type": "image_url", "image_url": {"url": "x"}}
    rows = [
        [{"role": "user", "content": "hi"}],
        [{"role": "user", "content": [*parts_of("what is this?"), image]}],
        [{"role": "user", "content": [{"type": "input_audio"}]}],
    ]
    with pytest.raises(DataError, match=r"2 rows .* \(image_url, input_audio; ids '1', '2'\)"):
        Rows({"messages": rows})
    assert normalised(rows[1], "messages") is None
    assert non_text_parts(rows[0]) == []
    with pytest.raises(DataError, match="1 rows whose 'messages' is not a list of messages"):
        Rows({"messages": [[{"role": "user", "content": 5}]]})


def test_a_message_without_content_is_for_the_template_to_judge() -> None:
    called = [{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]
    assert Rows({"messages": [called]}).contents() == [called]


def test_what_holds_many_rows_shows_itself_in_a_line() -> None:
    rows = Rows({"text": [f"text number {i}" for i in range(2000)], "label": [0, 1] * 1000})
    assert repr(rows) == "Rows(2,000 of rows, text, columns 'text', 'label')"
    labels = WeakLabels(rows.ids, None, np.eye(8)[np.arange(2000) % 8], tuple("abcdefgh"))
    assert repr(labels) == "WeakLabels(2,000 rows, classes 'a', 'b', 'c', 'd', 'e', …)"
    verdicts = filter_labels(np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 2)
    assert repr(verdicts) == "Verdicts(60 rows, 48 kept, classes '0', '1')"
