"""``probekit merge``: one activation store from parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from probekit.cli.options import emit, json_option, output_option, overwrite_option

__all__ = ["command"]


@click.command("merge")
@click.argument("parts", nargs=-1, required=True, type=click.Path(path_type=Path))
@output_option("Store to write.")
@overwrite_option
@json_option
def command(*, parts: tuple[Path, ...], output: Path, overwrite: bool, as_json: bool) -> None:
    """Join stores of one model into one.

    PARTS are the stores that machines without a shared disk have each written their share of, or
    complete stores of different rows, which come one behind the other.

    Example: probekit merge node0/acts.h5 node1/acts.h5 -o acts.h5
    """
    from probekit.activations.merge import merge

    rows = merge(parts, output, overwrite=overwrite)
    result: dict[str, Any] = {"path": str(output), "rows": rows, "parts": [str(p) for p in parts]}
    emit(result, f"{output}: {rows:,} rows of {len(parts)} stores.", as_json=as_json)
