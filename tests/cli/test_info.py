"""``probekit info`` tells what is there: compared with the numbers that went in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from probekit.activations.create import Plan
from probekit.activations.writer import StoreWriter
from probekit.cli.main import cli
from probekit.data import text_hash


def info(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["info", *map(str, arguments)])


def make(path: Path, *, rows: Any = range(50), finish: bool = True, **changes: Any) -> np.ndarray:
    """A store of 50 rows, some of them not finite; returns the states of layer 2."""
    ids = [f"r{i}" for i in range(50)]
    states = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    states[4, 1], states[4, 2], states[9, 0] = np.nan, np.inf, -np.inf
    options = {
        "spec": {
            "model": "tiny",
            "layers": [0, 2],
            "pooling": "mean",
            "dtype": "bfloat16",
            "store_dtype": "float32",
            "max_length": 128,
            "template": "x" * 500,
            "revision": None,
        },
        "ids": ids,
        "hashes": [text_hash(i) for i in ids],
        "widths": {0: 3, 2: 6},
        "store_dtype": "float32",
        "source": "docstrings@weak",
        **changes,
    }
    compression = options.pop("compression", None)
    with StoreWriter.open(path, Plan(**options), compression=compression) as writer:
        rows = np.array(list(rows), np.int64)
        layers = {0: np.full((len(rows), 3), 2, np.float32), 2: states[rows]}
        writer.write(rows, layers, rows + 1, rows % 10 == 0)
        if finish:
            writer.finish()
    return states


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_json_holds_the_figures(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "acts.h5"
    states = make(path, compression=compression)
    result = info(path, "--json")
    assert result.exit_code == 0
    outcome = json.loads(result.stdout)
    assert outcome["complete"] is True
    assert (outcome["rows"], outcome["rows_done"], outcome["rows_truncated"]) == (50, 50, 5)
    assert outcome["tokens"] == 50 * 51 // 2
    assert outcome["bytes"] == path.stat().st_size
    assert outcome["source"] == "docstrings@weak"
    assert outcome["rows_intact"] is True
    assert outcome["spec"]["model"] == "tiny"
    zero, two = outcome["layers"]
    assert zero == {
        "layer": 0,
        "shape": [50, 3],
        "dtype": "float32",
        "mapped": compression is None,
        "mean_norm": pytest.approx(np.sqrt(12)),
        "nonfinite_values": 0,
        "nonfinite_rows": 0,
    }
    assert (two["nonfinite_values"], two["nonfinite_rows"]) == (3, 2)
    finite = np.delete(states, [4, 9], axis=0).astype(np.float64)
    # Sums of the same float64 squares in another order: a few units in the last place.
    assert two["mean_norm"] == pytest.approx(np.linalg.norm(finite, axis=1).mean(), rel=1e-12)


def test_text_says_it_for_people(tmp_path: Path) -> None:
    path = tmp_path / "acts.h5"
    make(path)
    result = info(path)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == f"{path}: complete"
    assert "rows       50 from docstrings@weak" in result.stdout
    assert "5 rows were truncated" in result.stdout
    assert "mean state of the tokens of tiny, layers 0, 2\n" in result.stdout
    assert "computed in bfloat16, stored as float32\n" in result.stdout
    assert "at most 128 tokens of a text\n" in result.stdout
    assert "revision" not in result.stdout  # what is not set is not said
    assert max(map(len, lines[1:])) <= 100  # a template does not flood the screen
    assert lines[-2].split() == ["0", "50", "x", "3", "float32", "3.464", "none"]
    assert lines[-1].endswith("3 values in 2 rows")


def test_an_incomplete_store_is_told_with_exit_code_0(tmp_path: Path) -> None:
    path = tmp_path / "acts.h5"
    make(path, rows=[1, 10, 30], finish=False)
    result = info(path)
    assert result.exit_code == 0
    assert "incomplete: 3 of 50 rows are done; run the same extract command again" in result.stdout
    outcome = json.loads(info(path, "--json").stdout)
    assert outcome["complete"] is False
    assert (outcome["rows_done"], outcome["rows_truncated"], outcome["tokens"]) == (3, 2, 44)
    assert outcome["layers"][0]["mean_norm"] == pytest.approx(np.sqrt(12))


def test_a_store_without_a_row_has_no_norm(tmp_path: Path) -> None:
    path = tmp_path / "acts.h5"
    make(path, rows=[], finish=False)
    assert json.loads(info(path, "--json").stdout)["layers"][0]["mean_norm"] is None
    assert info(path).stdout.splitlines()[-1].split()[-2:] == ["-", "none"]


def test_a_store_that_is_being_written_can_be_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "acts.h5"
    options = {"ids": ["a"], "hashes": ["0" * 16], "widths": {0: 2}, "store_dtype": "float16"}
    with StoreWriter.open(path, Plan(spec={}, **options)):
        result = info(path)
    assert result.exit_code == 0
    assert "0 of 1 rows" in result.stdout


def test_changed_ids_are_told(tmp_path: Path) -> None:
    path = tmp_path / "acts.h5"
    make(path)
    data = path.read_bytes()
    assert data.count(b"r49") == 1
    path.write_bytes(data.replace(b"r49", b"r99"))
    assert json.loads(info(path, "--json").stdout)["rows_intact"] is False
    assert "WARNING" in info(path).stdout


@pytest.mark.parametrize("content", [None, b"", b"id,text\n", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_what_is_no_store_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "acts.h5"
    if content is not None:
        path.write_bytes(content)
    result = info(path)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"Error: {path} ")
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" not in result.stderr
