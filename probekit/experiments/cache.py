"""Steps that are done once: each has a folder, named by a hash of all that it depends on."""

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
from probekit.engine import RayTasks, ray_tasks
from probekit.errors import (
    DataError,
    ProbekitError,
    RunError,
    StoppedError,
    WriteError,
    disk_errno,
    disk_errors,
)
from probekit.files import atomic_write, clear_lock, locked
from probekit.safe import one_line, read_json

__all__ = ["Cache", "Step", "in_order", "versions"]

DONE = "done.json"
STEP = "step.json"
# Raised when a step's result changes for the same inputs, so that old results are not used.
VERSION = 1
PACKAGES = ("torch", "transformers", "scikit-learn", "numpy")
# Errors of the machine, which every later step would meet too.
STOPPING = (OSError, MemoryError, StoppedError, WriteError)
LONGEST_REASON = 300

Make: TypeAlias = Callable[[Path, Mapping[str, Path]], None]


@dataclass(frozen=True, eq=False)
class Step:
    """One computation, and everything that its result depends on."""

    name: str
    """Name for people."""
    kind: str
    """First part of the folder's name."""
    params: Mapping[str, Any]
    """What it depends on besides its inputs, as JSON types."""
    make: Make
    """Fills a folder from the folders of the inputs; called again there after a kill."""
    inputs: Mapping[str, Step] = field(default_factory=dict)
    """Steps that it reads."""
    rows: int = 0
    """Rows that go through a model, for the plan."""
    passes: float = 1.0
    """Number of passes of each row; a backward pass counts for two."""
    model: str | None = None
    """Name of that model, for the plan."""
    task: str | None = None
    """Task of the rows, for the plan."""
    disk: int = 0
    """Bytes that stay on disk, for the plan."""
    remark: Callable[[Path], str] | None = None
    """Returns what people should know of a filled folder, or an empty text."""

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
    """Return the versions of the packages that results depend on."""
    others = {name: version(name) for name in PACKAGES}
    return {"probekit": __version__, **others, "python": platform.python_version()}


def in_order(targets: Iterable[Step]) -> list[Step]:
    """List the targets and every step that they need, each once and after its inputs."""
    ordered: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if step.key not in ordered:
            for each in step.inputs.values():
                visit(each)
            ordered[step.key] = step

    for target in targets:
        visit(target)
    return list(ordered.values())


class _Failure(NamedTuple):
    """The step that failed first, and why."""

    step: Step
    reason: str


class Cache:
    """Does steps in a folder that several runs may share.

    A step that fails is reported and remembered with its reason; steps that read it are left out,
    all others are done. The next Cache tries it again. Within :func:`probekit.engine.on_ray` a
    cluster does the steps, in folders that all its nodes share.

    Parameters
    ----------
    folder
        Folder of the steps' folders.
    report
        Receives a line when a step starts and one when it ends.
    """

    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        self.folder = folder
        self._report = report
        self._reported: set[str] = set()
        self._failures: dict[str, _Failure] = {}

    def path(self, step: Step) -> Path:
        """Return the folder of a step, done or not."""
        return self.folder / step.folder_name

    def done(self, step: Step) -> bool:
        """Return whether a step is done."""
        return (self.path(step) / DONE).is_file()

    def failure(self, step: Step) -> str | None:
        """Return why a step failed or was left out; None if it did not."""
        failure = self._failures.get(step.key)
        if failure is None or failure.step.key == step.key:
            return None if failure is None else failure.reason
        return f"its step {failure.step.name!r} failed: {failure.reason}"

    def run(self, targets: Sequence[Step]) -> None:
        """Do all steps that the targets need and that are not done; report each step once.

        Raises
        ------
        OSError, MemoryError, StoppedError, WriteError
            If the disk or memory fails or the user stops it; all other failures are kept for
            :meth:`failure`.
        """
        steps = [
            step
            for step in in_order(targets)
            if not (step.key in self._reported and (self.done(step) or step.key in self._failures))
        ]
        width, tasks = len(str(len(steps))), ray_tasks()
        named = {
            step.key: (step, f"[{number:>{width}}/{len(steps)}] {step.name}")
            for number, step in enumerate(steps, 1)
        }
        self._reported.update(named)
        try:
            if tasks is None:
                for step, before in named.values():
                    if self._is_open(step, before):
                        self._report(f"{before}: {self._tried(step)}")
            else:
                self._run_on(tasks, named)
        except KeyboardInterrupt as error:
            done = sum(map(self.done, steps))
            error.add_note(
                f"{done} of {len(steps)} steps are done and kept in {self.folder}; the same "
                "command resumes there."
            )
            raise

    def _run_on(self, tasks: RayTasks, waiting: dict[str, tuple[Step, str]]) -> None:
        """Do steps on a cluster, each when its inputs are done."""
        asked: dict[Any, tuple[Step, str]] = {}
        while waiting or asked:
            busy = {step.key for step, _ in asked.values()} | set(waiting)
            for key, (step, before) in list(waiting.items()):
                if len(asked) >= tasks.workers:
                    break
                if any(each.key in busy for each in step.inputs.values()):
                    continue
                del waiting[key]
                busy.discard(key)
                if self._is_open(step, before):
                    busy.add(key)
                    asked[tasks.begin(_try_there, self.folder.absolute(), step)] = step, before
            for reply in tasks.wait(list(asked)) if asked else ():
                step, before = asked.pop(reply)
                try:
                    ended, reason = tasks.result(reply)
                except RunError as error:  # its workers were lost
                    reason = _reason(error)
                    ended = f"failed: {reason}"
                if reason is not None:
                    self._failures[step.key] = _Failure(step, reason)
                self._report(f"{before}: {ended}")

    def _is_open(self, step: Step, before: str) -> bool:
        """Report a step; return whether it can be done and is not."""
        broken = next((i for i in step.inputs.values() if i.key in self._failures), step)
        if self.done(step):
            clear_lock(self.path(step))
            self._report(f"{before}: done before")
        elif broken is not step:
            self._failures[step.key] = self._failures[broken.key]
            self._report(f"{before}: left out because {self.failure(step)}")
        else:
            self._report(f"{before}: started")
            return True
        return False

    def _tried(self, step: Step) -> str:
        """Do a step; return how long it took, or why it failed."""
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
            self._report(f"{step.name}: waiting for another run that is doing this")

        with locked(folder, busy=busy):
            if self.done(step):  # another run did it meanwhile
                return 0.0
            content = {
                "name": step.name,
                "kind": step.kind,
                "params": step.params,
                "inputs": {name: each.folder_name for name, each in step.inputs.items()},
            }
            _write(folder / STEP, content)
            began = time.perf_counter()
            step.make(folder, {name: self.path(each) for name, each in step.inputs.items()})
            seconds = time.perf_counter() - began
            _write(folder / DONE, {"seconds": round(seconds, 3), "versions": versions()})
        return seconds

    def seconds(self, step: Step) -> float:
        """Return the seconds that a step took when it was done."""
        try:
            return float(read_json(self.path(step) / DONE)["seconds"])
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{self.path(step) / DONE} is damaged; remove the folder and run again."
            ) from None


def _try_there(folder: Path, step: Step) -> tuple[str, str | None]:
    """Do a step on a worker; return how long it took, or that and why it failed."""
    cache = Cache(folder, lambda _: None)
    return cache._tried(step), cache.failure(step)


def _reason(error: Exception) -> str:
    """Return an error as a part of a sentence."""
    if isinstance(error, ProbekitError):
        return str(error).rstrip(".")
    text = one_line(f"{type(error).__name__}: {error}")[:LONGEST_REASON].rstrip(". ")
    return f"{text} (set PROBEKIT_TRACEBACK=1 to see where)"


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path, "w") as file:
        file.write(json.dumps(content, ensure_ascii=False, indent=1) + "\n")
