"""The activation store against the alternatives: .npy files, maps, chunked HDF5.

    python benchmarks/store.py [--rows 20000] [--runs 3]

Files are in a temporary folder and are read from memory (the system's cache), as by a probe that
reads a layer more than once. The cost of writing is measured inside an extraction.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from _bench import Bench, Claim, parser, run
from _harness import Times, peak_memory, record, seconds, table

from probekit.activations.create import Plan
from probekit.activations.store import ActivationStore
from probekit.activations.writer import StoreWriter

WIDTH, LAYERS, LAYER, BATCH = 768, 13, 6, 256


def write(path: Path, states: np.ndarray, layers: int, *, dtype: str = "float32") -> Path:
    n = len(states)
    with StoreWriter.open(
        path,
        Plan(
            spec={},
            ids=[str(i) for i in range(n)],
            hashes=["0" * 16] * n,
            widths=dict.fromkeys(range(layers), states.shape[1]),
            store_dtype=dtype,
        ),
    ) as writer:
        for rows in np.array_split(np.arange(n), -(-n // 4096)):
            block = states[rows]
            if dtype == "bfloat16":
                block = (block.view(np.uint32) >> 16).astype(np.uint16)
            part = dict.fromkeys(range(layers), block)
            writer.write(rows, part, np.ones(len(rows)), np.zeros(len(rows)))
        writer.finish()
    return path


class Report:
    """Times ways, prints and records them; the first is ours."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.mib: dict[str, float] = {}

    def __call__(self, title: str, fns: dict[str, Callable[[], object]], *, each: int = 1) -> Times:
        all_times = self.bench.times(fns)
        times = Times({name: [t / each for t in turns] for name, turns in all_times.each.items()})
        self.mib = {name: peak_memory(fn)[1] for name, fn in fns.items()}
        self.add(title, times)
        return times

    def add(self, title: str, times: Times) -> None:
        ours = next(iter(times.values()))
        memory = {name: f"{self.mib[name]:.0f} MiB" if name in self.mib else "" for name in times}
        rows = [[n, seconds(t), f"{t / ours:.2f}x", memory[n]] for n, t in times.items()]
        print(table([title, "time", "to ours", "peak"], rows), end="\n\n")
        for name, value in times.items():
            row = {"title": title, "way": name, "seconds": value, "valid": self.bench.valid}
            row["peak_mib"] = round(self.mib.get(name, 0), 1)
            record("store", row, folder=self.bench.results)


def reading(bench: Bench, folder: Path, states: np.ndarray) -> None:
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

    report = Report(bench)
    times = report(
        f"one of {LAYERS} layers, read and summed ({size})",
        {
            "probekit, open and map": lambda: open_and_read().sum(),
            "numpy.load": lambda: np.load(folder / "layer.npy").sum(),
            "numpy.load, mapped": lambda: np.load(folder / "layer.npy", mmap_mode="r").sum(),
            "h5py": lambda: h5().sum(),
            "probekit, bfloat16 to float32": lambda: short.layer().sum(),
        },
    )
    own = states.nbytes / 2**20
    touched = report.mib["probekit, open and map"]
    bench.claim(
        Claim(
            f"reading one of {LAYERS} layers, speed beside numpy.load of it alone",
            seconds(times["probekit, open and map"]),
            seconds(times["numpy.load"]),
            times.ratio("numpy.load", "probekit, open and map"),
            ">= 0.8",
            f"equal; {touched:.0f} MiB of {LAYERS * own:.0f} touched",
            agrees=touched < 2 * own + 8,
        )
    )


def batches(bench: Bench, folder: Path, states: np.ndarray) -> None:
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

        times = Report(bench)(
            f"a batch of {BATCH} random rows ({len(states):,} x {WIDTH} float32)",
            {
                "probekit": lambda: [store.read(LAYER, rows) for rows in chosen],
                "numpy memory map": lambda: [mapped[rows] for rows in chosen],
                "h5py, contiguous": sorted_rows(plain[f"layers/{LAYER}"]),
                "h5py, 1 MiB chunks": sorted_rows(chunked["x"]),
                "h5py, a chunk per row": sorted_rows(chunked["row"]),
            },
            each=count,
        )
    bench.claim(
        Claim(
            f"{BATCH} random rows, speed beside 1 MiB chunks (h5py)",
            seconds(times["probekit"]),
            seconds(times["h5py, 1 MiB chunks"]),
            times.ratio("h5py, 1 MiB chunks", "probekit"),
            ">= 20",
            "rows equal",
        )
    )


def cold_batches(bench: Bench, folder: Path, states: np.ndarray) -> None:
    """Rows that are not in memory, as in the first pass over a large store."""
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
            # Pages that a map still holds would stay in memory, so each run maps again.
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
    Report(bench).add(claim, Times(times))


def writing(bench: Bench, folder: Path, states: np.ndarray) -> None:
    n = len(states)
    order = np.array_split(np.random.default_rng(1).permutation(n), n // BATCH)
    path = folder / "written.h5"
    blocks = [states[rows] for rows in order]

    def probekit(every: float) -> Callable[[], None]:
        def run() -> None:
            path.unlink(missing_ok=True)
            options = {"spec": {}, "ids": [str(i) for i in range(n)], "hashes": ["0" * 16] * n}
            with StoreWriter.open(
                path, Plan(**options, widths={0: WIDTH}, store_dtype="float32")
            ) as out:
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

    Report(bench)(
        f"writing {n:,} x {WIDTH} float32 in scattered batches of {BATCH}",
        {
            "probekit, on disk at the end": probekit(1e9),
            "probekit, flushed every 0.2 s": probekit(0.2),
            "numpy memory map, on disk at the end": mapped(True),
            "numpy memory map, not waited for": mapped(False),
            "h5py, contiguous, not waited for": h5,
        },
    )


class Counted:
    """Seconds inside a store's making, writing, flushing and finishing, while it is entered."""

    NAMES = ("open", "write", "flush", "finish")

    def __enter__(self) -> Counted:
        self.seconds = 0.0
        self.depth = 0
        self.usual = {name: StoreWriter.__dict__[name] for name in self.NAMES}
        for name in self.NAMES:
            plain = getattr(StoreWriter, name)
            counted = self._count(plain)
            setattr(StoreWriter, name, staticmethod(counted) if name == "open" else counted)
        return self

    def __exit__(self, *_: object) -> None:
        for name, usual in self.usual.items():
            setattr(StoreWriter, name, usual)

    def _count(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(plain)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.depth += 1
            start = time.perf_counter()
            try:
                return plain(*args, **kwargs)
            finally:
                self.depth -= 1
                if not self.depth:  # finish flushes: once is enough
                    self.seconds += time.perf_counter() - start

        return call


def extracting(bench: Bench, folder: Path) -> None:
    """The share of writing in an extraction of all layers."""
    from extraction import FOLDER, rows_of
    from transformers import AutoModel, AutoTokenizer

    from probekit.activations.extraction import prepare
    from probekit.activations.extraction import run as run_job
    from probekit.activations.job import Request

    rows = rows_of(64 if bench.quick else 2000)
    pair = (AutoModel.from_pretrained(FOLDER).eval(), AutoTokenizer.from_pretrained(FOLDER))
    path = folder / "extracted.h5"
    job = prepare(Request(rows, pair, path, layers="all", overwrite=True))
    shares: list[float] = []

    def go() -> None:
        with Counted() as counted:
            start = time.perf_counter()
            run_job(job, show=False)
            shares.append(counted.seconds / (time.perf_counter() - start))

    times = bench.times({"extract": go})
    share = statistics.median(shares[1:])
    bench.claim(
        Claim(
            "writing all layers, share of an extraction's time",
            seconds(share * times["extract"]),
            seconds(times["extract"]),
            share,
            "<= 0.03",
            f"{len(rows)} rows complete",
            agrees=ActivationStore(path).complete,
        ),
        shares=shares,
    )


def measure(bench: Bench, asked: argparse.Namespace) -> None:
    """Every part, in a temporary folder."""
    rows = 6000 if bench.quick else asked.rows
    states = np.random.default_rng(0).standard_normal((rows, WIDTH), dtype=np.float32)
    with tempfile.TemporaryDirectory(prefix="probekit-bench-") as name:
        folder = Path(name)
        extracting(bench, folder)
        reading(bench, folder, states)
        batches(bench, folder, states)
        cold_batches(bench, folder, states)
        writing(bench, folder, states)


if __name__ == "__main__":
    flags = parser(__doc__)
    flags.add_argument("--rows", type=int, default=20_000)
    given = flags.parse_args()
    sys.exit(run("store", given, lambda bench: measure(bench, given)))
