"""What ``filter`` and ``relabel`` share: options, and their course from a store to verdicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import click

from probekit.cli.labels import (
    LabelledStoreOptions,
    TrustedOptions,
    TruthOptions,
    read_labels,
    read_trusted,
    read_truth_codes,
    supervisor_store,
)
from probekit.cli.options import (
    OUTPUT_FILE,
    AsJson,
    Overwrite,
    Rows,
    Seed,
    TextColumn,
    emit,
    option,
    output_file,
    pick,
    say,
    source_of,
    typed_again,
)
from probekit.cli.outputs import check_suffix, claim
from probekit.errors import DataError, UsageError
from probekit.probes.registry import REGISTRY
from probekit.safe import plain_command
from probekit.tables import SUFFIXES, suffix_of

if TYPE_CHECKING:
    from probekit.verdicts import Verdicts

__all__ = [
    "CleanedOptions",
    "CleaningOptions",
    "ProbeOptions",
    "ResultOptions",
    "WordOrNumber",
    "clean",
]

# Options that do not change the verdicts themselves.
BESIDE = ("overwrite", "truth", "truth_column", "write_data", "save_probe", "rows")


class WordOrNumber(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since 8.4
    """A number, or one of some words."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.name = "|".join((*words, "number"))

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str:
        """Read one or the other."""
        if value in self.words:
            return str(value)
        try:
            return float(value)
        except ValueError:
            words = " or ".join(map(repr, self.words))
            self.fail(f"{value!r} is neither {words} nor a number.", param, ctx)


class CleanedOptions(LabelledStoreOptions, TruthOptions, TrustedOptions):
    """The store and the weak labels to clean, and what is known about them."""

    layer: Annotated[
        int | None, option("Layer to read; required if several are stored, except by the ensemble.")
    ]
    audit: Annotated[
        Path | None,
        option(
            "Answers of `probekit audit`, which overrule advice, and are trusted without "
            "--trusted.  [default: LABELS.audit.csv here, if it exists]",
            type=OUTPUT_FILE,
        ),
    ]


class ProbeOptions(TypedDict):
    """The probe and its parameters."""

    probe: Annotated[
        str | None,
        option(
            "What predicts each row without having seen its label: one of these, a probe "
            "of an installed package, or any scikit-learn classifier as "
            "package.module:Class.  [default: ensemble if several layers are stored and "
            "none is chosen, else knn]",
            metavar=f"[{'|'.join(REGISTRY)}|package.module:Class]",
        ),
    ]
    k: Annotated[
        int | None, option("knn, ensemble: neighbours.  [default: 30]", type=click.IntRange(min=1))
    ]
    weights: Annotated[
        Literal["uniform", "cosine"] | None, option("knn: votes.  [default: uniform]")
    ]
    metric: Annotated[
        Literal["cosine", "euclidean"] | None,
        option("knn, topofilter: distance of centred rows.  [default: cosine]"),
    ]
    l2: Annotated[
        float | str | None, option("logreg: penalty.  [default: auto]", type=WordOrNumber("auto"))
    ]
    fit_intercept: Annotated[
        bool | None,
        option(
            "logreg: with a bias or without.  [default: with; without for differences of pairs]",
            "--intercept/--no-intercept",
            default=None,
        ),
    ]
    folds: Annotated[int | None, option("logreg: folds.  [default: 5]", type=click.IntRange(min=2))]
    variant: Annotated[
        Literal["paper", "eleuther"] | None,
        option("topofilter: which of the two published ones.  [default: paper]"),
    ]
    k_cc: Annotated[
        int | None,
        option(
            "topofilter: neighbours of the graph.  [default: 4; eleuther 50]",
            type=click.IntRange(min=1),
        ),
    ]
    k_zeta: Annotated[
        int | None,
        option(
            "topofilter: neighbours that vote.  [default: 32; eleuther 50]",
            type=click.IntRange(min=1),
        ),
    ]
    disagreement: Annotated[
        Literal["label", "distance"] | None,
        option(
            "What rows are judged by: 1 - P(the weak label's class), or half the absolute "
            "difference of P and weak label, as published; the same for hard labels.  "
            "[default: label; with --preset distance]"
        ),
    ]
    in_sample: Annotated[
        bool, option("Predict rows that were fitted on, as EleutherAI did: hides wrong labels.")
    ]
    preset: Annotated[
        Literal["eleuther"] | None,
        option(
            "EleutherAI's settings: euclidean, in-sample, k 50, l2 0.01 not standardised; "
            "filter: 10 % of all rows; relabel: to what the probe says."
        ),
    ]


class ResultOptions(TypedDict):
    """What is written."""

    output: Annotated[Path, output_file("Verdicts to write: .parquet or .jsonl.")]
    write_data: Annotated[
        Path | None,
        option(
            "Also write the training set as JSONL: the rows' own columns, label, probs, weight.",
            type=OUTPUT_FILE,
        ),
    ]
    save_probe: Annotated[
        Path | None,
        option("Folder for the fitted probe, with which `probekit predict` labels new rows."),
    ]
    rows: Rows
    text_column: TextColumn
    overwrite: Overwrite
    seed: Seed
    as_json: AsJson


class CleaningOptions(CleanedOptions, ProbeOptions, ResultOptions):
    """Options of both ``filter`` and ``relabel``."""


def clean(act: Callable[..., Verdicts], options: CleaningOptions, **settings: Any) -> None:
    """Make verdicts, write them and the training set, and only then read the truth.

    Parameters
    ----------
    act
        :func:`probekit.filter_labels` or :func:`probekit.relabel`.
    settings
        Arguments of ``act`` alone.
    """
    from probekit.activations.quiet import rare_collection

    with rare_collection():
        from probekit.activations.store import ActivationStore
        from probekit.cleaning.advice import advice_on
        from probekit.cleaning.predict import ELEUTHER, default_probe
        from probekit.cleaning.review import audit_path
        from probekit.cleaning.saved import check_savable, save_fitted
        from probekit.cleaning.source_rows import find_rows

        _check_files(options)
        preset, name = options["preset"] is not None, options["probe"]
        if name is not None:
            _probe(name, options)  # raises before anything is read
    if preset:
        settings = {**ELEUTHER["both"], **settings}
    elif options["in_sample"]:
        settings["in_sample"] = True
    settings |= pick({**options, "n_folds": options["folds"]}, "disagreement", "n_folds")
    rows = written = None
    with ActivationStore(options["acts"]) as store:
        name = name or ("knn" if preset else default_probe(store, options["layer"]))
        probe = _probe(name, options, pairs=store.differences)
        if options["write_data"] is not None:
            rows = find_rows(store, **source_of(options))
        if options["save_probe"] is not None:
            check_savable(probe, store, options["save_probe"])
            settings["on_scored"] = partial(save_fitted, store=store, folder=options["save_probe"])
        labels = read_labels(options, store.keys)
        audit = options["audit"] or audit_path(options["labels"])
        with supervisor_store(options) as supervisor:
            verdicts = act(
                store,
                labels,
                probe=probe,
                layer=options["layer"],
                seed=options["seed"],
                only_labelled=options["only_labelled"],
                trusted=read_trusted(options, store, labels.classes, audit),
                supervisor_states=supervisor,
                **settings,
            )
        advice = advice_on(
            verdicts.provenance["action"],
            store,
            labels,
            audit=audit,
            needed=options["audit"] is not None,
            seed=options["seed"],
            only_labelled=options["only_labelled"],
        )
    _with_command(verdicts).save(options["output"])
    say(f"{len(verdicts):,} verdicts written to {options['output']}")
    if options["save_probe"] is not None:
        say(f"The probe is in {options['save_probe']}")
    if rows is not None and options["write_data"] is not None:
        written = verdicts.write_data(rows, options["write_data"])
        say(f"{written:,} rows written to {options['write_data']}")
    _report(verdicts, options, advice, written)


def _check_files(options: CleaningOptions) -> None:
    """Raise if an output cannot be written or the truth does not exist, before any work."""
    output, data, truth = options["output"], options["write_data"], options["truth"]
    claim(options, "output", "write_data")
    check_suffix(output, ".parquet", ".jsonl")
    if data is not None:
        check_suffix(data, ".jsonl")
    if truth is not None and suffix_of(truth) in SUFFIXES and not Path(truth).exists():
        raise DataError(f"{truth} does not exist.")


def _probe(name: str, options: CleaningOptions, *, pairs: bool = False) -> Any:
    """Make a probe from the preset's settings and the options; options overrule the preset."""
    from probekit.probes.registry import make_probe, parameter_kinds, probe_spec

    spec = probe_spec(name)
    own = spec.name in REGISTRY
    names = dict.fromkeys(name for each in REGISTRY.values() for name in each.options)
    given = pick({**options, "n_folds": options["folds"]}, *names)
    known = (
        spec.options
        if own
        else (*filter(parameter_kinds(spec.name).__contains__, names), "n_folds")
    )
    foreign = [_flag(name) for name in given if name not in known]
    if foreign:
        listed = ", ".join(map(_flag, known)) or "none"
        raise UsageError(
            f"The probe {spec.name!r} has no {', '.join(foreign)}; its options are {listed}."
        )
    if options["preset"] is not None:
        if spec.preset is None:
            listed = ", ".join(name for name, each in REGISTRY.items() if each.preset is not None)
            raise UsageError(f"The preset eleuther has settings for {listed}, got {spec.name!r}.")
        given = {**spec.preset, **given}
    if not own:
        given.pop("n_folds", None)  # an argument of filter and relabel
    return make_probe(spec.name, seed=options["seed"], pairs=pairs, **given)


def _flag(name: str) -> str:
    flag = {"fit_intercept": "no-intercept", "n_folds": "folds"}.get(name, name)
    return "--" + flag.replace("_", "-")


def _with_command(verdicts: Verdicts) -> Verdicts:
    """The verdicts with the running command, as it was typed, in their provenance."""
    command = plain_command(typed_again(without=BESIDE), "filter", "relabel")
    if command is None:  # it holds line breaks or control characters
        return verdicts
    return replace(verdicts, provenance={**verdicts.provenance, "command": command})


def _report(verdicts: Verdicts, options: CleaningOptions, advice: Any, written: int | None) -> None:
    """Print warnings, then counts, and metrics if there is a truth."""
    from probekit.cleaning.evaluate import evaluate, summarize
    from probekit.reports.verdicts import verdicts_json, verdicts_text

    summary = summarize(verdicts)
    if advice is not None and advice["warning"] is not None:
        say(f"Warning: {advice['warning']}")
    for note in verdicts.provenance.get("notes", ()):
        say(f"Note: {note}")
    for alarm in summary.alarms:
        say(f"Warning: {alarm}")
    evaluation = None
    if options["truth"] is not None:
        evaluation = evaluate(verdicts, read_truth_codes(options, verdicts))
    result = verdicts_json(verdicts, summary, evaluation)
    result |= {"output": str(options["output"]), "rows_written": written, "advice": advice}
    emit(result, verdicts_text(verdicts, summary, evaluation), as_json=options["as_json"])
