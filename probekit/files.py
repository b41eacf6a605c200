"""Writing files: whole or not at all, by one writer at a time, never onto what is read.

A lock beside an output, which the system releases when its process ends, keeps a second writer
away. It also records what its command has put in place, so that the same command can resume after
a kill between two of its outputs.

A JSONL file has no schema, so ``x.jsonl.meta.json`` beside it keeps what probekit notes about it.
The two are one commit though they are two files: the second is written first, names the first by
size and hash, and keeps what it said of the file before under ``before`` until the first is in
place. Whenever a writer is stopped, exactly one of the two descriptions fits what stands there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from probekit.errors import DataError, OutputExistsError, UsageError, WriteError, disk_errors
from probekit.safe import load_json, printable, read_json

__all__ = [
    "UNSUPPORTED",
    "Lock",
    "atomic_write",
    "beside",
    "check_format",
    "check_output",
    "clear_lock",
    "drop_sidecar",
    "existing",
    "json_line",
    "locked",
    "read_sidecar",
    "refuse_inside",
    "refuse_reads",
    "save_table",
    "sidecar",
    "sync_folder",
    "try_lock",
    "write_table",
    "written",
]

# Ending of a file that is being written; what a kill leaves is known by it.
TEMPORARY = ".probekit-part"
# Some network file systems have no locks, and say so in one of these ways.
UNSUPPORTED = (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
ENDING = ".probekit-lock"
LONGEST = 200
_warned: list[Path] = []
_held: list[Lock] = []
_written: list[Path] = []


def check_output(path: str | Path, *, overwrite: bool) -> Path:
    """Return ``path`` ready to be written, or refuse before any work is done."""
    path = Path(path)
    if path.is_dir():
        raise OutputExistsError(f"{path} is a folder, not a file; name a file to write.")
    if path.exists() and not path.is_file():
        raise OutputExistsError(f"{path} is a pipe, socket or device; name a file to write.")
    if path.exists() and not overwrite:
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
        _check_sidecar(path)
    return path


def refuse_reads(
    outputs: Sequence[Path], reads: Iterable[object], *, overwrite: bool = False
) -> None:
    """Refuse outputs that are inputs, or of which two are one file, before any work.

    Names say little about that: links, hard links, relative paths, ``x.jsonl.meta.json`` beside
    ``x.jsonl`` and folders all lead to the same files.

    Parameters
    ----------
    outputs
        Files to write; what stands there may be replaced.
    reads
        Whatever is read: what names no file or folder here is passed over.
    overwrite
        Whether what stands there may be replaced; then it must not lie in a folder that is read
        (a model, a saved data set) either.

    Raises
    ------
    UsageError
        With the output concerned.
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
    """Refuse to replace a folder that holds an input.

    Raises
    ------
    UsageError
        With the input concerned.
    """
    for read in existing(reads):
        if _inside(read, folder):
            raise UsageError(
                f"{read} lies in {folder}, which would be replaced; copy it elsewhere first, or "
                "name another folder."
            )


def existing(names: Iterable[object]) -> Iterator[Path]:
    """Paths among what a user named: a file, ``NAME=FILE``, ``MODEL@layers=K``, ``A,B``."""
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
                except (OSError, ValueError):  # too long or no path at all
                    continue


def _files(path: Path) -> tuple[Path, ...]:
    """A file, and the one that describes it."""
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
    """Write a file beside ``path`` and move it there at the end, so that a reader never sees half.

    A failure (a full disk, Ctrl-C) leaves whatever stood at ``path`` as it was, and what a kill
    leaves beside it is cleared by the next write.

    Parameters
    ----------
    needed
        Bytes of the file, where that is known, for the sentence about a full disk.

    Raises
    ------
    WriteError
        Where the disk is full or may not be written.
    """
    path = Path(os.path.realpath(path))  # a link stays one; what it leads to is replaced
    encoding = None if "b" in mode else "utf-8"
    with disk_errors(path, needed=needed):
        _clear_leftovers(path)
        handle, temporary = _part(path)
        try:
            with os.fdopen(handle, mode, encoding=encoding) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                umask = os.umask(0)
                os.umask(umask)
                os.chmod(temporary, 0o666 & ~umask)
                note_made(path, os.fstat(file.fileno()))
                os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _part(path: Path) -> tuple[int, str]:
    """Make the locked file that becomes ``path``; its lock says that its writer is alive."""
    while True:
        start = beside(path, ".").name
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=start, suffix=TEMPORARY)
        if try_lock(handle, path) and os.path.exists(name):
            return handle, name
        os.close(handle)  # another writer of this path took it for a leftover


def _clear_leftovers(path: Path) -> None:
    """Remove what a killed write of ``path`` has left beside it, and nothing else."""
    pattern = re.escape(beside(path, ".").name) + r"[a-z0-9_]{8}" + re.escape(TEMPORARY)
    try:
        names = [name for name in os.listdir(path.parent) if re.fullmatch(pattern, name)]
    except OSError:
        return
    for name in names:
        with contextlib.suppress(OSError), (path.parent / name).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (path.parent / name).unlink()


def sync_folder(folder: Path) -> None:
    """Wait until a folder's names are on the disk, where its file system can say so."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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


def json_line(record: Mapping[str, Any]) -> str:
    """Write a record as one line of JSONL; what is no JSON (a date) becomes its text."""
    line = json.dumps(record, ensure_ascii=False, default=str)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate is no UTF-8, but JSON can escape it
        line = json.dumps(record, default=str)
    return line + "\n"


def write_table(
    columns: Mapping[str, Any], path: str | Path, about: Mapping[str, Any] | None = None
) -> None:
    """Write columns as Parquet or JSONL, by the path's ending, with what probekit knows of them.

    ``about`` (JSON types) stands in the schema of Parquet under ``probekit``, and beside JSONL in
    ``<path>.meta.json``: both files are one commit.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    described = {"probekit": json.dumps(about, ensure_ascii=False)} if about is not None else {}
    try:
        table = pa.table(dict(columns)).replace_schema_metadata(described)
    except UnicodeEncodeError as error:
        raise DataError(f"{path} cannot hold text that is no Unicode: {error.object!r}.") from None
    suffix = Path(path).suffix.lower()
    if suffix == ".parquet":
        with atomic_write(path, needed=table.nbytes) as file:
            pq.write_table(table, file)
    elif suffix == ".jsonl":
        _write_jsonl(table, Path(path), about)
    else:
        raise DataError(f"{path} has the ending {suffix!r}; allowed are .parquet and .jsonl.")


def save_table(
    columns: Mapping[str, Any], path: str | Path, format_name: str, version: int, **metadata: Any
) -> None:
    """Write columns as :func:`write_table` does, described by format name, version and metadata."""
    write_table(columns, path, {"format": format_name, "version": version, **metadata})


def check_format(
    metadata: Mapping[str, Any], path: str | Path, format_name: str, version: int, *, repair: str
) -> None:
    """Check that metadata are those of :func:`save_table`, in the version that is read here.

    Parameters
    ----------
    path
        The file that they are of, for the message.
    format_name, version
        Such as ``probekit-verdicts`` and 1.
    repair
        What makes such a file.

    Raises
    ------
    DataError
        For another format or version.
    """
    what = format_name.removeprefix("probekit-")
    if metadata.get("format") != format_name:
        raise DataError(f"{path} holds no {what} metadata; make it with {repair}.")
    if metadata.get("version") != version:
        raise DataError(
            f"{path} has version {metadata.get('version')!r} of the {what} format and this "
            f"probekit reads version {version}; install a newer probekit."
        )


def _write_jsonl(table: Any, path: Path, about: Mapping[str, Any] | None) -> None:
    if about is not None:
        _check_sidecar(path)
    digest = hashlib.sha256()
    with atomic_write(path, needed=table.nbytes) as file:
        for start in range(0, table.num_rows, 8192):
            for record in table.slice(start, 8192).to_pylist():
                line = json_line(record).encode("utf-8")
                digest.update(line)
                file.write(line)
        data = {"bytes": file.tell(), "sha256": digest.hexdigest()}
        # First the description of both, the old and the new; the data decide which holds.
        described = _with_before(path, {**(about or {}), "data": data})
        if about is not None or "before" in described:
            _write_sidecar(path, described)
    if about is None:
        drop_sidecar(path)
    elif described.pop("before", None) is not None:
        _write_sidecar(path, described)


def _write_sidecar(path: Path, about: Mapping[str, Any]) -> None:
    with atomic_write(sidecar(path), "w") as file:
        file.write(json.dumps(about, ensure_ascii=False) + "\n")


def sidecar(path: str | Path) -> Path:
    """Name the file beside ``path`` that describes it."""
    return Path(f"{path}.meta.json")


def read_sidecar(path: str | Path) -> dict[str, Any] | None:
    """Read what stands beside a file about it; None where nothing readable does.

    Raises
    ------
    DataError
        Where the two do not belong together.
    """
    path = Path(path)
    known = _load(sidecar(path))
    if known is None or "data" not in known:
        return known
    for candidate in (known, known.get("before")):
        if isinstance(candidate, dict) and _fits(candidate, path):
            return {name: value for name, value in candidate.items() if name != "before"}
    raise DataError(
        f"{path} is not the file that {sidecar(path)} describes: one of the two was changed or "
        "replaced; make the file again with --overwrite, or remove the second one to read the "
        "first without its class names."
    )


def _with_before(path: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Add to a new description the one of what stands at ``path`` now, if there is one."""
    try:
        before = read_sidecar(path) if path.is_file() and _is_ours(sidecar(path)) else None
    except DataError:
        before = None
    return dict(about) if before is None else {**about, "before": before}


def drop_sidecar(path: str | Path) -> None:
    """Remove a description of ours that is of another file than the one at ``path`` now."""
    if _is_ours(sidecar(path)):
        sidecar(path).unlink(missing_ok=True)


def _check_sidecar(path: str | Path) -> None:
    """Refuse to describe ``path`` in a file that is somebody else's.

    Raises
    ------
    OutputExistsError
        Where such a file stands there.
    """
    place = sidecar(path)
    if place.exists() and not _is_ours(place):
        raise OutputExistsError(
            f"{place} would be replaced and was not written by probekit; remove it, or name "
            "another output."
        )


def _is_ours(place: Path) -> bool:
    known = _load(place)
    return known is not None and (
        "data" in known or str(known.get("format")).startswith("probekit-")
    )


def _fits(about: Mapping[str, Any], path: Path) -> bool:
    data = about.get("data")
    if data is None:  # written before descriptions named their file
        return True
    try:
        if not isinstance(data, dict) or path.stat().st_size != data.get("bytes"):
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == data.get("sha256")
    except OSError:
        return False


def _load(path: Path) -> dict[str, Any] | None:
    try:
        found = read_json(path)
    except DataError:
        return None
    return found if isinstance(found, dict) else None
