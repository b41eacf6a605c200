"""A Ray cluster on this machine: rows per second beside a plain process, and kills.

    python benchmarks/cluster.py --model MODEL --folder FOLDER [--texts FILE] [--rows 16384]
    python benchmarks/cluster.py --model MODEL --folder FOLDER [--texts FILE] --kills 10

Speed: the same rows are extracted by one plain process, by Ray with one and with two workers, and
by torchrun with two processes, each with one thread. Rates are those from the moment when each
worker has stored a part to the last part, so that starting and loading do not count. Run it on two
quiet cores.

Kills: two nodes of one CPU each extract, filter and relabel 5,000 rows, filter 40,000 rows of 64
random columns by fits that both hold a share of, and run a small grid of students. A node is killed
at so many random moments, and the driver at as many, after which the same command is typed again.
Every file is compared with that of a run without kills, but for the seconds that a run notes.

The texts are those of FILE (a JSONL file with `text`), else random words. A row that is in the
results file is not measured again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _harness import RESULTS, Others, read_lines, record, table, write_weak_labels

from probekit.activations.create import Plan
from probekit.activations.writer import StoreWriter
from probekit.engine import STARTS

PROBEKIT = [sys.executable, "-m", "probekit"]
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
EXTRACT = ["extract", "rows.jsonl", "-o", "acts/"]
# How each way starts the command, its options, its workers, and the row and share it must reach.
WAYS: dict[str, tuple[list[str], list[str], int, tuple[str, float] | None]] = {
    "plain process": (PROBEKIT, [], 1, None),
    "Ray, one worker": (
        PROBEKIT,
        ["--engine", "ray", "--workers", "1"],
        1,
        ("plain process", 0.9),
    ),
    "Ray, two workers": (
        PROBEKIT,
        ["--engine", "ray", "--workers", "2"],
        2,
        ("Ray, one worker", 1.6),
    ),
    "torchrun, two processes": ([sys.executable, *TORCHRUN, "-m", "probekit"], [], 2, None),
}
# Of two verdicts one may be written before a kill.
AFRESH = "--overwrite"
ENGINE = ["--engine", "ray", "--address"]
CHAIN = {
    "extract": EXTRACT,
    "filter": ["filter", "acts/", "--labels", "weak.csv", "--probe", "knn,logreg", AFRESH],
    "relabel": ["relabel", "acts/", "--labels", "weak.csv", "--probe", "ensemble", AFRESH],
    # Enough rows that workers hold shares of them.
    "fits": ["filter", "states.h5", "--labels", "states.csv", "--probe", "logreg,ensemble", AFRESH],
    "run": [
        *("run", "--task", "task.jsonl", "--weak", "bag-of-words", "--seeds", "2"),
        *("--set", "student=linear", "--set", 'probes=["knn","logreg"]'),
        *("--set", "random_drops=0"),
    ],
}
MODEL_OPTION = {"extract": "-m", "run": "--strong"}
OUTPUTS = {"extract": [], "run": ["-o", "run"]}
KILL_ROWS, STATES, TASK_ROWS = 5000, (40_000, 64), 600
# What a run notes of its time: files without other content, and places in others.
DONE = "done.json"
SECONDS = {
    "metrics.json": re.compile(rb'"seconds": \{[^}]*\}'),
    "report.html": re.compile(rb"Computed in</dt><dd>[^<]*"),
}
WORDS = (
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "it",
    "rains",
)


def steady_rate(stored: Sequence[tuple[float, int]], workers: int) -> float:
    """Rows per second after each worker has stored a part; (seconds, rows) of every part."""
    parts = sorted(stored)
    if len(parts) <= workers:
        raise SystemExit(f"{len(parts)} parts are too few for {workers} workers; give more --rows.")
    rows = sum(count for _, count in parts[workers:])
    return rows / (parts[-1][0] - parts[workers - 1][0])


def write_rows(folder: Path, n: int, texts: Path | None) -> None:
    """Write ``rows.jsonl`` and weak labels, a fifth of them wrong; and ``task.jsonl`` for a run."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    if texts is None:
        lines = [" ".join(rng.choice(WORDS, size)) for size in rng.integers(4, 80, n)]
    else:
        with texts.open(encoding="utf-8") as file:
            lines = [json.loads(line)["text"] for line in file][:n]
        if len(lines) < n:
            raise SystemExit(f"{texts} has {len(lines)} rows, and {n} are asked for.")
    ids = [f"row-{i}" for i in range(n)]
    rows = (json.dumps({"id": i, "text": text}) for i, text in zip(ids, lines, strict=True))
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    size = np.array([len(text) for text in lines])
    truth = (size > np.median(size)).astype(np.int64)
    write_weak_labels(folder, ids, truth, rng)
    labelled = zip(ids, lines, truth.tolist(), strict=True)
    some = [json.dumps({"id": i, "text": text, "label": c}) for i, text, c in labelled]
    (folder / "task.jsonl").write_text("\n".join(some[:TASK_ROWS]) + "\n", encoding="utf-8")


def write_states(folder: Path) -> None:
    """Write ``states.h5``, whose first column decides its labels, a fifth of them wrong."""
    n, d = STATES
    rng = np.random.default_rng(1)
    X = rng.standard_normal((n, d), dtype=np.float32)
    ids, hashes = [f"state-{i}" for i in range(n)], [f"{i:016x}" for i in range(n)]
    with StoreWriter.open(
        folder / "states.h5",
        Plan(spec={}, ids=ids, hashes=hashes, widths={0: d}, store_dtype="float32"),
    ) as writer:
        writer.write(np.arange(n), {0: X}, np.ones(n), np.zeros(n))
        writer.finish()
    write_weak_labels(folder, ids, (X[:, 0] > 0).astype(np.int64), rng)
    (folder / "weak.csv").rename(folder / "states.csv")


def environment() -> dict[str, str]:
    """One thread for each process, and nothing sent to anybody."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    # Commands run in their folder: probekit is that of this process.
    path = os.pathsep.join(str(Path(each).absolute()) for each in sys.path if each)
    return {**os.environ, **threads, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"}


def measure(way: str, folder: Path, model: str) -> dict[str, Any]:
    """Extract in one way; its steady rate and the seconds of the whole command."""
    start, options, workers, _ = WAYS[way]
    shutil.rmtree(folder / "acts", ignore_errors=True)
    others, begun = Others(), time.perf_counter()
    done = subprocess.run(
        [*start, *EXTRACT, "-m", model, *options],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stdout}{done.stderr}")
    seconds = time.perf_counter() - begun
    index = json.loads((folder / "acts" / "store.json").read_text(encoding="utf-8"))
    counts = counts_of(index)
    stored = [((folder / "acts" / name).stat().st_mtime, count) for name, count in counts.items()]
    figures = {"rows_per_second": steady_rate(stored, workers), "seconds": seconds}
    # Ray's workers are no children of the command, so they count as other processes.
    return figures if ENGINE[1] in options else {**figures, "processes_beside": others.share()}


def counts_of(index: Mapping[str, Any]) -> dict[str, int]:
    """Rows of each part by its file's name."""
    return {part["file"]: part["rows"] for part in index["parts"]}


def speed(asked: argparse.Namespace) -> None:
    """Measure what is not in the results, and print all ways."""
    path, folder = asked.results / "cluster.jsonl", asked.folder / f"speed-{asked.rows}"
    write_rows(folder, asked.rows, asked.texts)
    about = {"what": "extract", "model": Path(asked.model).name, "rows": asked.rows}
    for way in WAYS:
        key = {**about, "way": way}
        if not any(key.items() <= line.items() for line in read_lines(path)):
            record("cluster", {**key, **measure(way, folder, asked.model)}, folder=asked.results)
    every = read_lines(path)
    print(table(*speed_rows([line for line in every if about.items() <= line.items()])))


def speed_rows(lines: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and a row for each way: its rate, the whole command, and the rate beside its aim."""
    by_way = {line["way"]: line for line in lines if line["what"] == "extract"}
    rows = []
    for way, line in by_way.items():
        ratio, aim = "", ""
        if (target := WAYS[way][3]) is not None:
            other, least = target
            share = line["rows_per_second"] / by_way[other]["rows_per_second"]
            ratio, aim = f"{share:.2f} of {other}", f"at least {least}"
        rate = f"{line['rows_per_second']:,.0f}"
        rows.append([way, rate, f"{line['seconds']:.0f} s", ratio, aim])
    return ["way", "rows/s", "whole command", "rate", "aim"], rows


def kill_rows(lines: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and a row for each command: kills of a node, of the driver, and files that differ."""
    rows = []
    for name in CHAIN:
        hit = [line for line in lines if line.get("during") == name]
        victims = [line["what"].rpartition(" ")[2] for line in hit]
        differ = sum(len(line["differ"]) for line in hit)
        counts = [victims.count("node"), victims.count("driver"), differ]
        rows.append([name, *map(str, counts)])
    return ["during", "a node killed", "the driver killed", "files that differ"], rows


class Nodes:
    """Two nodes of one CPU each on this machine; the second one may be killed."""

    def __init__(self) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        from ray.cluster_utils import Cluster

        self._cluster = Cluster()
        self._add(include_dashboard=False)
        self._second = self._add()
        self.address: str = self._cluster.address

    def kill(self) -> None:
        """Kill the second node with all its workers."""
        self._cluster.remove_node(self._second, allow_graceful=False)

    def mend(self) -> None:
        """Add a second node."""
        self._second = self._add()

    def _add(self, **options: Any) -> Any:
        """Add a node; one that is slower than Ray's limit, beside other work, once more."""
        for left in reversed(range(STARTS)):
            try:
                return self._cluster.add_node(num_cpus=1, **options)
            except Exception as error:  # Ray raises no other
                if not left or "timed out" not in str(error):
                    raise
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        """End both."""
        self._cluster.shutdown()


def chain(
    folder: Path, model: str, nodes: Nodes, kill: str = "", after: float = float("inf")
) -> tuple[float, str]:
    """Run the commands of CHAIN, and kill a node or the driver after some seconds.

    Returns the seconds, and the command that was killed.
    """
    begun, killed = time.monotonic(), ""
    waiting = list(CHAIN)
    while waiting:
        name = waiting[0]
        output = OUTPUTS.get(name, ["-o", f"{name}.parquet"])
        more = [MODEL_OPTION[name], model] if name in MODEL_OPTION else []
        with (folder / "said.txt").open("w") as said:
            process = subprocess.Popen(
                [*PROBEKIT, *CHAIN[name], *more, *output, *ENGINE, nodes.address],
                cwd=folder,
                env=environment(),
                stdout=said,
                stderr=said,
            )
            again = False
            while process.poll() is None:
                time.sleep(0.02)
                if killed or time.monotonic() - begun < after:
                    continue
                killed = name
                if kill == "node":
                    nodes.kill()
                else:
                    process.kill()
                    process.wait()
                    again = True
        if again:
            continue
        if process.returncode:
            text = (folder / "said.txt").read_text(encoding="utf-8")
            raise SystemExit(f"{name} failed after a kill of {kill or 'nothing'}:\n{text}")
        waiting.pop(0)
    (folder / "said.txt").unlink()
    return time.monotonic() - begun, killed


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a trial, without the seconds that a run notes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != DONE:
            content = path.read_bytes()
            if path.name in SECONDS:
                content = SECONDS[path.name].sub(b"", content)
            found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


def fresh(folder: Path, base: Path) -> Path:
    """A folder with the inputs of ``base``."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("rows.jsonl", "task.jsonl", "weak.csv", "states.h5", "states.csv"):
        shutil.copy(base / name, folder / name)
    return folder


def kills(asked: argparse.Namespace) -> None:
    """Run the trials that are not in the results, and print all."""
    path, rows = asked.results / "cluster.jsonl", asked.kill_rows
    base = asked.folder / f"kills-{rows}"
    base.mkdir(parents=True, exist_ok=True)
    write_states(base)
    write_rows(base, rows, asked.texts)
    about = {"model": Path(asked.model).name, "rows": rows}
    nodes = Nodes()
    try:
        whole = fresh(base / "whole", base)
        duration, _ = chain(whole, asked.model, nodes)
        wanted, lines = digests(whole), []
        for trial in range(asked.kills):
            for victim in ("node", "driver"):
                key = {"what": f"kill of the {victim}", **about, "trial": trial}
                known = [line for line in read_lines(path) if key.items() <= line.items()]
                if not known:
                    rng = np.random.default_rng([trial, victim == "node"])
                    after = float(rng.uniform(0.02, 0.9)) * duration
                    during = ""
                    while not during:
                        folder = fresh(base / "trial", base)
                        seconds, during = chain(folder, asked.model, nodes, victim, after)
                        after = after if during else after / 2  # it ended before the kill
                    found = digests(folder)
                    differ = sorted(k for k in wanted | found if wanted.get(k) != found.get(k))
                    figures = {"after": after, "seconds": seconds, "during": during}
                    record("cluster", {**key, **figures, "differ": differ}, folder=asked.results)
                    known = read_lines(path)[-1:]
                    if victim == "node":
                        nodes.mend()
                line = known[-1]
                same = "none" if not line["differ"] else ", ".join(line["differ"])
                lines.append([line["what"], f"{line['after']:.1f} s", line["during"], same])
                print(*lines[-1], sep="  ", flush=True)
    finally:
        nodes.close()
    print("\n" + table(["trial", "after", "during", "files that differ"], lines))


def main() -> None:
    """Measure speed, or kill."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    flags.add_argument("--folder", type=Path, required=True)
    flags.add_argument("--texts", type=Path)
    flags.add_argument("--rows", type=int, default=16384)
    flags.add_argument("--kills", type=int, default=0, help="kill a node, and the driver, so often")
    flags.add_argument("--kill-rows", type=int, default=KILL_ROWS)
    flags.add_argument("--results", type=Path, default=RESULTS)
    asked = flags.parse_args()
    asked.folder = asked.folder.absolute()
    if asked.kills:
        kills(asked)
    else:
        speed(asked)


if __name__ == "__main__":
    main()
