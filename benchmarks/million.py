"""Up to a million rows of 768 columns, from a store on disk to verdicts.

    python benchmarks/million.py --folder FOLDER [--rows 62500,125000,250000,1000000]

A generator writes the states (1,000 topics in 64 of 768 directions, float32) and weak labels, a
fifth of them wrong. Then each command is a process of its own: diagnose, and filter by kNN and by
the ensemble with approximate neighbours. Printed are seconds of the processor and of the clock, the
peak of memory that is not a file's, the recall, and the slope of time from one size to the next. A
step that is done is written to the results file and not run again; FOLDER keeps the stores.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _harness import RESULTS, read_lines, record, table, write_weak_labels

from probekit.activations.writer import StoreWriter
from probekit.verdicts import Verdicts

WIDTH, TOPICS, DIRECTIONS, CHUNK = 768, 1000, 64, 8192
STEPS = {
    "diagnose": ["diagnose"],
    "filter knn": ["filter", "--probe", "knn", "--approximate"],
    "filter ensemble": ["filter", "--probe", "ensemble", "--approximate"],
}


def write_states(folder: Path, n: int) -> None:
    """Write a store, weak labels, and which of them are right."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((TOPICS, DIRECTIONS), dtype=np.float32)
    spread = rng.standard_normal((DIRECTIONS, WIDTH), dtype=np.float32)
    # A topic's rows are mostly of one class.
    lean = rng.random(TOPICS)
    ids = [f"row-{i}" for i in range(n)]
    truth = np.empty(n, np.int64)
    with StoreWriter.open(
        folder / "acts.h5",
        spec={},
        ids=ids,
        hashes=[f"{i:016x}" for i in range(n)],
        widths={0: WIDTH},
        store_dtype="float32",
    ) as writer:
        for start in range(0, n, CHUNK):
            rows = np.arange(start, min(n, start + CHUNK))
            topic = rng.integers(0, TOPICS, len(rows))
            truth[rows] = rng.random(len(rows)) < np.where(lean[topic] > 0.5, 0.95, 0.05)
            states = centres[topic] + 0.7 * rng.standard_normal(
                (len(rows), DIRECTIONS), dtype=np.float32
            )
            states[:, 0] += truth[rows]
            states = states @ spread
            states += rng.standard_normal(states.shape, dtype=np.float32)
            writer.write(rows, {0: states}, np.ones(len(rows)), np.zeros(len(rows)))
        writer.finish()
    write_weak_labels(folder, ids, truth, rng)


def anonymous_mib(pid: int) -> float:
    """Memory of a process that is not a file's; 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return sum(float(x) for x in re.findall(r"RssAnon:\s+(\d+)", status)) / 1024


def run_step(step: str, folder: Path) -> dict[str, Any]:
    """Run one command; its seconds, peak of memory, recall and the share of right labels kept."""
    command, *more = STEPS[step]
    output = folder / "verdicts.parquet"
    arguments = [command, str(folder / "acts.h5"), "--labels", str(folder / "weak.csv"), *more]
    if command == "filter":
        arguments += ["-o", str(output), "--overwrite"]
    start, peak = time.perf_counter(), 0.0
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "probekit", *arguments], stdout=said, stderr=said
        )
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peak = max(peak, anonymous_mib(process.pid))
            time.sleep(0.2)
    said_text = (folder / "said.txt").read_text(encoding="utf-8")
    if status:
        raise SystemExit(f"{step} failed:\n{said_text}")
    figures: dict[str, Any] = {
        "cpu": usage.ru_utime + usage.ru_stime,
        "wall": time.perf_counter() - start,
        "anonymous_mib": peak,
    }
    if recall := re.search(r"approximately: ([\d.]+)%", said_text):
        figures["recall"] = float(recall[1]) / 100
    if command == "filter":
        right = np.load(folder / "right.npy")
        figures["right"] = float(right[Verdicts.load(output).keep].mean())
    return figures


def main() -> None:
    """Run what is not done, then print all."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--rows", default="62500,125000,250000,1000000")
    flags.add_argument("--folder", type=Path, required=True)
    flags.add_argument("--results", type=Path, default=RESULTS)
    asked = flags.parse_args()
    path = asked.results / "million.jsonl"
    lines, before = [], dict[str, tuple[int, float]]()
    for n in map(int, asked.rows.split(",")):
        folder = asked.folder / str(n)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "right.npy").exists():
            write_states(folder, n)
        for step in STEPS:
            known = [x for x in read_lines(path) if (x["rows"], x["step"]) == (n, step)]
            if not known:
                record(
                    "million",
                    {"rows": n, "step": step, **run_step(step, folder)},
                    folder=asked.results,
                )
                known = read_lines(path)
            row = known[-1]
            slope = ""
            if step in before:
                few, cpu = before[step]
                slope = f"{np.log(row['cpu'] / cpu) / np.log(n / few):.2f}"
            before[step] = n, row["cpu"]
            recall = f"{row['recall']:.1%}" if "recall" in row else ""
            right = f"{row['right']:.1%}" if "right" in row else ""
            lines.append(
                [
                    f"{step}, {n:,} × {WIDTH}",
                    f"{row['cpu']:.0f} s",
                    f"{row['wall']:.0f} s",
                    f"{row['anonymous_mib'] / 1024:.2f} GiB",
                    slope,
                    recall,
                    right,
                ]
            )
            print(*lines[-1], sep="  ", flush=True)
    header = ["step", "processor", "clock", "memory", "slope", "recall", "kept labels right"]
    print("\n" + table(header, lines))


if __name__ == "__main__":
    main()
