"""``probekit merge``: one file from a folder, or from several stores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypedDict, Unpack

import click

from probekit.cli.options import (
    FILE,
    AsJson,
    Overwrite,
    SectionedCommand,
    argument,
    emit,
    options_of,
    output_file,
)

__all__ = ["command"]


class MergeOptions(TypedDict):
    """Options of ``probekit merge``."""

    parts: Annotated[
        tuple[Path, ...],
        argument("A folder of parts, or stores of one model.", nargs=-1, required=True, type=FILE),
    ]
    output: Annotated[Path, output_file("HDF5 file to write.")]
    overwrite: Overwrite
    as_json: AsJson


@click.command("merge", cls=SectionedCommand)
@options_of(MergeOptions)
def command(**options: Unpack[MergeOptions]) -> None:
    """Join stores of one model into one file.

    PARTS are a folder of parts, or complete stores of different rows, which come one behind the
    other.

    Example: probekit merge acts/ -o acts.h5
    """
    from probekit.activations.merge import merge

    parts, output = options["parts"], options["output"]
    rows = merge(parts, output, overwrite=options["overwrite"])
    result: dict[str, Any] = {"path": str(output), "rows": rows, "parts": [*map(str, parts)]}
    what = f"{len(parts)} stores" if len(parts) > 1 else str(parts[0])
    text = f"{output}: {rows:,} rows of {what}."
    emit(result, text, as_json=options["as_json"])
