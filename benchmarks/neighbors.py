"""Exact neighbours of every row: probekit beside FAISS, matrix products with topk, scikit-learn.

All get centred float32 rows. Only probekit settles ties and near ties; the share of rows whose
list equals the float64 list is counted on 100 rows.

    python benchmarks/neighbors.py [--n 20000] [--d 1024] [--k 50] [--runs 3]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import torch
from _bench import Bench, Claim, parser, run
from _harness import peak_memory
from sklearn.neighbors import NearestNeighbors

from probekit.probes.neighbors import nearest_others

TILE = 2048
SAMPLE = 100
# Ten values of k, the largest of them k.
TEN = (1, 2, 3, 5, 10, 15, 20, 30, 40, 50)


def with_matmul(X: np.ndarray, k: int) -> np.ndarray:
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


def with_cdist(X: np.ndarray, k: int) -> np.ndarray:
    """torch.cdist over all pairs and topk, as EleutherAI's w2s writes it."""
    rows = torch.from_numpy(X)
    distance = torch.cdist(rows, rows)
    distance.fill_diagonal_(torch.inf)
    return distance.topk(k, dim=1, largest=False).indices.numpy()


def with_faiss(X: np.ndarray, k: int) -> np.ndarray:
    index = faiss.knn(X, X, k + 1)[1]
    keep = index != np.arange(len(X))[:, None]
    keep[keep.all(axis=1), -1] = False
    return index[keep].reshape(len(X), k)


def with_sklearn(X: np.ndarray, k: int) -> np.ndarray:
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(X)
    return search.kneighbors(return_distance=False)


def ours(X: np.ndarray, k: int) -> np.ndarray:
    return nearest_others(X, k, metric="euclidean").index


def ours_ten(X: np.ndarray, k: int) -> list[np.ndarray]:
    nearest = nearest_others(X, k, metric="euclidean")
    return [nearest.index[:, : min(few, k)] for few in TEN]


def exact_lists(X: np.ndarray, sample: np.ndarray, k: int) -> np.ndarray:
    """Neighbours of sampled rows in the order of float64, equal distances by row number."""
    rows, lists = X.astype(np.float64), []
    for i in sample:
        distance = np.sqrt(((rows - rows[i]) ** 2).sum(axis=1)).astype(np.float32)
        distance[i] = np.inf
        lists.append(np.lexsort((np.arange(len(rows)), distance))[:k])
    return np.stack(lists)


def states(n: int, d: int) -> np.ndarray:
    """Thirty strong directions in noise: closer to hidden states than a ball of normal rows."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 30)) @ rng.standard_normal((30, d))
    X += rng.standard_normal(X.shape)
    return (X - X.mean(axis=0)).astype(np.float32)


def measure(bench: Bench, asked: argparse.Namespace) -> None:
    """Time all ways in turn and count right lists."""
    n, d, k = (1500, 64, 20) if bench.quick else (asked.n, asked.d, asked.k)
    X = states(n, d)
    ways: dict[str, Callable[[np.ndarray, int], Any]] = {
        "probekit": ours,
        "ten values of k": ours_ten,
        "faiss.knn": with_faiss,
        "matmul + topk": with_matmul,
        "cdist + topk": with_cdist,
        "scikit-learn brute": with_sklearn,
    }
    results: dict[str, Any] = {}

    def timed(name: str) -> Callable[[], None]:
        return lambda: results.update({name: ways[name](X, k)})

    for way in ways.values():  # imports and threads
        way(X[:500], min(k, 20))
    times = bench.times({name: timed(name) for name in ways}, warmup=0)
    results["ten values of k"] = results["ten values of k"][-1]
    sample = np.random.default_rng(1).integers(0, n, SAMPLE)
    exact = exact_lists(X, sample, k)
    right = {
        name: float((index[sample] == exact).all(axis=1).mean()) for name, index in results.items()
    }
    mib = peak_memory(lambda: ours(X, k))[1]
    faster = min(("faiss.knn", "matmul + topk"), key=lambda way: times[way])
    title = f"neighbours of {n:,} × {d:,}, k = {k}"
    claims = [
        (f"{title}, time beside the faster of faiss.knn and matmul + topk", faster, "<= 0.8"),
        (f"{title}, speed beside scikit-learn brute force", "scikit-learn brute", ">= 2"),
        (f"{title}, speed beside cdist + topk", "cdist + topk", ">= 1.8"),
        (f"{title}: ten values of k, time beside one", "ten values of k", "<= 1.1"),
    ]
    for what, other, target in claims:
        more, less = ("probekit", other) if other == faster else (other, "probekit")
        mine, peer = (other, "probekit") if other == "ten values of k" else ("probekit", other)
        bench.claim(
            Claim(
                what,
                f"{times[mine]:.2f} s",
                f"{'one k' if peer == 'probekit' else peer} {times[peer]:.2f} s",
                times.ratio(more, less),
                target,
                f"lists as in float64: {right[mine]:.1%}, {right[peer]:.1%}",
                agrees=right[mine] >= 0.999,
            ),
            seconds=dict(times),
            mib=mib,
            right=right,
        )


if __name__ == "__main__":
    flags = parser(__doc__)
    flags.add_argument("--n", type=int, default=20_000)
    flags.add_argument("--d", type=int, default=1_024)
    flags.add_argument("--k", type=int, default=50)
    given = flags.parse_args()
    sys.exit(run("neighbors", given, lambda bench: measure(bench, given)))
