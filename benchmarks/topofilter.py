"""TopoFilter (both variants): probekit's sparse graph beside the same definition on dense matrices.

The dense way is how the definition reads: n x n distances, a sort of every row, an n x n adjacency.

    python benchmarks/topofilter.py [--n 10000] [--d 512] [--k 50] [--runs 3] [--record]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy.sparse.csgraph import connected_components

from probekit.probes.topofilter import topofilter

sys.path.insert(0, str(Path(__file__).parent))
from _harness import interleaved, peak_memory, record, seconds, table


def dense_neighbors(X, k, kept):
    distance = ((X**2).sum(1)[:, None] + (X**2).sum(1)[None]) - 2 * X @ X.T
    np.fill_diagonal(distance, np.inf)
    distance[:, ~kept] = np.inf
    return np.argsort(distance, axis=1)[:, :k]


def dense(X, y, k, variant):
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--d", type=int, default=512)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, args.n)
    X = rng.standard_normal((args.n, args.d)) + 0.2 * truth[:, None]
    X = (X - X.mean(axis=0)).astype(np.float32)
    y = np.where(rng.random(args.n) < 0.2, 1 - truth, truth)
    lines = []
    for variant in ("paper", "eleuther"):
        ways = {
            "probekit": lambda v=variant: (
                topofilter(X, y, variant=v, k_cc=args.k, k_zeta=args.k, metric="euclidean").keep
            ),
            "dense": lambda v=variant: dense(X, y, args.k, v),
        }
        times = interleaved(ways, args.runs)
        kept = {}
        for name, way in ways.items():
            kept[name], memory = peak_memory(way)
            ratio = times[name] / times["probekit"]
            lines.append(
                [f"{variant}, {name}", seconds(times[name]), f"{ratio:.1f}", f"{memory:.0f} MiB"]
            )
            if args.record:
                figures = {"seconds": times[name], "ratio": ratio, "mib": memory}
                size = {"n": args.n, "d": args.d, "k": args.k}
                record("topofilter", {**size, "variant": variant, "way": name, **figures})
        differing = int((kept["probekit"] != kept["dense"]).sum())
        print(f"{variant}: {differing} of {args.n} rows judged differently (float32 near ties)")
    print(table(["", "median", "/ probekit", "peak"], lines))


if __name__ == "__main__":
    main()
