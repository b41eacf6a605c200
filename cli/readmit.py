"""``probekit readmit``: take dropped rows back, with the labels of students trained on the rest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, TypedDict, Unpack

import click

from probekit.cli.labels import Truth, read_truth_codes
from probekit.cli.options import (
    FILE,
    AsJson,
    Overwrite,
    SectionedCommand,
    argument,
    emit,
    option,
    options_of,
    output_table,
    say,
)
from probekit.cli.outputs import check_suffix, claim

__all__ = ["command"]


class ReadmitOptions(TypedDict):
    """Options of ``probekit readmit``."""

    verdicts: Annotated[Path, argument("Verdicts of `probekit filter`.", type=FILE)]
    predictions: Annotated[
        tuple[str, ...],
        option(
            "A student's predictions for these rows; repeatable, once per student.", required=True
        ),
    ]
    confidence: Annotated[float, option("Least mean probability of the class.", default=0.9)]
    truth: Truth
    output: Annotated[Path, output_table("Verdicts to write:")]
    overwrite: Overwrite
    as_json: AsJson


@click.command("readmit", cls=SectionedCommand)
@options_of(ReadmitOptions)
def command(**options: Unpack[ReadmitOptions]) -> None:
    """Re-admit dropped rows of whose class students are sure.

    Several students must agree on the class.

    Example: probekit readmit verdicts.parquet --predictions student.parquet -o verdicts2.parquet
    """
    from probekit.cleaning.relabel import readmit
    from probekit.errors import UsageError
    from probekit.labels import load_labels
    from probekit.verdicts import Verdicts

    output, predictions = options["output"], options["predictions"]
    claim(options, "output")
    check_suffix(output, ".parquet", ".jsonl", "")
    if len({*map(os.path.realpath, predictions)}) < len(predictions):
        raise UsageError("One student is named twice with --predictions; name each once.")
    before = Verdicts.load(options["verdicts"])
    students = [load_labels(path, column_option=None) for path in predictions]
    after = readmit(before, students, confidence=options["confidence"])
    after.save(output)
    say(f"{len(after):,} verdicts written to {output}")
    back = after.keep & ~before.keep
    result: dict[str, Any] = {
        "output": str(output),
        "dropped": int((~before.keep).sum()),
        "readmitted": int(back.sum()),
        "right": None,
    }
    text = f"{result['readmitted']:,} of {result['dropped']:,} dropped rows re-admitted."
    if options["truth"] is not None:
        codes = read_truth_codes(options, after)
        right = {
            name: float((matrix.argmax(axis=1) == codes)[back].mean()) if back.any() else None
            for name, matrix in (("weak", after.weak), ("label", after.label))
        }
        result["right"] = right
        if back.any():
            text += f" Right: {right['weak']:.1%} of their weak labels, {right['label']:.1%} now."
    emit(result, text, as_json=options["as_json"])
