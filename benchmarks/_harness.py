"""What benchmarks share: the machine, fair timing, peak memory, one JSON line per result."""

from __future__ import annotations

import datetime as dt
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

T = TypeVar("T")

RESULTS = Path(__file__).parent / "results"
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
        **{name: version for name in ("probekit", *PACKAGES) if (version := _version(name))},
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


def interleaved(
    fns: Mapping[str, Callable[[], Any]], runs: int = 5, *, warmup: int = 1
) -> dict[str, float]:
    """Median seconds of each function, run in turn: a busy minute hits all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in fns}
    for turn in range(warmup + runs):
        for name, fn in fns.items():
            start = time.perf_counter()
            fn()
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_memory(fn: Callable[[], T]) -> tuple[T, float]:
    """Result of ``fn`` and the MiB by which the process's peak rose above where it stood before.

    Pages of memory-mapped files that are read count too, though the system may take them back.
    """
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
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


def record(name: str, row: Mapping[str, Any]) -> Path:
    """Append ``row`` with the hardware and the date to ``benchmarks/results/<name>.jsonl``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    when = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%MZ")
    line = json.dumps({**row, "when": when, "hardware": hardware()}, ensure_ascii=False)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    return path


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
