"""``probekit readmit``: take dropped rows back with the labels of a student trained on the rest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from probekit.cli.labels import read_truth
from probekit.cli.options import emit, json_option, output_option, overwrite_option, say
from probekit.cli.outputs import claim

__all__ = ["command"]


@click.command("readmit")
@click.argument("verdicts", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--predictions",
    multiple=True,
    required=True,
    help="A student's predictions for these rows; again for each further student.",
)
@click.option("--confidence", default=0.9, help="Least mean probability of the class.")
@click.option("--truth", help="Ground truth; opened once the verdicts are written.")
@output_option("Verdicts to write: .parquet or .jsonl.")
@overwrite_option
@json_option
def command(**options: Any) -> None:
    """Re-admit rows that a filter dropped where students trained on the rest are sure of them.

    Several students must agree on the class.

    Example: probekit readmit verdicts.parquet --predictions student.parquet -o verdicts2.parquet
    """
    from probekit.cleaning.relabel import readmit
    from probekit.errors import UsageError
    from probekit.labels import load_labels
    from probekit.verdicts import Verdicts

    output: Path = options["output"]
    claim(options, "output")
    if output.suffix not in (".parquet", ".jsonl"):
        raise UsageError(f"{output} must end in .parquet or .jsonl; these are what is written.")
    if len({os.path.realpath(path) for path in options["predictions"]}) < len(
        options["predictions"]
    ):
        raise UsageError("One student is named twice with --predictions; name each once.")
    before = Verdicts.load(options["verdicts"])
    students = [load_labels(path) for path in options["predictions"]]
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
        aligned = read_truth(options, after.keys).align(after.keys)
        codes = aligned.labels.codes(after.classes)
        right = {
            name: float((matrix.argmax(axis=1) == codes)[back].mean()) if back.any() else None
            for name, matrix in (("weak", after.weak), ("label", after.label))
        }
        result["right"] = right
        if back.any():
            text += f" Right: {right['weak']:.1%} of their weak labels, {right['label']:.1%} now."
    emit(result, text, as_json=options["as_json"])
