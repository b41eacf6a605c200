"""TopoFilter: a sparse graph beside the same definition on dense matrices.

The dense way follows the definition: n x n distances, a sort of every row, an n x n adjacency.
A large set is filtered at three sizes as well: peak memory beyond the input, and the slope of time
and memory over n.

    python benchmarks/topofilter.py [--n 10000] [--d 512] [--k 50] [--runs 3] [--large 100000]
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from typing import Any

import numpy as np
from _bench import Bench, Claim, parser, run
from _harness import peak_memory
from scipy.sparse.csgraph import connected_components

from probekit.probes.topofilter import TopoFilterProbe

GIB = 2**10


def dense_neighbors(X: np.ndarray, k: int, kept: np.ndarray) -> np.ndarray:
    distance = ((X**2).sum(1)[:, None] + (X**2).sum(1)[None]) - 2 * X @ X.T
    np.fill_diagonal(distance, np.inf)
    distance[:, ~kept] = np.inf
    return np.argsort(distance, axis=1)[:, :k]


def dense(X: np.ndarray, y: np.ndarray, k: int, variant: str) -> np.ndarray:
    n = len(X)
    adjacency = np.zeros((n, n), dtype=bool)
    np.put_along_axis(adjacency, dense_neighbors(X, k, np.ones(n, bool)), True, axis=1)
    component = np.zeros(n, dtype=bool)
    for c in np.unique(y):
        rows = np.flatnonzero(y == c)
        part = connected_components(
            adjacency[np.ix_(rows, rows)], connection="weak" if variant == "paper" else "strong"
        )[1]
        component[rows[part == np.bincount(part).argmax()]] = True
    near = dense_neighbors(X, k, component)
    share = y[near].mean(axis=1)
    if variant == "paper":
        votes = (y[near] == y[:, None]).sum(axis=1) + 1
        return (
            component
            & (votes >= k * 0.5)
            & ((2 * votes > k + 1) | ((2 * votes == k + 1) & (y == 0)))
        )
    score = np.where(component, np.abs(y - share), -1)
    keep = component.copy()
    keep[np.argsort(-score, kind="stable")[: max(round(n * 0.1) - int((~component).sum()), 0)]] = (
        False
    )
    return keep


def rows_and_labels(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Two classes that overlap, a fifth of the labels wrong."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, n)
    X = rng.standard_normal((n, d), dtype=np.float32) + np.float32(0.2) * truth[:, None]
    X = (X - X.mean(axis=0)).astype(np.float32)
    return X, np.where(rng.random(n) < 0.2, 1 - truth, truth)


def beside_dense(bench: Bench, n: int, d: int, k: int, variants: list[str]) -> None:
    """One variant after the other, beside dense matrices."""
    X, y = rows_and_labels(n, d)
    for variant in variants:
        ways = {
            "probekit": lambda v=variant: (
                TopoFilterProbe(v, k_cc=k, k_zeta=k, metric="euclidean").fit(X, y).keep_
            ),
            "dense": lambda v=variant: dense(X, y, k, v),
        }
        ways["probekit"]()  # imports; the dense way has none of its own
        times = bench.times(ways, warmup=0)
        kept, mib = {}, {}
        for name, way in ways.items():
            kept[name], mib[name] = peak_memory(way)
        differing = int((kept["probekit"] != kept["dense"]).sum())
        bench.claim(
            Claim(
                f"TopoFilter ({variant}) of {n:,} × {d}, k = {k}, speed beside dense matrices",
                f"{times['probekit']:.2f} s, {mib['probekit']:.0f} MiB",
                f"{times['dense']:.2f} s, {mib['dense']:.0f} MiB",
                times.ratio("dense", "probekit"),
                ">= 8",
                f"{differing} of {n:,} rows judged differently (float32 near ties)",
                agrees=differing <= 0.002 * n,
            ),
            mib=mib,
        )


def large(bench: Bench, sizes: tuple[int, ...], d: int) -> None:
    """Peak memory beyond the input, and slopes."""
    seconds, mib = [], []
    for n in sizes:
        X, y = rows_and_labels(n, d)
        start = time.perf_counter()
        result, peak = peak_memory(lambda X=X, y=y: TopoFilterProbe().fit(X, y).result_)
        seconds.append(time.perf_counter() - start)
        mib.append(peak)
    kept = float(result.keep.mean())

    def slope(values: list[float]) -> float:
        return math.log(values[-1] / max(values[0], 1)) / math.log(sizes[-1] / sizes[0])

    figures: dict[str, Any] = {"sizes": sizes, "seconds": seconds, "mib": mib}
    bench.claim(
        Claim(
            f"TopoFilter of {sizes[-1]:,} × {d}, memory beyond the input",
            f"{mib[-1] / GIB:.2f} GiB ({seconds[-1]:.0f} s)",
            "2 GiB",
            mib[-1] / GIB / 2,
            "<= 0.5",
            f"{kept:.0%} of rows kept",
            agrees=0 < kept < 1,
        ),
        **figures,
    )
    bench.claim(
        Claim(
            f"the same, slope of memory from {sizes[0]:,} rows (1: linear, 2: quadratic)",
            " / ".join(f"{value:.0f}" for value in mib) + " MiB",
            "linear",
            slope(mib),
            "<= 1.2",
            "time: " + " / ".join(f"{value:.1f}" for value in seconds) + " s",
        ),
        **figures,
    )


def measure(bench: Bench, asked: argparse.Namespace) -> None:
    """Both parts."""
    variants = ["paper", "eleuther"] if asked.variant == "both" else [asked.variant]
    n, d, k = (800, 32, 20) if bench.quick else (asked.n, asked.d, asked.k)
    beside_dense(bench, n, d, k, variants)
    last = 4000 if bench.quick else asked.large
    large(bench, (last // 4, last // 2, last), 256)


if __name__ == "__main__":
    flags = parser(__doc__)
    flags.add_argument("--n", type=int, default=10_000)
    flags.add_argument("--d", type=int, default=512)
    flags.add_argument("--k", type=int, default=50)
    flags.add_argument("--variant", default="paper", choices=["paper", "eleuther", "both"])
    flags.add_argument("--large", type=int, default=100_000)
    given = flags.parse_args()
    sys.exit(run("topofilter", given, lambda bench: measure(bench, given)))
