"""The rate of a way that the benchmark of a Ray cluster prints, and what it compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import cluster

    yield cluster
    del sys.modules["cluster"]


def test_rates_begin_when_every_worker_has_stored_a_part(cluster: Any) -> None:
    one = [(100.0 + 4 * i, 20) for i in range(5)]
    assert cluster.steady_rate(one, 1) == pytest.approx(5)
    # Two workers, of which one begins late: together they are twice as fast from then on.
    late = [(103.0 + 4 * i, 20) for i in range(5)]
    assert cluster.steady_rate([*late, *one], 2) == pytest.approx(8 * 20 / 16)
    with pytest.raises(SystemExit, match="more --rows"):
        cluster.steady_rate(one[:2], 2)


def test_files_that_differ_are_seen(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "acts").mkdir()
    (tmp_path / "acts" / "a").write_text("one")
    before = cluster.digests(tmp_path)
    assert cluster.digests(tmp_path) == before
    (tmp_path / "acts" / "a").write_text("two")
    assert cluster.digests(tmp_path).keys() == before.keys()
    assert cluster.digests(tmp_path) != before


def test_the_seconds_that_a_run_notes_are_no_difference(cluster: Any, tmp_path: Path) -> None:
    found = []
    for seconds, score in ((1, 5), (2, 5), (2, 6)):
        metrics = {"results": [{"score": score, "seconds": {"a student": seconds}}]}
        (tmp_path / "metrics.json").write_text(json.dumps(metrics, indent=1))
        (tmp_path / "report.html").write_text(f"<dt>Computed in</dt><dd>{seconds} s</dd>")
        (tmp_path / "done.json").write_text(str(seconds))
        found.append(cluster.digests(tmp_path))
    assert found[0] == found[1]
    assert found[1] != found[2]


def test_a_rate_is_shown_beside_the_one_it_must_reach(cluster: Any) -> None:
    rates = {"plain process": 200.0, "Ray, one worker": 190.0, "Ray, two workers": 323.0}
    lines = [
        {"what": "extract", "way": way, "rows_per_second": rate, "seconds": 60.0}
        for way, rate in rates.items()
    ]
    kill = {"what": "kill of the node", "during": "run", "differ": []}
    shares = [row[3] for row in cluster.speed_rows([*lines, kill])[1]]
    assert shares == ["", "0.95 of plain process", "1.70 of Ray, one worker"]


def test_kills_are_counted_by_the_command_that_they_hit(cluster: Any) -> None:
    def kill(victim: str, during: str, *differ: str) -> dict[str, Any]:
        return {"what": f"kill of the {victim}", "during": during, "differ": list(differ)}

    lines = [kill("node", "run"), kill("driver", "run"), kill("node", "run", "a", "b")]
    rate = {"what": "extract", "way": "plain process", "rows_per_second": 1.0, "seconds": 1.0}
    found = {
        row[0]: row[1:] for row in cluster.kill_rows([*lines, kill("driver", "fits"), rate])[1]
    }
    assert found["run"] == ["2", "1", "2"]
    assert found["fits"] == ["0", "1", "0"]
    assert found["extract"] == ["0", "0", "0"]
