"""Tasks with true labels that can be read here, from real files if there are any."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from real_files import write_hub

__all__ = ["available_tasks", "real_tasks", "text_hub"]

DOCSTRINGS = "docstrings"


@contextmanager
def text_hub() -> Iterator[list[str]]:
    """Lay out the files of ``PROBEKIT_DATA`` as on the hub, temporarily; yield the tasks' names."""
    data = os.environ.get("PROBEKIT_DATA")
    if data is None:
        yield [DOCSTRINGS]
        return
    before = os.environ.get("PROBEKIT_DATASETS")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PROBEKIT_DATASETS"] = folder
        try:
            yield [DOCSTRINGS, *write_hub(Path(data), Path(folder))]
        finally:
            os.environ.pop("PROBEKIT_DATASETS")
            if before is not None:
                os.environ["PROBEKIT_DATASETS"] = before


def available_tasks() -> list[str]:
    """Names of the tasks with true labels that can be read here."""
    with text_hub() as names:
        return names


def real_tasks() -> dict[str, Callable[[], tuple[list[str], np.ndarray[Any, Any]]]]:
    """Each task's training rows as (texts, class numbers), read when called."""
    names = [name for name in available_tasks() if name != "anthropic-hh"]
    return {name: partial(_read, name) for name in names}


def _read(name: str) -> tuple[list[str], np.ndarray[Any, Any]]:
    from probekit.tasks import get_task

    with text_hub():
        task = get_task(name)
        rows = task.rows(task.pool if task.halves is None else task.halves[0], seed=0)
        return [str(text) for text in rows.contents()], np.asarray(rows.columns["label"])
