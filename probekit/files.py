"""Writing files: whole or not at all, by one writer at a time, never onto what is read.

A lock beside an output, which the system releases when its process ends, keeps a second writer
away. It also records what its command has put in place, so that the same command can resume after
a kill between two of its outputs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from probekit.errors import DataError, OutputExistsError, UsageError, WriteError, disk_errors
from probekit.safe import load_json, printable
from probekit.sidecars import check_sidecar, sidecar

__all__ = [
    "UNSUPPORTED",
    "Lock",
    "atomic_write",
    "beside",
    "check_output",
    "clear_leftovers",
    "clear_lock",
    "existing",
    "is_table_folder",
    "json_line",
    "locked",
    "locked_part",
    "record_written",
    "refuse_inside",
    "refuse_reads",
    "sync_folder",
    "try_lock",
    "user_mask",
    "written",
]

# Ending of a file that is being written, by which leftovers of a killed writer are recognised.
TEMPORARY = ".probekit-part"
# Errors of network file systems that have no locks.
UNSUPPORTED = (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
ENDING = ".probekit-lock"
LONGEST_NAME = 200  # bytes
# Files of a table that is written as a folder.
PART = re.compile(r"part-\d{5}\.parquet")
_warned: list[Path] = []
_locks: list[Lock] = []
_written: list[Path] = []


def check_output(path: str | Path, *, overwrite: bool) -> Path:
    """Return ``path`` if it can be written; called before any work is done.

    Raises
    ------
    OutputExistsError
        If it exists and ``overwrite`` is False, or is neither a plain file nor the folder of a
        table.
    DataError
        If its folder is missing or may not be written to.
    """
    path = Path(path)
    if path.is_dir() and not is_table_folder(path):
        raise OutputExistsError(f"{path} is a folder, not a file; name a file to write.")
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OutputExistsError(f"{path} is a pipe, socket or device; name a file to write.")
    if path.exists() and not overwrite and not (path.is_dir() and not os.listdir(path)):
        raise OutputExistsError(
            f"{path} exists already; pass --overwrite to replace it or name another file."
        )
    if not path.parent.is_dir():
        raise DataError(f"The folder {path.parent} of the output {path.name} does not exist.")
    if not os.access(path.parent, os.W_OK):
        raise DataError(
            f"The folder {path.parent} of the output {path.name} cannot be written to; change its "
            "rights, or name another output."
        )
    if path.suffix.lower() == ".jsonl":
        check_sidecar(path)
    return path


def is_table_folder(path: Path) -> bool:
    """Whether a folder may be replaced by a table's: it holds its files, or nothing."""
    return not path.suffix and all(map(PART.fullmatch, os.listdir(path)))


def refuse_reads(
    outputs: Sequence[Path], reads: Iterable[object], *, overwrite: bool = False
) -> None:
    """Check that no output is an input and no two outputs are one file, before any work.

    Names do not show that: links, hard links, relative paths, ``x.jsonl.meta.json`` beside
    ``x.jsonl`` and folders may all lead to the same file.

    Parameters
    ----------
    outputs
        Files to write.
    reads
        Names of inputs; those that are not a file or folder here are ignored.
    overwrite
        Whether existing outputs may be replaced; then none may be inside a folder that is read
        (a model, a saved data set) either.

    Raises
    ------
    UsageError
        If an output is an input, or is named twice.
    """
    for number, output in enumerate(outputs):
        for other in outputs[:number]:
            if any(_same(a, b) for a in _files(output) for b in _files(other)):
                raise UsageError(
                    f"{output} is named twice: each output needs a file of its own, with room for "
                    f"{sidecar(output).name} beside JSONL."
                )
    for read in existing(reads):
        for output in outputs:
            if any(_same(a, b) for a in _files(output) for b in _files(read)):
                raise UsageError(f"{output} is read here; write to another file.")
            if overwrite and read.is_dir() and output.exists() and _inside(output, read):
                raise UsageError(
                    f"{output} lies in {read}, which is read here; write to another folder."
                )


def refuse_inside(folder: Path, reads: Iterable[object]) -> None:
    """Check that a folder to be replaced contains no input.

    Raises
    ------
    UsageError
        If an input is inside the folder.
    """
    for read in existing(reads):
        if _inside(read, folder):
            raise UsageError(
                f"{read} lies in {folder}, which would be replaced; copy it elsewhere first, or "
                "name another folder."
            )


def existing(names: Iterable[object]) -> Iterator[Path]:
    """Existing paths among a user's names: a file, ``NAME=FILE``, ``MODEL@layers=K``, ``A,B``."""
    for name in names:
        if isinstance(name, list | tuple):
            yield from existing(name)
        elif isinstance(name, str | Path) and str(name):
            text = str(name)
            parts = {text, text.partition("=")[2], text.partition("@")[0], *text.split(",")}
            for part in parts:
                try:
                    if part and Path(part).exists():
                        yield Path(part)
                except (OSError, ValueError):  # too long, or not a path
                    continue


def _files(path: Path) -> tuple[Path, ...]:
    """A file, and its metadata file if it is JSONL."""
    return (path, sidecar(path)) if path.suffix.lower() == ".jsonl" else (path,)


def _same(one: Path, other: Path) -> bool:
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return one.samefile(other)
    except OSError:
        return False


def _inside(path: Path, folder: Path) -> bool:
    real, outer = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    return real != outer and real.is_relative_to(outer)


@contextmanager
def atomic_write(
    path: str | Path, mode: str = "wb", *, needed: int | None = None
) -> Iterator[IO[Any]]:
    """Write a file beside ``path`` and move it there at the end, so that readers never see a part.

    A failure (a full disk, Ctrl-C) leaves the file at ``path`` as it was; leftovers of a killed
    writer are removed by the next write.

    Parameters
    ----------
    needed
        Bytes of the file, if known, for the message about a full disk.

    Raises
    ------
    WriteError
        If the disk is full or may not be written to.
    """
    path = Path(os.path.realpath(path))  # a link stays a link; its target is replaced
    encoding = None if "b" in mode else "utf-8"
    with disk_errors(path, needed=needed):
        clear_leftovers(path)
        handle, temporary = locked_part(path)
        try:
            with os.fdopen(handle, mode, encoding=encoding) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.chmod(temporary, 0o666 & ~user_mask())
                record_written(path, os.fstat(file.fileno()))
                os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def user_mask() -> int:
    """Return the rights that the user withholds from new files, which temporary ones ignore."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def locked_part(path: Path, *, folder: bool = False) -> tuple[int, str]:
    """Make the locked file, or folder, that becomes ``path``.

    Its lock shows that its writer is alive; before it is locked, another writer of this path may
    remove it as a leftover.
    """
    make = tempfile.mkdtemp if folder else tempfile.mkstemp
    while True:
        made: Any = make(dir=path.parent, prefix=beside(path, ".").name, suffix=TEMPORARY)
        if folder:
            try:
                made = os.open(made, os.O_RDONLY), made
            except FileNotFoundError:
                continue
        handle, name = made
        if try_lock(handle, path) and os.path.exists(name):
            return handle, name
        os.close(handle)


def clear_leftovers(path: Path) -> None:
    """Remove what killed writers of ``path`` have left beside it, and nothing else."""
    pattern = re.escape(beside(path, ".").name) + r"[a-z0-9_]{8}" + re.escape(TEMPORARY)
    try:
        names = [name for name in os.listdir(path.parent) if re.fullmatch(pattern, name)]
    except OSError:
        return
    for place in (path.parent / name for name in names):
        with contextlib.suppress(OSError):
            handle = os.open(place, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(place) if place.is_dir() else place.unlink()
            finally:
                os.close(handle)


def sync_folder(folder: Path) -> None:
    """Wait until a folder's names are on the disk, if its file system supports that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def beside(path: Path, ending: str) -> Path:
    """Path of a hidden file beside ``path``, whose name is not too long for a file system."""
    name = path.name
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return path.with_name(f".{name}{ending}")


def try_lock(file: Any, shown: Path, *, wait: bool = False) -> bool:
    """Lock an open file; False if another process has locked it.

    If the file system has no locks, a warning asks the user to run one writer at a time.
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
        self._identity: Any = known.get("made") if same else None
        self._write()

    @property
    def wrote(self) -> bool:
        """Whether this command wrote what is at the path, now or before it was killed."""
        try:
            return self._identity is not None and self._identity == _identity_of(self.path.stat())
        except OSError:
            return False

    def note(self, status: os.stat_result) -> None:
        """Record a file that is about to be put in place."""
        self._identity = _identity_of(status)
        self._write()

    def release(self, *, finished: bool) -> None:
        """Release the lock; its file stays only if an unfinished command has written something."""
        try:
            if finished or not self.wrote:
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
        data = json.dumps({**content, "made": self._identity}).encode()
        # A full disk has room for neither this nor the output, whose writer reports that.
        with contextlib.suppress(OSError):
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, data, 0)


def _identity_of(status: os.stat_result) -> list[int]:
    return [status.st_ino, status.st_size, status.st_mtime_ns]


@contextmanager
def locked(
    path: Path, *, command: str = "", busy: Callable[[], None] | None = None
) -> Iterator[Lock]:
    """Hold the lock of an output, a file or a folder, which need not exist.

    Parameters
    ----------
    command
        Identifies the command, so that the same one can resume after a kill.
    busy
        Called before waiting for another process that holds the lock; None: do not wait.

    Raises
    ------
    WriteError
        If another process writes there, or the folder may not be written to.
    """
    path = Path(os.path.realpath(path))
    lock = _acquire(path, command, busy)
    if not _locks:
        _written.clear()  # those of an earlier command in the same process
    _locks.append(lock)
    finished = False
    try:
        yield lock
        finished = True
    finally:
        _locks.remove(lock)
        lock.release(finished=finished)


def _acquire(path: Path, command: str, busy: Callable[[], None] | None) -> Lock:
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
            # The previous holder may have removed the file between our opening and locking it.
            if place.exists() and os.path.samestat(os.fstat(handle), place.stat()):
                return Lock(path, place, handle, command)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def record_written(path: Path, status: os.stat_result) -> None:
    """Record in the lock of an output, if it is held, that its file is about to be put in place."""
    for lock in _locks:
        if lock.path == path:
            lock.note(status)
            _written.append(path)


def clear_lock(path: Path) -> None:
    """Remove the lock file of a writer that was killed after it had finished; others stay."""
    if beside(Path(os.path.realpath(path)), ENDING).exists():
        with contextlib.suppress(WriteError), locked(path):
            pass


def written() -> list[Path]:
    """Outputs that the running command has put in place."""
    return list(dict.fromkeys(_written))


def json_line(record: Mapping[str, Any]) -> str:
    """Write a record as one line of JSONL; values that JSON lacks (a date) become text."""
    line = json.dumps(record, ensure_ascii=False, default=str)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:  # UTF-8 has no lone surrogates, but JSON can escape them
        line = json.dumps(record, default=str)
    return line + "\n"
