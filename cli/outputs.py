"""Checks of what a command writes: against what it reads, and against other writers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from probekit.errors import ProbekitError, UsageError, disk_errors
from probekit.files import check_output, existing, locked, refuse_inside, refuse_reads
from probekit.safe import open_regular

__all__ = ["claim", "claim_folder", "identity", "make_folder", "read_by"]

# Options that never change what is written.
INCIDENTAL = ("overwrite", "as_json")
HDF5 = b"\x89HDF\r\n\x1a\n"


def claim(
    options: Mapping[str, Any],
    *names: str,
    folders: Sequence[str] = (),
    resumes: bool = False,
    incidental: Sequence[str] = (),
) -> None:
    """Check the files that a command writes, and keep other writers out until it ends.

    Every other option that names a file or a folder counts as read, and so do the rows that a
    store among them was made from.

    Parameters
    ----------
    options
        The command's options, by name.
    names
        Options that hold outputs: files, or folders of a table; None is ignored.
    folders
        Options that hold folders to write into.
    resumes
        Whether the command resumes an output that exists, without ``--overwrite``.
    incidental
        Further options that do not change what this command writes: one that failed may be typed
        again with others of them.

    Raises
    ------
    UsageError
        If an output is an input, or two outputs are one.
    OutputExistsError
        If an output exists and may not be replaced. One that the same command wrote before it was
        stopped may.
    WriteError
        If another process writes it.
    """
    context = click.get_current_context()
    outputs = [Path(options[name]) for name in names if options.get(name) is not None]
    overwrite = resumes or bool(options.get("overwrite"))
    reads = list(read_by(options, (*names, *folders)))
    refuse_reads(outputs, reads, overwrite=overwrite and not resumes)
    _refuse_sources(outputs, reads)
    for output in outputs:
        check_output(output, overwrite=True)
        if output.is_dir():
            refuse_inside(output, reads)
    who = identity(context, {k: v for k, v in options.items() if k not in incidental})
    for output in outputs:
        lock = context.with_resource(locked(output, command=who))
        check_output(output, overwrite=overwrite or lock.wrote)


def check_suffix(path: Path, *allowed: str) -> None:
    """Raise UsageError unless the path ends in one of ``allowed``; "" allows a folder."""
    if path.suffix not in allowed:
        endings = " or ".join(filter(None, allowed))
        folder = ", or be a folder" if "" in allowed else ""
        raise UsageError(f"{path} must end in {endings}{folder}: the formats written here.")


def claim_folder(folder: Path) -> None:
    """Make the folder's parents, and keep other commands out of it until this one ends."""
    make_folder(folder.absolute().parent)
    click.get_current_context().with_resource(locked(folder))


def make_folder(folder: Path) -> None:
    """Make a folder and those above it."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


def read_by(options: Mapping[str, Any], outputs: Iterable[str]) -> Iterator[Path]:
    """Files and folders that the options name, those of the outputs aside."""
    return existing(value for name, value in options.items() if name not in tuple(outputs))


def identity(context: click.Context, options: Mapping[str, Any]) -> str:
    """16 hex digits over a command, its options and where it runs."""
    given = {name: value for name, value in options.items() if name not in INCIDENTAL}
    text = json.dumps([context.info_name, os.getcwd(), given], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _refuse_sources(outputs: Iterable[Path], reads: Iterable[Path]) -> None:
    """Raise UsageError if an output would replace the rows that a store was made from."""
    present = [output for output in outputs if output.exists()]
    for read in reads if present else ():
        source = _source(read)
        if source is None:
            continue
        for output in present:
            try:
                refuse_reads([output], [read.resolve().parent / source])
            except UsageError:
                same = True
            else:  # of rows elsewhere a store records only the name
                same = source == output.name
            if same:
                raise UsageError(
                    f"{output} holds the rows that {read} was made from; write to another file."
                )


def _source(path: Path) -> str | None:
    """The source that a store records; None if the file is not a store."""
    from probekit.activations.store import ActivationStore

    try:
        if not path.is_dir():
            with open_regular(path) as file:
                if file.read(len(HDF5)) != HDF5:
                    return None
        with ActivationStore(path, allow_incomplete=True) as store:
            return store.source
    except (OSError, ProbekitError):
        return None
