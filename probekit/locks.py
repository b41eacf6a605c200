"""One writer at a time: a lock beside what is written, which the system gives back at the end.

A lock file also notes what its holder has put in place, so that the same command can go on after
it was killed between two of its outputs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probekit.errors import DataError, WriteError, disk_errors
from probekit.safe import load_json, printable

__all__ = [
    "UNSUPPORTED",
    "Lock",
    "beside",
    "clear_lock",
    "locked",
    "note_made",
    "try_lock",
    "written",
]

# Some network file systems have no locks, and say so in one of these ways.
UNSUPPORTED = (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
ENDING = ".probekit-lock"
LONGEST = 200
_warned: list[Path] = []
_held: list[Lock] = []
_written: list[Path] = []


def beside(path: Path, ending: str) -> Path:
    """Name a hidden file of ours beside ``path``, one that a file system takes."""
    name = path.name
    if len(os.fsencode(name)) > LONGEST:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return path.with_name(f".{name}{ending}")


def try_lock(file: Any, shown: Path, *, wait: bool = False) -> bool:
    """Lock an open file; False where another process has it.

    Where the file system has no locks, one writer is the user's care: a warning says so.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        if not _warned:
            _warned.append(shown)
            sys.stderr.write(
                f"Warning: the file system of {printable(str(shown))} has no locks; let no second "
                "command write there at the same time.\n"
            )
    return True


class Lock:
    """The lock of one output; made by :func:`locked`."""

    def __init__(self, path: Path, place: Path, handle: int, command: str) -> None:
        self.path, self._place, self._handle, self._command = path, place, handle, command
        known = self._read()
        same = bool(command) and known.get("command") == command
        self._made: Any = known.get("made") if same else None
        self._write()

    @property
    def made(self) -> bool:
        """Whether what stands there is what this command put, now or before it was killed."""
        try:
            return self._made is not None and self._made == _identity(self.path.stat())
        except OSError:
            return False

    def note(self, status: os.stat_result) -> None:
        """Note a file that is about to be put in place."""
        self._made = _identity(status)
        self._write()

    def release(self, *, finished: bool) -> None:
        """Give the lock back; its file stays only with the note of an unfinished command."""
        try:
            if finished or not self.made:
                self._place.unlink(missing_ok=True)
        finally:
            os.close(self._handle)

    def _read(self) -> dict[str, Any]:
        try:
            known = load_json(os.pread(self._handle, 1 << 16, 0), str(self._place))
        except DataError:
            return {}
        return known if isinstance(known, dict) else {}

    def _write(self) -> None:
        content = {"format": "probekit-lock", "pid": os.getpid(), "command": self._command}
        data = json.dumps({**content, "made": self._made}).encode()
        # A full disk has room for neither this nor the output, whose writer tells so.
        with contextlib.suppress(OSError):
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, data, 0)


def _identity(status: os.stat_result) -> list[int]:
    return [status.st_ino, status.st_size, status.st_mtime_ns]


@contextmanager
def locked(
    path: Path, *, command: str = "", busy: Callable[[], None] | None = None
) -> Iterator[Lock]:
    """Hold the lock of an output, a file or a folder, which need not exist.

    Parameters
    ----------
    command
        What identifies the command, so that the same one can go on after a kill.
    busy
        Called where another process holds the lock, which is then waited for; None: refused.

    Raises
    ------
    WriteError
        Where another process writes there, or nobody may.
    """
    path = Path(os.path.realpath(path))
    lock = _take(path, command, busy)
    if not _held:
        _written.clear()  # of a command before, in the same process
    _held.append(lock)
    done = False
    try:
        yield lock
        done = True
    finally:
        _held.remove(lock)
        lock.release(finished=done)


def _take(path: Path, command: str, busy: Callable[[], None] | None) -> Lock:
    place = beside(path, ENDING)
    while True:
        with disk_errors(path):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            handle = os.open(place, flags, 0o666)
        try:
            if not try_lock(handle, path):
                if busy is None:
                    raise WriteError(
                        f"{path} is being written by another process; wait until that has ended, "
                        "or name another output."
                    )
                busy()
                try_lock(handle, path, wait=True)
            # Who held it before may have removed the file between our opening and locking.
            if place.exists() and os.path.samestat(os.fstat(handle), place.stat()):
                return Lock(path, place, handle, command)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def note_made(path: Path, status: os.stat_result) -> None:
    """Note in the lock of an output, if it is held, that its file is about to be put in place."""
    for lock in _held:
        if lock.path == path:
            lock.note(status)
            _written.append(path)


def clear_lock(path: Path) -> None:
    """Remove the lock file of a writer that was killed when all was done; others stay."""
    if beside(Path(os.path.realpath(path)), ENDING).exists():
        with contextlib.suppress(WriteError), locked(path):
            pass


def written() -> list[Path]:
    """Outputs that the command has put in place: those whose lock it took last."""
    return list(dict.fromkeys(_written))
