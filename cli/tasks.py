"""``probekit tasks``: the tasks whose truth is known, and their rows as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from probekit.cli.options import (
    emit,
    json_option,
    output_option,
    overwrite_option,
    say,
    seed_option,
)

if TYPE_CHECKING:
    from probekit.data import Rows
    from probekit.tasks.registry import Task

SHOWN = 2
WRITTEN = (".jsonl", ".parquet")


@click.group("tasks")
def command() -> None:
    """List, show and export tasks whose truth is known.

    Example: probekit tasks export docstrings --split student -o rows.jsonl
    """


@command.command("list")
@json_option
def list_tasks(*, as_json: bool) -> None:
    """Name every task, with what it asks.

    Example: probekit tasks list
    """
    from probekit.tasks.registry import get_task, task_names

    tasks = [get_task(name) for name in task_names()]
    result = {"tasks": [{"name": t.name, "description": t.description} for t in tasks]}
    width = max(len(task.name) for task in tasks)
    lines = [f"{task.name:<{width}}  {task.description}" for task in tasks]
    emit(result, "\n".join(lines), as_json=as_json)


@command.command("show")
@click.argument("name")
@seed_option
@json_option
def show(name: str, *, seed: int, as_json: bool) -> None:
    """Tell where a task is from, its licence, its splits, and show two rows.

    Example: probekit tasks show docstrings
    """
    from probekit.tasks.registry import get_task

    task = get_task(name)
    splits = {split: task.rows(split, seed=seed) for split in task.splits}
    result = {
        "name": task.name,
        "description": task.description,
        "source": task.source,
        "licence": task.licence,
        "classes": list(task.classes),
        "splits": {
            split: {"rows": len(rows), "class_shares": _shares(rows, len(task.classes))}
            for split, rows in splits.items()
        },
        "examples": _examples(next(iter(splits.values()))),
    }
    emit(result, _show_text(task, result), as_json=as_json)


@command.command("export")
@click.argument("name")
@click.option("--split", required=True, help="Split to write; `tasks show` names them.")
@output_option("Rows to write: .jsonl or .parquet with id, text and label.")
@click.option("--no-label", is_flag=True, help="Leave the column label (the truth) out.")
@click.option(
    "--limit", type=click.IntRange(min=1), help="Write only so many rows, the first of the order."
)
@seed_option
@overwrite_option
@json_option
def export(
    name: str,
    *,
    split: str,
    output: Path,
    no_label: bool,
    limit: int | None,
    seed: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write one split of a task as a file of rows.

    Example: probekit tasks export docstrings --split student -o rows.jsonl
    """
    from probekit.errors import DataError
    from probekit.files import check_output, suffix_of, write_table
    from probekit.tasks.registry import get_task

    check_output(output, overwrite=overwrite)
    if suffix_of(output) not in WRITTEN:
        raise DataError(
            f"{output} has the ending {suffix_of(output)!r}; allowed are {' and '.join(WRITTEN)}."
        )
    rows = get_task(name).rows(split, seed=seed)
    written = len(rows) if limit is None else min(limit, len(rows))
    kept = [column for column in rows.columns if not (no_label and column == "label")]
    write_table({column: rows.columns[column][:written] for column in kept}, output, {})
    if limit is not None and limit > len(rows):
        say(f"{rows.source} has {len(rows):,} rows, fewer than the {limit:,} asked for.")
    result = {"task": name, "split": split, "seed": seed, "rows": written, "columns": kept}
    emit(
        {**result, "path": str(output)},
        f"{output}: {written:,} rows of {rows.source} ({', '.join(kept)}).",
        as_json=as_json,
    )


def _shares(rows: Rows, n_classes: int) -> list[float]:
    labels = rows.columns["label"]
    return [sum(label == c for label in labels) / len(labels) for c in range(n_classes)]


def _examples(rows: Rows) -> list[dict[str, Any]]:
    """The first row of each of the first classes."""
    found: dict[int, dict[str, Any]] = {}
    for record in rows.records():
        found.setdefault(record["label"], record)
        if len(found) == SHOWN:
            break
    return [found[label] for label in sorted(found)]


def _show_text(task: Task, result: dict[str, Any]) -> str:
    classes = ", ".join(f"{number} = {name}" for number, name in enumerate(task.classes))
    lines = [
        f"{task.name}: {task.description}",
        f"  source   {task.source}",
        f"  licence  {task.licence}",
        f"  classes  {classes}",
        "",
        f"  {'split':<12}{'rows':>8}  share of each class",
    ]
    for split, facts in result["splits"].items():
        shares = " / ".join(f"{share:.1%}" for share in facts["class_shares"])
        lines.append(f"  {split:<12}{facts['rows']:>8,}  {shares}")
    for row in result["examples"]:
        lines += ["", *(f"  {key:<5}  {value}" for key, value in row.items())]
    return "\n".join(lines)
