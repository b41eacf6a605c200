"""Rows of the weak-to-strong grid, and the states of its models, kept in a folder.

A task has a pool, of which every seed draws its own rows, and test rows, the same for all seeds.
Of rows that belong together (phrases of a sentence, answers to a question, scenarios with the same
beginning) one is drawn, so that no two parts share any; groups of the test rows are left out.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache as remembered
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _steps import run_steps
from label_states import LabelTask, label_task, write_task
from real_tasks import text_hub

from probekit.activations.extraction import extract
from probekit.activations.store import ActivationStore
from probekit.data import Rows
from probekit.engine import ray_tasks
from probekit.groups import duplicate_groups, joined
from probekit.tasks import get_task

__all__ = [
    "MODELS",
    "PARTS",
    "TASKS",
    "States",
    "cut",
    "model_states",
    "task_parts",
    "write_states",
]

# From short texts to long ones.
TASKS = ("sst2", "twitter-sentiment", "docstrings", "cola", "sciq", "ethics-justice", "boolq")
# Name -> the checkpoint on the hub, and the layers that are kept: of strong models the upper half.
MODELS = {
    "minilm": ("sentence-transformers/all-MiniLM-L6-v2", "1-6"),
    "mpnet": ("sentence-transformers/all-mpnet-base-v2", "6-12"),
    "smollm2": ("HuggingFaceTB/SmolLM2-135M-Instruct", "10,14,18,22,26,30"),
    "qwen": ("Qwen/Qwen2.5-Coder-0.5B-Instruct", "12,14,16,18,20,22,24"),
}
POOL, TEST = 1500, 800
PARTS = ("pool", "test")
LONGEST = 800  # characters
MAX_LENGTH = 192  # tokens
# Texts that share this many words in a row belong together, in these tasks; of some only the
# longest text of a group is a whole one: GLUE's SST-2 trains on phrases and tests on sentences.
SHARED_WORDS = 8
OVERLAPPING = ("sst2", "ethics-justice")
WHOLE = ("sst2",)
COMMON = 0.01  # share of rows: words that more of them share are the prompt's

Array = np.ndarray[Any, Any]


def task_parts(name: str, cache: Path) -> dict[str, LabelTask]:
    """Return pool and test rows of a task; draw them (seed 0) if the folder lacks them."""
    if not all((cache / "truth" / f"{name}-{part}.csv").exists() for part in PARTS):
        _draw(name, cache)
    return {part: label_task(f"{name}-{part}", cache) for part in PARTS}


def _draw(name: str, cache: Path) -> None:
    with text_hub():
        task = get_task(name)
        splits = (task.pool,) if task.halves is None else task.halves
        trained = [task.rows(split, seed=0) for split in splits]
        test = task.rows(task.test, seed=0)
    texts = [str(text) for rows in trained for text in rows.contents()]
    labels = [int(label) for rows in trained for label in rows.columns["label"]]
    names = [name for rows in trained for name in rows.groups or [""] * len(rows)]
    hashes = [digest for rows in trained for digest in rows.hashes]
    groups = duplicate_groups(hashes=hashes, groups=names)
    if name in OVERLAPPING:
        groups = joined(groups.astype(str).tolist(), overlapping(texts))
    tested = {*test.hashes, *(test.groups or ())} - {""}
    rng = np.random.default_rng(0)
    order = rng.permutation(len(texts))
    if name in WHOLE:
        order = order[np.argsort([-len(texts[i]) for i in order], kind="stable")]
    taken: dict[int, int] = {}
    for i in order.tolist():
        if name not in WHOLE or len(texts[i].split()) >= SHARED_WORDS:
            taken.setdefault(int(groups[i]), i)
    fresh = [
        i
        for i in sorted(taken.values())
        if len(texts[i]) <= LONGEST and hashes[i] not in tested and names[i] not in tested
    ]
    shown = [str(text) for text in test.contents()]
    short = [i for i, text in enumerate(shown) if len(text) <= LONGEST]
    # Truth last: it tells that a part is there.
    for part, of, truth, rows, size in (
        ("pool", texts, labels, fresh, POOL),
        ("test", shown, test.columns["label"], short, TEST),
    ):
        chosen = np.sort(rng.permutation(rows)[:size]).tolist()
        write_task(cache, f"{name}-{part}", of, truth, chosen)


def overlapping(texts: Sequence[str]) -> list[str]:
    """Name texts (n,) so that those that share eight words in a row, which few do, have one name.

    Directly or through others; words that more than 1 % of the texts share do not count.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    runs = [
        {tuple(words[i : i + SHARED_WORDS]) for i in range(len(words) - SHARED_WORDS + 1)}
        for words in (text.lower().split() for text in texts)
    ]
    counts = Counter(run for own in runs for run in own)
    number: dict[tuple[str, ...], int] = {}
    links = [
        (row, number.setdefault(run, len(number)))
        for row, own in enumerate(runs)
        for run in own
        if 1 < counts[run] <= COMMON * len(texts)
    ]
    row, run = np.array(links, dtype=np.int64).reshape(-1, 2).T
    n = len(texts)
    size = n + len(number)
    graph = csr_matrix((np.ones(len(row), np.int8), (row, n + run)), shape=(size, size))
    return [str(c) for c in connected_components(graph, directed=False)[1][:n].tolist()]


def cut(strong: str) -> tuple[str, str]:
    """Split a strong model into its name and, where it is MODEL@BLOCKS, its layers."""
    name, _, blocks = strong.partition("@")
    return name, f"1-{blocks}" if blocks else ""


@remembered
def model_states(
    name: str, part: str, model: str, folder: Path | None, cache: Path, layers: str = ""
) -> Any:
    """Open the store of a part's states; extract what it lacks.

    ``folder`` holds the models by their names here; None: from the hub. Layers other than those of
    the table have a store of their own.
    """
    hub, kept = MODELS[model]
    rows = task_parts(name, cache)[part]
    output = cache / model / (f"{name}-{part}-{layers}.h5" if layers else f"{name}-{part}.h5")
    output.parent.mkdir(parents=True, exist_ok=True)
    store: ActivationStore = extract(
        Rows({"id": rows.ids, "text": rows.texts}),
        hub if folder is None else str(folder / model),
        output=output,
        layers=layers or kept,
        max_length=MAX_LENGTH,
        dtype="float32",
        progress=False,
    )
    return store


class States(NamedTuple):
    """A store: a part of a task, read by a model."""

    task: str
    part: str
    model: str
    layers: str = ""

    def __str__(self) -> str:
        return f"states of {self.task}, {self.part}, by {self.model}"


def write_states(stores: Iterable[States], options: argparse.Namespace) -> list[str]:
    """On a cluster, extract states before the cells that read them: no two may write one file.

    In one process a cell extracts what it reads. Returns what failed.
    """
    if ray_tasks() is None:
        return []
    wanted = list(dict.fromkeys(stores))
    for task in dict.fromkeys(each.task for each in wanted):
        task_parts(task, options.cache)
    return run_steps(wanted, extract_states, options, lambda _: None)


def extract_states(wanted: States, options: argparse.Namespace) -> Iterator[Any]:
    """Extract the states of a part of a task; there are no lines of them."""
    task, part, model, layers = wanted
    model_states(task, part, model, options.models, options.cache, layers)
    yield from ()
