"""``probekit import``: states that were computed elsewhere, as an activation store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypedDict, Unpack

import click

from probekit.cli.options import (
    FILE,
    AsJson,
    IdColumn,
    Overwrite,
    SectionedCommand,
    TextColumn,
    argument,
    emit,
    option,
    options_of,
    output_file,
)
from probekit.cli.outputs import claim

__all__ = ["command"]


class ImportOptions(TypedDict):
    """Options of ``probekit import``."""

    states: Annotated[Path, argument("File of the states.", type=FILE)]
    rows: Annotated[
        str | None,
        option("Rows of the states, in the same order.  [default: STATES, if it is Parquet]"),
    ]
    layer: Annotated[
        int | None, option("Number of the layer.  [default: 1, or as safetensors name it]")
    ]
    column: Annotated[
        str | None, option("Parquet: column of the states.  [default: the only one with lists]")
    ]
    text_column: TextColumn
    id_column: IdColumn
    output: Annotated[Path, output_file("Store to write, HDF5.")]
    overwrite: Overwrite
    as_json: AsJson


@click.command("import", cls=SectionedCommand)
@options_of(ImportOptions)
def command(**options: Unpack[ImportOptions]) -> None:
    """Make a store of states that were computed elsewhere.

    STATES is a NumPy file (.npy), safetensors with an array for each layer, or Parquet with a
    column of lists. Every command that reads a store works on it.

    Example: probekit import states.npy --rows rows.csv -o acts.h5
    """
    from probekit.activations.importing import SUFFIXES, import_states
    from probekit.errors import UsageError
    from probekit.sources import load_rows
    from probekit.tables import suffix_of

    states, source = options["states"], options["rows"]
    claim(options, "output")
    if source is None:
        if suffix_of(states) != SUFFIXES[1]:
            raise UsageError("Name the rows that the states are of with --rows.")
        source = str(states)
    rows = load_rows(source, text_column=options["text_column"], id_column=options["id_column"])
    with import_states(
        states,
        rows,
        options["output"],
        layer=options["layer"],
        column=options["column"],
        overwrite=options["overwrite"],
    ) as store:
        widths = {layer: store.info(layer).width for layer in store.layers}
    shown = ", ".join(f"layer {layer} of width {width:,}" for layer, width in widths.items())
    result = {"path": str(options["output"]), "rows": len(rows), "widths": widths}
    text = f"{options['output']}: {len(rows):,} rows, {shown}."
    emit(result, text, as_json=options["as_json"])
