"""Extract into a folder on a Ray cluster: a pool of workers, each of which loads the model once.

The driver plans the units, hands each with its rows to a free worker, and gives the unit of a
worker that is lost to another one. A unit is done when its part has its name in the folder, which
all nodes share: whatever is killed, the same command makes what is missing. Ray Core's actors, not
Ray Data, because units are sorted by length within themselves and must not depend on the pool.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from probekit import __version__
from probekit.activations.checkpoint import open_checkpoint, split_model_name, tokenizer_fingerprint
from probekit.activations.encoding import Encoder
from probekit.activations.forward import Counts
from probekit.activations.index import INDEX, name_of
from probekit.activations.job import (
    Job,
    Summary,
    resumable,
    tapped_model,
    warn_nonfinite,
)
from probekit.activations.progress import MovingBar, Progress, duration
from probekit.activations.quiet import quiet
from probekit.activations.units import Unit, Units
from probekit.data import Rows
from probekit.engine import check_gpus, connected, lost, on_this_node, room
from probekit.errors import ModelError, ProbekitError, RunError, UsageError
from probekit.extras import need
from probekit.files import locked
from probekit.safe import expand, read_text

# How often the pool is compared with the cluster.
POLL_SECONDS = 1.0
# A unit, or a loading model, may lose this many workers before the job stops.
LOSSES = 3
# In Ray's reason for the loss of a worker that did nothing wrong.
NODE_DIED = "node has died"
# After this the user is told why nothing happens.
PATIENCE_SECONDS = 30.0
# A shared file system may show a new name late.
APPEAR_SECONDS = 60.0


@dataclass(frozen=True)
class Setup:
    """What a worker needs to run units of a job."""

    version: str
    """Of the driver's probekit."""
    index: str
    """The text of the driver's ``store.json``."""
    template: str | None
    job: Job
    """Without rows, model and encoder; the model's name is one on the hub or an absolute path."""


class Worker:
    """Runs units on some node. Errors are returned, so that Ray adds no traceback to them."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._stack = ExitStack()

    def load(self) -> Exception | None:
        """Load the model; return what is wrong with this node, if anything is."""
        try:
            self._job = self._prepare()
            self._stack.enter_context(quiet(python_warnings=False))
            self._tap = self._stack.enter_context(tapped_model(self._job))
        except (ProbekitError, OSError, MemoryError) as error:
            return on_this_node(error)
        return None

    def run(self, rows: Rows, path: Path, target: Path) -> Counts | Exception:
        """Make one part."""
        try:
            unit = Unit(replace(self._job, rows=rows, path=path, target=target))
            progress = Progress(len(rows), show=False)
            return unit.run(self._tap, progress, batch_tokens=self._job.batch_tokens)
        except (ProbekitError, OSError, MemoryError) as error:
            return on_this_node(error)

    def _prepare(self) -> Job:
        setup, job = self._setup, self._setup.job
        request, spec = job.request, job.spec
        if setup.version != __version__:
            raise UsageError(
                f"It has probekit {__version__} and the driver has {setup.version}; install the "
                "same version on every node."
            )
        index = job.path / INDEX
        if not index.exists() or read_text(index) != setup.index:
            raise UsageError(
                f"The folder {job.path} is not the driver's there; name one on a file system that "
                "all nodes share."
            )
        if job.placement.device != "cpu" and not torch.cuda.is_available():
            raise UsageError("PyTorch finds no GPU there; install a build with CUDA.")
        checkpoint = open_checkpoint(
            str(request.model),
            revision=request.revision,
            dtype=spec.dtype,
            trust_remote_code=request.trust_remote_code,
        )
        tokenizer = tokenizer_fingerprint(checkpoint.tokenizer)
        if (checkpoint.weights, tokenizer) != (spec.weights, spec.tokenizer):
            raise ModelError(
                f"The model {request.model} is another one there than on the driver; copy the "
                "same files to every node."
            )
        with quiet():
            encoder = Encoder(
                checkpoint.tokenizer,
                kind=spec.kind,
                max_length=spec.max_length,
                template=setup.template,
            )
        return replace(job, checkpoint=checkpoint, encoder=encoder)


def run_on_ray(
    job: Job,
    *,
    address: str | None = None,
    workers: int | None = None,
    gpus: float = 0.0,
    show: bool | None = None,
) -> Summary:
    """Make the missing parts of a folder on a Ray cluster; the same call resumes after a stop.

    Parameters
    ----------
    job
        From ``prepare(request, device=…)``: ``cpu`` without GPUs, ``cuda:0`` with one per worker
        or a part of one, ``map`` with more.
    address
        ``auto`` or ``HOST:PORT`` of a cluster; None: that of ``RAY_ADDRESS``, one that runs here,
        or else a new one on this machine.
    workers
        Number of workers; None: as many as the cluster has CPUs, or GPUs for.
    gpus
        GPUs per worker; with more than one the model is spread over them.
    show
        Whether to draw a progress line; None: on a terminal and in a notebook.

    Raises
    ------
    ProbekitError
        If anything is wrong, with one sentence about it; parts that are done stay.
    """
    if not job.folder:
        raise UsageError(f"--engine ray writes a folder of parts; name one: -o {job.path}/")
    if job.checkpoint.loaded:
        raise UsageError("--engine ray loads the model on each worker; give its name or folder.")
    start = time.monotonic()
    counts = Counts(batch_tokens=job.batch_tokens)
    with ExitStack() as stack:
        stack.enter_context(quiet(python_warnings=False))
        stack.enter_context(locked(job.path))
        units = Units(job)
        loaded = time.monotonic()
        if units.missing():
            need("ray")
            stack.callback(units.clear_attempts)
            stack.enter_context(connected(address))
            check_gpus(gpus)
            units.begin()
            units.clear_attempts()
            loaded = time.monotonic()
            total, todo, before = len(job.rows), units.missing(), units.rows_done()
            line = _Line(total, before, show)
            if before:
                line.note(f"Resuming {job.path}: {before:,} of {total:,} rows are done.")
            with resumable(line, units.rows_done, total, job.path):
                pool = _Pool(units, workers, gpus, line)
                stack.callback(pool.close)
                for part in pool.run(todo):
                    counts += part
            line.clear()
            warn_nonfinite(job, counts, line)
            deadline = time.monotonic() + APPEAR_SECONDS
            while units.missing() and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        units.finish()
    return units.report(counts, (start, loaded))


class _Line(MovingBar):
    """One line: rows per second in all and per worker, workers alive, time left."""

    def __init__(self, total: int, done: int, show: bool | None) -> None:
        super().__init__(total, done=done, show=show)
        self._total, self._before, self._done = total, done, done
        self._start = time.monotonic()

    def advance(self, rows: int, workers: int) -> None:
        """Count the rows of a part that is done."""
        self._done += rows
        rate = (self._done - self._before) / max(time.monotonic() - self._start, 1e-9)
        left = duration((self._total - self._done) / rate) if rate else "?"
        self.move(
            self._done,
            f"{self._done:,}/{self._total:,} rows · {rate:,.0f} rows/s · "
            f"{rate / max(workers, 1):,.0f} per worker · {workers} workers · {left} left",
        )


class _Pool:
    """Workers that come and go, and the units that they run."""

    def __init__(self, units: Units, workers: int | None, gpus: float, line: _Line) -> None:
        import ray

        self._units = units
        self._ray, self._workers, self._gpus, self._line = ray, workers, gpus, line
        self._actor = ray.remote(Worker).options(num_cpus=1, num_gpus=gpus, max_restarts=0)
        self._setup = ray.put(_setup(units.job))
        # What each worker was asked for last: to load the model (None), or a unit.
        self._asked: dict[Any, tuple[Any, int | None]] = {}
        self._alive: list[Any] = []

    def run(self, todo: list[int]) -> Iterator[Counts]:
        """Run the units, in any order, and yield what each has counted."""
        waiting = deque(todo)
        lost: Counter[int | None] = Counter()
        patience = time.monotonic() + PATIENCE_SECONDS
        while waiting or any(unit is not None for _, unit in self._asked.values()):
            self._grow(len(waiting))
            if not self._asked:  # the cluster has no room for a worker now
                time.sleep(POLL_SECONDS)
                continue
            ready, _ = self._ray.wait([*self._asked], timeout=POLL_SECONDS)
            alive = sum(unit is not None for _, unit in self._asked.values())
            if not alive and not ready and time.monotonic() > patience:
                self._line.note("No worker is ready yet: it loads the model, or waits for room.")
                patience = float("inf")
            for reply in ready:
                worker, unit = self._asked.pop(reply)
                counts = self._answer(reply)
                if not isinstance(counts, Counts):
                    self._end(worker)  # it may be alive, and only out of reach
                    lost[unit] += NODE_DIED not in str(counts)
                    self._mourn(unit, lost[unit])
                    if unit is not None:
                        waiting.appendleft(unit)
                    continue
                if unit is None:
                    lost[None] = 0
                else:
                    self._line.advance(self._units.index.counts[unit], alive)
                    yield counts
                if waiting:
                    self._ask(worker, waiting.popleft())
                else:
                    self._end(worker)

    def close(self) -> None:
        """End the workers: an error's traceback may hold them, and with them their CPUs."""
        for worker in [*self._alive]:
            self._end(worker)

    def _end(self, worker: Any) -> None:
        self._alive.remove(worker)
        self._ray.kill(worker)

    def _grow(self, waiting: int) -> None:
        """Start workers, up to what is wanted, what there is room for, and what is to be done."""
        busy = sum(unit is not None for _, unit in self._asked.values())
        wanted = min(self._workers or room(self._gpus), busy + waiting)
        for _ in range(wanted - len(self._asked)):
            worker = self._actor.remote(self._setup)
            self._alive.append(worker)
            self._asked[worker.load.remote()] = worker, None

    def _ask(self, worker: Any, number: int) -> None:
        unit = self._units.unit(number, f".{uuid4().hex[:8]}")
        assert unit.target is not None
        places = unit.path.absolute(), unit.target.absolute()
        self._asked[worker.run.remote(unit.rows, *places)] = worker, number

    def _answer(self, reply: Any) -> Counts | Exception:
        """Return what a worker has counted; if it is lost, the reason."""
        from ray.exceptions import RayError, RayTaskError

        try:
            answer = self._ray.get(reply)
        except RayError as error:
            if isinstance(error, RayTaskError):  # a bug
                raise
            if "No module named" in str(error):
                raise lost(error) from None
            return RunError(str(error))
        if isinstance(answer, Exception):
            raise answer
        counts: Counts = answer or Counts()
        return counts

    def _mourn(self, unit: int | None, losses: int) -> None:
        what = "loading the model" if unit is None else f"making {name_of(unit)}"
        if losses >= LOSSES:
            raise RunError(
                f"{losses} workers were lost while {what}: each was killed, ran out of memory, or "
                "its node went away; give them more memory, or lower --batch-tokens."
            )
        self._line.note(f"A worker was lost while {what}; another one does it again.")


def _setup(job: Job) -> Setup:
    model = str(job.request.model)
    name, _ = split_model_name(model)
    if (local := expand(name, error=ModelError)).is_dir():
        model = str(local.absolute()) + model[len(name) :]
    stripped: dict[str, Any] = dict.fromkeys(("rows", "checkpoint", "encoder"))
    request = replace(job.request, rows=None, model=model, overwrite=False)
    return Setup(
        __version__,
        read_text(job.path / INDEX),
        job.encoder.template,
        replace(job, path=job.path.absolute(), request=request, **stripped),
    )
