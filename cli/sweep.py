"""``probekit sweep``: every layer, probe and strength, and the choice that needs no truth."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, Unpack

import click

from probekit.cli.checked import parse_grid, parse_numbers, seed_list
from probekit.cli.engine import ENGINE, EngineOptions, engine_of
from probekit.cli.labels import (
    LabelledStoreOptions,
    TruthOptions,
    read_labels,
    read_truth,
)
from probekit.cli.options import (
    AsJson,
    Overwrite,
    SectionedCommand,
    emit,
    option,
    options_of,
    output_file,
    say,
    typed_again,
)
from probekit.cli.outputs import check_suffix, claim
from probekit.probes.registry import PUBLISHED, REGISTRY, probe_spec

if TYPE_CHECKING:
    from probekit.experiments.sweep import Sweep
    from probekit.experiments.sweep_probes import SweepRows, SweepSettings

__all__ = ["command"]

# Default grids; values that need more rows than exist are left out.
K, L2, ZETA = "1:500:log", "1e-4:1e1:log", "0.5"
K_CC = {"paper": "4,8,16", "eleuther": "10,25,50"}
K_ZETA = {"paper": "16,32,64", "eleuther": "10,25,50"}

# Options of both sweep and filter that the filter of the choice does not take over.
NOT_THE_CHOICE = (
    *("k", "l2", "k_cc", "k_zeta", "zeta", "disagreement"),
    *("truth", "truth_column", "output", "overwrite", *ENGINE),
)


class GridOptions(TypedDict):
    """What is swept."""

    layers: Annotated[str, option("Stored layers: all, last, 1,3, 2-5 or -1.", default="all")]
    probes: Annotated[
        str,
        option(
            f"Of {', '.join(REGISTRY)}, and probes of installed packages; the ensemble reads "
            "all stored layers.",
            default=",".join(PUBLISHED),
        ),
    ]
    k: Annotated[
        str | None, option(f"knn: neighbours, LOW:HIGH[:N]:log|lin or a list.  [default: {K}]")
    ]
    l2: Annotated[str | None, option(f"logreg: penalties.  [default: {L2}]")]
    k_cc: Annotated[
        str | None,
        option("topofilter: neighbours of the graph.  [default: 4,8,16; eleuther 10,25,50]"),
    ]
    k_zeta: Annotated[
        str | None,
        option("topofilter: neighbours that vote.  [default: 16,32,64; eleuther 10,25,50]"),
    ]
    zeta: Annotated[
        str | None, option(f"topofilter paper: shares of votes needed.  [default: {ZETA}]")
    ]
    contaminations: Annotated[
        str,
        option(
            "Shares that filtering drops; also topofilter eleuther's strength.",
            default="0.05,0.1,0.2,0.3",
        ),
    ]
    variant: Annotated[
        Literal["paper", "eleuther"],
        option("topofilter: which of the two published ones.", default="paper"),
    ]
    metric: Annotated[
        Literal["cosine", "euclidean"],
        option("knn, topofilter: distance of centred rows.", default="cosine"),
    ]
    standardize: Annotated[
        bool,
        option(
            "logreg: penalise the coefficients of columns divided by their spread.",
            "--standardize/--no-standardize",
            default=True,
        ),
    ]
    disagreement: Annotated[
        Literal["label", "distance"] | None,
        option(
            "What filtering ranks by, as in `probekit filter`.  "
            "[default: label; topofilter eleuther: distance]"
        ),
    ]
    folds: Annotated[int, option("logreg: folds.", default=5, type=click.IntRange(min=2))]
    seeds: Annotated[
        str, option("logreg: number of seeds of folds, or a list such as 0,1,2.", default="1")
    ]
    output: Annotated[Path, output_file("Sweep to write: .parquet or .jsonl.")]
    figures: Annotated[Path | None, option("Folder for strengths.png and layers.png.")]
    overwrite: Overwrite
    as_json: AsJson


class SweepOptions(LabelledStoreOptions, TruthOptions, EngineOptions, GridOptions):
    """Options of ``probekit sweep``."""


@click.command("sweep", cls=SectionedCommand)
@options_of(SweepOptions, Grid=GridOptions)
def command(**options: Unpack[SweepOptions]) -> None:
    """Try every probe, strength and layer, and choose one.

    All k of a layer come from one neighbour search, all penalties and folds from one computation.
    The choice is the least out-of-fold log-loss on the weak labels, moved towards more
    regularisation by one standard error. Resumes where it was interrupted.

    Example: probekit sweep acts.h5 --labels weak.parquet --truth truth.parquet -o sweep.parquet
    """
    from probekit.activations.store import ActivationStore
    from probekit.experiments.sweep import remove_parts, run_sweep, write_sweep

    _check_files(options)
    with ActivationStore(options["acts"]) as store:
        rows = _rows(store, options)
        settings = _settings(rows, options)
        output: Path = options["output"]
        parts = output.with_name(f".{output.name}.parts")
        with engine_of(options):
            sweep = run_sweep(rows, settings, parts=parts, say=say)
    write_sweep(sweep, output, command=typed_again(without=("overwrite", "figures", *ENGINE)))
    say(f"{len(sweep.rows):,} rows written to {output}")
    result = sweep.plain
    if options["figures"] is not None:
        result["figures"] = [str(path) for path in _draw(result, options["figures"])]
    remove_parts(parts)  # after the figures: a sweep stopped while drawing them resumes
    result["next"] = _next_step(sweep, options)
    emit(result, _text(sweep, result["next"]), as_json=options["as_json"])


def _check_files(options: SweepOptions) -> None:
    from probekit.errors import OutputExistsError
    from probekit.extras import need

    output, figures = options["output"], options["figures"]
    claim(options, "output", folders=("figures",))
    check_suffix(output, ".parquet", ".jsonl")
    if (
        figures is not None
        and not figures.is_dir()
        and (os.path.lexists(figures) or figures == output)
    ):
        raise OutputExistsError(f"{figures} is a file; name a folder for the figures.")
    if figures is not None:
        need("matplotlib")


def _rows(store: Any, options: SweepOptions) -> SweepRows:
    from probekit.experiments.sweep_probes import join_rows

    labels = read_labels(options, store.keys)
    truth = None if options["truth"] is None else read_truth(options, store.keys)
    return join_rows(store, labels, truth, only_labelled=options["only_labelled"])


def _settings(rows: SweepRows, options: SweepOptions) -> SweepSettings:
    from probekit.errors import UsageError
    from probekit.experiments.sweep_probes import SweepSettings

    store, variant, most = rows.store, options["variant"], rows.most_neighbors
    probes = tuple(dict.fromkeys(p.strip() for p in options["probes"].split(",") if p.strip()))

    def neighbors(flag: str, grid: str | None, default: str) -> tuple[int, ...]:
        values = parse_grid(default if grid is None else grid, name=flag, whole=True, low=1)
        if grid is None:  # a default grid is cut to the rows that there are
            values = tuple(k for k in values if k <= most) or (most,)
        return tuple(map(int, values))

    if options["zeta"] is not None and variant == "eleuther":
        raise UsageError(
            "TopoFilter's variant 'eleuther' has no --zeta; its strength is the share "
            "to drop (--contaminations)."
        )
    return SweepSettings(
        layers=parse_numbers(
            options["layers"], store.layers, name="--layers", place=str(store.path)
        ),
        probes=probes,
        l2=parse_grid(options["l2"] or L2, name="--l2"),
        zeta=parse_grid(options["zeta"] or ZETA, name="--zeta"),
        contaminations=parse_grid(
            options["contaminations"], name="--contaminations", high=1, open_ends=True
        ),
        k=neighbors("--k", options["k"], K),
        k_cc=neighbors("--k-cc", options["k_cc"], K_CC[variant]),
        k_zeta=neighbors("--k-zeta", options["k_zeta"], K_ZETA[variant]),
        seeds=tuple(seed_list(options["seeds"])),
        n_folds=options["folds"],
        metric=options["metric"],
        standardize=options["standardize"],
        variant=variant,
        disagreement=options["disagreement"],
    )


def _draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    from probekit.reports.sweep import write_figures

    folder.mkdir(parents=True, exist_ok=True)
    written = write_figures(result, folder)
    say(f"Figures written to {folder}")
    return written


def _text(sweep: Sweep, next_step: str | None) -> str:
    from probekit.reports.sweep import choice_text, sweep_table

    parts = [sweep_table(sweep.plain).text(), "", choice_text(sweep.plain)]
    if next_step is not None:
        parts += ["", f"To filter with it:  {next_step}"]
    return "\n".join(parts)


def _next_step(sweep: Sweep, options: SweepOptions) -> str | None:
    """The `filter` command of the choice; None if filter lacks an option that was swept."""
    choice = sweep.choice
    heeds = probe_spec(choice["probe"]).depends
    if "standardize" in heeds and not options["standardize"]:
        return None
    setting = {"metric": "metric", "variant": "variant", "folds": "n_folds"}
    without = [name for name, needed in setting.items() if needed not in heeds]
    words = [typed_again("filter", without=(*NOT_THE_CHOICE, *without))]
    words += ["--probe", choice["probe"]]
    for name in ("layer", "k", "l2", "k_cc", "k_zeta", "zeta", "contamination"):
        if name in choice:
            words += ["--" + name.replace("_", "-"), f"{choice[name]:.12g}"]
    return " ".join([*words, "-o verdicts.parquet"])
