"""Cases of the audit's benchmark: a strong model, a task and a kind of wrong labels, each cached.

``python benchmarks/audit_cases.py --cache FOLDER --models minilm=FOLDER mpnet=FOLDER`` makes what
is missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from label_noise import KINDS, weak_labels
from label_states import CACHE, MULTICLASS, TASKS, label_task, model_folders, task_store

from probekit.activations.store import ActivationStore
from probekit.cleaning.predict import score_rows
from probekit.cuts import prior_matched
from probekit.labels import WeakLabels

__all__ = ["Case", "make_cases", "read_cases"]

SEEDS = (0, 1)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Case:
    """Weak labels of n rows, what the probe makes of them, and the truth."""

    model: str
    task: str
    kind: str
    seed: int
    proba: Array
    """P (n, C) of the ensemble, out of fold."""
    weak: Array
    """Weak classes (n,)."""
    truth: Array
    decided: Array
    """Classes (n,) of the probe, with the class shares of the weak labels."""
    keep: Array
    """Rows (n,) that the default filter keeps."""

    @property
    def name(self) -> str:
        """Model, task, kind of wrong labels and seed."""
        return f"{self.model} {self.task} {self.kind} {self.seed}"


def make_cases(
    task: str, model: str, checkpoint: str, cache: Path, weaker: ActivationStore
) -> None:
    """Fit the ensemble to every kind of wrong labels of one task and model."""
    store, known = task_store(task, model, checkpoint, cache), label_task(task, cache)
    folder = cache / "audit-cases"
    folder.mkdir(exist_ok=True)
    for kind in KINDS:
        for seed in SEEDS:
            path = folder / f"{model}~{task}~{kind}~{seed}.npz"
            if path.exists():
                continue
            noisy = weak_labels(kind, known.texts, known.truth, weaker, seed)
            classes = tuple(str(c) for c in range(noisy.weak.shape[1]))
            ids = [known.ids[i] for i in noisy.rows]
            labels = WeakLabels(ids, None, noisy.weak, classes)
            scored = score_rows(store, labels, only_labelled=True, seed=seed)
            weak, truth = noisy.hard, known.truth[noisy.rows]
            share = np.bincount(weak, minlength=len(classes)) / len(weak)
            decided = prior_matched(scored.proba, share, ties=scored.ties)
            keep = scored.filter().keep
            made = path.with_suffix(".part.npz")
            np.savez(made, proba=scored.proba, weak=weak, truth=truth, decided=decided, keep=keep)
            made.rename(path)
            wrong = weak != truth
            print(
                path.stem,
                f"wrong {wrong.mean():.3f}, kept {wrong[keep].mean():.3f}, relabelled "
                f"{(decided != truth).mean():.3f}",
                flush=True,
            )


def read_cases(cache: Path) -> Iterator[Case]:
    """Yield the cases that are there, by seed."""
    paths = (cache / "audit-cases").glob("*~*~*~?.npz")
    for path in sorted(paths, key=lambda path: (path.stem[-1], path.stem)):
        model, task, kind, seed = path.stem.split("~")
        with np.load(path) as read:
            yield Case(model, task, kind, int(seed), **dict(read))


def main() -> None:
    """Make the cases of all tasks and models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="*", default=[*TASKS[:6], *MULTICLASS])
    parser.add_argument("--models", nargs="*", metavar="NAME=FOLDER", help="default: from the hub")
    parser.add_argument("--cache", type=Path, default=CACHE)
    options = parser.parse_args()
    models = model_folders(options.models)
    for task in options.tasks:
        weaker = task_store(task, "minilm", models["minilm"], options.cache)
        for model, checkpoint in models.items():
            make_cases(task, model, checkpoint, options.cache, weaker)


if __name__ == "__main__":
    main()
