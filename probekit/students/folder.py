"""The folder that a model is trained in, its checkpoints, and how training resumes from them.

A checkpoint is complete or not there: the Trainer writes its files one by one and syncs none, so a
mark with sizes and hashes is written last. Whatever a kill, a full disk or a power cut leaves has
no mark, or one that does not fit, and is never loaded.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from probekit.errors import DataError, OutputExistsError, UsageError, disk_errors
from probekit.files import atomic_write, beside, locked, sync_folder
from probekit.safe import load_json, misfit, one_line, read_json
from probekit.students.config import FinetuneConfig

__all__ = [
    "Folder",
    "check_names",
    "last_checkpoint",
    "mark",
    "new_model",
    "plain_settings",
    "trouble_of",
]

# A file name has 255 bytes at most, of which ``.parquet`` and temporary names take some.
LONGEST_NAME = 200
_FILE_NAME = re.compile(r"[^./\\\x00-\x1f\x7f\ud800-\udfff][^/\\\x00-\x1f\x7f\ud800-\udfff]*")
# Settings that change nothing in the result.
INCIDENTAL = ("model", "device", "report_to", "save_seconds")
NUMBER = (int, float)
NUMBER_OR_NONE = (*NUMBER, type(None))
# What is measured of every training, and of those to classes.
MEASURED: dict[str, Any] = {
    "rows": int,
    "steps": int,
    "train_loss": NUMBER,
    "history": [dict],
    "seconds": NUMBER,
    "tokens?": int,
    "perplexity_before?": NUMBER_OR_NONE,
    "perplexity_after?": NUMBER_OR_NONE,
    "max_length?": (int, type(None)),
    "truncated?": int,
}
OF_CLASSES: dict[str, Any] = {
    "classes": [str],
    "best_step": (int, type(None)),
    "parameters": int,
    "trained_parameters": int,
    "notes?": [str],
    "truncated?": {"*": int},
}
# What a run makes in its folder; all else there is somebody else's.
MADE = ("checkpoints", "model", "predictions", "curves")
NOTE, METRICS, REPLACED = "run.json", "metrics.json", ".probekit-replaced"
OURS = (*MADE, NOTE, METRICS, REPLACED, ".model")
FORMAT = "probekit-training"
# Endings of the folders beside it: a new result in the making, an old one on its way out.
FRESH, OLD = ".probekit-new", ".probekit-old"
# Of a checkpoint: our mark, and the Trainer's own description.
MARK, STATE = "probekit-checkpoint.json", "trainer_state.json"
MARK_FORMAT = "probekit-checkpoint"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class Folder:
    """Where a model is trained: ``run.json`` first, ``metrics.json`` when all is done.

    Attributes
    ----------
    path
        Where the result is in the end.
    work
        Where it is made: ``path``, or a hidden folder beside it while an older result stays there.
    key
        16 hex digits over the settings.
    """

    def __init__(self, path: Path, work: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.work = path, work
        self._settings = _text(settings)
        self.key = _key(self._settings)

    @classmethod
    @contextmanager
    def claim(
        cls,
        path: Path,
        settings: Mapping[str, Any],
        *,
        resume: bool = True,
        overwrite: bool = False,
    ) -> Iterator[Folder]:
        """Hold a folder for these settings, new or begun with the same; nothing is written yet.

        Parameters
        ----------
        resume
            False: begin again where the same run is there.
        overwrite
            Replace a finished or another training, once the new one is whole.

        Raises
        ------
        OutputExistsError
            If it holds anything else.
        WriteError
            If another process trains there.
        """
        path = Path(os.path.realpath(path))
        if path.exists() and not path.is_dir():
            raise OutputExistsError(f"{path} is a file; name a folder.")
        if _leads():
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path) if _leads() else nullcontext():
            if _leads():
                _settle(path)
            key = _key(_text(settings))
            work = _place(path, key, settings, replace=overwrite or not resume)
            folder = cls(path, work, settings)
            if _leads():
                folder._tidy(resume=resume)
            try:
                yield folder
            except KeyboardInterrupt as error:
                error.add_note(folder._kept())
                raise

    @property
    def model(self) -> Path:
        """Folder of the trained model."""
        return self.work / "model"

    @property
    def metrics(self) -> dict[str, Any] | None:
        """What was measured; None while the run is not finished."""
        path = self.work / METRICS
        if not path.is_file() or _known(self.work).get("key") != self.key:
            return None
        found = _read(path)
        shape = MEASURED if "objective" in found else MEASURED | OF_CLASSES
        if wrong := misfit(found, shape, "metrics"):
            raise DataError(f"{path} is damaged ({wrong}); remove its folder and run again.")
        return found

    def begin(self) -> None:
        """Note whose folder it is, when all that can be refused early has been checked."""
        note = self.work / NOTE
        if not _leads() or (note.is_file() and _read(note).get("key") == self.key):
            return
        with disk_errors(self.work):
            self.work.mkdir(parents=True, exist_ok=True)
        self._empty()  # of a run that came to nothing, or a replacement that was given up
        settings = load_json(self._settings, str(note))
        with atomic_write(note, "w") as file:
            json.dump({"format": FORMAT, "key": self.key, "settings": settings}, file, indent=1)

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write the metrics, which says that all else is there, and drop the checkpoints.

        An older result gives way only now. Of several processes the first does it.
        """
        if not _leads():
            return
        _sync_tree(self.work / "curves")
        with atomic_write(self.work / METRICS, "w") as file:
            json.dump(dict(metrics), file, indent=1)
        shutil.rmtree(self.work / "checkpoints", ignore_errors=True)
        self._take_over()

    def last_checkpoint(self) -> str | None:
        """Return the newest checkpoint that is whole; others are removed, with a note."""
        found = last_checkpoint(self.work / "checkpoints", clear=_leads())
        return None if found is None else str(found)

    def _tidy(self, *, resume: bool) -> None:
        """Clear what a kill of the same run left here."""
        if _known(self.work).get("key") != self.key:
            return
        shutil.rmtree(self.work / ".model", ignore_errors=True)
        if (self.work / METRICS).is_file():
            shutil.rmtree(self.work / "checkpoints", ignore_errors=True)
            self._take_over()
        elif not resume:
            self._empty()

    def _empty(self) -> None:
        (self.work / METRICS).unlink(missing_ok=True)
        for made in MADE:
            shutil.rmtree(self.work / made, ignore_errors=True)

    def _take_over(self) -> None:
        """Put a finished result in the place of an older one: at any moment one of them is there.

        What the older folder holds that is not ours moves over.
        """
        if self.work == self.path:
            return
        old = beside(self.path, OLD)
        (self.path / REPLACED).touch()  # tells, after a kill, which of the two is on its way out
        try:
            _exchange(self.work, self.path)
        except OSError:  # no such call here: the next run mends what a kill leaves in between
            self.path.rename(old)
            self.work.rename(self.path)
        else:
            self.work.rename(old)
        sync_folder(self.path.parent)
        self.work = self.path
        _retire(old, self.path)

    def _kept(self) -> str:
        """What an interruption leaves, and how to go on."""
        step = _newest_step(self.work / "checkpoints")
        if step is not None:
            return (
                f"The checkpoint of step {step} is kept in {self.work / 'checkpoints'}; the same "
                "command goes on from there."
            )
        return (
            f"{self.path} holds no checkpoint of it yet (save_seconds says how often one is "
            "written); the same command begins again."
        )


@contextmanager
def new_model(folder: Path, model: Any) -> Iterator[Path]:
    """Give a hidden folder to write a model to, which becomes ``folder`` when it is whole.

    Raises
    ------
    WriteError
        If the disk is full; what was written is gone then.
    """
    beside_it = folder.with_name(f".{folder.name}")
    shutil.rmtree(beside_it, ignore_errors=True)
    needed = sum(p.numel() * p.element_size() for p in model.parameters())
    try:
        with disk_errors(folder, needed=needed):
            yield beside_it
            _sync_tree(beside_it)
            shutil.rmtree(folder, ignore_errors=True)
            beside_it.rename(folder)
    except BaseException:
        shutil.rmtree(beside_it, ignore_errors=True)
        raise


def _leads() -> bool:
    """Whether this is the one process, or the first of several, which alone writes."""
    return os.environ.get("RANK", "0") == "0"


def _text(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, ensure_ascii=False, default=str)


def _key(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _known(folder: Path) -> dict[str, Any]:
    """What a folder's note says; empty where there is none."""
    note = folder / NOTE
    return _read(note) if note.is_file() else {}


def _is_ours(folder: Path) -> bool:
    """Whether a folder's note is one of ours: it says so, or its key is that of its settings."""
    known = _known(folder)
    settings = known.get("settings")
    if not isinstance(settings, dict) or not isinstance(known.get("key"), str):
        return False
    return known.get("format") == FORMAT or known["key"] == _key(_text(settings))


def _came_to_nothing(folder: Path) -> bool:
    """Whether a run left nothing that cost time: no result, no whole checkpoint."""
    made = any((folder / name).exists() for name in (METRICS, "model", "predictions"))
    return not made and _newest_step(folder / "checkpoints") is None


def _place(path: Path, key: str, settings: Mapping[str, Any], *, replace: bool) -> Path:
    """Where a run is made; refuses a folder that holds anything else."""
    if (path / NOTE).exists() and _is_ours(path):
        known = _known(path)
        if known["key"] == key:
            return beside(path, FRESH) if replace and (path / METRICS).is_file() else path
        if _came_to_nothing(path):
            return path
        if replace:
            return beside(path, FRESH)
        raise OutputExistsError(
            f"{path} holds another run ({_difference(known, settings)}); name another folder, or "
            "pass --overwrite to replace it once the new one is whole."
        )
    if path.exists() and not _is_empty(path):
        raise OutputExistsError(
            f"{path} exists already and holds no training of probekit; name another folder."
        )
    return path


def _settle(path: Path) -> None:
    """Bring to its end what a kill interrupted in :meth:`Folder._take_over`."""
    fresh, old = beside(path, FRESH), beside(path, OLD)
    if (fresh / REPLACED).exists() and _is_ours(fresh):
        fresh.rename(old)
    (path / REPLACED).unlink(missing_ok=True)
    if not _is_ours(old):
        return
    if path.exists():
        _retire(old, path)
    elif (fresh / METRICS).is_file():
        fresh.rename(path)
        _retire(old, path)
    else:
        old.rename(path)


def _retire(old: Path, path: Path) -> None:
    """Remove a training; what in its folder is not ours moves to ``path`` first."""
    foreign = [each for each in old.iterdir() if each.name not in OURS]
    for each in foreign:
        if not os.path.lexists(path / each.name):
            each.rename(path / each.name)
    if not any(os.path.lexists(each) for each in foreign):
        shutil.rmtree(old, ignore_errors=True)


def check_names(names: Iterable[str]) -> None:
    """Refuse names of predicted rows that cannot be files, before anything is trained.

    Raises
    ------
    UsageError
        If one is empty, holds a slash or a control character, begins with a dot or is long.
    """
    for name in names:
        if not _FILE_NAME.fullmatch(name) or len(name.encode("utf-8", "replace")) > LONGEST_NAME:
            raise UsageError(
                f"{one_line(name)[:60]!r} names a set to predict and is to be a file: not empty, "
                f"without slashes and control characters, not beginning with a dot, at most "
                f"{LONGEST_NAME} bytes; give another one, as in --predict test=rows.jsonl."
            )


def _is_empty(path: Path) -> bool:
    # Another process of the same run may be writing its note, under a hidden name.
    return path.is_dir() and all(each.name.startswith(".") for each in path.iterdir())


def plain_settings(config: FinetuneConfig) -> dict[str, Any]:
    """Settings of a configuration that decide the result."""
    return {k: v for k, v in config.to_json().items() if k not in INCIDENTAL}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except DataError:
        content = None
    if not isinstance(content, dict):
        raise DataError(f"{path} is damaged; remove its folder and run again.")
    return content


def _difference(known: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    before = known.get("settings", {})
    flat, now = ({**each, **each.get("config", {})} for each in (before, settings))
    names = [n for n in now if n != "config" and flat.get(n) != _plain(now[n])]
    return f"{', '.join(names)} differ" if names else "its settings differ"


def _plain(value: Any) -> Any:
    return load_json(json.dumps(value, default=str), "settings")


def mark(folder: Path) -> None:
    """Say that a checkpoint is complete, once all of it is on the disk."""
    _sync_tree(folder)
    files = {name: _described(folder / name) for name in _files(folder)}
    with atomic_write(folder / MARK, "w") as file:
        json.dump({"format": MARK_FORMAT, "version": 1, "files": files}, file, indent=1)
    sync_folder(folder.parent)


def trouble_of(folder: Path) -> str | None:
    """Say why a checkpoint must not be loaded; None where it is as it was written."""
    try:
        known: Any = read_json(folder / MARK)
        files: Any = known["files"] if known["format"] == MARK_FORMAT else None
        names = set(files)
    except (DataError, KeyError, TypeError):
        return "it was not written to its end"
    found = set(_files(folder))
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
    paths = dict(_checkpoints(folder))
    troubles = {step: trouble_of(path) for step, path in paths.items()}
    whole = [step for step, trouble in troubles.items() if trouble is None]
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


def _newest_step(folder: Path) -> int | None:
    """Step of the newest checkpoint that is whole; None where there is none."""
    path = last_checkpoint(folder, clear=False)
    return None if path is None else int(path.name.rpartition("-")[2])


def _sync_tree(folder: Path) -> None:
    """Wait until every file below a folder, and every name, is on the disk."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            handle = os.open(os.path.join(root, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(root))


def _checkpoints(folder: Path) -> Iterator[tuple[int, Path]]:
    """Checkpoints by step, the oldest first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        matched = _CHECKPOINT.fullmatch(path.name)
        if matched and path.is_dir() and not path.is_symlink():
            found.append((int(matched[1]), path))
    yield from sorted(found)


def _files(folder: Path) -> Iterator[str]:
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


def _exchange(one: Path, other: Path) -> None:
    """Give two files or folders each other's name, at once (Linux).

    Raises
    ------
    OSError
        If the system or the file system cannot do that.
    """
    library = ctypes.CDLL(None, use_errno=True)
    call = getattr(library, "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    here, both = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if call(here, os.fsencode(one), here, os.fsencode(other), both):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
