"""``probekit demo``: the main job, offline, with what is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from probekit.cli.options import emit, json_option, overwrite_option, say, seed_option
from probekit.cli.outputs import claim_folder


@click.command("demo")
@click.option(
    "-o",
    "--output",
    default="probekit-demo",
    type=click.Path(path_type=Path, file_okay=True),
    help="Folder for every file of the chain.",
)
@click.option("-m", "--model", help="Model to read instead of the all-MiniLM-L6-v2 in its wheel.")
@click.option(
    "--student-rows", type=click.IntRange(min=100), default=2000, help="Rows with weak labels."
)
@click.option("--test-rows", type=click.IntRange(min=100), default=2000, help="Rows to judge on.")
@click.option(
    "--only-students", is_flag=True, help="Train and judge on what the folder holds already."
)
@overwrite_option
@seed_option
@json_option
def command(
    output: Path,
    *,
    model: str | None,
    student_rows: int,
    test_rows: int,
    only_students: bool,
    overwrite: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Run the whole chain on real text and show whether it helped.

    Offline. Weak labels from a model's first layer, the full model's states, every probe as filter
    and relabeller, and a linear student for each training set. commands.sh in the folder repeats
    it.

    Example: probekit demo -o probekit-demo
    """
    from probekit.experiments.demo import judge_demo, run_demo
    from probekit.reports.demo import demo_table

    if only_students:
        results = judge_demo(output, seed=seed)
        _report(results, output)
    else:
        if output.absolute().parent.is_dir():  # else it is refused
            claim_folder(output)
        results = run_demo(
            output,
            _run,
            say,
            model=model,
            student_rows=student_rows,
            test_rows=test_rows,
            seed=seed,
            overwrite=overwrite,
        )
        say(f"{results['seconds']:.0f} s; {output} holds every file, commands.sh repeats it.\n")
    emit(results, demo_table(results).text(), as_json=as_json)


def _run(arguments: Sequence[str]) -> None:
    """Run a command in this process, which has loaded torch already."""
    from probekit.cli.main import cli

    cli.main(args=list(arguments), prog_name="probekit", standalone_mode=False)


def _report(results: dict[str, Any], folder: Path) -> None:
    """Write the table and the figure from the results."""
    from probekit.files import atomic_write
    from probekit.reports.demo import demo_figure, demo_table

    with atomic_write(folder / "table.md", "w") as file:
        file.write(demo_table(results).markdown() + "\n")
    demo_figure(results, folder / "demo.png")
