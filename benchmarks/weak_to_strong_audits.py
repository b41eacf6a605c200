"""What audits of the grid's rows would find: the evidence for advice that knows the student.

    python benchmarks/weak_to_strong_audits.py [--models FOLDER] [--cache FOLDER] [--tasks TASK …]

For every cell of weak_to_strong.py's results, audits of 20, 40 and 100 true labels are drawn
twenty times; kept are the shares of wrong labels that each one estimates, as the labels are, after
a filter and after a relabel. A cell that results/weak_to_strong_audits.jsonl has is not done again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _harness import RESULTS, append_line, read_lines
from weak_to_strong import CACHE, FILES, GRIDS
from weak_to_strong_arms import CLASSES, Cell, Place, draw_cell
from weak_to_strong_students import FINETUNED, TRAININGS
from weak_to_strong_summary import CLEANED, PLAIN

from probekit.cleaning.audit import make_draw
from probekit.cleaning.predict import score_rows

AUDITS = RESULTS / "weak_to_strong_audits.jsonl"
KEY = ("pair", "task", "seed", "students")
SIZES, DRAWS = (20, 40, 100), 20
SHARES = ("leave", "filter", "relabel")


def main() -> None:
    """Audit the cells that the file lacks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="*", help="by default all that have results")
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="default: from the hub")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for rows and states")
    parser.add_argument("--results", type=Path, nargs="*", default=list(FILES.values()))
    parser.add_argument("--output", type=Path, default=AUDITS)
    options = parser.parse_args()
    done = {tuple(line[name] for name in KEY) for line in read_lines(options.output)}
    for pair, task, seed, kind in sorted(cells(options.results) - done):
        if options.tasks and task not in options.tasks:
            continue
        weak, strong = pair.split(":")
        place = Place(weak, strong, task, seed)
        grid = GRIDS[kind]
        cell = draw_cell(place, grid.rows, grid.held_out, options.models, options.cache)
        key = dict(zip(KEY, (pair, task, seed, kind), strict=True))
        append_line(options.output, key | audited(cell))
        print(f"{place}, {kind}", flush=True)


def cells(results: Sequence[Path]) -> set[tuple[str, str, int, str]]:
    """Pair, task, seed and kind of students where labels as they are and cleaned ones have some."""
    found: dict[tuple[str, str, int, str], set[str]] = {}
    for line in (line for path in results for line in read_lines(path)):
        kind = FINETUNED if line["student"] in TRAININGS else "linear"
        found.setdefault((line["pair"], line["task"], line["seed"], kind), set()).add(line["arm"])
    return {cell for cell, arms in found.items() if {PLAIN, *CLEANED} <= arms}


def audited(cell: Cell) -> dict[str, Any]:
    """Size of an audit -> the shares that each draw estimates."""
    scored = score_rows(cell.pool, cell.weak, "ensemble", seed=cell.place.seed, only_labelled=True)
    keep, ids = scored.filter().keep, cell.weak.ids
    truth = {name: CLASSES[c] for name, c in zip(ids, cell.truth, strict=True)}
    rng = np.random.default_rng([cell.place.seed, 4])
    found: dict[str, dict[str, list[float]]] = {
        f"audit {m}": {name: [] for name in SHARES} for m in SIZES
    }
    for _ in range(DRAWS):
        ties = rng.integers(0, 2**63, len(ids), dtype=np.uint64)
        draw = make_draw(ids, CLASSES, cell.weak.hard, scored.proba, keep, ties)
        for m in SIZES:
            finding = draw.conclude({name: truth[name] for name in draw.ids[:m]}, more=False)
            for name in SHARES:
                found[f"audit {m}"][name].append(round(finding.shares[name].value, 4))
    return found


if __name__ == "__main__":
    main()
