"""The time of probekit filter besides its searches and fits.

    python benchmarks/cleaning.py [--runs 3] [--rows 50000]

One layer of 768 columns on disk, hard weak labels of which a fifth is wrong, in a CSV; the command
as a process of its own, verdicts as Parquet. Wall time is from starting Python to its end; within
it the seconds inside the probes' fits are counted, and in the advice those of neighbour searches.
Everything else - imports, reading, joining, duplicates, deciding, writing - is overhead.
The target is on all three at once (``--probe knn,logreg,topofilter``), which share imports, states
and the search for neighbours: a logistic filter alone is mostly imports of torch and scikit-learn.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _bench import Bench, Claim, parser, run
from _harness import Seconds, write_weak_labels

from probekit.activations.create import Plan
from probekit.activations.writer import StoreWriter
from probekit.verdicts import Verdicts

WIDTH = 768
PROBES = ("knn", "logreg", "topofilter")
ALONE = ("knn", "logreg")
AT_ONCE = "all three in one process"
# Modules are imported where the command imports them, so that imports count as overhead.
COUNTING = """
import importlib.abc, importlib.machinery, sys, time
spent = depth = 0.0
def counted(function):
    def call(*args, **kwargs):
        global spent, depth
        depth += 1
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            depth -= 1
            if not depth:
                spent += time.perf_counter() - start
    return call
WORK = {
    "probekit.probes.neighbors": ("NeighborIndex.__init__", "NeighborIndex._search"),
    "probekit.probes.knn": ("KNNProbe.fit",),
    "probekit.probes.logistic": ("LogisticProbe.fit",),
    "probekit.probes.topofilter": ("TopoFilterProbe.fit",),
}
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in WORK:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        plain = spec.loader.exec_module
        def exec_module(module):
            plain(module)
            for dotted in WORK[name]:
                *owners, last = dotted.split(".")
                owner = module
                for part in owners:
                    owner = getattr(owner, part)
                setattr(owner, last, counted(getattr(owner, last)))
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Finder())
from probekit.cli.main import cli
cli(sys.argv[1:], standalone_mode=False)
print("counted", spent, flush=True)
"""


def make_files(folder: Path, n: int) -> None:
    """Write a store, weak labels and nothing else."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, n)
    strong = rng.standard_normal((30, WIDTH), dtype=np.float32)
    direction = rng.standard_normal(WIDTH, dtype=np.float32)
    ids = [f"row-{i}" for i in range(n)]
    with StoreWriter.open(
        folder / "acts.h5",
        Plan(
            spec={},
            ids=ids,
            hashes=[f"{i:016x}" for i in range(n)],
            widths={0: WIDTH},
            store_dtype="float32",
        ),
    ) as writer:
        for rows in np.array_split(np.arange(n), -(-n // 4096)):
            states = rng.standard_normal((len(rows), 30), dtype=np.float32) @ strong
            states += rng.standard_normal(states.shape, dtype=np.float32)
            states += np.where(truth[rows], 1, -1)[:, None] * direction
            writer.write(rows, {0: states}, np.ones(len(rows)), np.zeros(len(rows)))
        writer.finish()
    write_weak_labels(folder, ids, truth, rng)


class Filter:
    """One ``probekit filter`` as a process, with the seconds that it counted itself."""

    def __init__(self, folder: Path, *probes: str) -> None:
        self.folder, self.probes = folder, probes
        self.output = folder / "_".join([*probes, "verdicts.parquet"])
        self.walls: list[float] = []
        self.counted: list[float] = []

    def __call__(self) -> Seconds:
        """Run it; its wall time."""
        files = [str(self.folder / "acts.h5"), "--labels", str(self.folder / "weak.csv")]
        what = ["--probe", ",".join(self.probes)]
        if "knn" in self.probes:
            what += ["--k", "50"]
        output = ["-o", str(self.output), "--overwrite"]
        command = [sys.executable, "-c", COUNTING, "filter", *files, *what, *output]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        wall = time.perf_counter() - start
        line = next(x for x in done.stdout.splitlines() if x.startswith("counted"))
        self.walls.append(wall)
        self.counted.append(float(line.split()[1]))
        return Seconds(wall)

    def right_share(self) -> float:
        """Share of right weak labels among the rows that are kept; of several probes the least."""
        outputs = [self.output]
        if len(self.probes) > 1:
            outputs = [self.output.with_suffix(f".{name}.parquet") for name in self.probes]
        right = np.load(self.folder / "right.npy")
        return min(float(right[Verdicts.load(path).keep].mean()) for path in outputs)


def measure(bench: Bench, options: argparse.Namespace) -> None:
    """Filter in each way in turn; compare wall time with what was counted."""
    n = 3000 if bench.quick else options.rows
    with tempfile.TemporaryDirectory() as name:
        make_files(Path(name), n)
        ways = {probe: Filter(Path(name), probe) for probe in ALONE}
        ways[AT_ONCE] = Filter(Path(name), *PROBES)
        bench.times(ways, warmup=0)
        kept = {probe: way.right_share() for probe, way in ways.items()}
    for probe, way in ways.items():
        walls, counted = way.walls, way.counted
        ratios = [wall / work for wall, work in zip(walls, counted, strict=True)]
        bench.claim(
            Claim(
                f"filter {probe}, {n:,} × {WIDTH}: wall to searches and fits",
                f"{np.median(walls):.1f} s",
                f"{np.median(counted):.1f} s",
                float(np.median(ratios)),
                "<= 1.15" if probe == AT_ONCE else "",
                f"{kept[probe]:.0%} of kept labels right (80% of all)",
                agrees=kept[probe] > 0.82,
            ),
            walls=walls,
            counted=counted,
        )


if __name__ == "__main__":
    flags = parser(__doc__)
    flags.add_argument("--rows", type=int, default=50_000)
    asked = flags.parse_args()
    sys.exit(run("cleaning", asked, lambda bench: measure(bench, asked)))
