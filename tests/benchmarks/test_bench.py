"""The benchmarks' machinery: fair times, a quiet machine, claims, tables, scripts that run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import _bench
import _harness
import pytest
import run_all
from _bench import Bench, Claim, read_claims
from _harness import BusyError, Others, Seconds, Times, interleaved

BENCHMARKS = Path(_bench.__file__).parent


def claim(ratio: float | None = 1.0, target: str = ">= 0.9", *, agrees: bool = True) -> Claim:
    return Claim("a thing", "2 s", "1 s", ratio, target, "equal", agrees)


def test_a_ratio_is_the_median_over_turns() -> None:
    times = Times({"ours": [1.0, 2.0, 4.0], "peer": [2.0, 2.0, 40.0]})
    assert times["ours"] == 2.0
    assert times.ratio("peer", "ours") == 2.0
    assert times["peer"] / times["ours"] == 1.0  # control: the ratio of medians is another number


def test_ways_run_in_turn_and_may_time_themselves() -> None:
    order: list[str] = []

    def own() -> Seconds:
        order.append("b")
        return Seconds(3)

    times = interleaved({"a": lambda: order.append("a"), "b": own}, 2, warmup=1)
    assert order == ["a", "b"] * 3
    assert times.each["b"] == [3.0, 3.0]
    assert times["a"] < 1


def test_a_slow_way_runs_once() -> None:
    times = interleaved({"slow": lambda: Seconds(99), "fast": lambda: Seconds(1)}, 5, warmup=0)
    assert [len(times.each[way]) for way in ("slow", "fast")] == [1, 5]
    assert times.ratio("slow", "fast") == 99


def test_turns_beside_others_are_run_again_and_then_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares = iter([0.9, 0.0, 0.9, 0.0])
    monkeypatch.setattr(Others, "share", lambda _: next(shares))
    monkeypatch.setattr(_harness, "BUSY_SECONDS", 0)
    runs: list[int] = []
    times = interleaved({"a": lambda: runs.append(1)}, 2, warmup=0, busy_ok=False)
    assert len(runs) == 4
    assert len(times.each["a"]) == 2

    monkeypatch.setattr(Others, "share", lambda _: 0.9)
    with pytest.raises(
        BusyError, match="took 90% of the cores while a ran; end them, or add --bus"
    ):
        interleaved({"a": lambda: None}, 2, warmup=0, busy_ok=False)
    assert len(interleaved({"a": lambda: None}, 2, busy_ok=True).each["a"]) == 2


def test_what_others_take_is_a_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock and counters of our own: nothing here hangs on what else the machine does."""
    now = iter([(10.0, 3.0), (12.0, 6.0), (14.0, 3.0)])
    monkeypatch.setattr(Others, "_now", staticmethod(lambda: next(now)))
    monkeypatch.setattr(Others, "_cores", staticmethod(lambda: 2))
    others = Others()
    assert others.share() == 3 / (2 * 2)  # 3 s of others in 2 s on 2 cores
    assert others.share() == 0  # rounding may let the counters go back


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux")
def test_counters_of_others_leave_out_idle_cores_and_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wall, _ = Others._now()
    stat = Path("/proc/stat").read_text(encoding="ascii")
    core = f"cpu{min(os.sched_getaffinity(0))} "
    (line,) = [each for each in stat.splitlines() if each.startswith(core)]
    ticks = [int(value) for value in line.split()[1:]]
    monkeypatch.setattr(os, "times", lambda: (1.0, 0.5, 0.0, 0.0, 0.0))
    read = Path.read_text

    def counters(user: int, idle: int) -> float:
        changed = [ticks[0] + user, *ticks[1:3], ticks[3] + idle, *ticks[4:]]
        text = stat.replace(line, core + " ".join(map(str, changed)))
        monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
        return Others._now()[1]

    before = counters(0, 0)
    assert counters(0, 1000) == before  # idle
    assert counters(os.sysconf("SC_CLK_TCK"), 0) == pytest.approx(before + 1)  # a second of others
    monkeypatch.setattr(os, "times", lambda: (2.0, 0.5, 0.0, 0.0, 0.0))
    assert counters(0, 0) == pytest.approx(before - 1)  # of this process
    monkeypatch.setattr(Path, "read_text", read)
    assert Others._now()[0] >= wall


def test_a_claim_says_whether_its_target_is_met() -> None:
    assert claim(0.95).met is True
    assert claim(0.85).met is False
    assert claim(0.85, "<= 0.9").met is True
    assert claim(None).met is None
    assert claim(0.85).cells()[3] == "0.85 (missed)"
    assert claim(None).cells()[3] == "not measured"
    assert claim(agrees=False).cells()[5] == "equal (DIFFERS)"


@pytest.mark.parametrize(
    ("quick", "busy_ok", "valid"),
    [(False, False, True), (True, False, False), (False, True, False)],
)
def test_claims_are_written_and_read_with_their_worth(
    tmp_path: Path, quick: bool, busy_ok: bool, valid: bool
) -> None:
    bench = Bench("some", runs=1, quick=quick, busy_ok=busy_ok, results=tmp_path)
    bench.claim(claim(), more=[1, 2])
    bench.write()
    lines = (tmp_path / "some.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[0])
    assert row["more"] == [1, 2]
    assert row["hardware"]["cores"] >= 1
    assert read_claims([*lines, json.dumps({"title": "another line"}), ""]) == [(claim(), valid)]


def test_the_table_of_the_readme_holds_the_newest_valid_claims(tmp_path: Path) -> None:
    assert "no valid results" in run_all.readme_table(tmp_path, ["some"])
    for ratio, busy_ok in ((1.0, False), (2.0, False), (3.0, True)):
        bench = Bench("some", runs=1, quick=False, busy_ok=busy_ok, results=tmp_path)
        bench.claim(claim(ratio))
        bench.write()
    lines = run_all.readme_table(tmp_path, ["some"]).splitlines()
    assert lines[0] == "| what | ours | peer | ratio | target | agreement |"
    assert lines[2] == "| a thing | 2 s | 1 s | 2 | ≥ 0.9 | equal |"
    assert "cores" in lines[-1]
    assert len(lines) == 5


@pytest.mark.parametrize(("share", "code", "lines"), [(0.05, 0, 1), (0.5, 3, 0)])
def test_nothing_is_recorded_of_a_run_beside_others(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    share: float,
    code: int,
    lines: int,
) -> None:
    shares = iter([0.0, share])  # quiet before, then perhaps not
    monkeypatch.setattr(Others, "share", lambda _: next(shares))
    options = _bench.parser("").parse_args(["--results", str(tmp_path)])
    assert _bench.run("some", options, lambda bench: bench.claim(claim())) == code
    written = "".join(path.read_text(encoding="utf-8") for path in tmp_path.iterdir())
    assert len(written.splitlines()) == lines
    told = capsys.readouterr()
    assert ("took 50% of the cores while some was measured" in told.err) == (code == 3)


def test_answers_that_differ_are_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Others, "share", lambda _: 0.0)
    options = _bench.parser("").parse_args(["--results", str(tmp_path)])
    assert _bench.run("some", options, lambda bench: bench.claim(claim(agrees=False))) == 1


def script(name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), *flags],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "flags", "claims"),
    [
        pytest.param(
            "gpu",
            ["--device", "cpu", "--tiny", "--only", "extraction,neighbors,logistic,topofilter"],
            4,
            marks=pytest.mark.slow,
        ),
        pytest.param("logistic_path", [], 16, marks=pytest.mark.slow),
        ("topofilter", [], 3),
        pytest.param("many_classes", [], 2, marks=pytest.mark.slow),
        pytest.param("precision", ["--rows", "40", "--steps", "2"], 2, marks=pytest.mark.slow),
    ],
)
def test_scripts_run_and_agree_at_small_size(
    tmp_path: Path, name: str, flags: list[str], claims: int
) -> None:
    done = script(name, *flags, "--quick", "--busy-ok", "--runs", "1", "--results", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    found = read_claims((tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines())
    assert len(found) == claims
    assert all(each.agrees and not valid for each, valid in found)
    assert "not valid" in done.stdout


def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = script("gpu", "--results", str(tmp_path))
    assert done.returncode == 0
    assert done.stdout.startswith("No GPU is at hand: not measured.")
    assert not list(tmp_path.iterdir())
    refused = script("gpu", "--device", "cpu", "--results", str(tmp_path))
    assert refused.returncode == 2
    assert "goes with --tiny only" in refused.stderr


def test_every_script_is_there_and_unknown_ones_are_told() -> None:
    assert all((BENCHMARKS / f"{name}.py").is_file() for name in (*run_all.SCRIPTS, *run_all.APART))
    done = script("run_all", "nothing")
    assert done.returncode == 2
    assert "there is no benchmark nothing; there are startup" in done.stderr
