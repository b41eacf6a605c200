"""``probekit run``: floor, students and ceiling of a whole experiment, in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from probekit.cli.options import emit, json_option, say

__all__ = ["command"]

# Flag -> field of the configuration; what is given on the command line overrules the file.
LISTS = ("task", "weak", "strong", "losses", "probes", "actions", "chain")
PLAIN = ("weak_on", "rounds", "supervisor_rows", "student_rows", "test_rows", "random_drops")


def _list(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


@click.command("run")
@click.option("--config", type=click.Path(path_type=Path), help="YAML file with any of the fields.")
@click.option("--preset", help="Start from a published experiment: burns or eleuther.")
@click.option("--task", help="Tasks, or files of rows with a column label, comma-separated.")
@click.option("--weak", help="Models of the weak supervisors, comma-separated.")
@click.option("--strong", help="Models of students and ceiling, comma-separated.")
@click.option("--losses", help="Losses on plain weak labels; the first is all others' (xent).")
@click.option("--probes", help="knn, logreg, topofilter (all).")
@click.option("--actions", help="filter, relabel, relabel-hard (filter,relabel).")
@click.option("--layer", help="Layer that the probes read: a number, mid or last (mid).")
@click.option("--seeds", help="Comma-separated seeds, or how many (1).")
@click.option("--rounds", type=int, help="Strong-to-strong rounds (1).")
@click.option("--chain", help="Bootstrapping: models, weakest first, comma-separated.")
@click.option("--lm-first", is_flag=True, help="Language-model loss before student and ceiling.")
@click.option("--weak-on", help="heldout or train: whose rows the supervisor labels (heldout).")
@click.option("--curves", is_flag=True, help="Keep predictions of every evaluation.")
@click.option("--supervisor-rows", type=int, help="Rows with ground truth for the supervisor.")
@click.option("--student-rows", type=int, help="Rows with weak labels for the student.")
@click.option("--test-rows", type=int, help="Rows to test on.")
@click.option("--random-drops", type=int, help="Random drops per size of filter (1).")
@click.option("--epochs", type=float, help="Passes of every finetuning over its rows.")
@click.option("--weak-lr", type=float, help="Learning rate of the supervisors.")
@click.option("--strong-lr", type=float, help="Learning rate of students and ceilings.")
@click.option("--lora", is_flag=True, help="Train low-rank adapters instead of all weights.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any field, such as finetune.batch_size=16 or probe_options.knn.k=50; repeatable.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("runs/run"),
    help="Folder of the run; goes on where it stopped.",
)
@click.option(
    "--steps",
    type=click.Path(path_type=Path),
    help="Folder of the steps that runs share (beside the run: steps).",
)
@click.option("--dry-run", is_flag=True, help="Print steps, rows, tokens and disk, and do nothing.")
@json_option
def command(**options: Any) -> None:
    """Measure what a student recovers of the gap between weak supervisor and ceiling.

    The weak model, finetuned on one half of the rows, labels the other; students of the strong
    model train on these labels, as they are and cleaned by probes, between floor and ceiling.

    Example: probekit run --task docstrings --weak MODEL@layers=1 --strong MODEL -o runs/first
    """
    from probekit.experiments.plan import plan, plan_text
    from probekit.experiments.run import Run, open_folder

    config = _config(options)
    folder = options["output"]
    steps = options["steps"] or folder.absolute().parent / "steps"
    if options["dry_run"]:
        found = plan(config, steps)
        emit(found, plan_text(found), as_json=options["as_json"])
        return
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    open_folder(folder, config)
    steps.mkdir(parents=True, exist_ok=True)
    results = Run(config, steps, say).carry_out(folder)
    from probekit.reports.run_pages import write_run_reports

    text = write_run_reports(results, folder)
    emit(results, text, as_json=options["as_json"])
    say(f"Predictions, metrics.json, tables and figures are in {folder}.")


def _config(options: dict[str, Any]) -> Any:
    """Join preset, file and flags, the later ones winning."""
    from probekit.experiments.config import RunConfig, read_yaml
    from probekit.experiments.presets import read_preset

    content: dict[str, Any] = {}
    if options["preset"] is not None:
        content |= read_preset(options["preset"])
    if options["config"] is not None:
        content |= read_yaml(options["config"])
    content |= {n: _list(options[n]) for n in LISTS if options[n] is not None}
    content |= {n: options[n] for n in PLAIN if options[n] is not None}
    content |= {n: True for n in ("lm_first", "curves") if options[n]}
    if options["layer"] is not None:
        content["layer"] = _number(options["layer"])
    if options["seeds"] is not None:
        content["seeds"] = _seeds(options["seeds"])
    for flag, path in (
        ("epochs", "finetune.epochs"),
        ("weak_lr", "weak_finetune.lr"),
        ("strong_lr", "strong_finetune.lr"),
    ):
        if options[flag] is not None:
            _put(content, path, options[flag])
    if options["lora"]:
        _put(content, "finetune.lora", value=True)
    for setting in options["settings"]:
        path, given, value = setting.partition("=")
        if not given:
            raise click.UsageError(f"--set takes KEY=VALUE, got {setting!r}.")
        _put(content, path.strip(), _yaml(value))
    if "task" not in content:
        raise click.UsageError("Name a --task, a --config or a --preset.")
    return RunConfig.from_mapping(content)


def _put(content: dict[str, Any], path: str, value: Any) -> None:
    """Set a field, or a setting inside one: ``finetune.epochs``."""
    *outer, last = path.split(".")
    for name in outer:
        inner = content.get(name)
        content[name] = dict(inner) if isinstance(inner, dict) else {}
        content = content[name]
    content[last] = value


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise click.UsageError(f"{text!r} is no YAML value.") from None


def _number(text: str) -> str | int:
    return int(text) if text.lstrip("-").isdecimal() else text


def _seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise click.UsageError(f"--seeds takes how many, or seeds as 0,1,2; got {text!r}.")
    numbers = [int(part) for part in parts]
    return numbers if "," in text else list(range(numbers[0]))
