"""Steps of runs and parts of sweeps on a Ray cluster of two nodes, both on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probekit.activations.create import Plan
from probekit.activations.store import ActivationStore
from probekit.activations.writer import StoreWriter
from probekit.engine import on_ray
from probekit.errors import ProbeError
from probekit.experiments import sweep as sweep_module
from probekit.experiments.cache import DONE, Cache, Step
from probekit.experiments.config import RunConfig
from probekit.experiments.folder import open_folder
from probekit.experiments.run import Run
from probekit.experiments.sweep import run_sweep
from probekit.experiments.sweep_probes import SweepSettings, join_rows
from probekit.labels import WeakLabels

pytest.importorskip("ray", reason="the extra [cluster] is not installed")

pytestmark = pytest.mark.usefixtures("one_thread", "nodes")

Files = Callable[..., Path]


def a_step(name: str, *inputs: Step, how: str = "") -> Step:
    def make(folder: Path, given: Mapping[str, Path]) -> None:
        if how == "raise":
            raise ValueError("no such thing")
        if how == "exit":
            os._exit(1)
        text = "+".join((path / "out").read_text() for path in given.values())
        (folder / "out").write_text(f"{name}({text})")
        (folder.parent / f"{name}.pid").write_text(str(os.getpid()))

    named = {str(i): step for i, step in enumerate(inputs)}
    return Step(name, "test", {"name": name}, make, inputs=named)


def test_a_step_that_fails_is_an_alarm_and_the_others_go_on(tmp_path: Path) -> None:
    first = a_step("a")
    wrong, dead = a_step("b", first, how="raise"), a_step("c", first, how="exit")
    right = a_step("d", first)
    last, never = a_step("e", right), a_step("f", wrong)
    lines: list[str] = []
    cache = Cache(tmp_path, lines.append)
    with on_ray():
        cache.run([never, dead, last])
    assert (cache.path(last) / "out").read_text() == "e(d(a()))"
    assert int((tmp_path / "e.pid").read_text()) != os.getpid()  # a worker did it
    assert "no such thing" in str(cache.failure(wrong))
    assert "4 workers were lost" in str(cache.failure(dead))
    assert "its step 'b' failed" in str(cache.failure(never))
    assert not cache.done(never)
    assert sum("started" in line for line in lines) == 5
    # The other engine resumes: what is done is not done again.
    lines.clear()
    here = Cache(tmp_path, lines.append)
    here.run([a_step("f", a_step("b", first)), last])
    assert [line.split("] ")[1] for line in lines if "done before" in line] == [
        "a: done before",
        "d: done before",
        "e: done before",
    ]
    assert int((tmp_path / "f.pid").read_text()) == os.getpid()
    with on_ray():
        lines.clear()
        Cache(tmp_path, lines.append).run([last])
    assert all("done before" in line for line in lines)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the times."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != DONE)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_run_has_the_bytes_of_one_machine(
    animals_and_tools: Files, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    config = RunConfig.from_mapping(
        {
            "task": str(animals_and_tools()),
            "weak": "bag-of-words",
            "strong": str(tiny_model("bert")),
            "student": ["linear"],
            "supervisor_rows": 40,
            "validation_share": 0.0,
            "layer": "last",
            "probes": ["knn", "logreg"],
            "probe_options": {"knn": {"k": 5}},
        }
    )
    found, scores = [], []
    for name in ("one", "two"):
        folder = tmp_path / name / "run"
        folder.parent.mkdir()
        open_folder(folder, config)
        run = Run(config, folder.parent / "steps", lambda _: None)
        if name == "one":
            results = run.carry_out(folder)
        else:
            with on_ray():
                results = run.carry_out(folder)
        assert results["failures"] == []
        scores.append([result["arms"] for result in results["results"]])
        found.append(contents(folder.parent / "steps") | contents(folder / "predictions"))
    assert len(found[0]) > 20
    assert sorted(found[0]) == sorted(found[1])
    assert [name for name in found[0] if found[0][name] != found[1][name]] == []
    assert json.dumps(scores[0]) == json.dumps(scores[1])


def test_a_sweep_has_the_figures_of_one_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, n = np.random.default_rng(0), 120
    y = rng.integers(0, 2, n)
    X = (rng.normal(size=(n, 6)) + y[:, None]).astype(np.float32)
    with StoreWriter.open(
        tmp_path / "acts.h5",
        Plan(
            spec={"model": "blobs"},
            ids=[f"r{i}" for i in range(n)],
            hashes=[f"{i:016x}" for i in range(n)],
            widths={1: 6, 4: 6},
            store_dtype="float32",
        ),
    ) as writer:
        writer.write(np.arange(n), {1: X, 4: X**2}, np.ones(n, np.int32), np.zeros(n, bool))
        writer.finish()
    store = ActivationStore(tmp_path / "acts.h5")
    labels = WeakLabels(store.ids, None, np.eye(2)[y], ("no", "yes"))
    rows = join_rows(store, labels, None)
    settings = SweepSettings(
        layers=(1, 4),
        probes=("knn", "logreg", "ensemble"),
        k=(1, 7),
        l2=(1e-3, 1e-1),
        contaminations=(0.1,),
    )
    expected = run_sweep(rows, settings)
    with on_ray():
        found = run_sweep(rows, settings, parts=tmp_path / "parts")
    assert found.plain == expected.plain
    assert len(list((tmp_path / "parts").iterdir())) == 5
    # Parts that a cluster made are those of one machine, which reads them.
    lines: list[str] = []
    again = run_sweep(rows, settings, parts=tmp_path / "parts", say=lines.append)
    assert all("done before" in line for line in lines)
    assert again.plain == expected.plain

    # What fails is raised when all others are kept.
    def fails(piece: Any, *more: Any) -> Any:
        if piece[0] == 1:
            return [], ProbeError("The layer is not there.")
        return usual(piece, *more)

    usual = sweep_module._parts_there
    monkeypatch.setattr(sweep_module, "_parts_there", fails)
    with on_ray(), pytest.raises(ProbeError, match="The layer is not there"):
        run_sweep(rows, settings, parts=tmp_path / "some")
    assert sorted(path.name for path in (tmp_path / "some").iterdir()) == [
        "4-ensemble.json",
        "4-knn.json",
        "4-logreg.json",
    ]
