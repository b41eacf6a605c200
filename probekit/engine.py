"""A map over pieces of work: in this process, or by tasks on a Ray cluster.

Results come in the order of the pieces and are the same on any number of workers. Ray runs the task
of a worker that is lost again.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from probekit import __version__
from probekit.errors import DataError, ProbekitError, RunError, UsageError
from probekit.extras import need
from probekit.safe import one_line, read_text

__all__ = [
    "RayTasks",
    "check_gpus",
    "connected",
    "lost",
    "map_here",
    "on_ray",
    "on_this_node",
    "ray_tasks",
    "room",
]

CONNECT_SECONDS = 10.0
RETRIES = 3  # of a task whose worker is lost
STARTS = 5  # of a cluster on this machine: one that is loaded is slower than Ray's 30 seconds


def map_here(work: Callable[..., Any], pieces: Iterable[Any], *common: Any) -> Iterator[Any]:
    """Yield ``work(piece, *common)`` for every piece, as :meth:`RayTasks.map` does on a cluster.

    Examples
    --------
    >>> list(map_here(pow, [2, 3], 2))
    [4, 9]
    """
    return (work(piece, *common) for piece in pieces)


class RayTasks:
    """Tasks of one CPU each on a cluster that this process is connected to.

    Parameters
    ----------
    workers : int, default=None
        Number of tasks at the same time; None: as many as there is room for.
    gpus : float, default=0
        GPUs of each task.
    """

    def __init__(self, workers: int | None = None, gpus: float = 0.0) -> None:
        import ray

        self._ray, self.gpus = ray, gpus
        self.workers = workers or max(1, room(gpus))
        self._run = ray.remote(_attempt).options(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)

    def map(self, work: Callable[..., Any], pieces: Iterable[Any], *common: Any) -> Iterator[Any]:
        """Yield ``work(piece, *common)`` in the order of the pieces, of which some wait in Ray."""
        shared = [self.put(each) for each in common]
        asked: deque[Any] = deque()
        for piece in pieces:
            if len(asked) >= self.workers:
                yield self.result(asked.popleft())
            asked.append(self.begin(work, piece, *shared))
        while asked:
            yield self.result(asked.popleft())

    def begin(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Start a task; return what :meth:`result` waits for."""
        return self._run.remote(__version__, os.getcwd(), work, *arguments)

    def put(self, value: Any) -> Any:
        """Store a value once for many tasks; what is stored already is returned as it is."""
        return value if isinstance(value, self._ray.ObjectRef) else self._ray.put(value)

    def hold(self, make: Callable[..., Any], sent: Sequence[Any], *arguments: Any) -> Any:
        """Start a worker that keeps ``make(*values, *arguments)`` of what was :meth:`put`.

        One that is lost is started again. It needs a CPU to start and none to stay, so that what is
        left of a cluster has room.
        """
        options: dict[str, Any] = {"scheduling_strategy": "SPREAD"}
        if self.gpus:  # named resources are held for life, a CPU too unless it is 0
            options |= {"num_cpus": 0, "num_gpus": self.gpus}
        # Calls to a node that is gone fail, and are retried, until Ray knows it; restarts end.
        retries = {"max_restarts": RETRIES, "max_task_retries": -1}
        worker = self._ray.remote(_Keeper).options(**options, **retries)
        return worker.remote(make, *arguments), tuple(sent)

    def ask(self, keeper: Any, work: Callable[..., Any], *arguments: Any) -> Any:
        """Start ``work(kept, *arguments)`` there; return what :meth:`result` waits for."""
        worker, sent = keeper
        return worker.do.remote(__version__, os.getcwd(), sent, work, *arguments)

    def memory(self) -> float:
        """Half of the nodes' memory in bytes."""
        nodes = (node["Resources"] for node in self._ray.nodes() if node["Alive"])
        return sum(float(each.get("memory", 0)) for each in nodes) / 2

    def wait(self, asked: list[Any]) -> list[Any]:
        """Return some of the tasks that have ended, at least one."""
        ready: list[Any] = self._ray.wait(asked)[0]
        return ready

    def result(self, reply: Any) -> Any:
        """Return a task's result, or raise its error.

        Raises
        ------
        ProbekitError
            What the task raised, or RunError if its workers were lost.
        """
        from ray.exceptions import RayError, RayTaskError

        try:
            answer = self._ray.get(reply)
        except RayError as error:
            if isinstance(error, RayTaskError) and "No module named" not in str(error):
                raise  # a bug
            raise lost(error) from None
        if isinstance(answer, BaseException):
            raise answer
        return answer


class _Keeper:
    """Keeps something on a worker, for all that is asked of it."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        self._make, self._arguments = make, arguments
        self._kept: Any = None

    def do(self, version: str, folder: str, sent: Any, work: Callable[..., Any], *more: Any) -> Any:
        """Run ``work(kept, *more)``."""

        def run() -> Any:
            import ray

            if self._kept is None:
                self._kept = self._make(*ray.get(list(sent)), *self._arguments)
            return work(self._kept, *more)

        return _attempt(version, folder, run)


_TASKS: ContextVar[RayTasks | None] = ContextVar("tasks on Ray", default=None)


def ray_tasks() -> RayTasks | None:
    """Return the tasks of :func:`on_ray`, within it."""
    return _TASKS.get()


@contextmanager
def on_ray(
    address: str | None = None, *, workers: int | None = None, gpus: float = 0.0
) -> Iterator[None]:
    """Within it, work that is worth it is shared by a Ray cluster.

    Parameters
    ----------
    address : str, default=None
        ``auto`` or ``HOST:PORT`` of a cluster; None: that of ``RAY_ADDRESS``, one that runs here,
        or else a new one on this machine.
    workers, gpus
        As :class:`RayTasks`.

    Raises
    ------
    UsageError
        If no cluster answers, or no node has so many GPUs.
    """
    need("ray")
    with connected(address):
        check_gpus(gpus)
        token = _TASKS.set(RayTasks(workers, gpus))
        try:
            yield
        finally:
            _TASKS.reset(token)


def _attempt(version: str, folder: str, work: Callable[..., Any], *arguments: Any) -> Any:
    """Run a task. Errors are returned, so that Ray adds no traceback to them."""
    token = _TASKS.set(None)
    try:
        if os.path.isdir(folder):  # so that relative paths mean the same
            os.chdir(folder)
        if version != __version__:
            raise UsageError(
                f"It has probekit {__version__} and the driver has {version}; install the same "
                "version on every node."
            )
        return work(*arguments)
    except (ProbekitError, OSError, MemoryError) as error:
        return on_this_node(error)
    finally:
        _TASKS.reset(token)


def on_this_node(error: Exception) -> Exception:
    """Return the error with a note that names this node."""
    error.add_note(f"This happened on a worker on {socket.gethostname()}.")
    return error


def lost(error: Exception) -> ProbekitError:
    """Return what to say of a worker that Ray has lost, or that cannot import what it needs."""
    if "No module named" in str(error):
        reason = one_line(str(error).splitlines()[-1])
        what = f"probekit {__version__}" if "'probekit" in reason else "A module of the command"
        return UsageError(
            f"{what} is not installed on a worker: {reason}; install it on every node."
        )
    return RunError(
        f"{RETRIES + 1} workers were lost with the same task: each was killed, ran out of memory, "
        "or its node went away; give them more memory."
    )


def room(gpus: float = 0.0) -> int:
    """Return the number of workers that the cluster's nodes have CPUs, or GPUs, for."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    rooms = (min(r.get("CPU", 0), r.get("GPU", 0) / gpus if gpus else float("inf")) for r in nodes)
    return sum(map(int, rooms))


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one here; one that the caller has connected to stays so."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
    import ray

    if ray.is_initialized():
        yield
        return
    given = address or os.environ.get("RAY_ADDRESS")
    if given not in (None, "auto", "local"):
        _check_answers(str(given))
    elif given != "local" and (last := _last_here()) is not None:
        try:
            _check_answers(last)
        except UsageError:
            if given == "auto":
                raise
            address = "local"  # the cluster that ran here was killed
    for left in reversed(range(STARTS)):
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            break
        except Exception as error:  # of a node that is slow to start Ray raises no other
            if left and "timed out" in str(error):
                ray.shutdown()
                continue
            raise UsageError(
                f"The Ray cluster {address or ''} cannot be joined: {one_line(str(error))[:300]}"
            ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _last_here() -> str | None:
    """Address of the cluster that was started on this machine last, as Ray keeps it in a file."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    file = Path(folder, "ray", "ray_current_cluster")
    try:
        return read_text(file).strip() if file.is_file() else None
    except DataError:  # another user's
        return None


def _check_answers(address: str) -> None:
    """Raise UsageError unless something answers: Ray itself would wait for minutes."""
    host, colon, port = address.rpartition(":")
    if "//" in address or not (host and colon and port.isdecimal()):
        raise UsageError(f"The address of a Ray cluster is auto or HOST:PORT, not {address!r}.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"No Ray cluster answers at {address} ({error}); start one with `ray start --head`, "
            "or leave --address out to work on this machine."
        ) from None


def check_gpus(gpus: float) -> None:
    """Raise UsageError unless a node has so many GPUs."""
    import ray

    most = max((n["Resources"].get("GPU", 0) for n in ray.nodes() if n["Alive"]), default=0)
    if gpus > most:
        raise UsageError(
            f"--gpus-per-worker {gpus:g} needs a node with that many GPUs, and the largest of the "
            f"cluster has {most:g}; give --gpus-per-worker {most:g}, or add a node."
        )
