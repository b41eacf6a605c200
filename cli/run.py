"""``probekit run``: floor, students and ceiling of a whole experiment, in one folder.

``saliency`` shares its options, how they are read to a configuration, and its course.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, TypeVar, Unpack

import click

from probekit.cli.checked import seed_list
from probekit.cli.engine import EngineOptions, engine_of
from probekit.cli.options import AsJson, Quiet, SectionedCommand, emit, option, options_of, say
from probekit.cli.outputs import claim_folder, make_folder
from probekit.kinds import SettingError, shown
from probekit.safe import one_line

if TYPE_CHECKING:
    from probekit.experiments.run import Run

__all__ = [
    "CourseOptions",
    "ExperimentOptions",
    "command",
    "open_experiment",
    "raise_failures",
    "read_pairs",
    "read_run_config",
]

# Option -> field of the configuration; options overrule the file.
LISTS = ("task", "weak", "strong", "student", "losses", "probes", "actions", "chain")
PLAIN = (
    "group_column",
    "weak_labels",
    "weak_on",
    "rounds",
    "supervisor_rows",
    "trusted_rows",
    "student_rows",
    "test_rows",
    "random_drops",
    "layers",
)
FLAGS = ("lm_first", "curves", "after_truth")
C = TypeVar("C")
R = TypeVar("R", bound="Run")


class ExperimentOptions(TypedDict):
    """What is compared, on which rows, and how it is trained."""

    config: Annotated[
        Path | None,
        option("YAML file with any of the fields; one of `run` also serves `saliency`."),
    ]
    preset: Annotated[
        str | None, option("Start from a complete configuration: burns, eleuther or demo.")
    ]
    task: Annotated[
        str | None, option("Tasks, or files of rows with a column label, comma-separated.")
    ]
    weak: Annotated[
        str | None, option("Models of the weak supervisors, or bag-of-words, comma-separated.")
    ]
    strong: Annotated[str | None, option("Models of students and ceilings, comma-separated.")]
    group_column: Annotated[
        str | None,
        option("Column of a question, dialogue or user: its rows go to one part, not to two."),
    ]
    seeds: Annotated[str | None, option("Number of seeds, or a list such as 0,1,2.  [default: 1]")]
    lm_first: Annotated[bool, option("Language-model loss before students and ceilings.")]
    weak_on: Annotated[
        str | None,
        option("heldout or train: whose rows the supervisor labels.  [default: heldout]"),
    ]
    supervisor_rows: Annotated[
        int | None, option("Rows with ground truth for the supervisor.  [default: half]")
    ]
    student_rows: Annotated[
        int | None, option("Rows with weak labels for the students.  [default: the other half]")
    ]
    test_rows: Annotated[int | None, option("Rows to test on.  [default: all]")]
    epochs: Annotated[float | None, option("Passes of every finetuning over its rows.")]
    weak_lr: Annotated[float | None, option("Learning rate of the supervisors.")]
    strong_lr: Annotated[float | None, option("Learning rate of students and ceilings.")]
    lora: Annotated[bool, option("Train low-rank adapters instead of all weights.")]
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"] | None,
        option(
            "Number type of trainings (bfloat16: mixed precision) and of states; auto: by device "
            "and checkpoint.  [default: auto]"
        ),
    ]
    settings: Annotated[
        tuple[str, ...],
        option(
            "Any field, such as finetune.batch_size=16 or probe_options.logreg.l2=0.01; "
            "repeatable.",
            "--set",
            metavar="KEY=VALUE",
        ),
    ]


class CourseOptions(TypedDict):
    """Where an experiment keeps its steps, and how it reports."""

    steps: Annotated[
        Path | None,
        option("Folder of the steps that experiments share.  [default: steps, beside the output]"),
    ]
    dry_run: Annotated[bool, option("Print steps, rows, tokens and disk space; do nothing.")]
    quiet: Quiet
    as_json: AsJson


def read_run_config(options: Mapping[str, Any], make: Callable[[Mapping[str, Any]], C]) -> C:
    """Join preset, file and options, the later ones winning.

    ``make`` builds the configuration from the fields' values.
    """
    from probekit.experiments.presets import read_preset
    from probekit.settings import in_file, read_settings

    content: dict[str, Any] = {}
    file: dict[str, Any] = {}
    if options["preset"] is not None:
        content |= read_preset(options["preset"])
    if options["config"] is not None:
        file = read_settings(options["config"])
        content |= file
    content |= _flags(options)
    for flag, path in (
        ("epochs", "finetune.epochs"),
        ("weak_lr", "weak_finetune.lr"),
        ("strong_lr", "strong_finetune.lr"),
        ("lora", "finetune.lora"),
        ("dtype", "finetune.dtype"),
        ("dtype", "extract.dtype"),
    ):
        if options[flag] not in (None, False):
            _put(content, path, options[flag])
    for path, value in read_pairs("--set", options["settings"]).items():
        _put(content, path, value)
    if "task" not in content:
        raise click.UsageError("Name a --task, a --config or a --preset.")
    try:
        return make(content)
    except SettingError as error:
        # A value that the file gave, and no option changed, is wrong in the file.
        in_the_file = error.place[:1] and error.place[0] in file
        if in_the_file and _at(content, error.place) is _at(file, error.place):
            raise in_file(error, options["config"]) from None
        raise


def read_pairs(flag: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Read the ``KEY=VALUE`` pairs of ``flag``; a value is YAML, and the last one of a key wins."""
    from probekit.errors import UsageError
    from probekit.safe import load_yaml

    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"{flag} takes KEY=VALUE, got {shown(pair)}.")
        values[key.strip()] = load_yaml(value, f"{flag} {one_line(key)}", error=UsageError)
    return values


def _flags(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that have an option of their own."""
    content: dict[str, Any] = {n: _list(options[n]) for n in LISTS if options.get(n) is not None}
    content |= {n: options[n] for n in PLAIN if options.get(n) is not None}
    content |= {n: True for n in FLAGS if options.get(n)}
    # Either replaces the other of a preset or file.
    if "weak_labels" in content:
        content.setdefault("weak", [])
    elif "weak" in content:
        content["weak_labels"] = None
    if options.get("layer") is not None:
        content["layer"] = _number(options["layer"])
    if options["seeds"] is not None:
        content["seeds"] = seed_list(options["seeds"])
    return content


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _put(content: dict[str, Any], path: str, value: Any) -> None:
    """Set a field, or a setting inside one: ``finetune.epochs``."""
    *outer, last = path.split(".")
    for name in outer:
        inner = content.get(name)
        content[name] = dict(inner) if isinstance(inner, dict) else {}
        content = content[name]
    content[last] = value


def _at(content: Any, place: Sequence[str]) -> Any:
    """The value at a path, or None."""
    for name in place:
        content = content.get(name) if isinstance(content, dict) else None
    return content


def _number(text: str) -> str | int:
    return int(text) if re.fullmatch(r"-?[0-9]{1,4}", text.strip()) else text


def open_experiment(
    kind: type[R],
    config: Any,
    folder: Path,
    options: CourseOptions,
    open_folder: Callable[..., None],
) -> R | None:
    """Check an experiment, make its folder and keep other commands out; None after a dry run."""
    from probekit.experiments.plan import plan, plan_text
    from probekit.extras import need

    need("matplotlib")  # hours before its first figure
    steps = options["steps"] or folder.absolute().parent / "steps"
    if options["dry_run"]:
        open_folder(folder, config, make=False)
        planned = plan(config, steps, experiment=kind)
        emit(planned, plan_text(planned), as_json=options["as_json"])
        return None
    run = kind(config, steps, (lambda _: None) if options["quiet"] else say)
    run.check()  # before anything is written
    claim_folder(folder)
    open_folder(folder, config)
    make_folder(steps)
    if not options["quiet"]:
        say(_precision(config))
    return run


def _precision(config: Any) -> str:
    """The number type of an experiment's trainings, and why."""
    from probekit.activations.loading import resolve_device
    from probekit.activations.precision import training_precision

    device = resolve_device(config.finetune.get("device", "auto"))
    return str(training_precision(config.finetune.get("dtype", "auto"), device))


def raise_failures(results: Mapping[str, Any], folder: Path) -> None:
    """Raise RunError with the list of what failed, if anything did; all else is written by then."""
    from probekit.errors import RunError

    failures = results["failures"]
    if failures:
        again = any(": failed: " in each for each in failures)
        error = RunError(
            f"{len(failures)} parts of {folder} failed or give one class only; all others are done"
            f"{', and the same command tries what failed again' if again else ''}:"
        )
        for failure in failures:
            error.add_note(f"  {failure}")
        raise error


class StudentOptions(TypedDict):
    """How labels are cleaned, and which students learn from them."""

    trusted_rows: Annotated[
        int | None,
        option(
            "Of the supervisor's rows, that many join the students' instead, and probes know their "
            "ground truth.",
        ),
    ]
    weak_labels: Annotated[
        str | None, option("File of weak labels (id and label, prob or probs), instead of --weak.")
    ]
    student: Annotated[
        str | None,
        option(
            "finetune, linear or memorising (linear ones read frozen states), "
            "comma-separated.  [default: finetune]"
        ),
    ]
    losses: Annotated[
        str | None,
        option(
            "Losses on plain weak labels; the first is also that of all other students.  "
            "[default: xent]"
        ),
    ]
    probes: Annotated[
        str | None, option("knn, logreg, topofilter (these three), ensemble, mass-mean.")
    ]
    actions: Annotated[
        str | None,
        option("filter, relabel, relabel-hard, comma-separated.  [default: filter,relabel]"),
    ]
    layer: Annotated[
        str | None, option("Layer that the probes read: a number, mid or last.  [default: mid]")
    ]
    random_drops: Annotated[
        int | None, option("Number of random drops per filter size, as a baseline.  [default: 1]")
    ]
    rounds: Annotated[int | None, option("Strong-to-strong rounds.  [default: 1]")]
    chain: Annotated[str | None, option("Bootstrapping: models, weakest first, comma-separated.")]
    curves: Annotated[bool, option("Keep predictions of every evaluation.")]
    output: Annotated[
        Path,
        option(
            "Folder of the run; the same command resumes it.",
            "-o",
            "--output",
            default=Path("runs/run"),
        ),
    ]


class RunOptions(ExperimentOptions, StudentOptions, EngineOptions, CourseOptions):
    """Options of ``probekit run``."""


@click.command("run", cls=SectionedCommand)
@options_of(RunOptions, Experiment=ExperimentOptions, Students=StudentOptions, Course=CourseOptions)
def command(**options: Unpack[RunOptions]) -> None:
    """Measure a student between weak supervisor and ceiling.

    The weak model, finetuned on one half of the rows, labels the other; students of the strong
    model train on these labels, as they are and cleaned by probes, between floor and ceiling.

    Example: probekit run --task docstrings --weak MODEL@layers=1 --strong MODEL -o runs/first
    """
    from probekit.experiments.config import RunConfig
    from probekit.experiments.folder import open_folder
    from probekit.experiments.run import Run
    from probekit.reports.run import report_run

    config = read_run_config(options, RunConfig.from_mapping)
    folder = options["output"]
    run = open_experiment(Run, config, folder, options, open_folder)
    if run is None:
        return
    with engine_of(options):
        results = run.carry_out(folder)
    text = report_run(run, results, folder, say)
    emit(results, text, as_json=options["as_json"])
    say(f"Predictions, metrics.json, tables, figures and report.html are in {folder}.")
    raise_failures(results, folder)
