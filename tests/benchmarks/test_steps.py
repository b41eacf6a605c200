"""Steps of a grid have the same lines here and on a cluster, whatever fails."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from probekit.engine import on_ray
from probekit.errors import RunError

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """Workers import a script's neighbours, as they do where the driver is that script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        patch.setenv("PYTHONPATH", BENCHMARKS, prepend=os.pathsep)
        yield


@pytest.fixture
def steps() -> Any:
    import _steps

    yield _steps
    del sys.modules["_steps"]


def work(step: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Two lines; of some steps an error after the first, or a lost worker."""
    yield {"step": step, "line": 1, "power": 2**options.exponent}
    if step == "wrong":
        raise RunError("there is nothing to see")
    if step == "bug":
        raise ValueError("no such thing")
    if step == "dead" and options.engine == "ray":
        os._exit(1)
    yield {"step": step, "line": 2, "pid": os.getpid()}


def run(steps: Any, names: list[str], **options: Any) -> tuple[list[dict[str, Any]], list[str]]:
    lines: list[dict[str, Any]] = []
    given = argparse.Namespace(exponent=3, **options)
    alarms = steps.run_steps(names, work, given, lines.append)
    return lines, alarms


def test_a_step_that_fails_is_an_alarm_and_the_others_go_on(
    steps: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, alarms = run(steps, ["a", "wrong", "bug", "b"], engine="local")
    # What came before the error is kept.
    found = [(line["step"], line["line"]) for line in lines]
    assert found == [("a", 1), ("a", 2), ("wrong", 1), ("bug", 1), ("b", 1), ("b", 2)]
    assert alarms == ["wrong failed: there is nothing to see", "bug failed: no such thing"]
    said = capsys.readouterr()
    assert "b: done, 4 of 4 after" in said.out
    assert "no such thing" in said.err  # of the bug only
    assert said.err.count("Traceback") == 1


def test_options_are_those_of_the_commands(steps: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    steps.add_engine(parser)
    with steps.engine(parser.parse_args([])):
        pass
    asked = parser.parse_args(["--engine", "ray", "--address", "127.0.0.1:1", "--workers", "2"])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(SystemExit, match=r"^No Ray cluster answers at 127"), steps.engine(asked):
        pass


def test_a_cluster_does_the_same(steps: Any, nodes: Any) -> None:
    names = ["a", "wrong", "bug", "dead", "b"]
    with on_ray(workers=2):
        lines, alarms = run(steps, names, engine="ray")
    here, _ = run(steps, ["a", "b"], engine="local")

    def shown(each: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(({**line, "pid": 0} for line in each), key=lambda x: (x["step"], x["line"]))

    assert shown(lines) == shown(here)
    assert os.getpid() not in {line.get("pid") for line in lines}  # workers did it
    assert sorted(alarm.split(":")[0] for alarm in alarms) == [
        "bug failed",
        "dead failed",
        "wrong failed",
    ]
    assert any("4 workers were lost" in alarm for alarm in alarms)
    assert any(alarm.endswith("no such thing") for alarm in alarms)
