"""What the store's writer asks of the file system: one writer, space set aside, whole files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from probekit.errors import StoreError, disk_errors
from probekit.files import UNSUPPORTED, sync_folder, try_lock

__all__ = [
    "full_disk_told",
    "lock",
    "move_into_place",
    "new_file",
    "open_to_write",
    "reserve",
    "sync",
    "temporary_name",
    "write_at",
]


def open_to_write(path: Path, *, create: bool = False) -> BinaryIO:
    """Open a file without a buffer of its own, for reading and writing."""
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        raise StoreError(f"{path} cannot be opened for writing: {error.strerror}.") from None
    return cast(BinaryIO, os.fdopen(handle, "r+b", buffering=0))


def lock(file: BinaryIO, path: Path, *, shown: Path) -> None:
    """Take the one lock of a store's writer, which the system gives back when the process ends."""
    if not try_lock(file, shown):
        raise StoreError(
            f"{shown} is being written by another process (or held open by a program that locks "
            "it); wait until that has ended, or name another output."
        )
    # Between opening and locking, the process that held the lock may have moved the file away.
    if not (path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
        raise StoreError(f"{shown} was replaced by another process just now; run this again.")


def temporary_name(path: Path) -> Path:
    """Name a file while it is made; always the same one, so that the next run clears it away."""
    return path.with_name(f".{path.name}.new")


@contextmanager
def new_file(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Give an empty, locked file beside ``path`` and its name; both vanish if the block fails.

    The file stays open and locked after the block, which moves it into place itself.
    """
    temporary = temporary_name(path)
    file = open_to_write(temporary, create=True)
    try:
        lock(file, temporary, shown=path)
        try:
            file.truncate(0)  # a kill may have left anything here, and much of it
            yield file, temporary
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except BaseException:
        file.close()
        raise


def move_into_place(file: BinaryIO, temporary: Path, path: Path) -> None:
    """Give a finished file its name; a power cut leaves the old file or the new one there."""
    os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def reserve(file: BinaryIO, size: int) -> None:
    """Have the file system set ``size`` bytes aside, or raise its OSError (full, over a limit)."""
    # Asked first: a file system may fill up to the last block before it says that it cannot.
    status, disk = os.fstat(file.fileno()), os.fstatvfs(file.fileno())
    missing = size - status.st_blocks * 512
    if disk.f_blocks and missing > disk.f_bavail * disk.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    allocate: Callable[[int, int, int], None] | None = getattr(os, "posix_fallocate", None)
    if allocate is not None:
        try:
            allocate(file.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
    # No such call here (macOS, some network file systems): the size is set, room is only likely.
    if size > status.st_size:
        file.truncate(size)


def full_disk_told(
    path: Path, needed: int, *, advice: str = "or store fewer layers or a smaller dtype"
) -> AbstractContextManager[None]:
    """Turn a full disk, quota or size limit into one sentence: what was needed, what there is."""
    return disk_errors(path, needed=needed, error=StoreError, advice=advice)


def write_at(file: BinaryIO, data: memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``; unlike a map, a write on a full disk can be refused."""
    while len(data):
        written = os.pwrite(file.fileno(), data, offset)
        data, offset = data[written:], offset + written


def sync(file: BinaryIO) -> None:
    """Wait until what was written is on the disk."""
    getattr(os, "fdatasync", os.fsync)(file.fileno())
