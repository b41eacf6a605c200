"""``probekit sweep``: every layer, probe and strength, and the choice that needs no truth."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from probekit.cli.labels import LABELS_HELP, labels_options, read_labels, read_truth
from probekit.cli.options import (
    emit,
    json_option,
    output_option,
    overwrite_option,
    say,
)
from probekit.cli.outputs import claim
from probekit.probes.registry import PUBLISHED, REGISTRY, probe_spec

if TYPE_CHECKING:
    from probekit.experiments.sweep import Sweep
    from probekit.experiments.sweep_probes import SweepRows, SweepSettings

__all__ = ["command"]

FILE = click.Path(path_type=Path)
# Where no grid is given; what the rows do not suffice for is left out of these.
K, L2, ZETA = "1:500:log", "1e-4:1e1:log", "0.5"
K_CC = {"paper": "4,8,16", "eleuther": "10,25,50"}
K_ZETA = {"paper": "16,32,64", "eleuther": "10,25,50"}


@click.command("sweep")
@click.argument("acts", type=FILE)
@click.option(
    "--labels",
    required=True,
    help=LABELS_HELP,
)
@labels_options
@click.option("--truth", help="Ground truth (id and label): adds what only it can tell.")
@click.option("--truth-column", help="Column of the truth, if not label.")
@click.option("--layers", default="all", help="Stored layers: all, last, 1,3, 2-5 or -1.")
@click.option(
    "--probes",
    default=",".join(PUBLISHED),
    help=f"Of {', '.join(REGISTRY)}, and probes of installed packages; the ensemble reads all "
    "stored layers.",
)
@click.option("--k", help=f"knn: neighbours, LOW:HIGH[:N]:log|lin or a list ({K}).")
@click.option("--l2", help=f"logreg: penalties ({L2}).")
@click.option("--k-cc", help="topofilter: neighbours of the graph (4,8,16; eleuther 10,25,50).")
@click.option("--k-zeta", help="topofilter: neighbours that vote (16,32,64; eleuther 10,25,50).")
@click.option("--zeta", help=f"topofilter paper: shares of votes needed ({ZETA}).")
@click.option(
    "--contaminations",
    default="0.05,0.1,0.2,0.3",
    help="Shares that filtering drops; also topofilter eleuther's strength.",
)
@click.option(
    "--variant",
    type=click.Choice(["paper", "eleuther"]),
    default="paper",
    help="topofilter: which of the two published ones.",
)
@click.option(
    "--metric",
    type=click.Choice(["cosine", "euclidean"]),
    default="cosine",
    help="knn, topofilter: distance of centred rows.",
)
@click.option(
    "--standardize/--no-standardize",
    default=True,
    help="logreg: penalise the coefficients of columns divided by their spread.",
)
@click.option(
    "--disagreement",
    type=click.Choice(["label", "distance"]),
    help="What filtering ranks by, as filter has it (label; topofilter eleuther: distance).",
)
@click.option("--folds", default=5, type=click.IntRange(min=2), help="logreg: folds.")
@click.option("--seeds", default="1", help="logreg: comma-separated seeds of folds, or how many.")
@output_option("Sweep to write: .parquet or .jsonl.")
@click.option("--figures", type=FILE, help="Folder for strengths.png and layers.png.")
@overwrite_option
@json_option
def command(**options: Any) -> None:
    """Try every probe at every strength on every layer, out of fold, and choose without the truth.

    All k of a layer come from one neighbour search, all penalties and folds from one computation.
    The choice is the least out-of-fold log-loss on the weak labels, moved towards more
    regularisation by one standard error. Goes on where it was interrupted.

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
        sweep = run_sweep(rows, settings, parts=parts, say=say)
    write_sweep(sweep, output, command=_command(options))
    say(f"{len(sweep.rows):,} rows written to {output}")
    result = sweep.plain
    if options["figures"] is not None:
        result["figures"] = [str(path) for path in _draw(result, options["figures"])]
    remove_parts(parts)  # a sweep that is stopped while its figures are drawn goes on from them
    result["next"] = _next_step(sweep, options)
    emit(result, _text(sweep, result["next"]), as_json=options["as_json"])


def _check_files(options: Mapping[str, Any]) -> None:
    from probekit.errors import OutputExistsError, UsageError

    output, figures = options["output"], options["figures"]
    claim(options, "output", folders=("figures",))
    if output.suffix not in (".parquet", ".jsonl"):
        raise UsageError(f"{output} must end in .parquet or .jsonl; these are what is written.")
    if (
        figures is not None
        and not figures.is_dir()
        and (os.path.lexists(figures) or figures == output)
    ):
        raise OutputExistsError(f"{figures} is a file; name a folder for the figures.")


def _rows(store: Any, options: Mapping[str, Any]) -> SweepRows:
    from probekit.experiments.sweep_probes import join_rows

    labels = read_labels(options, store.keys)
    truth = None if options["truth"] is None else read_truth(options, store.keys)
    return join_rows(store, labels, truth, only_labelled=options["only_labelled"])


def _settings(rows: SweepRows, options: Mapping[str, Any]) -> SweepSettings:
    from probekit.errors import UsageError
    from probekit.experiments.ranges import parse_grid, parse_numbers
    from probekit.experiments.sweep_probes import SweepSettings

    store, variant, most = rows.store, options["variant"], rows.most_neighbors
    probes = tuple(dict.fromkeys(p.strip() for p in options["probes"].split(",") if p.strip()))
    default = {"k": K, "k_cc": K_CC[variant], "k_zeta": K_ZETA[variant]}
    counts = {}
    for name, usual in default.items():
        given = options[name]
        flag = "--" + name.replace("_", "-")
        values = parse_grid(usual if given is None else given, name=flag, whole=True, low=1)
        # A grid that nobody asked for is cut to what there is.
        counts[name] = values if given else tuple(k for k in values if k <= most) or (most,)
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
        seeds=_seeds(options["seeds"]),
        n_folds=options["folds"],
        metric=options["metric"],
        standardize=options["standardize"],
        variant=variant,
        disagreement=options["disagreement"],
        **counts,  # type: ignore[arg-type]  # whole numbers, by parse_grid
    )


def _seeds(text: str) -> tuple[int, ...]:
    """Seeds, or how many from 0."""
    from probekit.experiments.ranges import parse_grid

    if "," in text:
        return tuple(int(s) for s in parse_grid(text, name="--seeds", whole=True))
    return tuple(range(int(parse_grid(text, name="--seeds", whole=True, low=1, high=1000)[0])))


def _command(options: Mapping[str, Any]) -> str:
    """What makes the sweep again, of the options that are not the usual ones."""
    words = ["probekit", "sweep", str(options["acts"])]
    for parameter in command.params:
        value = options[parameter.name or ""]
        flag = max(parameter.opts, key=len)
        if parameter.name in ("acts", "overwrite", "as_json", "figures"):
            continue
        if parameter.name == "standardize":
            words += [] if value else ["--no-standardize"]
        elif value is True:
            words.append(flag)
        elif parameter.name == "classes":
            words += [] if value is None else [flag, ",".join(value)]
        elif value not in (None, False) and (value != parameter.default or parameter.required):
            words += [flag, str(value)]
    return shlex.join(words)


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


def _next_step(sweep: Sweep, options: Mapping[str, Any]) -> str | None:
    """The `filter` command of the choice; None where that has no option for what was swept."""
    choice = sweep.choice
    heeds = probe_spec(choice["probe"]).depends
    if "standardize" in heeds and not options["standardize"]:
        return None
    words = ["probekit", "filter", str(options["acts"]), "--labels", str(options["labels"])]
    for name in ("label_column", "confidence_column", "id_column"):
        if options[name] is not None:
            words += ["--" + name.replace("_", "-"), options[name]]
    words += [] if options["classes"] is None else ["--classes", ",".join(options["classes"])]
    words += ["--by-position"] if options["by_position"] else []
    words += ["--only-labelled"] if options["only_labelled"] else []
    words += ["--probe", choice["probe"]]
    for name in ("layer", "k", "l2", "k_cc", "k_zeta", "zeta", "contamination"):
        if name in choice:
            words += ["--" + name.replace("_", "-"), f"{choice[name]:.12g}"]
    if "metric" in heeds and options["metric"] != "cosine":
        words += ["--metric", options["metric"]]
    if "variant" in heeds and options["variant"] != "paper":
        words += ["--variant", options["variant"]]
    if "n_folds" in heeds and options["folds"] != 5:  # what filter has without it
        words += ["--folds", str(options["folds"])]
    return shlex.join([*words, "-o", "verdicts.parquet"])
