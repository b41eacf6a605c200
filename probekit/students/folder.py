"""The folder that a model is trained in, its checkpoints, and how training resumes from them.

A checkpoint counts only if it is complete: the Trainer writes its files one by one and syncs none,
so a mark with sizes and hashes is written last. What a kill, a full disk or a power cut leaves has
no mark, or one that does not match, and is never loaded.
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
    "checkpoint_error",
    "last_checkpoint",
    "mark",
    "new_model",
    "plain_settings",
]

# A file name has 255 bytes at most, of which ``.parquet`` and temporary names take some.
MAX_NAME = 200
_FILE_NAME = re.compile(r"[^./\\\x00-\x1f\x7f\ud800-\udfff][^/\\\x00-\x1f\x7f\ud800-\udfff]*")
# Settings that do not affect the result.
INCIDENTAL = ("model", "device", "report_to", "save_seconds")
NUMBER = (int, float)
NUMBER_OR_NONE = (*NUMBER, type(None))
# Metrics of every training, and further ones of classifiers.
METRICS_SHAPE: dict[str, Any] = {
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
CLASSIFIER_SHAPE: dict[str, Any] = {
    "classes": [str],
    "best_step": (int, type(None)),
    "parameters": int,
    "trained_parameters": int,
    "notes?": [str],
    "truncated?": {"*": int},
}
# What a run creates in its folder; everything else belongs to the user.
CREATED = ("checkpoints", "model", "predictions", "curves")
NOTE, METRICS, REPLACED = "run.json", "metrics.json", ".probekit-replaced"
OURS = (*CREATED, NOTE, METRICS, REPLACED, ".model")
FORMAT = "probekit-training"
# Suffixes of the folders beside it: an unfinished new result, an old one to be removed.
NEW, OLD = ".probekit-new", ".probekit-old"
# Files of a checkpoint: our mark, and the Trainer's own state.
MARK, STATE = "probekit-checkpoint.json", "trainer_state.json"
MARK_FORMAT = "probekit-checkpoint"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class Folder:
    """A training's folder: ``run.json`` is written first, ``metrics.json`` when all is done.

    Attributes
    ----------
    path
        Folder of the finished result.
    work
        Folder of the training: ``path``, or a hidden one beside it while an older result exists.
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
        """Lock a folder for these settings, new or with the same run; nothing is written yet.

        Parameters
        ----------
        resume
            False: start the same run again.
        overwrite
            Replace a finished or another training once the new one is complete.

        Raises
        ------
        OutputExistsError
            If the folder holds anything else.
        WriteError
            If another process trains in the folder.
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
                error.add_note(folder._resume_note())
                raise

    @property
    def model(self) -> Path:
        """Folder of the trained model."""
        return self.work / "model"

    @property
    def metrics(self) -> dict[str, Any] | None:
        """Metrics of the training; None while the run is not finished."""
        path = self.work / METRICS
        if not path.is_file() or _read_note(self.work).get("key") != self.key:
            return None
        metrics = _read(path)
        shape = METRICS_SHAPE if "objective" in metrics else METRICS_SHAPE | CLASSIFIER_SHAPE
        if wrong := misfit(metrics, shape, "metrics"):
            raise DataError(f"{path} is damaged ({wrong}); remove its folder and run again.")
        return metrics

    def begin(self) -> None:
        """Write the run's settings into the folder, once all early checks have passed."""
        note = self.work / NOTE
        if not _leads() or (note.is_file() and _read(note).get("key") == self.key):
            return
        with disk_errors(self.work):
            self.work.mkdir(parents=True, exist_ok=True)
        self._empty()  # of a run without a result, or an abandoned replacement
        settings = load_json(self._settings, str(note))
        with atomic_write(note, "w") as file:
            json.dump({"format": FORMAT, "key": self.key, "settings": settings}, file, indent=1)

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write the metrics, which mark the result as complete, and remove the checkpoints.

        Only now an older result is replaced. Of several processes the first does it.
        """
        if not _leads():
            return
        _sync_tree(self.work / "curves")
        with atomic_write(self.work / METRICS, "w") as file:
            json.dump(dict(metrics), file, indent=1)
        shutil.rmtree(self.work / "checkpoints", ignore_errors=True)
        self._replace_old()

    def last_checkpoint(self) -> str | None:
        """Return the newest complete checkpoint; others are removed, with a note."""
        path = last_checkpoint(self.work / "checkpoints", clear=_leads())
        return None if path is None else str(path)

    def _tidy(self, *, resume: bool) -> None:
        """Remove what a killed run with the same settings left here."""
        if _read_note(self.work).get("key") != self.key:
            return
        shutil.rmtree(self.work / ".model", ignore_errors=True)
        if (self.work / METRICS).is_file():
            shutil.rmtree(self.work / "checkpoints", ignore_errors=True)
            self._replace_old()
        elif not resume:
            self._empty()

    def _empty(self) -> None:
        (self.work / METRICS).unlink(missing_ok=True)
        for name in CREATED:
            shutil.rmtree(self.work / name, ignore_errors=True)

    def _replace_old(self) -> None:
        """Replace an older result by the finished one; at any moment one of them exists.

        Files of the user in the older folder are moved to the new one.
        """
        if self.work == self.path:
            return
        old = beside(self.path, OLD)
        (self.path / REPLACED).touch()  # shows after a kill which of the two is the old one
        try:
            _exchange(self.work, self.path)
        except OSError:  # not supported here: the next run repairs what a kill leaves in between
            self.path.rename(old)
            self.work.rename(self.path)
        else:
            self.work.rename(old)
        sync_folder(self.path.parent)
        self.work = self.path
        _retire(old, self.path)

    def _resume_note(self) -> str:
        """Return what an interruption leaves, and how to resume."""
        step = _newest_step(self.work / "checkpoints")
        if step is not None:
            return (
                f"The checkpoint of step {step} is kept in {self.work / 'checkpoints'}; the same "
                "command resumes from there."
            )
        return (
            f"{self.path} has no checkpoint of this run yet (save_seconds sets how often one is "
            "written); the same command starts again."
        )


@contextmanager
def new_model(folder: Path, model: Any) -> Iterator[Path]:
    """Yield a hidden folder to write a model to, which becomes ``folder`` when it is complete.

    Raises
    ------
    WriteError
        If the disk is full; what was written is removed.
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
    """Whether this is the only process, or the first of several, which alone writes."""
    return os.environ.get("RANK", "0") == "0"


def _text(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, ensure_ascii=False, default=str)


def _key(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _read_note(folder: Path) -> dict[str, Any]:
    """Read a folder's ``run.json``; empty if it does not exist."""
    note = folder / NOTE
    return _read(note) if note.is_file() else {}


def _is_ours(folder: Path) -> bool:
    """Whether a folder's ``run.json`` is ours: by its format, or a key that fits its settings."""
    known = _read_note(folder)
    settings = known.get("settings")
    if not isinstance(settings, dict) or not isinstance(known.get("key"), str):
        return False
    return known.get("format") == FORMAT or known["key"] == _key(_text(settings))


def _has_no_result(folder: Path) -> bool:
    """Whether a run left nothing of value: no result, no complete checkpoint."""
    has_result = any((folder / name).exists() for name in (METRICS, "model", "predictions"))
    return not has_result and _newest_step(folder / "checkpoints") is None


def _place(path: Path, key: str, settings: Mapping[str, Any], *, replace: bool) -> Path:
    """Return the folder to train in; raises OutputExistsError if it holds anything else."""
    if (path / NOTE).exists() and _is_ours(path):
        known = _read_note(path)
        if known["key"] == key:
            return beside(path, NEW) if replace and (path / METRICS).is_file() else path
        if _has_no_result(path):
            return path
        if replace:
            return beside(path, NEW)
        raise OutputExistsError(
            f"{path} holds another run ({_difference(known, settings)}); name another folder, or "
            "pass --overwrite to replace it once the new one is complete."
        )
    if path.exists() and not _is_empty(path):
        raise OutputExistsError(
            f"{path} exists and holds no training of probekit; name another folder."
        )
    return path


def _settle(path: Path) -> None:
    """Finish a replacement that a kill interrupted in :meth:`Folder._replace_old`."""
    new, old = beside(path, NEW), beside(path, OLD)
    if (new / REPLACED).exists() and _is_ours(new):
        new.rename(old)
    (path / REPLACED).unlink(missing_ok=True)
    if not _is_ours(old):
        return
    if path.exists():
        _retire(old, path)
    elif (new / METRICS).is_file():
        new.rename(path)
        _retire(old, path)
    else:
        old.rename(path)


def _retire(old: Path, path: Path) -> None:
    """Remove a training; the user's files in its folder move to ``path`` first."""
    foreign = [each for each in old.iterdir() if each.name not in OURS]
    for each in foreign:
        if not os.path.lexists(path / each.name):
            each.rename(path / each.name)
    if not any(os.path.lexists(each) for each in foreign):
        shutil.rmtree(old, ignore_errors=True)


def check_names(names: Iterable[str]) -> None:
    """Check, before any training, that names of predicted rows can be file names.

    Raises
    ------
    UsageError
        If one is empty or too long, has a slash or a control character, or starts with a dot.
    """
    for name in names:
        if not _FILE_NAME.fullmatch(name) or len(name.encode("utf-8", "replace")) > MAX_NAME:
            raise UsageError(
                f"{one_line(name)[:60]!r} names a set to predict and must be a file name: not "
                f"empty, no slash or control character, no dot at the start, at most "
                f"{MAX_NAME} bytes; give another one, as in --predict test=rows.jsonl."
            )


def _is_empty(path: Path) -> bool:
    # Another process of the same run may be writing run.json, under a hidden name.
    return path.is_dir() and all(each.name.startswith(".") for each in path.iterdir())


def plain_settings(config: FinetuneConfig) -> dict[str, Any]:
    """Return the settings of a configuration that affect the result."""
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
    """Mark a checkpoint as complete, once all of it is on the disk."""
    _sync_tree(folder)
    files = {name: _described(folder / name) for name in _files(folder)}
    with atomic_write(folder / MARK, "w") as file:
        json.dump({"format": MARK_FORMAT, "version": 1, "files": files}, file, indent=1)
    sync_folder(folder.parent)


def checkpoint_error(folder: Path) -> str | None:
    """Return why a checkpoint must not be loaded; None if it is as it was written."""
    try:
        content: Any = read_json(folder / MARK)
        files: Any = content["files"] if content["format"] == MARK_FORMAT else None
        names = set(files)
    except (DataError, KeyError, TypeError):
        return "it is incomplete"
    present = set(_files(folder))
    if present != names:
        return f"{min(present ^ names)} is missing or was not written with it"
    try:
        wrong = [name for name in sorted(names) if _described(folder / name) != files[name]]
    except OSError as error:
        return f"{error.filename} cannot be read"
    return f"{wrong[0]} is damaged" if wrong else None


def last_checkpoint(folder: Path, *, clear: bool) -> Path | None:
    """Find the newest checkpoint that is complete, as is the best one that it names.

    Parameters
    ----------
    folder
        Folder of the checkpoints.
    clear
        Whether to remove incomplete ones, with a note.
    """
    paths = dict(_checkpoints(folder))
    troubles = {step: checkpoint_error(path) for step, path in paths.items()}
    whole = [step for step, trouble in troubles.items() if trouble is None]
    chosen = next((s for s in reversed(whole) if _best(paths[s]) in (None, *whole)), None)
    if clear:
        for step, trouble in troubles.items():
            if trouble is not None or (chosen is not None and step > chosen):
                shutil.rmtree(paths[step], ignore_errors=True)
                onwards = "from the beginning" if chosen is None else f"from step {chosen}"
                why = trouble or "the best one before it is missing"
                sys.stderr.write(
                    f"Note: the checkpoint of step {step} in {folder.parent} is left out ({why}); "
                    f"resuming {onwards}.\n"
                )
    return None if chosen is None else paths[chosen]


def _newest_step(folder: Path) -> int | None:
    """Return the step of the newest complete checkpoint; None without one."""
    path = last_checkpoint(folder, clear=False)
    return None if path is None else int(path.name.rpartition("-")[2])


def _sync_tree(folder: Path) -> None:
    """Wait until every file and name below a folder is on the disk."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            handle = os.open(os.path.join(root, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(root))


def _checkpoints(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield checkpoints by step, the oldest first."""
    checkpoints = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _CHECKPOINT.fullmatch(path.name)
        if match and path.is_dir() and not path.is_symlink():
            checkpoints.append((int(match[1]), path))
    yield from sorted(checkpoints)


def _files(folder: Path) -> Iterator[str]:
    """Yield the files of a checkpoint, except its mark."""
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
    """Return the step of the best evaluation when a checkpoint was written."""
    try:
        state = read_json(checkpoint / STATE)
        best = state.get("best_global_step") if state.get("best_model_checkpoint") else None
    except (DataError, AttributeError):
        return None
    return best if isinstance(best, int) else None


def _exchange(one: Path, other: Path) -> None:
    """Exchange the names of two files or folders in one step (Linux).

    Raises
    ------
    OSError
        If the system or the file system does not support it.
    """
    library = ctypes.CDLL(None, use_errno=True)
    call = getattr(library, "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    here, both = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if call(here, os.fsencode(one), here, os.fsencode(other), both):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
