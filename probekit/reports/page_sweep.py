"""The page of a sweep: the choice, strength curves per layer, and the tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.errors import DataError
from probekit.reports.page import Page, PageTable
from probekit.reports.page_run import embedded, flat
from probekit.reports.replay import RECORDED, recorded_command
from probekit.reports.sweep_figures import draw_layers, draw_strengths
from probekit.reports.sweep_tables import (
    cell,
    choice_text,
    in_percent,
    measure_name,
    strength_text,
    sweep_table,
)
from probekit.reports.tables import MISSING, Table
from probekit.safe import misfit
from probekit.sources import read_table
from probekit.tables import read_metadata

if TYPE_CHECKING:
    from probekit.reports.page import Figure

__all__ = ["is_sweep", "read_sweep", "sweep_page"]

FORMAT = "probekit-sweep"
ROWS_SHOWN = 1000
NUMBER_OR_NONE = (int, float, type(None))


def is_sweep(path: Path) -> bool:
    """Whether a file says that it is a sweep."""
    return path.is_file() and read_metadata(path).get("format") == FORMAT


def read_sweep(path: Path) -> dict[str, Any]:
    """Read what `probekit sweep` wrote: ``rows`` as dicts, and what the file says beside them.

    Raises
    ------
    DataError
        The file is damaged.
    """
    table = read_table(path)
    columns = {name: values[:] for name, values in table.columns.items()}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if not rows:
        raise DataError(f"{path} holds no results; make it again with `probekit sweep`.")
    shape = {name: NUMBER_OR_NONE for name in columns if name != "probe"} | {"probe": str}
    said = {"choice": dict, "regret": dict, "notes?": [str], "provenance?": dict}
    if wrong := misfit(rows, [shape], "rows") or misfit(dict(table.metadata), said, "metadata"):
        raise DataError(f"{path} is damaged: {wrong}; make it again with `probekit sweep`.")
    return {**table.metadata, "rows": rows}


def sweep_page(sweep: Mapping[str, Any], *, title: str) -> Page:
    """Describe a sweep (of :func:`read_sweep`) as a page; ``title`` is how its file is called."""
    from probekit.experiments.sweep_choice import choose_each, mean_over_seeds, row_of

    rows, choice = sweep["rows"], sweep["choice"]
    means = mean_over_seeds(rows)
    best = [dict(row_of(means, row)) for row in choose_each(rows)]
    layers = list(dict.fromkeys(r["layer"] for r in rows if r["layer"] is not None))
    sweep = {**sweep, "best": best}
    found = sweep_table(sweep)
    tables = [PageTable("The best strength of each layer and probe", found)]
    if sweep["regret"]:
        tables.append(PageTable("What choosing without the truth cost", _regret_table(sweep)))
    tables.append(PageTable("Every strength", _rows_table(means), folded=True))
    recorded = recorded_command(sweep.get("command"), "sweep")
    return Page(
        title=title,
        kind="sweep",
        facts=(
            ("Layers", ", ".join(map(str, layers))),
            ("Probes", ", ".join(dict.fromkeys(row["probe"] for row in rows))),
            ("Strengths", f"{len(means):,}"),
            ("Chosen probe", str(choice["probe"])),
            ("Chosen layer", str(choice.get("layer", "all"))),
            ("Chosen strength", strength_text(choice) or MISSING),
        ),
        alarms=tuple(sweep.get("notes", ())),
        tables=tuple(tables),
        figures=_figures(sweep),
        notes=(" ".join(choice_text({**sweep, "regret": {}}).split("\n")),),
        commands=() if recorded is None else ((RECORDED, recorded),),
        provenance=tuple(flat(sweep.get("provenance", {}))),
    )


def _figures(sweep: Mapping[str, Any]) -> tuple[Figure, ...]:
    """Curves and heat map; none where no probe has a strength on a layer."""
    if not any(row["strength"] is not None and row["layer"] is not None for row in sweep["rows"]):
        return ()
    return (
        embedded(draw_strengths(sweep), "By strength of regularisation, a line per layer"),
        embedded(draw_layers(sweep), "Layers by strength"),
    )


def _regret_table(sweep: Mapping[str, Any]) -> Table:
    rows = []
    for measure, found in sweep["regret"].items():
        at = found["at"]
        where = [at["probe"], f"layer {at.get('layer', 'all')}", strength_text(at)]
        rows.append(
            (
                measure_name(measure),
                *(
                    f"{100 * found[key]:.2f}"
                    for key in ("chosen", "oracle", "regret", "by_strength")
                ),
                ", ".join(filter(None, where)),
            )
        )
    header = ("measure, %", "chosen", "best", "regret", "by strength", "the best is at")
    return Table(
        header,
        tuple(rows),
        (
            "The best of each measure is found with the truth. By strength: what of the regret",
            "another strength on the chosen layer, with the chosen probe, would have saved.",
        ),
    )


def _rows_table(means: Sequence[Mapping[str, Any]]) -> Table:
    keys = ("layer", "probe", "strength", "seed", "rows")
    own = ("k", "l2", "k_cc", "k_zeta", "zeta", "contamination")
    names = [
        name
        for name in means[0]
        if name not in keys and name not in own and any(_known(row[name]) for row in means)
    ]
    rows = tuple(
        (
            row["probe"],
            "all" if row["layer"] is None else str(row["layer"]),
            strength_text(row) or MISSING,
            *(cell(name, row[name]) for name in names),
        )
        for row in means[:ROWS_SHOWN]
    )
    left = len(means) - len(rows)
    notes = (f"{left:,} more are in the file.",) if left else ()
    heads = (n.replace("_", " ") + (", %" if in_percent(n) else "") for n in names)
    return Table(("probe", "layer", "strength", *heads), rows, notes)


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
