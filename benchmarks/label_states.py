"""Tasks of the label-error benchmarks: their rows and truth, and strong models' states in stores.

``python benchmarks/label_states.py --cache FOLDER --models minilm=FOLDER mpnet=FOLDER`` extracts
what is missing: FOLDER/rows/TASK.jsonl, FOLDER/truth/TASK.csv and FOLDER/MODEL/TASK.h5.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache as remembered
from pathlib import Path
from typing import Any

import numpy as np
from real_tasks import real_tasks

from probekit.activations.store import ActivationStore
from probekit.tasks import load_task_rows

__all__ = [
    "CACHE",
    "MODELS",
    "MULTICLASS",
    "TASKS",
    "LabelTask",
    "case_states",
    "label_task",
    "model_folders",
    "task_store",
    "write_task",
]

# From short texts to long ones.
TASKS = (
    "sst2",
    "twitter-sentiment",
    "cola",
    "docstrings",
    "sciq",
    "ethics-justice",
    "ethics-deontology",
    "wic",
    "piqa",
    "mc-taco",
    "boolq",
    "sciq-with-support",
    "hellaswag",
)
FIVE = ("numpy", "scipy", "sklearn", "pandas", "matplotlib")
TWELVE = (*FIVE, "torch", "transformers", "sympy", "networkx", "huggingface_hub", "mypy")
TWELVE = (*TWELVE, "pydantic")
MULTICLASS = {"tweeteval-sentiment": 3, "docstrings-5": 5, "docstrings-12": 12}
"""Tasks with more than two classes, and their number."""
MODELS = {
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "mpnet": "sentence-transformers/all-mpnet-base-v2",
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
CACHE = Path.home() / ".cache" / "probekit-label-errors"
ROWS = 2000
LONGEST = 1000  # characters
MAX_LENGTH = 256

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class LabelTask:
    """A task's rows, each text once."""

    name: str
    ids: list[str]
    texts: list[str]
    truth: Array
    """Classes (N,) from 0."""


def write_task(
    cache: Path, name: str, texts: Sequence[str], labels: Sequence[int], chosen: list[int]
) -> None:
    """Write the chosen rows of a task, and their truth, into the cache."""
    rows, truth = cache / "rows" / f"{name}.jsonl", cache / "truth" / f"{name}.csv"
    for path in (rows, truth):
        path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"id": f"{name}-{i}", "text": texts[i]}) for i in chosen]
    rows.write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = ["id,label", *(f"{name}-{i},{int(labels[i])}" for i in chosen)]
    truth.write_text("\n".join(lines) + "\n", encoding="utf-8")


@remembered
def label_task(name: str, cache: Path) -> LabelTask:
    """Read a task's rows from the cache; draw at most 2,000 (seed 0) if they are not there."""
    rows, truth = cache / "rows" / f"{name}.jsonl", cache / "truth" / f"{name}.csv"
    if not truth.exists():
        texts, labels = multiclass_rows(name) if name in MULTICLASS else real_tasks()[name]()
        first = np.sort(np.unique(texts, return_index=True)[1])
        longest = np.inf if name in MULTICLASS else LONGEST
        short = np.array([i for i in first.tolist() if len(texts[i]) <= longest])
        chosen = np.sort(np.random.default_rng(0).permutation(short)[:ROWS]).tolist()
        write_task(cache, name, texts, labels, chosen)
    read = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    with truth.open(encoding="utf-8", newline="") as file:
        labels = np.array([int(line["label"]) for line in csv.DictReader(file)])
    return LabelTask(name, [r["id"] for r in read], [r["text"] for r in read], labels)


def multiclass_rows(name: str) -> tuple[list[str], Array]:
    """Texts and classes of a task with more than two classes."""
    if name == "tweeteval-sentiment":
        folder = Path(os.environ["PROBEKIT_DATA"]) / "tweeteval_sentiment"
        texts = (folder / "test_text.txt").read_text(encoding="utf-8").splitlines()
        labels = (folder / "test_labels.txt").read_text(encoding="utf-8").split()
        return [text.strip() for text in texts], np.array(labels, np.int64)
    packages = FIVE if name == "docstrings-5" else TWELVE
    parts = [load_task_rows(f"docstrings:{','.join(packages)}@{s}") for s in ("weak", "student")]
    texts = [str(text) for part in parts for text in part.contents()]
    return texts, np.array([y for part in parts for y in part.columns["label"]], np.int64)


def case_states(
    name: str, model: str, models: Mapping[str, str], cache: Path
) -> tuple[LabelTask, ActivationStore, ActivationStore]:
    """A task, states of all-MiniLM for its weaker models, and those of the strong model."""
    weaker, strong = (task_store(name, each, models[each], cache) for each in ("minilm", model))
    return label_task(name, cache), weaker, strong


@remembered
def task_store(name: str, model: str, checkpoint: str, cache: Path) -> ActivationStore:
    """Open the store of a task's states on all layers; extract what it lacks."""
    from probekit.activations.extraction import extract

    label_task(name, cache)
    output = cache / model / f"{name}.h5"
    output.parent.mkdir(parents=True, exist_ok=True)
    return extract(
        cache / "rows" / f"{name}.jsonl",
        checkpoint,
        output=output,
        layers="all",
        max_length=MAX_LENGTH,
        progress=False,
    )


def model_folders(given: list[str] | None) -> dict[str, str]:
    """Read NAME=FOLDER of each model; without any, the names on the hub."""
    pairs = [item.partition("=") for item in given or ()]
    if wrong := [name for name, _, folder in pairs if name not in MODELS or not folder]:
        raise SystemExit(f"{wrong[0]}: give models as NAME=FOLDER, NAME one of {', '.join(MODELS)}")
    return {name: folder for name, _, folder in pairs} or MODELS


def main() -> None:
    """Extract the states of all tasks and models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--models", nargs="*", metavar="NAME=FOLDER", help="default: from the hub")
    parser.add_argument("--cache", type=Path, default=CACHE)
    options = parser.parse_args()
    for name in options.tasks:
        for model, checkpoint in model_folders(options.models).items():
            store = task_store(name, model, checkpoint, options.cache)
            print(name, model, len(store), "rows, layers", store.layers, flush=True)


if __name__ == "__main__":
    main()
