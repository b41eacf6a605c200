"""Exact neighbours of every row: probekit beside FAISS, a matrix product with topk, scikit-learn.

All four get centred float32 rows. Only probekit settles ties and near ties; the share of rows whose
list equals that of float64 is counted on 200 of them.

    python benchmarks/neighbors.py [--n 20000] [--d 1024] [--k 50] [--runs 5] [--record]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import faiss
import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

from probekit.probes.neighbors import nearest_others

sys.path.insert(0, str(Path(__file__).parent))
from _harness import interleaved, peak_memory, record, seconds, table

TILE = 2048


def with_matmul(X, k):
    rows = torch.from_numpy(X)
    norms = (rows * rows).sum(1)
    index = []
    for start in range(0, len(rows), TILE):
        part = slice(start, start + TILE)
        score = torch.addmm(norms[None], rows[part], rows.T, alpha=-2)
        own = torch.arange(start, start + len(score))
        score[own - start, own] = torch.inf
        index.append(score.topk(k, dim=1, largest=False).indices)
    return torch.cat(index).numpy()


def with_faiss(X, k):
    index = faiss.knn(X, X, k + 1)[1]
    keep = index != np.arange(len(X))[:, None]
    keep[keep.all(axis=1), -1] = False
    return index[keep].reshape(len(X), k)


def with_sklearn(X, k):
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(X)
    return search.kneighbors(return_distance=False)


def right_lists(X, index, sample):
    """Share of sampled rows whose neighbours come in the order of float64."""
    rows = X.astype(np.float64)
    right = 0
    for i in sample:
        distance = np.sqrt(((rows - rows[i]) ** 2).sum(axis=1)).astype(np.float32)
        distance[i] = np.inf
        order = np.lexsort((np.arange(len(rows)), distance))
        right += np.array_equal(order[: index.shape[1]], index[i])
    return right / len(sample)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--d", type=int, default=1_024)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    # Thirty strong directions in noise: closer to hidden states than a ball of normal rows.
    X = rng.standard_normal((args.n, 30)) @ rng.standard_normal((30, args.d))
    X += rng.standard_normal(X.shape)
    X = (X - X.mean(axis=0)).astype(np.float32)
    ways = {
        "probekit": lambda: nearest_others(X, args.k, metric="euclidean").index,
        "faiss.knn": lambda: with_faiss(X, args.k),
        "matmul + topk": lambda: with_matmul(X, args.k),
        "scikit-learn brute": lambda: with_sklearn(X, args.k),
    }
    times = interleaved(ways, args.runs)
    sample = rng.integers(0, args.n, 200)
    rows = []
    for name, way in ways.items():
        index, memory = peak_memory(way)
        figures = {
            "seconds": times[name],
            "ratio": times[name] / times["probekit"],
            "mib": memory,
            "right": right_lists(X, index, sample),
        }
        rows.append(
            [
                name,
                seconds(times[name]),
                f"{figures['ratio']:.2f}",
                f"{memory:.0f} MiB",
                f"{figures['right']:.1%}",
            ]
        )
        if args.record:
            record("neighbors", {"n": args.n, "d": args.d, "k": args.k, "way": name, **figures})
    print(f"n = {args.n}, d = {args.d}, k = {args.k}")
    print(table(["", "median", "/ probekit", "peak", "lists right"], rows))


if __name__ == "__main__":
    main()
