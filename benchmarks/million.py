"""Up to ten million rows of 768 columns, from a store on disk to verdicts.

    python benchmarks/million.py --folder FOLDER [--rows 312500,1000000,10000000]

A generator writes the states (topics of 1,000 rows in 64 of 768 directions, bfloat16) and weak
labels, a fifth of them wrong. Then each command is a process of its own: diagnose, and filter by
logistic regression, by kNN and by the ensemble with approximate neighbours. Printed are seconds of
the processor and of the clock, the peak of memory that is not a file's, the recall, and the slopes
of time and memory from one size to the next. A step that is done is written to the results file
and not run again; FOLDER keeps the stores, 1.6 kB a row.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from _harness import RESULTS, WRONG, read_lines, record, table

from probekit.activations.create import Plan
from probekit.activations.writer import StoreWriter
from probekit.verdicts import Verdicts

WIDTH, DIRECTIONS, CHUNK, DTYPE = 768, 64, 8192, "bfloat16"
ROWS_OF_A_TOPIC = 1000
STEPS = {
    "diagnose": ["diagnose"],
    "filter logreg": ["filter", "--probe", "logreg"],
    "filter knn": ["filter", "--probe", "knn", "--approximate"],
    "filter ensemble": ["filter", "--probe", "ensemble", "--approximate"],
}


class Numbered(Sequence[str]):
    """Names of n rows, made when they are asked for."""

    def __init__(self, rows: range, form: str) -> None:
        self.rows, self.form = rows, form

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        found = self.rows[index]
        return Numbered(found, self.form) if isinstance(index, slice) else self.form.format(found)


def write_states(folder: Path, n: int) -> None:
    """Write a store, weak labels, and which of them are right, chunk by chunk."""
    rng = np.random.default_rng(0)
    topics = max(2, n // ROWS_OF_A_TOPIC)
    centres = rng.standard_normal((topics, DIRECTIONS), dtype=np.float32)
    spread = rng.standard_normal((DIRECTIONS, WIDTH), dtype=np.float32)
    # A topic's rows are mostly of one class.
    lean = rng.random(topics)
    ids, hashes = Numbered(range(n), "row-{}"), Numbered(range(n), "{:016x}")
    right = np.empty(n, bool)
    columns = pa.schema({"id": pa.string(), "label": pa.int64()})
    with (
        StoreWriter.open(
            folder / "acts.h5", Plan({}, ids, hashes, {0: WIDTH}, DTYPE), overwrite=True
        ) as writer,
        pq.ParquetWriter(folder / "weak.parquet", columns) as labels,
    ):
        for start in range(0, n, CHUNK):
            rows = np.arange(start, min(n, start + CHUNK))
            topic = rng.integers(0, topics, len(rows))
            truth = rng.random(len(rows)) < np.where(lean[topic] > 0.5, 0.95, 0.05)
            states = centres[topic] + 0.7 * rng.standard_normal(
                (len(rows), DIRECTIONS), dtype=np.float32
            )
            states[:, 0] += truth
            states = states @ spread
            states += rng.standard_normal(states.shape, dtype=np.float32)
            right[rows] = rng.random(len(rows)) >= WRONG
            weak = np.where(right[rows], truth, ~truth).astype(np.int64)
            labels.write(pa.table([list(ids[start : start + CHUNK]), weak], schema=columns))
            bits = torch.from_numpy(states).bfloat16().view(torch.int16).numpy().view(np.uint16)
            writer.write(rows, {0: bits}, np.ones(len(rows)), np.zeros(len(rows)))
        writer.finish()
    np.save(folder / "right.npy", right)


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
    arguments = [command, str(folder / "acts.h5"), "--labels", str(folder / "weak.parquet"), *more]
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
    flags.add_argument("--rows", default="312500,1000000,10000000")
    flags.add_argument("--folder", type=Path, required=True)
    flags.add_argument("--results", type=Path, default=RESULTS)
    asked = flags.parse_args()
    path = asked.results / "million.jsonl"
    lines, before = [], dict[str, dict[str, Any]]()
    for n in map(int, asked.rows.split(",")):
        folder = asked.folder / str(n)
        folder.mkdir(parents=True, exist_ok=True)
        for step in STEPS:
            about = {"rows": n, "dtype": DTYPE, "step": step}
            known = [line for line in read_lines(path) if about.items() <= line.items()]
            if not known:
                if not (folder / "right.npy").exists():
                    write_states(folder, n)
                record("million", {**about, **run_step(step, folder)}, folder=asked.results)
                known = read_lines(path)
            row = known[-1]
            slopes = [slope(row, before.get(step), name) for name in ("cpu", "anonymous_mib")]
            before[step] = row
            lines.append(
                [
                    f"{step}, {n:,} × {WIDTH}",
                    f"{row['cpu']:.0f} s",
                    f"{row['wall']:.0f} s",
                    f"{row['anonymous_mib'] / 1024:.2f} GiB",
                    *slopes,
                    f"{row['recall']:.1%}" if "recall" in row else "",
                    f"{row['right']:.1%}" if "right" in row else "",
                ]
            )
            print(*lines[-1], sep="  ", flush=True)
    header = ["step", "processor", "clock", "memory", "slope of time", "of memory"]
    print("\n" + table([*header, "recall", "kept labels right"], lines))


def page_rows(lines: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of docs/speed.md: a row for each size, then the slopes."""
    by_step = {(line["rows"], line["step"]): line for line in lines}
    sizes = sorted({rows for rows, _ in by_step})
    rows = []
    for n in sizes:
        here = {step: by_step[n, step] for step in STEPS if (n, step) in by_step}
        found = {f"{line['recall']:.1%}" for line in here.values() if "recall" in line}
        right = [f"{line['right']:.1%}" for line in here.values() if "right" in line]
        cells = [
            f"{here[s]['cpu']:,.0f} s, {here[s]['anonymous_mib'] / 1024:.2f} GiB"
            if s in here
            else ""
            for s in STEPS
        ]
        rows.append([f"{n:,}", *cells, ", ".join(sorted(found)), ", ".join(right)])
    for few, many in itertools.pairwise(sizes):
        powers = [
            slope(by_step[many, step], by_step.get((few, step)), "cpu")
            if (many, step) in by_step
            else ""
            for step in STEPS
        ]
        rows.append([f"power of the rows, {few:,} to {many:,}", *powers, "", ""])
    header = ["rows", *(f"`{step}`" for step in STEPS), "neighbours found", "kept labels right"]
    return header, rows


def slope(row: dict[str, Any], few: dict[str, Any] | None, name: str) -> str:
    """Power of the rows with which a figure grew from fewer rows; empty without these."""
    if few is None:
        return ""
    return f"{np.log(row[name] / few[name]) / np.log(row['rows'] / few['rows']):.2f}"


if __name__ == "__main__":
    main()
