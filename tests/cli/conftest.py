"""The command line in this process, and a folder with rows, their store, weak labels and truth."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from probekit.activations.create import Plan
from probekit.activations.writer import StoreWriter
from probekit.cli.main import cli
from probekit.data import text_hash


@pytest.fixture
def probekit(monkeypatch):
    """Run a command; failures end as they do for a user, in one sentence on stderr."""
    monkeypatch.delenv("PROBEKIT_TRACEBACK", raising=False)

    def run(*arguments):
        return CliRunner().invoke(cli, [str(a) for a in arguments])

    return run


@pytest.fixture
def refused(probekit):
    """Run a command that must be refused; returns its sentence."""

    def run(*arguments, code=(1, 2)):
        result = probekit(*arguments)
        codes = (code,) if isinstance(code, int) else code
        assert result.exit_code in codes, result.output
        assert result.stdout == ""
        assert "Traceback" not in result.output
        lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1
        assert result.stderr.rstrip().endswith(lines[0])
        return lines[0].removeprefix("Error: ")

    return run


@pytest.fixture
def write_rows(tmp_path):
    def write(name, records):
        path = tmp_path / name
        text = "".join(json.dumps(record) + "\n" for record in records)
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def make_acts(tmp_path):
    def make(X, ids, texts, *, name="acts.h5", layers=(6,), source="rows.jsonl", finish=True):
        n = len(X)
        with StoreWriter.open(
            tmp_path / name,
            Plan(
                spec={"model": "blobs"},
                ids=ids,
                hashes=[text_hash(text) for text in texts],
                widths=dict.fromkeys(layers, X.shape[1]),
                store_dtype="float32",
                source=source,
            ),
        ) as writer:
            states = dict.fromkeys(layers, X)
            writer.write(np.arange(n), states, np.ones(n, np.int32), np.zeros(n, bool))
            if finish:
                writer.finish()
        return tmp_path / name

    return make


@pytest.fixture
def chain(tmp_path, write_rows, make_acts):
    """300 rows of two classes, 30 % and 10 % of their weak labels wrong."""
    rng = np.random.default_rng(0)
    n = 300
    truth = rng.integers(0, 2, n)
    X = rng.normal(size=(n, 6)).astype(np.float32)
    X[:, 0] += 4 * truth
    weak = np.where(rng.random(n) < np.where(truth == 0, 0.3, 0.1), 1 - truth, truth)
    ids = [f"r{i}" for i in range(n)]
    texts = [f"text number {i}" for i in range(n)]
    columns = list(zip(ids, texts, weak.tolist(), truth.tolist(), strict=True))
    return SimpleNamespace(
        folder=tmp_path,
        X=X,
        truth_of=truth,
        weak_of=weak,
        ids=ids,
        texts=texts,
        rows=write_rows(
            "rows.jsonl", [{"id": i, "text": t, "note": "n"} for i, t, _, _ in columns]
        ),
        weak=write_rows("weak.jsonl", [{"id": i, "label": w} for i, _, w, _ in columns]),
        truth=write_rows("truth.jsonl", [{"id": i, "label": t} for i, _, _, t in columns]),
        acts=make_acts(X, ids, texts),
        out=tmp_path / "verdicts.parquet",
    )
