"""``probekit finetune``: train a model on weak labels, on verdicts, or on texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from probekit.cli.labels import labels_options, read_truth, reading, tell_labels
from probekit.cli.options import emit, json_option, quiet_option, say, seed_option
from probekit.cli.outputs import read_by
from probekit.cli.predict_sets import check_one_truth, judge_sets, predict_sets
from probekit.cli.run_options import read_pairs
from probekit.files import refuse_inside

if TYPE_CHECKING:
    from probekit.data import Rows
    from probekit.students.config import FinetuneConfig
    from probekit.students.finetune import Finetuned

__all__ = ["command"]

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


@click.command("finetune")
@click.argument("rows")
@click.option("-m", "--model", required=True, help="Model; NAME@layers=K is its first K blocks.")
@click.option("--labels", help="Weak labels, or verdicts of filter or relabel, joined by id.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder.")
@click.option(
    "--objective",
    type=click.Choice(["classify", "reward", "lm", "completion"]),
    default="classify",
    help="classes; preference pairs; the texts themselves; the column completion after each text.",
)
@click.option(
    "--predict",
    multiple=True,
    metavar="[NAME=]ROWS",
    help="Rows to predict afterwards; repeatable.",
)
@click.option("--truth", help="Ground truth of predicted rows; opened once these are written.")
@click.option("--loss", default="xent", help="xent, logconf, … (docs/methods.md names them all).")
@click.option(
    "--loss-option", "loss_options", multiple=True, metavar="KEY=VALUE", help="Repeatable."
)
@click.option("--epochs", type=float, default=2.0, help="Passes over the rows.")
@click.option("--max-steps", type=int, help="Optimizer steps, instead of epochs.")
@click.option("--lr", type=float, help="Peak learning rate (5e-5; with --lora 2e-4).")
@click.option("--batch-size", type=int, default=32, help="Rows per forward and device.")
@click.option("--grad-accum", type=int, default=1, help="Forwards per optimizer step.")
@click.option("--lora", is_flag=True, help="Train low-rank adapters and the head only.")
@click.option("--lora-rank", type=int, default=8, help="Rank of the adapters.")
@click.option("--max-length", type=int, help="Tokens per row.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    help="bfloat16: mixed precision; auto: that where the GPU has it.",
)
@click.option(
    "--validation-share", type=float, help="Share of the labelled rows that is held out (0.1)."
)
@click.option(
    "--early-stop",
    type=click.Choice(["log_loss", "accuracy", "auroc"]),
    help="Keep the evaluation that is best on held-out weak labels.",
)
@click.option("--patience", type=int, help="Stop after N evaluations without improvement.")
@click.option("--curves", is_flag=True, help="Keep predictions of every evaluation.")
@click.option(
    "--save",
    type=click.Choice(["model", "adapter", "none"]),
    default="model",
    help="What to keep beside predictions and metrics.",
)
@labels_options
@click.option("--text-column", help="Column of the text, if not text or messages.")
@click.option(
    "--group-column",
    help="Column of a question, dialogue or user: its rows are held out together, or not at all.",
)
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that the checkpoint brings.")
@click.option("--gradient-checkpointing", is_flag=True, help="Save memory, take more time.")
@click.option("--report-to", help="wandb, tensorboard, …: where the Trainer logs.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any other setting; repeatable."
)
@click.option("--overwrite", is_flag=True, help="Replace another training in the folder.")
@seed_option
@quiet_option
@json_option
def command(**options: Any) -> None:
    """Finetune a model on rows and their weak labels.

    ROWS is a task, a file or hf:org/name@split; a column with the truth is not read. LABELS may be
    soft; of verdicts, what to keep, labels and weights are honoured. After a stop, the same command
    goes on from the last checkpoint.

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
        check_one_truth(predict)
    if options["overwrite"]:
        refuse_inside(options["output"], read_by(options, ("output",)))
    if config.objective == "lm":
        _train_texts(config, rows, options)
    elif config.objective == "completion":
        _train_completions(config, rows, predict, options)
    else:
        _train_classes(config, rows, predict, options)


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    fields = {name: options[name] for name in FIELDS if options[name] is not None}
    of_loss = read_pairs("--loss-option", options["loss_options"])
    return {**fields, "loss_options": of_loss, **read_pairs("--set", options["settings"])}


def _train_classes(
    config: FinetuneConfig, rows: Rows, predict: dict[str, Rows], options: dict[str, Any]
) -> None:
    from probekit.errors import UsageError
    from probekit.labels import WeakLabels
    from probekit.students.finetune import finetune, hold_out, load_training_labels, training_rows

    if options["labels"] is None:
        raise UsageError(f"The objective {config.objective} needs --labels.")
    labels = load_training_labels(options["labels"], **reading(options))
    if isinstance(labels, WeakLabels):
        tell_labels(labels, rows.keys)
    train = training_rows(rows, labels, only_labelled=options["only_labelled"])
    share, validation = options["validation_share"], None
    if share is None and config.early_stop:
        share = 0.1
    if options["curves"] and not share and not predict:
        raise UsageError(
            "--curves keeps what is predicted of --predict and of held-out rows; give one of "
            "--predict and --validation-share."
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


def _result(config: FinetuneConfig, done: Finetuned, options: dict[str, Any]) -> dict[str, Any]:
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
        result["metrics"] = judge_sets(done.predictions, read_truth(options))
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
    """How many rows of each kind had more tokens than were read, as a line where there are any."""
    cut = [f"{many:,} {name}" for name, many in result["truncated"].items() if many]
    return [f"truncated at {result['max_length'] or 0:,} tokens: {', '.join(cut)}"] if cut else []


def _train_texts(config: FinetuneConfig, rows: Rows, options: dict[str, Any]) -> None:
    from probekit.safe import read_json
    from probekit.students.generative import finetune_lm

    model = finetune_lm(config, rows, options["output"], overwrite=options["overwrite"])
    metrics = read_json(options["output"] / "metrics.json")
    found = {key: metrics[key] for key in ("rows", "tokens", "steps", "train_loss")}
    found |= {key: metrics[key] for key in ("perplexity_before", "perplexity_after")}
    found |= {key: metrics.get(key) for key in ("truncated", "max_length")}
    text = f"{model}: a base model trained on {found['tokens']:,} tokens of {found['rows']:,} rows"
    if found["perplexity_before"] is not None:
        text += (
            f"; perplexity on held-out rows {found['perplexity_before']:.2f} before, "
            f"{found['perplexity_after']:.2f} after"
        )
    if found["truncated"]:
        text += f"; {found['truncated']:,} rows truncated at {found['max_length'] or 0:,} tokens"
    emit({"model": str(model), **found}, text + ".", as_json=options["as_json"])


def _train_completions(
    config: FinetuneConfig, rows: Rows, predict: dict[str, Rows], options: dict[str, Any]
) -> None:
    from probekit.students.completion import completion_rows, exact_match, load_completions
    from probekit.students.generative import finetune_completion

    taught = None if options["labels"] is None else load_completions(options["labels"])
    train = completion_rows(rows, taught)
    how = {"predict": predict, "overwrite": options["overwrite"]}
    done = finetune_completion(config, train, options["output"], **how)
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
    for name, found in done.predictions.items():
        if "completion" not in predict[name].columns:
            say(f"{name} has no column completion, so its completions were not graded.")
            continue
        share = float(exact_match(found, predict[name]).mean())
        result["exact_match"][name] = share
        lines.append(f"{name}: {100 * share:.1f} % of {len(found):,} exactly right")
    emit(result, "\n".join(lines), as_json=options["as_json"])
