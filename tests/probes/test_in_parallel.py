"""Parts of rows in threads: every row once, the same answers, failures told."""

from __future__ import annotations

import threading

import faiss
import numpy as np
import pytest

from probekit.probes import ties
from probekit.probes.neighbors import nearest_others
from probekit.probes.ties import in_parallel


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "omp_get_max_threads", lambda: 3)
    monkeypatch.setattr(ties, "LEAST_ROWS", 10)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize(("n", "parts"), [(0, 1), (7, 1), (20, 2), (31, 3), (100, 3)])
def test_every_row_is_worked_on_once(n: int, parts: int) -> None:
    seen, slices = np.zeros(n, int), []

    def work(part: slice) -> None:
        seen[part] += 1
        slices.append(part)

    in_parallel(work, n)
    assert seen.tolist() == [1] * n
    assert len(slices) == parts


@pytest.mark.usefixtures("three_threads")
def test_parts_run_at_once() -> None:
    barrier = threading.Barrier(3, timeout=10)  # breaks unless all three wait at the same time
    in_parallel(lambda _: void(barrier.wait()), 60)


def void(_: object) -> None:
    """Drop a result."""


@pytest.mark.usefixtures("three_threads")
def test_what_a_part_raises_is_raised() -> None:
    def work(part: slice) -> None:
        if part.start:
            raise ValueError("the second part")

    with pytest.raises(ValueError, match="the second part"):
        in_parallel(work, 60)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_do_not_depend_on_threads(metric: str, request: pytest.FixtureRequest) -> None:
    X = np.random.default_rng(0).integers(-2, 3, (200, 6)).astype(np.float32)
    groups = np.arange(200) // 2
    alone = nearest_others(X, 9, metric=metric, groups=groups)
    request.getfixturevalue("three_threads")
    found = nearest_others(X, 9, metric=metric, groups=groups)
    np.testing.assert_array_equal(found.index, alone.index)
    np.testing.assert_array_equal(found.distance, alone.distance)
