"""``probekit finetune``: train a model on weak labels, on verdicts, or on texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, Unpack

import click

from probekit.cli.labels import LabelsOptions, Truth, print_labels, read_truth, reading
from probekit.cli.options import (
    AsJson,
    Quiet,
    Revision,
    SectionedCommand,
    Seed,
    TextColumn,
    TrustRemoteCode,
    argument,
    emit,
    option,
    options_of,
    pick,
    say,
)
from probekit.cli.outputs import read_by
from probekit.cli.run import read_pairs
from probekit.errors import DataError, UsageError, first_few
from probekit.files import refuse_inside

if TYPE_CHECKING:
    from probekit.data import Rows
    from probekit.labels import WeakLabels
    from probekit.students.config import FinetuneConfig
    from probekit.students.finetune import Finetuned

__all__ = ["command", "predict_sets"]

# Options that go into the configuration under the same name.
FIELDS = (
    "model",
    "objective",
    "loss",
    "epochs",
    "max_steps",
    "lr",
    "batch_size",
    "grad_accum",
    "lora",
    "lora_rank",
    "max_length",
    "dtype",
    "early_stop",
    "patience",
    "save",
    "seed",
    "report_to",
    "revision",
    "trust_remote_code",
    "gradient_checkpointing",
)


# What was kept, and what reads it.
KEPT = {
    "model": "model (for extract, finetune and predict)",
    "adapter": "adapter alone (peft loads it onto its base model; extract, finetune and predict "
    "need --save model)",
}


class TrainingSetOptions(TypedDict):
    """The rows, the model and the labels."""

    rows: Annotated[str, argument("Task, file or data set of rows.")]
    model: Annotated[
        str, option("Model; NAME@layers=K is its first K blocks.", "-m", "--model", required=True)
    ]
    labels: Annotated[
        str | None, option("Weak labels, or verdicts of filter or relabel, joined by id.")
    ]


class FinetuneOptions(TrainingSetOptions, LabelsOptions):
    """Options of ``probekit finetune``."""

    output: Annotated[Path, option("Folder to write.", "-o", "--output", required=True)]
    objective: Annotated[
        Literal["classify", "reward", "lm", "completion"],
        option(
            "What is learned: classes; preference pairs; the texts themselves; the column "
            "completion after each text.",
            default="classify",
        ),
    ]
    predict: Annotated[
        tuple[str, ...], option("Rows to predict afterwards; repeatable.", metavar="[NAME=]ROWS")
    ]
    truth: Truth
    loss: Annotated[
        str, option("xent, logconf, … (docs/methods/students.md names them all).", default="xent")
    ]
    loss_options: Annotated[
        tuple[str, ...],
        option("Parameter of the loss; repeatable.", "--loss-option", metavar="KEY=VALUE"),
    ]
    epochs: Annotated[float, option("Passes over the rows.", default=2.0)]
    max_steps: Annotated[int | None, option("Optimizer steps, instead of epochs.")]
    lr: Annotated[float | None, option("Peak learning rate.  [default: 5e-5; with --lora 2e-4]")]
    batch_size: Annotated[int, option("Rows per forward and device.", default=32)]
    grad_accum: Annotated[int, option("Forwards per optimizer step.", default=1)]
    lora: Annotated[bool, option("Train low-rank adapters and the head only.")]
    lora_rank: Annotated[int, option("Rank of the adapters.", default=8)]
    max_length: Annotated[int | None, option("Tokens per row.  [default: the model's]")]
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        option(
            "bfloat16: mixed precision; auto: that if GPU or CPU has instructions for it.",
            default="auto",
        ),
    ]
    validation_share: Annotated[
        float | None,
        option("Share of the labelled rows that is held out.  [default: 0; with --early-stop 0.1]"),
    ]
    early_stop: Annotated[
        Literal["log_loss", "accuracy", "auroc"] | None,
        option("Keep the evaluation that is best on held-out weak labels."),
    ]
    patience: Annotated[int | None, option("Stop after N evaluations without improvement.")]
    curves: Annotated[bool, option("Keep predictions of every evaluation.")]
    save: Annotated[
        Literal["model", "adapter", "none"],
        option("What to keep beside predictions and metrics.", default="model"),
    ]
    text_column: TextColumn
    group_column: Annotated[
        str | None,
        option(
            "Column of a question, dialogue or user: its rows are held out together, or not at all."
        ),
    ]
    revision: Revision
    trust_remote_code: TrustRemoteCode
    gradient_checkpointing: Annotated[bool, option("Use less memory and more time.")]
    report_to: Annotated[str | None, option("wandb, tensorboard, …: where the Trainer logs.")]
    settings: Annotated[
        tuple[str, ...], option("Any other setting; repeatable.", "--set", metavar="KEY=VALUE")
    ]
    overwrite: Annotated[bool, option("Replace another training in the folder.")]
    seed: Seed
    quiet: Quiet
    as_json: AsJson


@click.command("finetune", cls=SectionedCommand)
@options_of(FinetuneOptions)
def command(**options: Unpack[FinetuneOptions]) -> None:
    """Finetune a model on rows and their weak labels.

    ROWS is a task, a file or hf:org/name@split; a column with the truth is not read. Labels may be
    soft; of verdicts, what to keep, labels and weights are honoured. After a stop, the same command
    resumes from the last checkpoint.

    Example: probekit finetune rows.jsonl -m MODEL --labels verdicts.parquet -o student
    --predict test.jsonl
    """
    from probekit.sources import load_rows
    from probekit.students.config import FinetuneConfig
    from probekit.students.folder import check_names

    config = FinetuneConfig.from_mapping(_settings(options))
    columns = {"text_column": options["text_column"], "id_column": options["id_column"]}
    rows = load_rows(options["rows"], **columns)
    if options["group_column"] is not None:
        rows = rows.grouped(options["group_column"])
    sets = predict_sets(options["predict"])
    check_names(sets)
    predict = {name: load_rows(source, **columns) for name, source in sets.items()}
    for note in dict.fromkeys(each.note for each in (rows, *predict.values()) if each.note):
        say(note)
    if options["truth"] is not None:
        _check_one_truth(predict)
    if options["overwrite"]:
        refuse_inside(options["output"], read_by(options, ("output",)))
    if config.dtype == "auto" and not options["quiet"]:
        from probekit.students.trainer import precision_of

        say(str(precision_of(config)))
    if config.objective == "lm":
        _train_texts(config, rows, options)
    elif config.objective == "completion":
        _train_completions(config, rows, predict, options)
    else:
        _train_classes(config, rows, predict, options)


def _settings(options: FinetuneOptions) -> dict[str, Any]:
    fields = pick(options, *FIELDS)
    of_loss = read_pairs("--loss-option", options["loss_options"])
    return {**fields, "loss_options": of_loss, **read_pairs("--set", options["settings"])}


def _train_classes(
    config: FinetuneConfig, rows: Rows, predict: dict[str, Rows], options: FinetuneOptions
) -> None:
    from probekit.labels import WeakLabels
    from probekit.students.finetune import finetune, hold_out, load_training_labels, training_rows

    if options["labels"] is None:
        raise UsageError(f"The objective {config.objective} needs --labels.")
    labels = load_training_labels(options["labels"], **reading(options))
    if isinstance(labels, WeakLabels):
        print_labels(labels, rows.keys)
    train = training_rows(rows, labels, only_labelled=options["only_labelled"])
    share, validation = options["validation_share"], None
    if share is None and config.early_stop:
        share = 0.1
    if options["curves"] and not share and not predict:
        raise UsageError(
            "--curves keeps predictions of --predict and held-out rows; give --predict or "
            "--validation-share."
        )
    if share:
        train, validation = hold_out(train, share, seed=config.seed)
    done = finetune(
        config,
        train,
        options["output"],
        validation=validation,
        predict=predict,
        curves=options["curves"],
        overwrite=options["overwrite"],
    )
    result = _result(config, done, options)
    for note in result["notes"]:
        say(f"Warning: {note}")
    emit(result, _text(result), as_json=options["as_json"])


def _result(config: FinetuneConfig, done: Finetuned, options: FinetuneOptions) -> dict[str, Any]:
    names = ("rows", "steps", "best_step", "train_loss", "parameters", "trained_parameters")
    result = {name: done.metrics[name] for name in names}
    result |= {
        "notes": done.metrics.get("notes", []),
        "folder": str(done.folder),
        "model": None if done.model is None else str(done.model),
        "save": config.save,
        "predictions": {
            name: str(done.folder / "predictions" / f"{name}.parquet") for name in done.predictions
        },
        "max_length": done.metrics.get("max_length"),
        "truncated": done.metrics.get("truncated", {}),
        "metrics": {},
    }
    if options["truth"] is not None:
        result["metrics"] = _evaluate_sets(done.predictions, read_truth(options))
    return result


def _text(result: dict[str, Any]) -> str:
    from probekit.reports.verdicts import figures_text

    lines = [
        f"{result['folder']}: trained {result['trained_parameters']:,} of "
        f"{result['parameters']:,} parameters on {result['rows']:,} rows in {result['steps']} "
        f"steps (loss {result['train_loss']:.4f})"
    ]
    lines += _truncation(result)
    if result["model"] is not None:
        lines.append(f"{KEPT[result['save']]}: {result['model']}")
    lines += [f"predictions: {path}" for path in result["predictions"].values()]
    for name, metrics in result["metrics"].items():
        lines.append(f"{name} ({metrics['rows']:,} rows with truth): {figures_text(metrics)}")
    return "\n".join(lines)


def _truncation(result: dict[str, Any]) -> list[str]:
    """The number of rows of each kind that were truncated, as a line if there are any."""
    cut = [f"{n:,} {name}" for name, n in result["truncated"].items() if n]
    return [f"truncated at {result['max_length'] or 0:,} tokens: {', '.join(cut)}"] if cut else []


def _train_texts(config: FinetuneConfig, rows: Rows, options: FinetuneOptions) -> None:
    from probekit.safe import read_json
    from probekit.students.generative import finetune_lm

    model = finetune_lm(config, rows, options["output"], overwrite=options["overwrite"])
    metrics = read_json(options["output"] / "metrics.json")
    names = ("rows", "tokens", "steps", "train_loss", "perplexity_before", "perplexity_after")
    result = {"model": str(model), **{name: metrics[name] for name in names}}
    result |= {name: metrics.get(name) for name in ("truncated", "max_length")}
    text = (
        f"{model}: a base model trained on {result['tokens']:,} tokens of {result['rows']:,} rows"
    )
    if result["perplexity_before"] is not None:
        text += (
            f"; perplexity on held-out rows {result['perplexity_before']:.2f} before, "
            f"{result['perplexity_after']:.2f} after"
        )
    if result["truncated"]:
        text += f"; {result['truncated']:,} rows truncated at {result['max_length'] or 0:,} tokens"
    emit(result, text + ".", as_json=options["as_json"])


def _train_completions(
    config: FinetuneConfig, rows: Rows, predict: dict[str, Rows], options: FinetuneOptions
) -> None:
    from probekit.students.completion import completion_rows, exact_match, load_completions
    from probekit.students.generative import finetune_completion

    labels = None if options["labels"] is None else load_completions(options["labels"])
    train = completion_rows(rows, labels)
    done = finetune_completion(
        config, train, options["output"], predict=predict, overwrite=options["overwrite"]
    )
    result: dict[str, Any] = {
        "folder": str(done.folder),
        "model": None if done.model is None else str(done.model),
        "rows": done.metrics["rows"],
        "steps": done.metrics["steps"],
        "exact_match": {},
    }
    result |= {key: done.metrics.get(key) for key in ("truncated", "max_length")}
    lines = [f"{done.folder}: learned {result['rows']:,} completions in {result['steps']} steps"]
    if result["truncated"]:
        cut, length = result["truncated"], result["max_length"]
        lines[0] += f"; {cut:,} prompts truncated at {length or 0:,} tokens"
    for name, predicted in done.predictions.items():
        if "completion" not in predict[name].columns:
            say(f"{name} has no column completion, so its completions were not graded.")
            continue
        share = float(exact_match(predicted, predict[name]).mean())
        result["exact_match"][name] = share
        lines.append(f"{name}: {100 * share:.1f} % of {len(predicted):,} exactly right")
    emit(result, "\n".join(lines), as_json=options["as_json"])


def predict_sets(given: Sequence[str]) -> dict[str, str]:
    """Name -> source of each ``[NAME=]ROWS``; equal names get their folder's name before them.

    Raises
    ------
    UsageError
        If a name or a source is given twice.
    """
    named: list[tuple[str | None, str]] = []
    for each in given:
        name, equals, source = each.partition("=")
        is_named = bool(equals) and "/" not in name and not Path(each).exists()
        named.append((name, source) if is_named else (None, each))
    names = [name for name, _ in named if name is not None]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"Two sets to predict are called {twice[0]!r}; give each its own NAME=.")
    unnamed = [source for name, source in named if name is None]
    if twice := [source for source in unnamed if unnamed.count(source) > 1]:
        raise UsageError(f"{twice[0]} is given twice to --predict; give it once.")
    own = iter(_own_names(unnamed, names))
    return {next(own) if name is None else name: source for name, source in named}


def _own_names(sources: Sequence[str], used: Sequence[str]) -> list[str]:
    """Name each after its file or split; equal names get the folders that distinguish them."""
    parts = [_parts(source) for source in sources]
    longest = max(map(len, parts), default=0)
    names = [part[-1] for part in parts]
    for n_parts in range(2, longest + 1):
        alike = {name for name in names if names.count(name) > 1 or name in used}
        names = [
            "-".join(part[-n_parts:]) if name in alike else name
            for part, name in zip(parts, names, strict=True)
        ]
    if clash := [name for name in names if names.count(name) > 1 or name in used]:
        raise UsageError(
            f"Two sets to predict would be called {clash[0]!r}; give each its own name as in "
            f"--predict NAME={sources[names.index(clash[0])]}."
        )
    return names


def _parts(source: str) -> list[str]:
    """The parts of a source's name, the most specific last."""
    task, at, split = source.rpartition("@")
    if at and task and not Path(source).exists():
        return [*task.removeprefix("hf:").replace(":", "/").split("/"), split]
    path = Path(source)
    folders = [part for part in path.parts[:-1] if part not in ("/", ".", "..", "~")]
    return [*folders, path.stem]


def _check_one_truth(predict: Mapping[str, Rows]) -> None:
    """Raise UsageError if two sets have one id for different texts: one truth cannot serve both."""
    for (one, rows), (other, more) in combinations(predict.items(), 2):
        known = dict(zip(rows.ids, rows.hashes, strict=True))
        pairs = zip(more.ids, more.hashes, strict=True)
        shared = [name for name, digest in pairs if known.get(name, digest) != digest]
        if shared:
            raise UsageError(
                f"--truth is joined by id, and {len(shared):,} ids of {one} are those of other "
                f"texts in {other} (ids {first_few(shared)}); give all rows ids of their own and "
                "one file with the truth of all of them, or evaluate each set later with `probekit "
                "predict … --truth`."
            )


def _evaluate_sets(predictions: Mapping[str, WeakLabels], truth: WeakLabels) -> dict[str, Any]:
    """Metrics by set; sets without truth are reported, and raise DataError if no set has one."""
    from probekit.students.predict import evaluate_predictions

    metrics: dict[str, Any] = {}
    failed: list[tuple[str, DataError]] = []
    for name, predicted in predictions.items():
        try:
            metrics[name] = evaluate_predictions(predicted, truth)
        except DataError as error:
            failed.append((name, error))
    if failed and not metrics:
        raise failed[0][1]
    for name, reason in failed:
        say(
            f"{name} is not evaluated: {reason} One --truth holds the labels of all --predict sets."
        )
    return metrics
