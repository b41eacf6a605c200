"""``probekit report``: a page that people open, of verdicts, a run or a sweep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict, Unpack

import click

from probekit.cli.labels import Truth, TruthColumn, read_truth_codes
from probekit.cli.options import (
    FILE,
    OUTPUT_FILE,
    AsJson,
    IdColumn,
    Overwrite,
    Rows,
    SectionedCommand,
    TextColumn,
    argument,
    emit,
    option,
    options_of,
    say,
    source_of,
)
from probekit.cli.outputs import claim
from probekit.errors import DataError, ProbekitError, UsageError
from probekit.files import is_table_folder

if TYPE_CHECKING:
    from probekit.reports.page import Page, RowsSection

__all__ = ["command"]

REPORT, METRICS = "report.html", "metrics.json"
# What an option is of use for.
ONLY = {
    "verdicts": (
        *("acts", "rows", "truth", "truth_column", "text_column", "id_column"),
        *("no_text", "layer"),
    ),
    "folder": ("steps", "arm"),
}


class ReportOptions(TypedDict):
    """Options of ``probekit report``."""

    what: Annotated[
        Path, argument("Folder of a run, or file of verdicts or of a sweep.", type=FILE)
    ]
    output: Annotated[
        Path | None,
        option(
            "HTML file to write.  [default: report.html, in the folder of a run]",
            "-o",
            "--output",
            type=OUTPUT_FILE,
        ),
    ]
    acts: Annotated[
        Path | None,
        option(
            "Verdicts: the store they were made from, for nearest rows and the map.  "
            "[default: the recorded one, if it is beside the verdicts]"
        ),
    ]
    rows: Rows
    truth: Truth
    truth_column: TruthColumn
    text_column: TextColumn
    id_column: IdColumn
    no_text: Annotated[bool, option("Verdicts: ids instead of texts.")]
    layer: Annotated[
        int | None, option("Verdicts: layer of nearest rows and map.  [default: the verdicts']")
    ]
    neighbors: Annotated[
        int,
        option(
            "Number of nearest rows shown with each row.", default=8, type=click.IntRange(1, 50)
        ),
    ]
    limit: Annotated[
        int,
        option(
            "Maximum number of rows listed, the most disagreeing first.",
            default=20_000,
            type=click.IntRange(min=1),
        ),
    ]
    steps: Annotated[
        Path | None, option("Run: folder of its steps.  [default: steps, beside the run]")
    ]
    arm: Annotated[
        str | None, option("Run: whose rows to show.  [default: the first that filters]")
    ]
    overwrite: Overwrite
    as_json: AsJson


@click.command("report", cls=SectionedCommand)
@options_of(ReportOptions)
def command(**options: Unpack[ReportOptions]) -> None:
    """Write one HTML page: tables, figures, and the rows.

    WHAT is the folder of a run, or verdicts or a sweep. The page needs no network
    and sends nothing anywhere.

    Example: probekit report verdicts.parquet --acts acts.h5 --truth truth.jsonl -o report.html
    """
    from probekit.reports.page import write_page

    what: Path = options["what"]
    own = _is_run(what) and options["output"] is None
    output = options["output"] or (what / REPORT if own else Path(REPORT))
    # In the folder of a run the page is one of its files, which are rewritten.
    read = {**options, "what": None if _is_run(what) else what}
    claim({**read, "output": output}, "output", resumes=own)
    if output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{output} must end in .html; a page is what is written.")
    page = _page(what, options)
    write_page(page, output)
    say(f"{output}: open it in a browser ({output.stat().st_size / 1e6:.1f} MB).")
    result = {"output": str(output), "of": page.kind, "bytes": output.stat().st_size}
    result["rows"] = None if page.rows is None else page.rows.payload["listed"]
    emit(result, str(output), as_json=options["as_json"])


def _page(what: Path, options: ReportOptions) -> Page:
    from probekit.experiments.sweep import is_sweep

    if not what.exists():
        raise DataError(
            f"{what} does not exist; name the folder of a run, or a file of verdicts or a sweep."
        )
    if _is_run(what):
        _check_options("folder", options)
        return _folder_page(what, options)
    if what.suffix.lower() in (".parquet", ".jsonl") and is_sweep(what):
        _check_options("sweep", options)
        return _sweep_page(what)
    _check_options("verdicts", options)
    return _verdicts_page(what, options)


def _is_run(what: Path) -> bool:
    """Whether it is a folder, and not that of a table."""
    return what.is_dir() and not (any(what.iterdir()) and is_table_folder(what))


def _check_options(of: str, options: ReportOptions) -> None:
    """Raise UsageError if options were given that would be ignored."""
    given = [name for name, value in options.items() if value is not None and value is not False]
    foreign = [
        "--" + name.replace("_", "-")
        for kind, names in ONLY.items()
        for name in names
        if kind != of and name in given
    ]
    if foreign:
        known = {"folder": "a folder", "sweep": "a sweep", "verdicts": "verdicts"}[of]
        raise UsageError(f"{', '.join(foreign)} cannot be used for {known}; leave it out.")


@contextmanager
def _one_sentence(sentence: str) -> Iterator[None]:
    """Raise DataError with this sentence if a file has another structure."""
    try:
        yield
    except ProbekitError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        raise DataError(sentence) from None


def _verdicts_page(path: Path, options: ReportOptions) -> Page:
    from probekit.cleaning.evidence import verdict_evidence
    from probekit.reports.verdicts import verdicts_page
    from probekit.verdicts import Verdicts

    verdicts = Verdicts.load(path)
    evidence = verdict_evidence(
        verdicts,
        path,
        acts=options["acts"],
        texts=not options["no_text"],
        truth=None if options["truth"] is None else read_truth_codes(options, verdicts),
        layer=options["layer"],
        neighbors=options["neighbors"],
        **source_of(options),
    )
    return verdicts_page(verdicts, evidence, title=path.name, limit=options["limit"])


def _sweep_page(path: Path) -> Page:
    from probekit.experiments.sweep import read_sweep
    from probekit.reports.sweep import sweep_page

    sentence = f"{path} is damaged or of another version; make it again with `probekit sweep`."
    with _one_sentence(sentence):
        return sweep_page(read_sweep(path), title=path.name)


def _folder_page(folder: Path, options: ReportOptions) -> Page:
    """Of a run or a saliency comparison, by what lies in the folder."""
    from probekit.reports.run import run_page
    from probekit.reports.saliency import saliency_page
    from probekit.safe import read_json

    path = folder / METRICS
    if not path.is_file():
        raise DataError(
            f"{folder} is not a run: it has no {METRICS}; name the folder that `probekit run` "
            "wrote, when it has finished."
        )
    sentence = f"{path} holds no results of `probekit run`; name the folder that it wrote."
    with _one_sentence(sentence):
        results = read_json(path)
        if "pairs" in results:
            return saliency_page(results, folder=folder)
        return run_page(results, folder=folder, rows=_rows_of_run(folder, options))


def _rows_of_run(folder: Path, options: ReportOptions) -> RowsSection | None:
    """The rows that the run cleaned, if its steps still exist; prints a note if not."""
    from probekit.experiments.config import read_config
    from probekit.experiments.run import Run
    from probekit.reports.rows import run_rows

    steps = options["steps"] or folder.absolute().parent / "steps"
    try:
        if not steps.is_dir():
            raise UsageError(f"there is no folder {steps}; name it with --steps.")
        config = read_config(folder / "config.yaml")
        rows = run_rows(
            Run(config, steps, lambda _: None),
            arm=options["arm"],
            neighbors=options["neighbors"],
            limit=options["limit"],
        )
    except ProbekitError as error:
        if options["arm"] is not None or options["steps"] is not None:
            raise
        say(f"Note: the page has no rows: {error}")
        return None
    if rows is None:
        say("Note: the page has no rows: the run cleans no labels, or its steps were deleted.")
    return rows
