"""The folder that a model is trained in, which can be gone on with."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from probekit.errors import DataError, OutputExistsError, UsageError
from probekit.files import atomic_write
from probekit.safe import load_json, misfit, one_line, read_json
from probekit.students.config import FinetuneConfig

__all__ = ["Folder", "check_names", "plain_settings"]

# A file name has 255 bytes at most, of which ``.parquet`` and temporary names take some.
LONGEST_NAME = 200
_FILE_NAME = re.compile(r"[^./\\\x00-\x1f\x7f\ud800-\udfff][^/\\\x00-\x1f\x7f\ud800-\udfff]*")
# Settings that change nothing in the result.
INCIDENTAL = ("model", "device", "report_to", "save_seconds")
NUMBER = (int, float)
NUMBER_OR_NONE = (*NUMBER, type(None))
# What is measured of every training, and of those to classes.
METRICS: dict[str, Any] = {
    "rows": int,
    "steps": int,
    "train_loss": NUMBER,
    "history": [dict],
    "seconds": NUMBER,
    "tokens?": int,
    "perplexity_before?": NUMBER_OR_NONE,
    "perplexity_after?": NUMBER_OR_NONE,
}
OF_CLASSES: dict[str, Any] = {
    "classes": [str],
    "best_step": (int, type(None)),
    "parameters": int,
    "trained_parameters": int,
}
# Folders that a run makes beside its two files.
MADE = ("checkpoints", "model", "predictions", "curves")


@dataclass(frozen=True)
class Folder:
    """Where a model is trained: ``run.json`` first, ``metrics.json`` when all is done."""

    path: Path
    key: str

    @classmethod
    def claim(cls, path: Path, settings: Mapping[str, Any], *, resume: bool = True) -> Folder:
        """Take a folder for these settings, new or begun with the same.

        ``resume=False`` empties one that holds the same run.

        Raises
        ------
        OutputExistsError
            Where it holds anything else.
        """
        text = json.dumps(settings, sort_keys=True, ensure_ascii=False, default=str)
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        note = path / "run.json"
        if note.is_file():
            known = _read(note)
            if known.get("key") != key:
                raise OutputExistsError(
                    f"{path} holds another run ({_difference(known, settings)}); name another "
                    "folder."
                )
            if not resume:
                (path / "metrics.json").unlink(missing_ok=True)
                for made in MADE:
                    shutil.rmtree(path / made, ignore_errors=True)
        elif path.exists() and not _is_empty(path):
            raise OutputExistsError(f"{path} exists already and holds no run; name another folder.")
        else:
            path.mkdir(parents=True, exist_ok=True)
            with atomic_write(note, "w") as file:
                json.dump({"key": key, "settings": load_json(text, str(note))}, file, indent=1)
        return cls(path, key)

    @property
    def model(self) -> Path:
        """Folder of the trained model."""
        return self.path / "model"

    @property
    def metrics(self) -> dict[str, Any] | None:
        """What was measured; None while the run is not finished."""
        path = self.path / "metrics.json"
        if not path.is_file():
            return None
        found = _read(path)
        shape = METRICS if "objective" in found else METRICS | OF_CLASSES
        if wrong := misfit(found, shape, "metrics"):
            raise DataError(f"{path} is damaged ({wrong}); remove its folder and run again.")
        return found

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write the metrics, which says that all else is there, and drop the checkpoints.

        Of several processes the first does it.
        """
        if os.environ.get("RANK", "0") != "0":
            return
        with atomic_write(self.path / "metrics.json", "w") as file:
            json.dump(dict(metrics), file, indent=1)
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def last_checkpoint(self) -> str | None:
        """Return the newest checkpoint that was written to its end."""
        while (found := self._newest()) is not None:
            # The Trainer writes its state last.
            if (Path(found) / "trainer_state.json").is_file():
                return found
            shutil.rmtree(found)
        return None

    def _newest(self) -> str | None:
        folder = self.path / "checkpoints"
        find: Any = get_last_checkpoint
        found: str | None = find(str(folder)) if folder.is_dir() else None
        return found


def check_names(names: Iterable[str]) -> None:
    """Refuse names of predicted rows that cannot be files, before anything is trained.

    Raises
    ------
    UsageError
        Where one is empty, holds a slash or a control character, begins with a dot or is long.
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
