"""Steps that are done once: each has a folder, found by the hash of all that it depends on."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from probekit import __version__
from probekit.errors import (
    DataError,
    ProbekitError,
    StoppedError,
    WriteError,
    disk_errno,
    disk_errors,
)
from probekit.files import atomic_write, clear_lock, locked
from probekit.safe import one_line, read_json

__all__ = ["Cache", "Step", "in_order", "versions"]

DONE = "done.json"
WHAT = "step.json"
# Raised where a step's result changes for the same inputs, so that old results are not taken.
VERSION = 1
PACKAGES = ("torch", "transformers", "scikit-learn", "numpy")
# What is wrong with the machine is wrong for every step.
STOPPING = (OSError, MemoryError, StoppedError, WriteError)
LONGEST_REASON = 300

Make: TypeAlias = Callable[[Path, Mapping[str, Path]], None]


@dataclass(frozen=True, eq=False)
class Step:
    """One thing to compute, and everything that its result depends on."""

    name: str
    """What people read."""
    kind: str
    """First part of the folder's name."""
    params: Mapping[str, Any]
    """What it depends on beside its inputs, as JSON can hold it."""
    make: Make
    """Fills a folder, given the folders of the inputs; called again there after a kill."""
    inputs: Mapping[str, Step] = field(default_factory=dict)
    """Steps that it reads."""
    rows: int = 0
    """Rows that go through a model, for the plan."""
    passes: float = 1.0
    """How often each of them does, a backward pass counting for two."""
    model: str | None = None
    """Which model, for the plan."""
    task: str | None = None
    """Whose rows, for the plan."""
    disk: int = 0
    """Bytes that stay on disk, for the plan."""
    remark: Callable[[Path], str] | None = None
    """From its filled folder to what people should know of it; an empty text: nothing."""

    @cached_property
    def key(self) -> str:
        """16 hex digits over kind, parameters and the keys of the inputs."""
        content = {
            "version": VERSION,
            "kind": self.kind,
            "params": self.params,
            "inputs": {name: step.key for name, step in sorted(self.inputs.items())},
        }
        text = json.dumps(content, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    @property
    def folder_name(self) -> str:
        """Name of its folder among all steps."""
        return f"{self.kind}-{self.key}"


def versions() -> dict[str, str]:
    """Versions of what results depend on."""
    others = {name: version(name) for name in PACKAGES}
    return {"probekit": __version__, **others, "python": platform.python_version()}


def in_order(targets: Iterable[Step]) -> list[Step]:
    """Every step that the targets need, themselves too, each once and after what it reads."""
    found: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if step.key not in found:
            for each in step.inputs.values():
                visit(each)
            found[step.key] = step

    for target in targets:
        visit(target)
    return list(found.values())


class _Failure(NamedTuple):
    """The step that failed first, and why."""

    step: Step
    reason: str


class Cache:
    """Does steps in a folder that several runs may share.

    A step that fails is told and remembered with its reason; what reads it is left out, everything
    else goes on. The next one tries it again.

    Parameters
    ----------
    folder
        Where the steps' folders are.
    tell
        Is shown a line when a step starts and one when it ends.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self.folder = folder
        self._tell = tell
        self._told: set[str] = set()
        self._failures: dict[str, _Failure] = {}

    def path(self, step: Step) -> Path:
        """Folder of a step, done or not."""
        return self.folder / step.folder_name

    def done(self, step: Step) -> bool:
        """Whether its result is there."""
        return (self.path(step) / DONE).is_file()

    def failure(self, step: Step) -> str | None:
        """Why a step was tried in vain or left out; None where neither."""
        found = self._failures.get(step.key)
        if found is None or found.step.key == step.key:
            return None if found is None else found.reason
        return f"its step {found.step.name!r} failed: {found.reason}"

    def run(self, targets: Sequence[Step]) -> None:
        """Do all that the targets need and that is not done; tell of each step once.

        Raises
        ------
        OSError, MemoryError, StoppedError, WriteError
            Where disk or memory fail or the user stops it; all other failures are kept for
            :meth:`failure`.
        """
        steps = [
            step
            for step in in_order(targets)
            if not (step.key in self._told and (self.done(step) or step.key in self._failures))
        ]
        width = len(str(len(steps)))
        try:
            for number, step in enumerate(steps, 1):
                self._told.add(step.key)
                self._one(step, f"[{number:>{width}}/{len(steps)}] {step.name}")
        except KeyboardInterrupt as error:
            done = sum(map(self.done, steps))
            error.add_note(
                f"{done} of {len(steps)} steps are done and kept in {self.folder}; the same "
                "command goes on from there."
            )
            raise

    def _one(self, step: Step, before: str) -> None:
        """Do a step where it can be and is not done, and tell of it."""
        broken = next((i for i in step.inputs.values() if i.key in self._failures), step)
        if self.done(step):
            clear_lock(self.path(step))
            self._tell(f"{before}: done before")
        elif broken is not step:
            self._failures[step.key] = self._failures[broken.key]
            self._tell(f"{before}: left out, for {self.failure(step)}")
        else:
            self._tell(f"{before}: started")
            self._tell(f"{before}: {self._tried(step)}")

    def _tried(self, step: Step) -> str:
        """Do a step; how long it took, or why it failed."""
        try:
            seconds = self._do(step)
            remark = "" if step.remark is None else step.remark(self.path(step))
            return f"{seconds:.1f} s" + (f"; {remark}" if remark else "")
        except Exception as error:  # one arm is not to end all others, whatever a library raises
            stops = isinstance(error, STOPPING) or disk_errno(error) is not None
            if stops or os.environ.get("PROBEKIT_TRACEBACK"):
                raise
            self._failures[step.key] = _Failure(step, _reason(error))
            return f"failed: {self.failure(step)}"

    def _do(self, step: Step) -> float:
        folder = self.path(step)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)

        def busy() -> None:
            self._tell(f"{step.name}: another run is doing this, and is waited for")

        with locked(folder, busy=busy):
            if self.done(step):  # another run did it while this one waited
                return 0.0
            what = {
                "name": step.name,
                "kind": step.kind,
                "params": step.params,
                "inputs": {name: each.folder_name for name, each in step.inputs.items()},
            }
            _write(folder / WHAT, what)
            began = time.perf_counter()
            step.make(folder, {name: self.path(each) for name, each in step.inputs.items()})
            seconds = time.perf_counter() - began
            _write(folder / DONE, {"seconds": round(seconds, 3), "versions": versions()})
        return seconds

    def seconds(self, step: Step) -> float:
        """How long a step took when it was done."""
        try:
            return float(read_json(self.path(step) / DONE)["seconds"])
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{self.path(step) / DONE} is damaged; remove the folder and run again."
            ) from None


def _reason(error: Exception) -> str:
    """An error as a part of a sentence."""
    if isinstance(error, ProbekitError):
        return str(error).rstrip(".")
    text = one_line(f"{type(error).__name__}: {error}")[:LONGEST_REASON].rstrip(". ")
    return f"{text} (set PROBEKIT_TRACEBACK=1 to see where)"


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path, "w") as file:
        file.write(json.dumps(content, ensure_ascii=False, indent=1) + "\n")
