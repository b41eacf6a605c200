"""Golden vectors and the slow, obvious way to find neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="session")
def golden():
    def read(name):
        with np.load(GOLDEN / f"{name}.npz") as file:
            return dict(file)

    return read


@pytest.fixture(scope="session")
def by_the_book():
    """Neighbours by whole float64 distance rows: (float32 distance, row number) decides."""

    def search(X, k, metric, groups=None, among=None):
        rows = np.asarray(X, dtype=np.float64)
        if metric == "cosine":
            centre = rows.mean(axis=0)
            rows = rows - centre
            length = np.linalg.norm(rows, axis=1, keepdims=True)
            rows = rows / np.where(length <= 1e-10 * np.linalg.norm(centre), np.inf, length)
        distance = np.stack([np.sqrt(((row - rows) ** 2).sum(axis=1)) for row in rows])
        groups = np.arange(len(rows)) if groups is None else np.asarray(groups)
        distance[groups[:, None] == groups[None, :]] = np.inf
        if among is not None:
            distance[:, ~among] = np.inf
        number = np.broadcast_to(np.arange(len(rows)), distance.shape)
        order = np.lexsort((number, distance.astype(np.float32)), axis=1)[:, :k]
        return order, np.take_along_axis(distance, order, axis=1)

    return search
