"""Exact float32 searches for the nearest rows: FAISS, torch in tiles, or half of the products.

All rank by |q|² + |b|² - 2 q·b, so their order is right only up to float32 rounding;
``neighbors_exact`` settles what rounding leaves open.

Measured on 2 cores (AMD EPYC, AVX-512), 10,000 x 1,024, k = 67: FAISS 1.2-1.4 s, torch 1.5-1.8 s,
the bare matrix product 1.3-1.5 s: without a GPU ``auto`` is FAISS. Several GPUs share the queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from probekit.errors import ProbeError
from probekit.probes.neighbors_halved import pays, search_halved
from probekit.probes.precision import full_float32

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

__all__ = ["BACKENDS", "Backend", "choose", "search", "search_among"]

Backend = Literal["auto", "faiss", "torch"]
Found: TypeAlias = "tuple[NDArray[np.float32], NDArray[np.int64]]"
BACKENDS = ("auto", "faiss", "torch")

FAISS_GPU_MAX_K = 2048
# From this k on a reservoir keeps the nearest, not a heap: 3 to 9 % faster at k = 66.
RESERVOIR_K = 20
TILE_COLUMNS = 1 << 16
TILE_BYTES = 1 << 27
TILE_BYTES_CUDA = 1 << 30


def search(
    base: NDArray[np.float32], queries: NDArray[np.float32], k: int, *, backend: str = "auto"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return squared distances and row numbers of the ``k`` nearest base rows, both (m, k).

    Nearest first; what lies within float32 rounding of each other may come in either order.
    ``base`` (n, d) and ``queries`` (m, d) are float32 and C-contiguous, ``k`` is at most n.
    """
    if backend not in BACKENDS:
        raise ProbeError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}.")
    if backend == "auto":
        backend = choose(k)
    if backend == "faiss":
        return _search_faiss(base, queries, k)
    return _search_torch(base, queries, k)


def search_among(
    rows: NDArray[np.float32], k: int, *, backend: str = "auto"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return ``search(rows, rows, k)``, made with half of the products where that is faster."""
    n, d = rows.shape
    if backend == "auto" and choose(k) == "faiss" and not _gpus() and pays(n, d, k):
        return search_halved(rows, k)
    return search(rows, rows, k, backend=backend)


def _gpus() -> int:
    import faiss

    return int(faiss.get_num_gpus())


def choose(k: int) -> str:
    """Return the faster backend that this machine and ``k`` allow."""
    import faiss

    if _gpus() and k <= FAISS_GPU_MAX_K:
        return "faiss"
    if _gpus() or not hasattr(faiss, "StandardGpuResources"):
        # This FAISS cannot use a GPU for the task, but torch may see one.
        import torch

        if torch.cuda.is_available():
            return "torch"
    return "faiss"


def _search_faiss(
    base: NDArray[np.float32], queries: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    import faiss

    def on_gpu(part: NDArray[np.float32], device: int) -> Found:
        found: Found = faiss.knn_gpu(faiss.StandardGpuResources(), part, base, k, device=device)
        return found

    if (gpus := _gpus()) and k <= FAISS_GPU_MAX_K:
        distance, index = _shared(on_gpu, list(range(gpus)), queries)
    else:
        usual = faiss.cvar.distance_compute_min_k_reservoir
        faiss.cvar.distance_compute_min_k_reservoir = min(usual, RESERVOIR_K)
        try:
            distance, index = faiss.knn(queries, base, k)
        finally:
            faiss.cvar.distance_compute_min_k_reservoir = usual
    return np.maximum(distance, 0, out=distance), index


def _shared(
    work: Callable[[NDArray[np.float32], Any], Found], devices: Sequence[Any], queries: Any
) -> Found:
    """Search for parts of the queries on one device each, at the same time."""
    if len(devices) == 1:
        return work(queries, devices[0])
    parts = np.array_split(queries, len(devices))
    with ThreadPoolExecutor(len(devices)) as pool:
        found = list(pool.map(work, parts, devices))
    return np.concatenate([each[0] for each in found]), np.concatenate([each[1] for each in found])


def _torch_devices() -> list[torch.device]:
    import torch

    if not torch.cuda.is_available():
        return [torch.device("cpu")]
    return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]


def _search_torch(
    base: NDArray[np.float32], queries: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    def work(part: NDArray[np.float32], device: torch.device) -> Found:
        return _search_torch_on(device, base, part, k)

    with full_float32():  # for all threads, whose ends come in any order
        return _shared(work, _torch_devices(), queries)


def _search_torch_on(
    device: torch.device, base: NDArray[np.float32], queries: NDArray[np.float32], k: int
) -> Found:
    import torch

    budget = TILE_BYTES_CUDA if device.type == "cuda" else TILE_BYTES
    rows = max(1, budget // (4 * min(len(base), TILE_COLUMNS)))
    distance = np.empty((len(queries), k), dtype=np.float32)
    index = np.empty((len(queries), k), dtype=np.int64)
    with torch.inference_mode():
        stored = _tensor(base).to(device)
        norms = (stored * stored).sum(1)
        for start in range(0, len(queries), rows):
            asked = _tensor(queries[start : start + rows]).to(device)
            value, place = _nearest_in_tiles(stored, norms, asked, k)
            value += (asked * asked).sum(1)[:, None]
            distance[start : start + rows] = value.clamp_(min=0).cpu().numpy()
            index[start : start + rows] = place.cpu().numpy()
    return distance, index


def _nearest_in_tiles(
    base: torch.Tensor, norms: torch.Tensor, asked: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest |b|² - 2 q·b over all columns, one tile of columns after another."""
    import torch

    best: tuple[torch.Tensor, torch.Tensor] | None = None
    for start in range(0, len(base), TILE_COLUMNS):
        columns = slice(start, start + TILE_COLUMNS)
        score = torch.addmm(norms[None, columns], asked, base[columns].T, alpha=-2)
        value, place = score.topk(min(k, score.shape[1]), dim=1, largest=False, sorted=True)
        place += start
        if best is not None:
            value, place = torch.cat([best[0], value], 1), torch.cat([best[1], place], 1)
            value, chosen = value.topk(min(k, value.shape[1]), dim=1, largest=False, sorted=True)
            place = place.gather(1, chosen)
        best = value, place
    assert best is not None
    return best


def _tensor(rows: NDArray[np.float32]) -> torch.Tensor:
    import torch

    # torch warns of read-only arrays, which it would be able to write to; here it only reads.
    return torch.from_numpy(rows if rows.flags.writeable else rows.copy())
