"""``probekit review``: the disagreeing rows to a file for people, and their corrections back."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from probekit.cli.options import emit, json_option, output_option, overwrite_option, say
from probekit.cli.outputs import claim

__all__ = ["command"]


@click.command("review")
@click.argument("verdicts", type=click.Path(path_type=Path))
@output_option("Rows to review: .csv or .jsonl; with --merge the verdicts: .parquet or .jsonl.")
@click.option(
    "-n", "--many", type=click.IntRange(min=1), default=100, help="Most disagreeing rows to write."
)
@click.option(
    "--merge",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Take the corrected labels of this file over into the verdicts.",
)
@click.option("--acts", type=click.Path(path_type=Path), help="The store, to find the rows by.")
@click.option("--rows", help="The rows, for their texts, if not to be found.")
@click.option("--text-column", help="Column of the text in the rows, if not text.")
@click.option("--id-column", help="Column of the id in the rows, if not id.")
@click.option("--no-text", is_flag=True, help="Write ids without texts.")
@overwrite_option
@json_option
def command(**options: Any) -> None:
    """Write the most disagreeing rows for human review, and merge the corrected labels.

    JSONL has the record fields of Argilla. In the CSV fill in the column label, with a class or
    with nothing.

    Example: probekit review verdicts.parquet -n 50 -o review.csv &&
    probekit review verdicts.parquet --merge review.csv -o reviewed.parquet
    """
    from probekit.errors import UsageError
    from probekit.verdicts import Verdicts

    output: Path = options["output"]
    claim(options, "output")
    allowed = (".csv", ".jsonl") if options["merge"] is None else (".parquet", ".jsonl")
    if output.suffix not in allowed:
        raise UsageError(f"{output} must end in {' or '.join(allowed)}; these are what is written.")
    verdicts = Verdicts.load(options["verdicts"])
    (_write if options["merge"] is None else _merge)(verdicts, options)


def _write(verdicts: Any, options: dict[str, Any]) -> None:
    from probekit.cleaning.review import QUESTION, review_records, write_review
    from probekit.cleaning.source_rows import find_texts
    from probekit.cli.cleaning_run import rows_named

    texts = None
    if not options["no_text"]:
        named = rows_named(options)
        texts = find_texts(verdicts, options["verdicts"], acts=options["acts"], **named)
    records = review_records(verdicts, texts, limit=options["many"])
    write_review(records, options["output"])
    result = {"output": str(options["output"]), "rows": len(records), "of": len(verdicts)}
    answers = shlex.quote(str(options["output"]))
    command = f"probekit review {shlex.quote(str(options['verdicts']))} --merge {answers}"
    text = (
        f"{len(records):,} of {len(verdicts):,} rows, most disagreeing first. Fill in {QUESTION} "
        f"({', '.join(verdicts.classes[:10])}{', …' if len(verdicts.classes) > 10 else ''}), then: "
        f"{command} -o reviewed.parquet"
    )
    emit(result, text, as_json=options["as_json"])


def _merge(verdicts: Any, options: dict[str, Any]) -> None:
    from probekit.cleaning.review import merge_review, read_review

    source = str(options["merge"])
    merged = merge_review(verdicts, read_review(source), source=source)
    merged.save(options["output"])
    say(f"{len(merged):,} verdicts written to {options['output']}")
    told = merged.provenance["reviewed"]
    text = (
        f"{told['answers']:,} labels taken over: {told['changed']:,} change the class to train on, "
        f"{told['brought_back']:,} rows come back; {told['as_weak_label']:,} are the weak label, "
        f"{told['as_probe']:,} what the probe says."
    )
    if not told["answers"]:
        text = f"No answer in {source}: the verdicts are as they were."
    emit({"output": str(options["output"]), **told}, text, as_json=options["as_json"])
