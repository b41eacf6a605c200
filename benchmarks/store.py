"""The activation store against what one would use instead: .npy files, maps, chunked HDF5.

Run: python benchmarks/store.py [rows]. Files lie in a temporary folder and are read from memory
(the system's cache) as they would be by a probe that reads a layer more than once.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from _harness import interleaved, peak_memory, record, seconds, table

from probekit.activations.store import ActivationStore
from probekit.activations.writer import StoreWriter

WIDTH, LAYERS, LAYER, BATCH = 768, 13, 6, 256


def write(path: Path, states: np.ndarray, layers: int, *, dtype: str = "float32") -> Path:
    n = len(states)
    with StoreWriter.open(
        path,
        spec={},
        ids=[str(i) for i in range(n)],
        hashes=["0" * 16] * n,
        widths=dict.fromkeys(range(layers), states.shape[1]),
        store_dtype=dtype,
    ) as writer:
        for rows in np.array_split(np.arange(n), -(-n // 4096)):
            block = states[rows]
            if dtype == "bfloat16":
                block = (block.view(np.uint32) >> 16).astype(np.uint16)
            part = dict.fromkeys(range(layers), block)
            writer.write(rows, part, np.ones(len(rows)), np.zeros(len(rows)))
        writer.finish()
    return path


def report(
    claim: str, fns: dict[str, Callable[[], object]], *, each: int = 1, runs: int = 5
) -> None:
    """Time the ways, print them and write them down; the first is ours."""
    times = {name: value / each for name, value in interleaved(fns, runs).items()}
    peaks = {name: peak_memory(fn)[1] for name, fn in fns.items()}
    ours = next(iter(times.values()))
    rows = [
        [name, seconds(value), f"{value / ours:.2f}x", f"{peaks[name]:.0f} MiB"]
        for name, value in times.items()
    ]
    print(table([claim, "time", "to ours", "peak"], rows), end="\n\n")
    for name, value in times.items():
        record(
            "store",
            {"claim": claim, "way": name, "seconds": value, "peak_mib": round(peaks[name], 1)},
        )


def reading(folder: Path, states: np.ndarray) -> None:
    store = ActivationStore(write(folder / "acts.h5", states, LAYERS))
    short = ActivationStore(write(folder / "bf16.h5", states, 1, dtype="bfloat16"))
    np.save(folder / "layer.npy", states)
    np.testing.assert_array_equal(store.layer(LAYER), states)
    size = f"{len(states):,} x {WIDTH} float32"

    def h5() -> np.ndarray:
        with h5py.File(folder / "acts.h5", "r", locking=False) as file:
            return file[f"layers/{LAYER}"][:]

    def open_and_read() -> np.ndarray:
        with ActivationStore(folder / "acts.h5") as opened:
            return opened.layer(LAYER)

    report(
        f"one of {LAYERS} layers, read and summed ({size})",
        {
            "probekit, open and map": lambda: open_and_read().sum(),
            "numpy.load": lambda: np.load(folder / "layer.npy").sum(),
            "numpy.load, mapped": lambda: np.load(folder / "layer.npy", mmap_mode="r").sum(),
            "h5py": lambda: h5().sum(),
            "probekit, bfloat16 to float32": lambda: short.layer().sum(),
        },
    )


def batches(folder: Path, states: np.ndarray) -> None:
    store = ActivationStore(folder / "acts.h5")
    chunk = (1 << 20) // (WIDTH * 4)
    with h5py.File(folder / "chunked.h5", "w") as file:
        file.create_dataset("x", data=states, chunks=(chunk, WIDTH))
        file.create_dataset("row", data=states, chunks=(1, WIDTH))
    np.save(folder / "layer.npy", states)
    mapped = np.load(folder / "layer.npy", mmap_mode="r")
    count = 20
    chosen = np.random.default_rng(0).permutation(len(states))[: count * BATCH].reshape(count, -1)
    with (
        h5py.File(folder / "chunked.h5", "r") as chunked,
        h5py.File(folder / "acts.h5", "r", locking=False) as plain,
    ):
        first = np.sort(chosen[0])
        np.testing.assert_array_equal(store.read(LAYER, first), chunked["x"][first])

        def sorted_rows(data: h5py.Dataset, some: int = count) -> Callable[[], list[np.ndarray]]:
            return lambda: [
                data[np.sort(rows)] for rows in chosen[:some] for _ in range(count // some)
            ]

        report(
            f"a batch of {BATCH} random rows ({len(states):,} x {WIDTH} float32)",
            {
                "probekit": lambda: [store.read(LAYER, rows) for rows in chosen],
                "numpy memory map": lambda: [mapped[rows] for rows in chosen],
                "h5py, contiguous": sorted_rows(plain[f"layers/{LAYER}"]),
                "h5py, 1 MiB chunks": sorted_rows(chunked["x"]),
                "h5py, a chunk per row": sorted_rows(chunked["row"]),
            },
            each=count,
            runs=3,
        )


def cold_batches(folder: Path, states: np.ndarray) -> None:
    """Rows that no process has in memory: what the first pass over a large store is like."""
    path = write(folder / "cold.h5", states, 1)
    np.save(folder / "cold.npy", states)
    rng = np.random.default_rng(2)

    def forget(name: str) -> None:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    times: dict[str, list[float]] = {}
    for _ in range(7):
        rows = rng.permutation(len(states))[:BATCH]
        for way, name in (("probekit", "cold.h5"), ("numpy memory map", "cold.npy")):
            # Pages that a map still holds would not be forgotten, so each run maps anew.
            forget(name)
            if way == "probekit":
                store = ActivationStore(path)
                start = time.perf_counter()
                store.read(0, rows)
            else:
                mapped = np.load(folder / name, mmap_mode="r")
                start = time.perf_counter()
                _ = mapped[rows]
            times.setdefault(way, []).append(time.perf_counter() - start)
    claim = f"a batch of {BATCH} random rows that are not in memory"
    medians = {way: statistics.median(values) for way, values in times.items()}
    ours = medians["probekit"]
    rows_shown = [[way, seconds(t), f"{t / ours:.2f}x"] for way, t in medians.items()]
    print(table([claim, "time", "to ours"], rows_shown), end="\n\n")
    for way, value in medians.items():
        record("store", {"claim": claim, "way": way, "seconds": value})


def writing(folder: Path, states: np.ndarray) -> None:
    n = len(states)
    order = np.array_split(np.random.default_rng(1).permutation(n), n // BATCH)
    path = folder / "written.h5"
    blocks = [states[rows] for rows in order]

    def probekit(every: float) -> Callable[[], None]:
        def run() -> None:
            path.unlink(missing_ok=True)
            options = {"spec": {}, "ids": [str(i) for i in range(n)], "hashes": ["0" * 16] * n}
            with StoreWriter.open(path, **options, widths={0: WIDTH}, store_dtype="float32") as out:
                flushed = time.monotonic()
                for rows, block in zip(order, blocks, strict=True):
                    out.write(rows, {0: block}, np.ones(len(rows)), np.zeros(len(rows)))
                    if time.monotonic() - flushed >= every:
                        out.flush()
                        flushed = time.monotonic()
                out.finish()

        return run

    def mapped(sync: bool) -> Callable[[], None]:
        def run() -> None:
            path.unlink(missing_ok=True)
            out = np.memmap(path, np.float32, "w+", shape=states.shape)
            for rows, block in zip(order, blocks, strict=True):
                out[rows] = block
            if sync:
                out.flush()

        return run

    def h5() -> None:
        path.unlink(missing_ok=True)
        with h5py.File(path, "w") as file:
            out = file.create_dataset("x", states.shape, np.float32)
            for rows, block in zip(order, blocks, strict=True):
                by_row = np.argsort(rows)
                out[rows[by_row]] = block[by_row]

    report(
        f"writing {n:,} x {WIDTH} float32 in scattered batches of {BATCH}",
        {
            "probekit, on disk at the end": probekit(1e9),
            "probekit, flushed every 0.2 s": probekit(0.2),
            "numpy memory map, on disk at the end": mapped(True),
            "numpy memory map, not waited for": mapped(False),
            "h5py, contiguous, not waited for": h5,
        },
        runs=3,
    )


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    states = np.random.default_rng(0).standard_normal((rows, WIDTH), dtype=np.float32)
    folder = Path(tempfile.mkdtemp(prefix="probekit-bench-"))
    try:
        reading(folder, states)
        batches(folder, states)
        cold_batches(folder, states)
        writing(folder, states)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
