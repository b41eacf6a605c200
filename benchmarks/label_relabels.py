"""How many labels are right after a relabel: ``--hard`` against ``--flip``, from the same scores.

``python benchmarks/label_relabels.py --cache FOLDER --models minilm=FOLDER mpnet=FOLDER`` takes the
tasks and the wrong labels of label_errors.py, and writes one line a case to
results/label_relabels.jsonl; finished lines are not repeated.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _harness import RESULTS, append_line, done_places
from label_noise import KINDS, weak_labels
from label_states import CACHE, TASKS, case_states, model_folders

from probekit.activations.store import ActivationStore
from probekit.cleaning.predict import score_rows
from probekit.labels import WeakLabels

__all__ = ["HEADER", "rows_of"]

FILE = RESULTS / "label_relabels.jsonl"
FLIPS = (0.05, 0.1, 0.2, 0.3)
PLACE = ("model", "task", "kind", "seed")
FORMS = {"weak": "labels as they are", "hard": "`relabel --hard`"}
FORMS |= {f"flip {share:g}": f"`relabel --flip {share:g}`" for share in FLIPS}
NAMES = ("weaker model", "bag of words", "symmetric", "by class", "where unsure", "by a rule")
HEADER = ["labels", *NAMES, "mean", "better / worse than weak by a point"]


def main() -> None:
    """Append the lines that the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--models", nargs="*", metavar="NAME=FOLDER", help="default: from the hub")
    parser.add_argument("--only", help="one of the models as the strong one")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for the states")
    parser.add_argument("--output", type=Path, default=FILE)
    options = parser.parse_args()
    models = model_folders(options.models)
    done = done_places(options.output, PLACE)
    for name in options.tasks:
        for model in models:
            if options.only not in (None, model):
                continue
            for seed in range(options.seeds):
                for kind in KINDS:
                    place = (model, name, kind, seed)
                    if place in done:
                        continue
                    task, weaker, store = case_states(name, model, models, options.cache)
                    noisy = weak_labels(kind, task.texts, task.truth, weaker, seed)
                    right = measure(store, noisy.rows, noisy.weak, task.truth[noisy.rows], seed)
                    append_line(options.output, dict(zip(PLACE, place, strict=True)) | right)


def measure(
    store: ActivationStore,
    rows: np.ndarray[Any, Any],
    weak: np.ndarray[Any, Any],
    truth: np.ndarray[Any, Any],
    seed: int,
) -> dict[str, float]:
    """Shares of right labels, of each form."""
    names = tuple(map(str, range(weak.shape[1])))
    labels = WeakLabels([store.ids[i] for i in rows], None, weak, names)
    scored = score_rows(store, labels, seed=seed, only_labelled=True)
    made = {"weak": labels.hard, "hard": scored.relabel(hard=True).hard}
    made |= {f"flip {share:g}": scored.relabel(flip=share).hard for share in FLIPS}
    return {name: round(float((hard == truth).mean()), 4) for name, hard in made.items()}


def rows_of(lines: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One row for each form of the labels."""
    rows = []
    for form, name in FORMS.items():
        of = [[x[form] for x in lines if x["kind"] == kind] for kind in KINDS]
        cells = [name, *(f"{100 * np.mean(x):.1f}" for x in (*of, [x[form] for x in lines]))]
        gain = np.array([x[form] - x["weak"] for x in lines])
        better, worse = int((gain > 0.01).sum()), int((gain < -0.01).sum())
        rows.append([*cells, "-" if form == "weak" else f"{better} / {worse}"])
    return rows


if __name__ == "__main__":
    main()
