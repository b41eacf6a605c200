"""``probekit report``: a page that people open, of verdicts, a run or a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from probekit.cli.options import emit, json_option, overwrite_option, say

if TYPE_CHECKING:
    from probekit.reports.page import Page

__all__ = ["command"]

REPORT = "report.html"


@click.command("report")
@click.argument("what", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="HTML file to write.  [default: report.html, in the folder of a run]",
)
@click.option(
    "--acts",
    type=click.Path(path_type=Path),
    help="Verdicts: the store they were made from, for nearest rows and the map; one of the "
    "recorded name beside the verdicts is found.",
)
@click.option(
    "--rows", help="Verdicts: the rows, for their texts, if the store does not find them."
)
@click.option(
    "--truth", help="Verdicts: ground truth (id and label), shown beside the weak labels."
)
@click.option("--truth-column", help="Column of the truth, if not label.")
@click.option("--text-column", help="Column of the text in the rows, if not text.")
@click.option("--id-column", help="Column of the id in rows and truth, if not id.")
@click.option("--no-text", is_flag=True, help="Verdicts: ids instead of texts.")
@click.option("--layer", type=int, help="Layer of nearest rows and map.  [default: the verdicts']")
@click.option(
    "--neighbors", default=8, type=click.IntRange(1, 50), help="Nearest rows shown of each row."
)
@click.option(
    "--limit",
    default=20_000,
    type=click.IntRange(min=1),
    help="Rows listed, most disagreeing first.",
)
@click.option(
    "--steps",
    type=click.Path(path_type=Path),
    help="Run: folder of its steps.  [default: steps, beside the run]",
)
@overwrite_option
@json_option
def command(**options: Any) -> None:
    """Write one HTML page that opens from disk: tables, figures, provenance, the rows themselves.

    WHAT is the folder of a run, a file of verdicts, or one of a sweep. The page needs no network
    and sends nothing anywhere.

    Example: probekit report verdicts.parquet --acts acts.h5 --truth truth.jsonl -o report.html
    """
    from probekit.errors import UsageError
    from probekit.files import check_output
    from probekit.reports.page import write_page

    what: Path = options["what"]
    own = what.is_dir() and options["output"] is None
    output = options["output"] or (what / REPORT if own else Path(REPORT))
    check_output(output, overwrite=options["overwrite"] or own)
    if output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{output} must end in .html; a page is what is written.")
    page = _page(what, options)
    write_page(page, output)
    say(f"{output}: open it in a browser ({output.stat().st_size / 1e6:.1f} MB).")
    result = {"output": str(output), "of": page.kind, "bytes": output.stat().st_size}
    result["rows"] = None if page.rows is None else page.rows.payload["listed"]
    emit(result, str(output), as_json=options["as_json"])


def _page(what: Path, options: dict[str, Any]) -> Page:
    from probekit.cli.report_evidence import verdict_evidence
    from probekit.errors import DataError
    from probekit.reports.page_verdicts import verdicts_page
    from probekit.verdicts import Verdicts

    if not what.exists():
        raise DataError(
            f"{what} does not exist; name the folder of a run, or a file of verdicts or a sweep."
        )
    verdicts = Verdicts.load(what)
    evidence = verdict_evidence(verdicts, what, options)
    return verdicts_page(verdicts, evidence, title=what.name, limit=options["limit"])
