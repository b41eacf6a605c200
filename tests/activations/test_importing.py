"""States computed elsewhere become a store on which every command works."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from probekit.activations.importing import import_states
from probekit.cli.main import cli
from probekit.data import Rows
from probekit.errors import DataError, UsageError
from probekit.verdicts import Verdicts

N, D = 60, 5


@pytest.fixture
def rows():
    return Rows({"text": [f"text number {i}" for i in range(N)]}, source="rows.jsonl")


@pytest.fixture
def states():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, D)).astype(np.float32)
    X[:, 0] += 4 * (np.arange(N) % 2)
    return X


@pytest.mark.parametrize("kind", ["npy", "safetensors", "parquet", "array", "layers"])
def test_every_form_gives_the_same_store(kind, rows, states, tmp_path):
    given = tmp_path / f"states.{kind}"
    if kind == "npy":
        np.save(given, states)
    elif kind == "safetensors":
        save_file({"layer.1": states}, given)
    elif kind == "parquet":
        pq.write_table(pa.table({"id": list(range(N)), "embedding": list(states)}), given)
    elif kind == "array":
        given = states
    else:
        given = {1: states, 7: states[:, :3]}
    with import_states(given, rows, tmp_path / "acts.h5") as store:
        assert store.complete
        assert store.layers == ([1, 7] if kind == "layers" else [1])
        np.testing.assert_array_equal(store.layer(1), states)
        assert list(store.ids) == rows.ids
        assert list(store.hashes) == rows.hashes
        assert store.spec["origin"] == "imported"


def test_float16_stays_and_other_numbers_become_float32(rows, states, tmp_path):
    with import_states(states.astype(np.float16), rows, tmp_path / "half.h5") as store:
        assert store.info(1).dtype == "float16"
    with import_states(states.astype(np.float64), rows, tmp_path / "double.h5") as store:
        assert store.info(1).dtype == "float32"
        np.testing.assert_array_equal(store.layer(1), states)


def test_layers_are_numbered_by_the_names_of_safetensors(rows, states, tmp_path):
    path = tmp_path / "states.safetensors"
    save_file({"model.layers.3": states, "model.layers.12.mean": 2 * states}, path)
    with import_states(path, rows, tmp_path / "acts.h5") as store:
        assert store.layers == [3, 12]
        np.testing.assert_array_equal(store.layer(12), 2 * states)
    save_file({"a.3": states, "b.3": states}, path)
    with pytest.raises(DataError, match="two arrays for layer 3"):
        import_states(path, rows, tmp_path / "other.h5")


def test_the_commands_work_on_it(states, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("states.npy", states)
    label = [(i % 2) if i % 10 else 1 - i % 2 for i in range(N)]
    with open("rows.jsonl", "w") as file:
        for i in range(N):
            row = {"id": f"r{i}", "text": f"text number {i}", "label": label[i]}
            file.write(json.dumps(row) + "\n")
    for line in (
        "import states.npy --rows rows.jsonl -o acts.h5",
        "info acts.h5",
        "diagnose acts.h5 --labels rows.jsonl",
        "filter acts.h5 --labels rows.jsonl --probe knn --k 5 -o verdicts.parquet --save-probe p",
        "predict acts.h5 --probe p -o labels.parquet",
    ):
        result = CliRunner().invoke(cli, line.split())
        assert result.exit_code == 0, f"{line}: {result.output}"
    wrong = {f"r{i}" for i in range(0, N, 10)}
    verdicts = Verdicts.load("verdicts.parquet")
    dropped = {verdicts.ids[i] for i in np.flatnonzero(~verdicts.keep)}
    assert len(wrong & dropped) >= 5


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.zeros((N - 1, D)), "59 states in layer 1, and rows.jsonl has 60 rows"),
        (np.zeros(N), r"shape \(n, d\)"),
        (np.full((N, D), np.nan), "NaN or infinity in 60 rows"),
        (np.array([["a"] * D] * N), "must hold numbers"),
    ],
)
def test_arrays_that_are_not_states_of_these_rows_are_refused(given, words, rows, tmp_path):
    with pytest.raises(DataError, match=words):
        import_states(given, rows, tmp_path / "acts.h5")
    assert not (tmp_path / "acts.h5").exists()


def test_pickles_and_other_files_are_never_read(rows, states, tmp_path):
    path = tmp_path / "states.npy"
    path.write_bytes(pickle.dumps(states))
    with pytest.raises(DataError, match="cannot be read as a NumPy array"):
        import_states(path, rows, tmp_path / "acts.h5")
    np.save(path, np.array([{"a": 1}] * N, dtype=object))
    with pytest.raises(DataError, match="cannot be read as a NumPy array"):
        import_states(path, rows, tmp_path / "acts.h5")
    (tmp_path / "states.csv").write_text("1,2\n")
    with pytest.raises(UsageError, match=r"must end in \.npy, \.parquet, \.safetensors"):
        import_states(tmp_path / "states.csv", rows, tmp_path / "acts.h5")
