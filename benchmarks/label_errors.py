"""Which labels are wrong: the ensemble against cleanlab and SimiFeat, on the same states.

Tasks x strong models x six kinds of wrong labels x seeds (label_noise.py); the methods are in
label_methods.py. Each method's figures of a case are one line of results/label_errors.jsonl;
finished lines are not repeated. Needs the extra ``bench``. ``--models minilm=FOLDER mpnet=FOLDER``
reads checkpoints from folders, by default from the hub; ``--cache`` keeps their states.
``--methods members rounds`` tries changes of the ensemble (label_candidates.py).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from _harness import RESULTS, append_line, done_places
from label_candidates import FAMILIES as CANDIDATES
from label_methods import FAMILIES, Case, Found
from label_noise import KINDS, weak_labels
from label_states import CACHE, MODELS, TASKS, case_states, model_folders
from sklearn.metrics import average_precision_score

from probekit.metrics import auroc

Array = np.ndarray[Any, Any]

FILE = RESULTS / "label_errors.jsonl"
PLACE = ("model", "task", "kind", "seed")


def main() -> None:
    """Append the lines that the file lacks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    methods = FAMILIES | CANDIDATES
    parser.add_argument("--methods", nargs="*", default=tuple(FAMILIES), choices=tuple(methods))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--models", nargs="*", metavar="NAME=FOLDER", help="default: from the hub")
    parser.add_argument("--only", choices=tuple(MODELS), help="one of the models as the strong one")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for the states")
    parser.add_argument("--output", type=Path, default=FILE)
    options = parser.parse_args()
    models = model_folders(options.models)
    done = done_places(options.output, (*PLACE, "method"))
    for name in options.tasks:
        for model in models:
            if options.only not in (None, model):
                continue
            for seed in range(options.seeds):
                for kind in options.kinds:
                    place = (model, name, kind, seed)
                    left = [
                        family
                        for family in options.methods
                        if not all((*place, method) in done for method in methods[family].methods)
                    ]
                    if not left:
                        continue
                    task, weaker, store = case_states(name, model, models, options.cache)
                    noisy = weak_labels(kind, task.texts, task.truth, weaker, seed)
                    case = Case(store, noisy.rows, noisy.weak, seed)
                    wrong = noisy.hard != task.truth[noisy.rows]
                    for family in left:
                        found = methods[family].find(case)
                        append(options.output, place, found, case, wrong)


def append(
    path: Path, place: tuple[Any, ...], found: dict[str, Found], case: Case, wrong: Array
) -> None:
    """Write one line for each method."""
    for method, one in found.items():
        line = dict(zip(PLACE, place, strict=True))
        line |= {"method": method, "rows": len(wrong), "wrong": int(wrong.sum())}
        line |= figures(one.score, case.hard, wrong)
        if one.flagged is not None:
            line["flagged"] = int(one.flagged.sum())
            line["flagged wrong"] = int((one.flagged & wrong).sum())
        append_line(path, line)


def figures(score: Array, hard: Array, wrong: Array) -> dict[str, float]:
    """How well a score (n,) ranks wrong labels before right ones.

    AUROC within the weak classes (mean by size of those that have wrong and right labels) and over
    all rows; average precision; the share of wrong labels among as many rows as are wrong, of equal
    scores the mean over their orders.
    """
    within = [(auroc(wrong[hard == c], score[hard == c]), (hard == c).sum()) for c in set(hard)]
    values, sizes = np.array([pair for pair in within if np.isfinite(pair[0])]).T
    k = int(wrong.sum())
    cut = np.sort(score)[-k]
    above, tied = score > cut, score == cut
    hits = wrong[above].sum() + (k - above.sum()) * wrong[tied].mean()
    figures = {
        "within": np.average(values, weights=sizes),
        "all": auroc(wrong, score),
        "ap": average_precision_score(wrong, score),
        "precision": hits / k,
    }
    return {name: round(float(value), 4) for name, value in figures.items()}


if __name__ == "__main__":
    main()
