"""What benchmarks share: the machine, fair timing, peak memory, one JSON line per result."""

from __future__ import annotations

import ctypes
import datetime as dt
import gc
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import probekit

T = TypeVar("T")

RESULTS = Path(__file__).parent / "results"
WRONG = 0.2  # of the weak labels of generated rows
PACKAGES = ("numpy", "torch", "transformers", "scikit-learn", "h5py", "pyarrow")


def hardware() -> dict[str, Any]:
    """Describe the machine and the versions that a figure belongs to (no names, no paths)."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": _gpus(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "probekit": probekit.__version__,
        **{name: version for name in PACKAGES if (version := _version(name))},
        **(
            {"faiss": version}
            if (version := _version("faiss-gpu") or _version("faiss-cpu"))
            else {}
        ),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []


class Times(dict[str, float]):
    """Median seconds of each way; ``each`` holds every turn's."""

    def __init__(self, each: Mapping[str, list[float]]) -> None:
        super().__init__({name: statistics.median(values) for name, values in each.items()})
        self.each = dict(each)

    def ratio(self, over: str, under: str) -> float:
        """Median over the turns of one way's time divided by another's in the same turn.

        A slow way has fewer turns than the others: the first ones.
        """
        pairs = zip(self.each[over], self.each[under], strict=False)
        return statistics.median(a / b for a, b in pairs)


class Seconds(float):
    """Returned by a function that has timed a part of itself: replaces its whole time."""


class BusyError(RuntimeError):
    """Other processes use the cores of the measurement."""


class Others:
    """The use of this process's cores by other processes, since the object was created."""

    def __init__(self) -> None:
        self._start = self._now()

    def share(self) -> float:
        """CPU time of others per core and second; 0 if the system does not report it."""
        (wall, others), (before, before_others) = self._now(), self._start
        return max(0.0, others - before_others) / max(wall - before, 1e-9) / self._cores()

    @staticmethod
    def _cores() -> int:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1

    @staticmethod
    def _now() -> tuple[float, float]:
        stat, wall = Path("/proc/stat"), time.perf_counter()
        if not stat.exists():
            return wall, 0.0
        mine = {f"cpu{i}" for i in os.sched_getaffinity(0)}
        ticks = 0
        for line in stat.read_text(encoding="ascii").splitlines():
            name, *values = line.split()
            if name in mine:  # user, nice, system, irq, softirq; not idle, not waiting for disks
                ticks += sum(int(values[i]) for i in (0, 1, 2, 5, 6))
        return wall, ticks / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


BUSY_SHARE, BUSY_SECONDS = 0.10, 0.2
# Slow functions run once: their times vary little, and a benchmark must end.
SLOW_SECONDS, SLOW_RUNS = 10.0, 1


def interleaved(
    fns: Mapping[str, Callable[[], Any]],
    runs: int = 5,
    *,
    warmup: int = 1,
    busy_ok: bool = True,
) -> Times:
    """Time functions in turn, so that a busy minute affects all of them.

    Without ``busy_ok`` a turn beside another busy process is repeated, at most ``runs`` times in
    all; after that :class:`BusyError` is raised.
    """
    each: dict[str, list[float]] = {name: [] for name in fns}
    disturbed, turn = 0, 0
    while turn < warmup + runs:
        others, times = Others(), {}
        begun = time.perf_counter()
        for name, fn in fns.items():
            if len(each[name]) >= SLOW_RUNS and statistics.median(each[name]) > SLOW_SECONDS:
                continue
            start = time.perf_counter()
            own = fn()
            whole = time.perf_counter() - start
            times[name] = float(own) if isinstance(own, Seconds) else whole
        share, wall = others.share(), time.perf_counter() - begun
        # The system counts in hundredths of a second: one short turn proves nothing.
        if turn >= warmup and not busy_ok and share > BUSY_SHARE and share * wall > BUSY_SECONDS:
            disturbed += 1
            if disturbed > runs:
                raise BusyError(
                    f"Other processes took {share:.0%} of the cores while {', '.join(fns)} ran; "
                    "end them, or add --busy-ok for figures that are marked as not valid."
                )
            continue
        if turn >= warmup:
            for name, value in times.items():
                each[name].append(value)
        turn += 1
    return Times(each)


def peak_memory(fn: Callable[[], T]) -> tuple[T, float]:
    """Result of ``fn`` and the MiB by which the process's peak memory rose above its start.

    Pages read from memory-mapped files count too, although the system may reclaim them.
    """
    clear = Path("/proc/self/clear_refs")
    gc.collect()
    if clear.exists():
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)  # memory kept by malloc would be reused without being counted
        clear.write_text("5", encoding="ascii")  # 5 resets the peak (man 5 proc)
        before = _status_mib("VmRSS")
        result = fn()
        return result, _status_mib("VmHWM") - before
    unit = 2**20 if sys.platform == "darwin" else 2**10
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    result = fn()
    return result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit - before


def _status_mib(key: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return float(status.split(f"{key}:")[1].split()[0]) / 1024


def record(name: str, row: Mapping[str, Any], *, folder: Path = RESULTS) -> Path:
    """Append ``row`` with the hardware and the date to ``<folder>/<name>.jsonl``."""
    path = folder / f"{name}.jsonl"
    when = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%MZ")
    append_line(path, {**row, "when": when, "hardware": hardware()})
    return path


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append a line to a results file; its folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read what :func:`append_line` wrote; nothing where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def write_weak_labels(
    folder: Path, ids: Sequence[str], truth: np.ndarray[Any, Any], rng: np.random.Generator
) -> None:
    """Write ``weak.csv``, a fifth of two classes' labels wrong, and ``right.npy``: which not."""
    weak = np.where(rng.random(len(truth)) < WRONG, 1 - truth, truth)
    lines = [f"{name},{label}\n" for name, label in zip(ids, weak, strict=True)]
    (folder / "weak.csv").write_text("id,label\n" + "".join(lines), encoding="utf-8")
    np.save(folder / "right.npy", weak == truth)


def done_places(path: Path, keys: Sequence[str]) -> set[tuple[Any, ...]]:
    """What the lines of a results file are about: their values of ``keys``."""
    return {tuple(line[key] for key in keys) for line in read_lines(path)}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay a small table out: the first column to the left, figures to the right."""
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    return "\n".join([line(header), line(["-" * w for w in widths]), *map(line, rows)])


def seconds(value: float) -> str:
    """Write a time with a unit that suits it."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"
