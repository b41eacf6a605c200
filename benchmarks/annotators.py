"""Labels of one annotator, of votes and of Dawid-Skene beside the truth, before and after cleaning.

``python benchmarks/annotators.py --cache FOLDER --models minilm=FOLDER`` appends what is missing to
results/annotators.jsonl. Five annotators label the rows of a task, three of them each row:

mixed   right in 90, 80, 65, 60 and 55 % of the rows, else another class evenly
alike   all right in 75 %
biased  two right in 85 %; three right in 85 %, but give class 0 to 40 % of the rows unread
models  logistic regressions on words, each trained on its own 200 true labels: errors that depend

Rows are cleaned by the defaults of filter and relabel with kNN on all-MiniLM's last layer.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from _harness import RESULTS, append_line, done_places
from label_noise import bag_of_words
from label_states import CACHE, label_task, model_folders, task_store

from probekit import KNNProbe, WeakLabels, load_labels, score_rows
from probekit.tables import Table

TASKS = ("sst2", "twitter-sentiment", "cola", "sciq")
KINDS = ("mixed", "alike", "biased", "models")
METHODS = ("single", "votes", "dawid-skene")
PLANTED = {
    "mixed": (0.9, 0.8, 0.65, 0.6, 0.55),
    "alike": (0.75,) * 5,
    "biased": (0.85,) * 5,
}
BIASED, UNREAD = (2, 3, 4), 0.4
TRAINED, PER_ROW, SEEDS = 200, 3, 2
LAYER = 6  # of all-MiniLM, the last

Array = np.ndarray[Any, Any]


def annotations(kind: str, texts: Sequence[str], y: Array, rng: np.random.Generator) -> Array:
    """Votes (n, 5), -1 where an annotator did not label a row."""
    n, C = len(y), int(y.max()) + 1
    if kind == "models":
        V = np.full((n, 5), -1)
        order = rng.permutation(n)
        for a in range(5):
            own = order[a * TRAINED : (a + 1) * TRAINED]
            V[:, a] = bag_of_words([texts[i] for i in own], y[own], texts).argmax(axis=1)
        V[order[: 5 * TRAINED]] = -1  # known to a model: not labelled
    else:
        other = (y[:, None] + rng.integers(1, C, (n, 5))) % C
        V = np.where(rng.random((n, 5)) < np.array(PLANTED[kind]), y[:, None], other)
        if kind == "biased":
            V[:, BIASED] = np.where(rng.random((n, 3)) < UNREAD, 0, V[:, BIASED])
    given = rng.permuted(np.tile(np.arange(5) < PER_ROW, (n, 1)), axis=1)
    return np.where(given, V, -1)


def labels_of(method: str, V: Array, ids: Sequence[str], rng: np.random.Generator) -> WeakLabels:
    """The labels that a user has: one vote a row, or all of them combined."""
    cells = [[None if v < 0 else v for v in column] for column in V.T.tolist()]
    columns: dict[str, Any] = {"id": list(ids)}
    if method == "single":
        drawn = np.where(V >= 0, rng.random(V.shape), -1).argmax(axis=1)
        columns["label"] = [cells[a][i] for i, a in enumerate(drawn.tolist())]
        return load_labels(Table(columns))
    columns |= {f"label_{a}": column for a, column in enumerate(cells, 1)}
    return load_labels(Table(columns), annotators=method)


def measure(task: Any, store: Any, kind: str, method: str, seed: int) -> dict[str, float]:
    """Accuracy of the labels as they are, of those that a filter keeps, and relabelled."""
    drawn = np.random.default_rng([seed, TASKS.index(task.name), KINDS.index(kind)])
    V = annotations(kind, task.texts, task.truth, drawn)
    labels = labels_of(method, V, task.ids, np.random.default_rng([seed, 99]))
    place = {name: i for i, name in enumerate(task.ids)}
    y = task.truth[[place[name] for name in labels.ids]]
    own = labels.codes([str(c) for c in range(int(task.truth.max()) + 1)])
    scored = score_rows(
        *(store, labels), probe=KNNProbe(), layer=LAYER, seed=seed, only_labelled=True
    )
    verdicts = scored.relabel()
    of = {name: int(c) for name, c in zip(labels.ids, y, strict=True)}
    truth = np.array([of[name] for name in verdicts.ids])
    weak = np.array([int(labels.classes[c]) for c in verdicts.weak.argmax(axis=1)])
    new = np.array([int(labels.classes[c]) for c in verdicts.hard])
    keep = scored.filter().keep
    mean_p = labels.probs[np.arange(len(y)), [labels.classes.index(str(c)) for c in y]]
    best = max(float((V[:, a] == task.truth)[V[:, a] >= 0].mean()) for a in range(5))
    return {
        "rows": len(y),
        "accuracy": float((own == y).mean()),
        "best_annotator": best,
        "log_loss": float(-np.log(np.clip(mean_p, 1e-3, 1)).mean()),
        "filtered": float((weak == truth)[keep].mean()),
        "relabelled": float((new == truth).mean()),
        **{
            name: labels.provenance["annotators"][name]
            for name in ("krippendorff_alpha", "all_agree")
            if method != "single"
        },
    }


def main() -> None:
    """Measure what the results lack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--models", nargs="*", metavar="NAME=FOLDER", help="default: from the hub")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--results", type=Path, default=RESULTS / "annotators.jsonl")
    options = parser.parse_args()
    done = done_places(options.results, ("task", "kind", "method", "seed"))
    checkpoint = model_folders(options.models)["minilm"]
    for seed, name in product(range(SEEDS), options.tasks):
        task = label_task(name, options.cache)
        with task_store(name, "minilm", checkpoint, options.cache) as store:
            for kind, method in product(KINDS, METHODS):
                if (name, kind, method, seed) in done:
                    continue
                result = measure(task, store, kind, method, seed)
                about = {"task": name, "kind": kind, "method": method, "seed": seed}
                append_line(options.results, about | result)
        print(name, seed, flush=True)


if __name__ == "__main__":
    main()
