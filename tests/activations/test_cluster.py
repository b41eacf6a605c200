"""Extraction on a Ray cluster of two nodes, both on this machine."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from probekit.activations import cluster as cluster_module
from probekit.activations import units as units_module
from probekit.activations.cluster import Worker, run_on_ray
from probekit.activations.extraction import extract, extract_differences, prepare, prepare_adding
from probekit.activations.job import Request
from probekit.activations.units import Units
from probekit.cli.main import cli
from probekit.errors import ModelError, UsageError

ray = pytest.importorskip("ray", reason="the extra [cluster] is not installed")

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven"]
ROWS = [
    {"id": f"r{i}", "text": " ".join(WORDS[(i + j) % 11] for j in range(1 + i * 7 % 20))}
    for i in range(230)
]


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> str:
    return str(tiny_model("llama"))


@pytest.fixture
def job(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Twelve units, which one process has made too."""
    monkeypatch.setattr(units_module, "UNIT_ROWS", 20)
    extract(ROWS, model, output=f"{tmp_path / 'one'}/").close()
    return prepare(Request(ROWS, model, f"{tmp_path / 'acts'}/"), device="cpu")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_workers_make_the_bytes_of_one_process(nodes: Any, job: Any, tmp_path: Path) -> None:
    report = run_on_ray(job)
    assert (report.rows, report.rows_forwarded) == (230, 230)
    assert contents(job.path) == contents(tmp_path / "one")
    assert run_on_ray(job).rows_forwarded == 0


def test_workers_add_layers_and_subtract(nodes: Any, job: Any, tmp_path: Path) -> None:
    model, path = job.request.model, f"{tmp_path / 'one'}/"
    extract(ROWS, model, output=f"{tmp_path / 'all'}/", layers=[1, 2]).close()
    report = run_on_ray(prepare_adding(Request(ROWS, model, path, [2]), device="cpu"))
    assert (report.rows_forwarded, report.layers) == (230, [1, 2])
    assert contents(tmp_path / "one") == contents(tmp_path / "all")
    pairs = [{**row, "text_pair": "a dog"} for row in ROWS[:50]]
    extract_differences(pairs, model, output=f"{tmp_path / 'd'}/").close()
    request = Request(pairs, model, f"{tmp_path / 'ray'}/")
    assert run_on_ray(prepare(request, compare=True, device="cpu")).pairs == 50
    assert contents(tmp_path / "ray") == contents(tmp_path / "d")


@pytest.mark.slow
def test_a_lost_worker_costs_its_unit_only(
    nodes: Any,
    job: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ask, asked = cluster_module._Pool._ask, list[int]()

    def kill_the_fourth(self: Any, worker: Any, number: int) -> None:
        asked.append(number)
        if len(asked) == 4:
            ray.kill(worker)
        ask(self, worker, number)

    monkeypatch.setattr(cluster_module._Pool, "_ask", kill_the_fourth)
    run_on_ray(job)
    assert contents(job.path) == contents(tmp_path / "one")
    assert len(asked) == 13  # of twelve units, one was run again
    assert "A worker was lost" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stopped_driver_resumes(
    nodes: Any, job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        advance, seen = cluster_module._Line.advance, list[int]()

        def stop(self: Any, rows: int, workers: int) -> None:
            seen.append(rows)
            if len(seen) == 3:
                raise KeyboardInterrupt
            advance(self, rows, workers)

        patch.setattr(cluster_module._Line, "advance", stop)
        with pytest.raises(KeyboardInterrupt) as stopped:
            run_on_ray(job)
    assert re.search(r"of 230 rows are stored", stopped.value.__notes__[0])
    (job.path / ".part-00009.0123abcd.h5").write_bytes(b"of a worker that is gone")
    report = run_on_ray(job)
    assert 0 < report.rows_forwarded <= 230 - 3 * 20
    assert contents(job.path) == contents(tmp_path / "one")


def test_wrong_wishes(nodes: Any, job: Any, model: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--gpus-per-worker 1 needs a node"):
        run_on_ray(job, gpus=1)
    with pytest.raises(UsageError, match=r"writes a folder of parts; name one: -o .*x\.h5/"):
        run_on_ray(prepare(Request(ROWS, model, tmp_path / "x.h5"), device="cpu"))


def test_a_node_that_differs_is_refused(job: Any, tmp_path: Path) -> None:
    """What a worker answers, without a cluster."""
    Units(job).begin()
    right = cluster_module._setup(job)
    assert Worker(right).load() is None  # the control
    spec, request = right.job.spec, right.job.request

    def changed(**fields: Any) -> Any:
        return replace(right, job=replace(right.job, **fields))

    for wrong, error, words in [
        (replace(right, version="0.0.1"), UsageError, r"the driver has 0\.0\.1"),
        (replace(right, index="{}"), UsageError, "a file system that all nodes share"),
        (changed(path=tmp_path / "no"), UsageError, "a file system that all nodes share"),
        (changed(spec=replace(spec, weights="x")), ModelError, "another one there"),
        (changed(request=replace(request, model=str(tmp_path / "no"))), ModelError, "/no "),
    ]:
        answer = Worker(wrong).load()
        assert isinstance(answer, error)
        assert re.search(words, str(answer))
        assert "This happened on a worker on " in answer.__notes__[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--engine", "ray", "--address", "127.0.0.1:1"], "No Ray cluster answers"),
        (["--engine", "ray", "--address", "ray://host:1"], "is auto or HOST:PORT"),
        (["--engine", "ray", "--device", "cpu"], "leave out --device"),
        (["--engine", "ray", "--dry-run"], "--dry-run works without --engine ray"),
        (["--workers", "2"], "--workers is for --engine ray"),
    ],
)
def test_commands_that_cannot_work(
    model: str, tmp_path: Path, write_jsonl: Callable[..., Path], options: list[str], words: str
) -> None:
    """Without a cluster."""
    ray.shutdown()
    rows = str(write_jsonl(ROWS))
    result = CliRunner().invoke(
        cli, ["extract", rows, "-m", model, "-o", f"{tmp_path / 'acts'}/", *options]
    )
    assert (result.exit_code, words in result.output) == (2, True), result.output
