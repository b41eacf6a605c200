"""Checkpoints that are complete or not there: a mark with sizes and hashes is written last.

The Trainer writes its files one by one and syncs none. Whatever a kill, a full disk or a power cut
leaves of them has no mark, or one that does not fit, and is never loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from probekit.errors import DataError
from probekit.files import atomic_write, sync_folder
from probekit.safe import read_json

__all__ = ["last_checkpoint", "mark", "newest_step", "sync_tree", "trouble_of"]

MARK, STATE = "probekit-checkpoint.json", "trainer_state.json"
FORMAT, VERSION = "probekit-checkpoint", 1
_NAME = re.compile(r"checkpoint-(\d+)")


def mark(folder: Path) -> None:
    """Say that a checkpoint is complete, once all of it is on the disk."""
    sync_tree(folder)
    files = {name: _described(folder / name) for name in _names(folder)}
    with atomic_write(folder / MARK, "w") as file:
        json.dump({"format": FORMAT, "version": VERSION, "files": files}, file, indent=1)
    sync_folder(folder.parent)


def trouble_of(folder: Path) -> str | None:
    """Say why a checkpoint must not be loaded; None where it is as it was written."""
    try:
        known: Any = read_json(folder / MARK)
        files: Any = known["files"] if known["format"] == FORMAT else None
        names = set(files)
    except (DataError, KeyError, TypeError):
        return "it was not written to its end"
    found = set(_names(folder))
    if found != names:
        return f"{min(found ^ names)} is missing or was not written with it"
    try:
        wrong = [name for name in sorted(names) if _described(folder / name) != files[name]]
    except OSError as error:
        return f"{error.filename} cannot be read"
    return f"{wrong[0]} is damaged" if wrong else None


def last_checkpoint(folder: Path, *, clear: bool) -> Path | None:
    """Find the newest checkpoint that is whole, the best one that it names included.

    Parameters
    ----------
    folder
        Where the checkpoints lie.
    clear
        Whether to remove those that are not, and say so.
    """
    troubles = {step: trouble_of(path) for step, path in _all(folder)}
    whole = [step for step, trouble in troubles.items() if trouble is None]
    paths = dict(_all(folder))
    chosen = next((s for s in reversed(whole) if _best(paths[s]) in (None, *whole)), None)
    if clear:
        for step, trouble in troubles.items():
            if trouble is not None or (chosen is not None and step > chosen):
                shutil.rmtree(paths[step], ignore_errors=True)
                onwards = "from the beginning" if chosen is None else f"from step {chosen}"
                why = trouble or "the best one before it is gone"
                sys.stderr.write(
                    f"Note: the checkpoint of step {step} in {folder.parent} is left out ({why}); "
                    f"going on {onwards}.\n"
                )
    return None if chosen is None else paths[chosen]


def newest_step(folder: Path) -> int | None:
    """Step of the newest checkpoint that is whole; None where there is none."""
    found = last_checkpoint(folder, clear=False)
    return None if found is None else int(found.name.rpartition("-")[2])


def sync_tree(folder: Path) -> None:
    """Wait until every file below a folder, and every name, is on the disk."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            handle = os.open(os.path.join(root, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(root))


def _all(folder: Path) -> Iterator[tuple[int, Path]]:
    """Checkpoints by step, the oldest first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        matched = _NAME.fullmatch(path.name)
        if matched and path.is_dir() and not path.is_symlink():
            found.append((int(matched[1]), path))
    yield from sorted(found)


def _names(folder: Path) -> Iterator[str]:
    """Files below a checkpoint, but for its mark."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name != MARK and (path.is_symlink() or not path.is_dir()):
            yield name


def _described(path: Path) -> dict[str, Any]:
    if path.is_symlink() or not path.is_file():
        return {}
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _best(checkpoint: Path) -> int | None:
    """Step of the evaluation that was best when a checkpoint was written."""
    try:
        state = read_json(checkpoint / STATE)
        best = state.get("best_global_step") if state.get("best_model_checkpoint") else None
    except (DataError, AttributeError):
        return None
    return best if isinstance(best, int) else None
