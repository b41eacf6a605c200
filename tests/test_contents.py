"""What rows say in one form: halves of characters, messages written out as text, content parts."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from probekit.contents import normal, other_parts, repaired, text_hash
from probekit.data import Rows
from probekit.errors import DataError

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
    for found in (rows, pair, spoken):
        json.dumps(found.contents(), ensure_ascii=False).encode()  # control: this raised


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
    found, plain = Rows.from_any(path), Rows({"id": ["a"], "messages": [MESSAGES]})
    assert found.kind == plain.kind == "messages"
    assert found.contents() == plain.contents() == [MESSAGES]
    assert found.hashes == plain.hashes
    assert found.select([0]).contents() == [MESSAGES]
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
    with pytest.raises(DataError, match=r"holds no lists of messages.*--text-column messages"):
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
    found = Rows({"messages": [[{"role": "user", "content": content}]]})
    plain = Rows({"messages": [[{"role": "user", "content": "one two"}]]})
    assert found.contents() == plain.contents()
    assert found.hashes == plain.hashes


def test_parts_that_are_no_text_are_refused_by_their_kind() -> None:
    image = {"type": "image_url", "image_url": {"url": "x"}}
    rows = [
        [{"role": "user", "content": "hi"}],
        [{"role": "user", "content": [*parts_of("what is this?"), image]}],
        [{"role": "user", "content": [{"type": "input_audio"}]}],
    ]
    with pytest.raises(DataError, match=r"2 rows .* \(image_url, input_audio; ids '1', '2'\)"):
        Rows({"messages": rows})
    assert normal(rows[1], "messages") is None
    assert other_parts(rows[0]) == []
    with pytest.raises(DataError, match="1 rows whose 'messages' is not a list of messages"):
        Rows({"messages": [[{"role": "user", "content": 5}]]})


def test_a_message_without_content_is_for_the_template_to_judge() -> None:
    called = [{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]
    assert Rows({"messages": [called]}).contents() == [called]
