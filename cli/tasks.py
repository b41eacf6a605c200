"""``probekit tasks``: tasks with ground truth, and their rows as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, Unpack

import click

from probekit.cli.options import (
    AsJson,
    Overwrite,
    Seed,
    argument,
    emit,
    option,
    options_of,
    output_file,
    say,
)
from probekit.cli.outputs import claim

if TYPE_CHECKING:
    from probekit.data import Rows
    from probekit.tasks.registry import Task

SHOWN = 2
WRITTEN = (".jsonl", ".parquet")
LISTED = ("name", "kind", "description")
SHOWN_FIELDS = (*LISTED, "source", "card", "licence", "prompt", "notes")
TRUTH = ("label", "completion")


@click.group("tasks")
def command() -> None:
    """List, show and export tasks with ground truth.

    Example: probekit tasks export docstrings --split student -o rows.jsonl
    """


class ListOptions(TypedDict):
    """Options of ``probekit tasks list``."""

    as_json: AsJson


@command.command("list")
@options_of(ListOptions)
def list_tasks(**options: Unpack[ListOptions]) -> None:
    """List every task with its description.

    Example: probekit tasks list
    """
    from probekit.tasks.registry import get_task, task_names

    tasks = [get_task(name) for name in task_names()]
    result = {"tasks": [{field: getattr(task, field) for field in LISTED} for task in tasks]}
    width = max(len(task.name) for task in tasks)
    lines = [f"{task.name:<{width}}  {task.description}" for task in tasks]
    emit(result, "\n".join(lines), as_json=options["as_json"])


class ShowOptions(TypedDict):
    """Options of ``probekit tasks show``."""

    name: Annotated[str, argument("Name of the task, as `probekit tasks list` shows it.")]
    seed: Seed
    as_json: AsJson


@command.command("show")
@options_of(ShowOptions)
def show(**options: Unpack[ShowOptions]) -> None:
    """Show a task's source, licence, prompt and splits, and two of its rows.

    Example: probekit tasks show docstrings
    """
    from probekit.errors import ProbekitError
    from probekit.tasks.registry import get_task

    task = get_task(options["name"])
    splits: dict[str, Rows] = {}
    unread = None
    try:
        splits = {split: task.rows(split, seed=options["seed"]) for split in task.splits}
    except ProbekitError as error:  # the rest is known without the rows
        unread = str(error)
    result = {
        **{field: getattr(task, field) for field in SHOWN_FIELDS},
        "classes": list(task.classes),
        "splits": {
            split: {
                "rows": len(splits[split]),
                "class_shares": _shares(splits[split], len(task.classes)),
            }
            if split in splits
            else None
            for split in task.splits
        },
        "examples": _examples(next(iter(splits.values()))) if splits else [],
        "unread": unread,
    }
    emit(result, _show_text(task, result), as_json=options["as_json"])


class ExportOptions(TypedDict):
    """Options of ``probekit tasks export``."""

    name: Annotated[str, argument("Name of the task, as `probekit tasks list` shows it.")]
    split: Annotated[str, option("Split to write; `tasks show` names them.", required=True)]
    output: Annotated[
        Path,
        output_file("Rows to write: .jsonl or .parquet with id, text and label (or completion)."),
    ]
    no_label: Annotated[bool, option("Leave out the truth (label or completion).")]
    limit: Annotated[
        int | None,
        option("Maximum number of rows to write, from the first.", type=click.IntRange(min=1)),
    ]
    seed: Seed
    overwrite: Overwrite
    as_json: AsJson


@command.command("export")
@options_of(ExportOptions)
def export(**options: Unpack[ExportOptions]) -> None:
    """Write one split of a task as a file of rows.

    Example: probekit tasks export docstrings --split student -o rows.jsonl
    """
    from probekit.errors import DataError
    from probekit.output_tables import write_table
    from probekit.tables import suffix_of
    from probekit.tasks.registry import get_task

    output, name, split = options["output"], options["name"], options["split"]
    claim(options, "output")
    if suffix_of(output) not in WRITTEN:
        raise DataError(
            f"{output} has the ending {suffix_of(output)!r}; allowed are {' and '.join(WRITTEN)}."
        )
    rows = get_task(name).rows(split, seed=options["seed"])
    limit = options["limit"] or len(rows)
    written = min(limit, len(rows))
    columns = [c for c in rows.columns if not (options["no_label"] and c in TRUTH)]
    write_table({column: rows.columns[column][:written] for column in columns}, output)
    if rows.note:
        say(f"{rows.source}: {rows.note}")
    if limit > len(rows):
        say(f"{rows.source} has {len(rows):,} rows, fewer than the {limit:,} asked for.")
    result = {"task": name, "split": split, "seed": options["seed"], "rows": written}
    result |= {"columns": columns, "path": str(output)}
    text = f"{output}: {written:,} rows of {rows.source} ({', '.join(columns)})."
    emit(result, text, as_json=options["as_json"])


def _shares(rows: Rows, n_classes: int) -> list[float]:
    labels = rows.columns.get("label", ())
    return [sum(label == c for label in labels) / len(labels) for c in range(n_classes)]


def _examples(rows: Rows) -> list[dict[str, Any]]:
    """The first row of each of the first classes; of a task without classes, the first rows."""
    examples: dict[int, dict[str, Any]] = {}
    for record in rows.records():
        examples.setdefault(record.get("label", len(examples)), record)
        if len(examples) == SHOWN:
            break
    return [examples[label] for label in sorted(examples)]


def _show_text(task: Task, result: dict[str, Any]) -> str:
    facts = {
        "source": task.source,
        "card": task.card,
        "licence": task.licence,
        "classes": ", ".join(f"{number} = {name}" for number, name in enumerate(task.classes)),
        "prompt": task.prompt,
        "notes": task.notes,
    }
    lines = [f"{task.name}: {task.description}"]
    lines += [_hung(key, value, width=7) for key, value in facts.items() if value]
    if result["unread"] is not None:
        return "\n".join(
            [
                *lines,
                _hung("splits", ", ".join(task.splits), width=7),
                "",
                f"No rows here: {result['unread']}",
            ]
        )
    shares = "share of each class" if task.classes else ""
    lines += ["", f"  {'split':<12}{'rows':>8}  {shares}".rstrip()]
    for split, facts_of in result["splits"].items():
        shares = " / ".join(f"{share:.1%}" for share in facts_of["class_shares"])
        lines.append(f"  {split:<12}{facts_of['rows']:>8,}  {shares}".rstrip())
    for row in result["examples"]:
        lines += ["", *(_hung(key, value, width=5) for key, value in row.items())]
    return "\n".join(lines)


def _hung(key: str, value: object, *, width: int) -> str:
    """A key and its value, with the value's lines aligned."""
    return f"  {key:<{width}}  " + str(value).replace("\n", "\n" + " " * (width + 4))
