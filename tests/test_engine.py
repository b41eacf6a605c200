"""Filters and relabels on a Ray cluster of two nodes, both on this machine."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from probekit import __version__, filter_labels, held, relabel, score_rows
from probekit.activations.create import Plan
from probekit.activations.store import ActivationStore
from probekit.activations.writer import StoreWriter
from probekit.cli.main import cli
from probekit.data import Rows
from probekit.engine import RayTasks, connected, lost, on_ray, ray_tasks
from probekit.errors import ProbeError, RunError, UsageError
from probekit.labels import WeakLabels
from probekit.probes import (
    EnsembleProbe,
    KNNProbe,
    LogisticProbe,
    TopoFilterProbe,
    neighbors,
)
from probekit.verdicts import Verdicts

pytest.importorskip("ray", reason="the extra [cluster] is not installed")

N = 400
IDS = [f"r{i}" for i in range(N)]


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    """Rows with copies, groups and equal distances."""
    rng = np.random.default_rng(0)
    X = (np.round(rng.normal(size=(N, 6)) * 4) / 4 + 20).astype(np.float32)
    X[N - 40 :] = X[:40]
    with StoreWriter.open(
        tmp_path / "acts.h5",
        Plan(
            spec={"model": "blobs"},
            ids=IDS,
            hashes=Rows({"id": IDS, "text": [f"text {name}" for name in IDS]}).hashes,
            widths={1: 6, 2: 6},
            store_dtype="float32",
            groups=[f"g{i // 3}" for i in range(N)],
        ),
    ) as writer:
        writer.write(np.arange(N), {1: X, 2: -X}, np.ones(N, np.int32), np.zeros(N, bool))
        writer.finish()
    return ActivationStore(tmp_path / "acts.h5")


@pytest.fixture
def labels(store: ActivationStore) -> WeakLabels:
    y = np.random.default_rng(1).integers(0, 3, N)
    return WeakLabels(store.ids, None, np.eye(3)[y], ("a", "b", "c"))


@pytest.mark.parametrize("streamed", [False, True])
def test_verdicts_are_those_of_one_machine(
    nodes: Any,
    store: ActivationStore,
    labels: WeakLabels,
    streamed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if streamed:  # the tasks read the store themselves
        monkeypatch.setattr("probekit.activations.store.COPY_BYTES", 0)
    blocks = list[slice]()

    def noted(self: Any, work: Any, pieces: Any, *common: Any) -> Any:
        blocks.extend(pieces)
        return usual(self, work, pieces, *common)

    usual = RayTasks.map
    monkeypatch.setattr(RayTasks, "map", noted)
    monkeypatch.setattr(neighbors, "SHARED_QUERIES", N)
    monkeypatch.setattr("probekit.probes.approximate.LARGEST", 1.0)
    cases = [
        (filter_labels, KNNProbe(k=7), {"layer": 2}),
        (relabel, KNNProbe(k=7, metric="euclidean"), {"layer": 2}),
        (filter_labels, TopoFilterProbe(k_cc=8, k_zeta=12), {"layer": 1}),
        (relabel, EnsembleProbe(k=5), {}),
        (filter_labels, KNNProbe(k=7, approximate=True), {"layer": 2}),
    ]
    for act, probe, more in cases:
        expected = act(store, labels, probe=probe, **more)
        blocks.clear()
        with on_ray():
            found = act(store, labels, probe=probe, **more)
        # Two workers, four each; of rows that are read in lists, one of each step.
        assert len(blocks) >= (5 if getattr(probe, "approximate", False) else 8)
        for column in ("probe", "label", "keep", "weight", "disagreement"):
            assert np.array_equal(getattr(found, column), getattr(expected, column)), column


def fail(piece: int, how: str) -> int:
    if piece == 2 and how == "error":
        raise ProbeError("There is nothing to see.")
    if piece == 2 and how == "exit":
        import os

        os._exit(1)
    return piece


def test_errors_and_lost_workers_are_one_sentence(nodes: Any) -> None:
    with on_ray(workers=1):
        tasks = ray_tasks()
        assert tasks is not None
        assert list(tasks.map(fail, range(4), "no")) == [0, 1, 2, 3]
        with pytest.raises(ProbeError, match="nothing to see") as raised:
            list(tasks.map(fail, range(4), "error"))
        assert raised.value.__notes__[0].startswith("This happened on a worker on ")
        with pytest.raises(RunError, match="4 workers were lost with the same task"):
            list(tasks.map(fail, range(4), "exit"))
    assert ray_tasks() is None
    with pytest.raises(UsageError, match="--gpus-per-worker 1 needs a node"), on_ray(gpus=1):
        pass


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("probekit.engine", rf"^probekit {__version__} is not installed on a worker: "),
        ("a_script", r"^A module of the command is not installed on a worker: "),
    ],
)
def test_what_a_worker_cannot_import_is_named(module: str, words: str) -> None:
    error = Exception(f"traceback\nModuleNotFoundError: No module named {module!r}")
    with pytest.raises(UsageError, match=words) as raised:
        raise lost(error)
    assert module in str(raised.value)
    assert isinstance(lost(Exception("The worker died.")), RunError)


def test_the_command_line(
    nodes: Any, store: ActivationStore, labels: WeakLabels, tmp_path: Path
) -> None:
    labels.save(tmp_path / "weak.parquet")
    common = ["filter", str(store.path), "--labels", str(tmp_path / "weak.parquet"), "--layer", "2"]
    results = []
    for name, more in (("one", []), ("two", ["--engine", "ray", "--workers", "2"])):
        output = tmp_path / f"{name}.parquet"
        done = CliRunner().invoke(cli, [*common, *more, "--probe", "knn", "-o", str(output)])
        assert done.exit_code == 0, done.output
        verdicts = Verdicts.load(output)
        verdicts.provenance["command"] = verdicts.provenance["command"].replace(name, "-")
        results.append(verdicts)
    one, two = results
    assert np.array_equal(one.keep, two.keep)
    assert np.array_equal(one.probe, two.probe)
    assert one.provenance == two.provenance
    output = str(tmp_path / "logreg.parquet")
    done = CliRunner().invoke(cli, [*common, "--engine", "ray", "--probe", "logreg", "-o", output])
    assert done.exit_code == 0, done.output
    for wrong, words in [
        (["--engine", "ray", "--probe", "mass-mean"], "shares the work of knn, logreg, topofil"),
        (["--workers", "2"], "--workers is for --engine ray; add that."),
    ]:
        done = CliRunner().invoke(cli, [*common, *wrong, "-o", str(tmp_path / "no.parquet")])
        assert done.exit_code == 2
        assert words in done.output


def test_an_audit_asks_for_the_rows_of_one_machine(
    nodes: Any,
    store: ActivationStore,
    labels: WeakLabels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(neighbors, "SHARED_QUERIES", N)
    usual, shared = RayTasks.map, list[Any]()

    def noted(self: Any, work: Any, pieces: Any, *common: Any) -> Any:
        shared.append(work)
        return usual(self, work, pieces, *common)

    monkeypatch.setattr(RayTasks, "map", noted)
    labels.save(tmp_path / "weak.parquet")
    rows = tmp_path / "rows.csv"
    rows.write_text("\n".join(["id,text", *(f"{name},text {name}" for name in IDS)]))
    common = ["audit", str(store.path), "--labels", str(tmp_path / "weak.parquet")]
    common += ["--rows", str(rows), "--no-ask", "-m", "30"]
    asked = []
    for name, more in (("one", []), ("two", ["--engine", "ray"])):
        output = tmp_path / f"{name}.csv"
        done = CliRunner().invoke(cli, [*common, *more, "-o", str(output)])
        assert done.exit_code == 0, done.output
        asked.append(output.read_text())
        assert bool(shared) == (name == "two")
    assert asked[0] == asked[1]
    assert len(asked[0].splitlines()) == 31


def test_a_lost_worker_reads_its_share_again(
    nodes: Any, store: ActivationStore, labels: WeakLabels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers hold the rows of a store that is too large for a copy."""
    monkeypatch.setattr("probekit.activations.store.COPY_BYTES", 0)
    monkeypatch.setattr(held, "CELL", 64)
    usual, asked = RayTasks.ask, list[Any]()

    def kill_one(self: Any, keeper: Any, *more: Any) -> Any:
        asked.append(keeper)
        if len(asked) == 12:  # in the middle of the passes
            # A cluster that has lost a node has room for its workers: none holds a CPU.
            until = time.monotonic() + 20
            while self._ray.available_resources().get("CPU") != 2:
                assert time.monotonic() < until
                time.sleep(0.1)
            self._ray.kill(keeper[0], no_restart=False)
        return usual(self, keeper, *more)

    monkeypatch.setattr(RayTasks, "ask", kill_one)
    expected = score_rows(store, labels, LogisticProbe(), layer=1)
    assert not asked
    with on_ray():
        found = score_rows(store, labels, LogisticProbe(), layer=1)
    assert len(asked) > 12
    assert len(set(asked)) == 2
    np.testing.assert_allclose(found.proba, expected.proba, rtol=0, atol=1e-6)
    assert np.abs(expected.proba - 1 / 3).max() > 1e-3  # the control: it did learn something


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Addresses that Ray is asked for; a file here names the cluster that ran last."""
    ray = pytest.importorskip("ray")
    addresses: list[Any] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda address, **_: addresses.append(address))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    return addresses


def test_a_cluster_that_was_killed_here_is_not_waited_for(asked: list[Any], tmp_path: Path) -> None:
    """Ray keeps its address in a file, and waits for it for minutes."""
    file = tmp_path / "ray" / "ray_current_cluster"
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
        file.write_text(place)
        with connected(None):
            pass
        assert asked == [None]  # the control: it answers, so Ray may join it
    with connected(None):
        pass
    assert asked == [None, "local"]
    with pytest.raises(UsageError, match=f"No Ray cluster answers at {place}"), connected("auto"):
        pass
    file.unlink()
    with connected(None):
        pass
    assert asked == [None, "local", None]
