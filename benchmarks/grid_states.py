"""States of the grid: a pool and a test set per task, extracted once and cached in a folder."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from grid_tasks import text_hub

from probekit.activations.extraction import extract
from probekit.activations.store import ActivationStore
from probekit.data import Rows
from probekit.groups import duplicate_groups
from probekit.tasks import get_task

POOL, TEST = 4500, 1500
MAX_LENGTH = 128


@dataclass(frozen=True, eq=False)
class TaskStates:
    """One task's stores and ground truth, rows in the order of the stores."""

    name: str
    pool: ActivationStore
    test: ActivationStore
    pool_truth: np.ndarray[Any, Any]
    test_truth: np.ndarray[Any, Any]
    pool_texts: list[str]
    test_texts: list[str]


def task_states(name: str, model: str, folder: Path, *, small: bool = False) -> TaskStates:
    """Draw at most 4,500 rows to train on and 1,500 to test on (seed 0), and extract all layers.

    No text is in both sets, and none is in the pool twice.
    """
    with text_hub(), contextlib.redirect_stderr(io.StringIO()):
        task = get_task(name)
        splits = (task.pool,) if task.halves is None else task.halves
        trained = [task.rows(split, seed=0) for split in splits]
        test = task.rows(task.test, seed=0)
    texts = [str(text) for rows in trained for text in rows.contents()]
    labels = np.concatenate([np.asarray(rows.columns["label"]) for rows in trained])
    hashes = [text_hash for rows in trained for text_hash in rows.hashes]
    known = set(test.hashes)
    first = np.unique(duplicate_groups(hashes=hashes), return_index=True)[1]
    fresh = np.array([i for i in np.sort(first).tolist() if hashes[i] not in known])
    share = 10 if small else 1
    rng = np.random.default_rng(0)
    pool = np.sort(rng.permutation(fresh)[: POOL // share])
    kept = np.sort(rng.permutation(len(test))[: TEST // share])
    sets = []
    for part, chosen, of in (
        ("pool", pool, texts),
        ("test", kept, [str(text) for text in test.contents()]),
    ):
        shown = [of[i] for i in chosen]
        rows = Rows({"id": [f"{part}-{i}" for i in chosen.tolist()], "text": shown})
        path = folder / f"{name}-{part}{'-small' if small else ''}.h5"
        store = extract(
            rows, model, output=path, layers="all", max_length=MAX_LENGTH, progress=False
        )
        sets.append((store, shown))
    (pool_store, pool_texts), (test_store, test_texts) = sets
    return TaskStates(
        name,
        pool_store,
        test_store,
        labels[pool],
        np.asarray(test.columns["label"])[kept],
        pool_texts,
        test_texts,
    )
