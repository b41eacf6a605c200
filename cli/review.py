"""``probekit review``: the disagreeing rows to a file for people, and their corrections back."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict, Unpack

import click

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
    output_file,
    say,
    source_of,
)
from probekit.cli.outputs import check_suffix, claim

if TYPE_CHECKING:
    from probekit.verdicts import Verdicts

__all__ = ["command"]


class ReviewOptions(TypedDict):
    """Options of ``probekit review``."""

    verdicts: Annotated[
        Path, argument("Verdicts of `probekit filter` or `probekit relabel`.", type=FILE)
    ]
    output: Annotated[
        Path,
        output_file(
            "Rows to review: .csv or .jsonl; with --merge the verdicts: .parquet or .jsonl."
        ),
    ]
    many: Annotated[
        int,
        option(
            "Number of rows to write, the most disagreeing first.",
            "-n",
            "--many",
            type=click.IntRange(min=1),
            default=100,
        ),
    ]
    merge: Annotated[
        Path | None,
        option("Merge the corrected labels of this file into the verdicts.", type=OUTPUT_FILE),
    ]
    acts: Annotated[
        Path | None, option("The store that the verdicts were made from, to find the rows.")
    ]
    rows: Rows
    text_column: TextColumn
    id_column: IdColumn
    no_text: Annotated[bool, option("Write ids without texts.")]
    overwrite: Overwrite
    as_json: AsJson


@click.command("review", cls=SectionedCommand)
@options_of(ReviewOptions)
def command(**options: Unpack[ReviewOptions]) -> None:
    """Write the most doubtful rows for a person; merge the answers.

    JSONL has the record fields of Argilla. In the CSV, fill in the column label, or
    leave it empty.

    Example: probekit review verdicts.parquet -n 50 -o review.csv &&
    probekit review verdicts.parquet --merge review.csv -o reviewed.parquet
    """
    from probekit.verdicts import Verdicts

    claim(options, "output")
    merging = options["merge"] is not None
    check_suffix(options["output"], ".parquet" if merging else ".csv", ".jsonl")
    verdicts = Verdicts.load(options["verdicts"])
    (_merge if merging else _write)(verdicts, options)


def _write(verdicts: Verdicts, options: ReviewOptions) -> None:
    from probekit.cleaning.review import QUESTION, review_records, write_review
    from probekit.cleaning.source_rows import find_texts

    texts = None
    if not options["no_text"]:
        source = source_of(options)
        texts = find_texts(verdicts, options["verdicts"], acts=options["acts"], **source)
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


def _merge(verdicts: Verdicts, options: ReviewOptions) -> None:
    from probekit.cleaning.review import merge_review, read_review

    source = str(options["merge"])
    merged = merge_review(verdicts, read_review(source), source=source)
    merged.save(options["output"])
    say(f"{len(merged):,} verdicts written to {options['output']}")
    counts = merged.provenance["reviewed"]
    text = (
        f"{counts['answers']:,} labels merged: {counts['changed']:,} change the class to train "
        f"on, {counts['brought_back']:,} rows come back; {counts['as_weak_label']:,} are the weak "
        f"label, {counts['as_probe']:,} what the probe says."
    )
    if not counts["answers"]:
        text = f"No answer in {source}: the verdicts are unchanged."
    result = {"output": str(options["output"]), **counts}
    emit(result, text, as_json=options["as_json"])
