"""The demo's chain as commands that a user would type, and as a script that repeats it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from probekit.probes.registry import PUBLISHED

__all__ = ["ACTIONS", "FOLDERS", "Step", "demo_steps", "join_files", "script"]

TRUTH_ROWS = 200
FOLDERS = ("truth", "verdicts", "data")
# Name of the action in files -> command and its options; what is not said is at its default.
ACTIONS = {"filter": ("filter",), "soft": ("relabel",), "hard": ("relabel", "--hard")}


@dataclass(frozen=True)
class Step:
    """One command: its arguments and the files that it writes."""

    arguments: tuple[str, ...]
    """What follows ``probekit``; for ``cat`` the files to join."""
    writes: tuple[str, ...]
    program: str = "probekit"
    """``probekit`` or ``cat``."""

    def line(self, model: str) -> str:
        """The command as it is typed, with ``$MODEL`` for the model."""
        words = ['"$MODEL"' if word == model else shlex.quote(word) for word in self.arguments]
        target = f" > {shlex.quote(self.writes[0])}" if self.program == "cat" else ""
        return " ".join([self.program, *words]) + target


def demo_steps(
    model: str, last_layer: int, *, student_rows: int, test_rows: int, seed: int = 0
) -> list[Step]:
    """Every command of the chain, in order; paths are relative to the demo's folder."""
    sizes = {"weak": TRUTH_ROWS, "student": student_rows, "test": test_rows}
    return [
        *_export_steps(sizes, seed),
        *_supervisor_steps(model, seed),
        *_extract_steps(model),
        *_cleaning_steps(last_layer, seed),
        Step(
            ("demo", "--only-students", "--seed", str(seed), "-o", "."),
            ("results.json", "predictions.parquet", "table.md", "demo.png"),
        ),
    ]


def _export_steps(sizes: dict[str, int], seed: int) -> Iterator[Step]:
    """Rows without labels, and the truth in a folder that only the supervisor and judges open."""
    for split, size in sizes.items():
        export = ("tasks", "export", "docstrings", "--split", split)
        common = (*export, "--limit", str(size), "--seed", str(seed))
        yield Step((*common, "-o", f"truth/{split}.jsonl"), (f"truth/{split}.jsonl",))
        if split != "weak":
            yield Step((*common, "--no-label", "-o", f"{split}.jsonl"), (f"{split}.jsonl",))


def _supervisor_steps(model: str, seed: int) -> Iterator[Step]:
    """A probe on the first layer, taught by few true rows, labels student's and test's rows."""
    for split, labels in (("student", "weak.parquet"), ("test", "weak-on-test.parquet")):
        rows, store = f"weak-and-{split}.jsonl", f"weak-and-{split}.h5"
        yield Step(("truth/weak.jsonl", f"{split}.jsonl"), (rows,), program="cat")
        yield Step(("extract", rows, "-m", model, "--layers", "1", "-o", store), (store,))
        options = ("--truth", "truth/weak.jsonl", "--train-share", "1", "--seed", str(seed))
        yield Step(("weak-labels", store, *options, "-o", labels), (labels,))


def _extract_steps(model: str) -> Iterator[Step]:
    for split in ("student", "test"):
        rows, store = f"{split}.jsonl", f"{split}.h5"
        yield Step(("extract", rows, "-m", model, "--layers", "all", "-o", store), (store,))


def _cleaning_steps(last_layer: int, seed: int) -> Iterator[Step]:
    for action, (command, *options) in ACTIONS.items():
        for probe in PUBLISHED:
            verdicts, data = f"verdicts/{action}-{probe}.parquet", f"data/{action}-{probe}.jsonl"
            arguments = (
                *(command, "student.h5", "--labels", "weak.parquet"),
                *("--layer", str(last_layer), "--probe", probe, *options),
                *("--seed", str(seed), "--truth", "truth/student.jsonl"),
                *("-o", verdicts, "--write-data", data),
            )
            yield Step(arguments, (verdicts, data))


def join_files(parts: Sequence[str], target: str) -> None:
    """Do what ``cat parts > target`` does."""
    Path(target).write_bytes(b"".join(Path(part).read_bytes() for part in parts))


def script(steps: Sequence[Step], model: str, *, find_model: str | None = None) -> str:
    """The bash script that makes the demo's folder again.

    ``find_model`` is Python code that prints where the model is, for one that moves with the
    environment.
    """
    where = (
        shlex.quote(model) if find_model is None else f'"$("$PYTHON" -c {shlex.quote(find_model)})"'
    )
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            "# What `probekit demo` ran. In an empty folder it makes the same verdicts again.",
            "set -euo pipefail",
            f"PYTHON=${{PYTHON:-{shlex.quote(sys.executable)}}}",
            'probekit() { "$PYTHON" -m probekit "$@"; }',
            f"MODEL={where}",
            f"mkdir -p {' '.join(FOLDERS)}",
            "",
            *(step.line(model) for step in steps),
            "",
        ]
    )
