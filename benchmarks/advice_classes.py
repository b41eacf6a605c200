"""Whether the advice of ``probekit diagnose`` holds above two classes.

``python benchmarks/advice_classes.py --cache FOLDER --models minilm=FOLDER mpnet=FOLDER`` reads the
stores and cases of :mod:`audit_cases` and appends a line for each to
results/advice_classes.jsonl; finished cases are not repeated.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from _harness import RESULTS, append_line, done_places, read_lines, table
from audit_cases import read_cases
from label_noise import weak_labels
from label_states import CACHE, case_states, model_folders

from probekit.cleaning.advice import advise
from probekit.labels import WeakLabels

FILE = RESULTS / "advice_classes.jsonl"
HEADER = ("classes", "cases", "leave", "filter", "relabel", "right", "harm > 1 point")
HEADER += ("always filter: right", "harm > 1 point")


def main() -> None:
    """Advise on the cases that the file lacks, then print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", metavar="NAME=FOLDER", help="default: from the hub")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--output", type=Path, default=FILE)
    options = parser.parse_args()
    models = model_folders(options.models)
    done = done_places(options.output, ("case",))
    more_first = sorted(read_cases(options.cache), key=lambda case: case.proba.shape[1] == 2)
    for case in more_first:
        if (case.name,) in done or case.model not in models:
            continue
        known, weaker, store = case_states(case.task, case.model, models, options.cache)
        noisy = weak_labels(case.kind, known.texts, known.truth, weaker, case.seed)
        ids = [known.ids[i] for i in noisy.rows]
        names = tuple(str(c) for c in range(noisy.weak.shape[1]))
        labels = WeakLabels(ids, None, noisy.weak, names)
        advice = advise(store, labels, only_labelled=True, seed=case.seed)
        wrong = case.weak != case.truth
        left = {
            "leave": wrong.mean(),
            "filter": wrong[case.keep].mean(),
            "relabel": (case.decided != case.truth).mean(),
        }
        line = {
            "case": case.name,
            "model": case.model,
            "task": case.task,
            "kind": case.kind,
            "classes": len(names),
            "action": advice.action,
            "pc": round(advice.signals.pc, 4),
            "agreement": round(advice.signals.agreement, 4),
            "confidence": round(advice.signals.confidence, 4),
            "left": {name: round(float(share), 5) for name, share in left.items()},
        }
        append_line(options.output, line)
    print(table(HEADER, rows_of(options.output)))


def rows_of(path: Path) -> list[list[str]]:
    """One row for two classes and one for more: what was advised and what came of it."""
    lines = read_lines(path)
    rows = []
    for name, some in (("two", lambda c: c == 2), ("more", lambda c: c > 2)):
        mine = [line for line in lines if some(line["classes"])]
        if not mine:
            continue
        advised = [line["action"] for line in mine]
        cells = [name, str(len(mine))]
        cells += [str(advised.count(action)) for action in ("leave", "filter", "relabel")]
        for actions in (advised, ["filter"] * len(mine)):
            right, harm = outcomes(mine, actions)
            cells += [f"{100 * right:.0f} %", f"{100 * harm:.0f} %"]
        rows.append(cells)
    return rows


def outcomes(lines: list[dict[str, Any]], actions: list[str]) -> tuple[float, float]:
    """Share of cases where fewer labels are wrong, and where a point more are."""
    right, harm = [], []
    for line, action in zip(lines, actions, strict=True):
        left = line["left"]
        gain = left["leave"] - left[action]
        could = left["leave"] - min(left["filter"], left["relabel"])
        right.append(gain > 0 or (gain == 0 and could <= 0))
        harm.append(gain < -0.01)
    return float(np.mean(right)), float(np.mean(harm))


if __name__ == "__main__":
    main()
