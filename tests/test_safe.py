"""What comes from outside ends as a value or as one sentence, at once."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.errors import DataError, ProbeError
from probekit.safe import (
    MAX_DEPTH,
    MAX_DIGITS,
    expand,
    json_for_terminal,
    load_json,
    load_yaml,
    misfit,
    one_line,
    open_regular,
    plain_command,
    printable,
    read_bytes,
    read_json,
    read_text,
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "deep"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "deep"),
        ('{"a":' * 70 + "1" + "}" * 70, "deep"),
        ('[{"id":' + "9" * 5000 + "}]", "digits"),
        ("1" * (MAX_DIGITS + 1), "digits"),
        ('{"a": 1', "not JSON"),
        (b"\xff", "UTF-8"),
        ("", "not JSON"),
    ],
)
def test_json_beyond_its_limits_is_refused(text: str | bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        load_json(text, "notes.json")
    assert "notes.json" in str(caught.value)
    with pytest.raises(ProbeError):
        load_json(text, "notes.json", error=ProbeError)


def test_json_within_its_limits_is_read() -> None:
    assert load_json("[" * MAX_DEPTH + "]" * MAX_DEPTH, "x")
    assert load_json("1" * MAX_DIGITS, "x") == int("1" * MAX_DIGITS)
    # Digits in a string are not a number, and siblings are not nested.
    wide = {"a": ["9" * 5000, [[]] * 1000]}
    assert load_json(json.dumps(wide), "x") == wide


def laughs(lines: int) -> str:
    """YAML that stands for 10 ** lines values."""
    text = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    text += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, lines)]
    return "\n".join(text)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        laughs(9),
        "&a [*a]",
        "a: *nobody",
        "9" * 5000,
        "x: 0x" + "f" * 4000,
        "1" + ":59" * 300,
        "!!int ''",
        "!!timestamp x",
        "!!python/object/apply:os.system [true]",
        "{? [a] : b}",
        "x: \x1b",
        "a\n---\nb",
        "x" * (1 << 19),
    ],
)
def test_yaml_beyond_its_limits_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"run\.yaml"):
        load_yaml(text, "run.yaml")


def test_yaml_within_its_limits_is_read() -> None:
    assert load_yaml(laughs(3), "x")["a2"][9][9][9] == "x"
    assert load_yaml("a: &d {k: 5}\nb: {<<: *d, l2: 1e-2}", "x")["b"] == {"k": 5, "l2": 0.01}
    assert load_yaml("[1E5, -1e-2, 1.5e+3, .5e1, 1e, e1]", "x") == [
        *(1e5, -0.01, 1500.0, 5.0),
        *("1e", "e1"),
    ]


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.one_of(st.text(), st.binary(), st.text(alphabet="[]{}&*:,-?!|>'\" \n\t#%@e1.0xab")))
def test_any_text_is_a_value_or_a_sentence(text: str | bytes) -> None:
    with contextlib.suppress(DataError):
        load_json(text, "x")
    with contextlib.suppress(DataError):
        load_yaml(text if isinstance(text, str) else text.decode("latin-1"), "x")


def test_only_plain_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the address of a socket is short
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    Path("plain").write_text("text")
    Path("link").symlink_to("plain")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for name in ("pipe", "loop", "socket", "/dev/zero", ".", "missing", "~nobody-here/x", "\0"):
            for read in (open_regular, read_bytes, read_text, read_json):
                with pytest.raises(DataError):
                    read(name)
    assert read_text("link") == "text"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand("~/plain") == tmp_path / "plain"


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\xef\xbb\xbfab")
    assert read_bytes(path, limit=5) == b"\xef\xbb\xbfab"
    assert read_text(path) == "ab"
    with pytest.raises(DataError, match="5 bytes, and at most 4 are read"):
        read_bytes(path, limit=4)
    path.write_bytes(b"a\xff")
    with pytest.raises(DataError, match="not UTF-8"):
        read_text(path)


def test_a_terminal_is_not_steered() -> None:
    steering = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\x7f\u202e\u2066\u061c\ud800"
    assert set(printable(steering)) <= set("]0;owned[2J31m\ufffd")
    assert printable("a\tb\nc\r\n\u00e9 \u65e5") == "a\tb\nc\n\u00e9 \u65e5"
    assert one_line(" a\nb\t\x1bc ") == "a b \ufffdc"
    text = json.dumps({"\x9b": "\u202e\x7f\n"}, ensure_ascii=False)
    shown = json_for_terminal(text)
    assert json.loads(shown) == json.loads(text)
    assert shown.isascii()
    assert not text.isascii()


def test_a_file_name_is_one_word() -> None:
    command = "probekit filter '$(touch x).h5' --labels './--rm -rf ~;'"
    result = plain_command(command, "filter", "relabel")
    assert result is not None
    assert shlex.split(result) == [
        "probekit",
        "filter",
        "$(touch x).h5",
        "--labels",
        "./--rm -rf ~;",
    ]
    plain = "probekit filter acts.h5 --labels weak.csv --layer 1 --probe knn --k 5"
    assert plain_command(plain, "filter", "relabel") == plain  # the control
    assert plain_command(plain, "relabel") is None


@pytest.mark.parametrize("name", ["a\nrm x", "\x1b[2J", "a\u202eb", "\ud800"])
def test_a_name_of_several_lines_or_that_steers_makes_no_command(name: str) -> None:
    assert plain_command(f"probekit filter {name} --labels weak.csv", "filter") is None
    assert plain_command(f"probekit filter acts.h5 --labels {name}", "filter") is None
    assert plain_command(f"probekit sweep {name}", "sweep") is None


def test_a_plain_command_can_start_nothing_else() -> None:
    plain = "probekit sweep acts.h5 --labels 'weak labels.csv' -o sweep.parquet"
    assert plain_command(plain, "sweep") == plain
    result = plain_command("probekit sweep a.h5; curl x | sh && `id` $(id) > y", "sweep")
    assert result is not None
    assert "a.h5;" in shlex.split(result)
    assert not set(shlex.split(result, posix=False)) & {";", "|", "&&", ">"}
    for other in ("rm -rf ~", "probekit run --config x", "sh -c 'probekit sweep x'", "'", None, 3):
        assert plain_command(other, "sweep") is None


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ({"train": 3, "test": 0}, None),
        ({}, None),
        (5, "cut is not an object"),
        ([1], "cut is not an object"),
        ({"train": "3"}, "cut.train is not an int"),
        ({"train": True}, "cut.train is not an int"),
    ],
)
def test_a_shape_may_have_any_keys(value: object, wrong: str | None) -> None:
    assert misfit(value, {"*": int}, "cut") == wrong
    both = misfit({"cut": value, "rows": 1}, {"rows": int, "cut?": {"*": int}}, "metrics")
    assert both == (wrong and f"metrics.{wrong}")


def test_what_a_shape_names_is_not_one_of_all_others() -> None:
    assert misfit({"a": "x", "b": 1}, {"a": str, "*": int}, "m") is None
    assert misfit({"a": "x", "b": 1}, {"a?": str, "*": int}, "m") is None
    assert misfit({"a": "x", "b": "y"}, {"a": str, "*": int}, "m") == "m.b is not an int"
