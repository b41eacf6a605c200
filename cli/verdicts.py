"""What ``filter`` and ``relabel`` share: options, and their course from a store to verdicts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, cast

import click

from probekit.cli.engine import ENGINE, EngineOptions, engine_of
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
    output_table,
    pick,
    say,
    source_of,
    typed_again,
)
from probekit.cli.outputs import check_suffix, claim
from probekit.cli.student import STUDENT, StudentOptions, learner_of
from probekit.errors import DataError, UsageError
from probekit.probes.registry import REGISTRY
from probekit.safe import plain_command
from probekit.tables import SUFFIXES, suffix_of

if TYPE_CHECKING:
    from probekit.activations.store import ActivationStore
    from probekit.labels import WeakLabels
    from probekit.verdicts import Verdicts

__all__ = [
    "CleanedOptions",
    "CleaningOptions",
    "ProbeOptions",
    "ResultOptions",
    "WordOrNumber",
    "clean",
]

LONG_SECONDS = 600  # of a search for neighbours that is announced

# Options that do not change the verdicts themselves.
BESIDE = (
    *("overwrite", "truth", "truth_column", "write_data", "save_probe", "rows"),
    *(*STUDENT, *ENGINE),
)
# Probes that search neighbours.
NEIGHBORS = tuple(name for name, spec in REGISTRY.items() if spec.neighbors)
ON_CLUSTER = tuple(name for name, spec in REGISTRY.items() if spec.on_cluster)


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


class CleanedOptions(LabelledStoreOptions, TruthOptions, TrustedOptions, StudentOptions):
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
            "package.module:Class; of several, knn,logreg, each writes OUTPUT.NAME.  [default: "
            "ensemble if several layers are stored and none is chosen, else knn]",
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
    approximate: Annotated[
        bool | None,
        option(
            "knn, ensemble: search neighbours in inverted lists, for a million rows; the share of "
            "exact neighbours found is printed.  [default: exact]",
            "--approximate",
            default=None,
        ),
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

    output: Annotated[Path, output_table("Verdicts to write:")]
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


class CleaningOptions(CleanedOptions, ProbeOptions, EngineOptions, ResultOptions):
    """Options of both ``filter`` and ``relabel``."""


def clean(act: Callable[..., Verdicts], options: CleaningOptions, **settings: Any) -> None:
    """Make verdicts, write them and the training set, and only then read the truth.

    Several probes are fitted in turn; they share the states and the searches for neighbours.

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
        from probekit.cleaning.predict import shared_rows
        from probekit.cleaning.review import audit_path
        from probekit.cleaning.source_rows import find_rows

        each = _of_each_probe(options)
        for own in each:
            _check_files(own)
            if own["probe"] is not None:
                _probe(own["probe"], own)  # raises before anything is read
    made: list[tuple[Verdicts, CleaningOptions]] = []
    rows = None
    # Verdicts must not depend on the probes beside: cosine votes use the last digit of distances.
    share = shared_rows() if len(each) > 1 and options["weights"] != "cosine" else nullcontext()
    with ActivationStore(options["acts"]) as store, share:
        if options["write_data"] is not None:
            rows = find_rows(store, **source_of(options))
        labels = read_labels(options, store.keys)
        audit = options["audit"] or audit_path(options["labels"])
        trusted = read_trusted(options, store, labels.classes, audit)
        with supervisor_store(options) as supervisor, engine_of(options):
            for own in each:
                if options["engine"] == "ray":
                    _check_shared(own, store)
                else:
                    _say_if_slow(own, store)
                given = {"trusted": trusted, "supervisor_states": supervisor, **settings}
                made.append((_judge(act, own, store, labels, **given), own))
        advice = advice_on(
            made[0][0].provenance["action"],
            store,
            labels,
            audit=audit,
            needed=options["audit"] is not None,
            learner=learner_of(options),
            seed=options["seed"],
            only_labelled=options["only_labelled"],
        )
    results = [_finish(verdicts, own, advice, rows) for verdicts, own in made]
    if len(results) == 1:
        emit(*results[0], as_json=options["as_json"])
        return
    emit(
        {"verdicts": [result for result, _ in results]},
        "\n\n".join(text for _, text in results),
        as_json=options["as_json"],
    )


def _of_each_probe(options: CleaningOptions) -> list[CleaningOptions]:
    """The options of each probe named: its outputs, and without options of the others' alone."""
    names = (options["probe"] or "").split(",")
    if len(names) == 1:
        return [options]
    given = set(_given(options))
    known = {name: given & set(_known(name)) for name in names}
    if foreign := given.difference(*known.values()):
        listed = ", ".join(map(_flag, sorted(foreign)))
        raise UsageError(f"None of the probes {', '.join(names)} has {listed}; leave it out.")
    every: list[CleaningOptions] = []
    for name in names:
        own: dict[str, Any] = {**options, "probe": name}
        own |= dict.fromkeys("folds" if x == "n_folds" else x for x in given - known[name])
        for place in ("output", "write_data", "save_probe"):
            if own[place] is not None:
                own[place] = _of_probe(Path(own[place]), name, table=place == "output")
        every.append(cast(CleaningOptions, own))
    return every


def _of_probe(path: Path, name: str, *, table: bool) -> Path:
    """An output's name with the probe's, which must not look like the ending of a table."""
    if table and not path.suffix:
        return path.with_name(f"{path.name}-{name.replace(':', '-').replace('.', '-')}")
    return path.with_name(f"{path.stem}.{name.replace(':', '.')}{path.suffix}")


def _name(options: CleaningOptions, store: ActivationStore) -> str:
    """The name of the probe."""
    from probekit.cleaning.predict import default_probe

    preset = options["preset"] is not None
    return options["probe"] or ("knn" if preset else default_probe(store, options["layer"]))


def _check_shared(options: CleaningOptions, store: ActivationStore) -> None:
    """Raise UsageError if a cluster cannot share the work of the probe."""
    name = _name(options, store)
    if name not in ON_CLUSTER:
        raise UsageError(
            f"--engine ray shares the work of {', '.join(ON_CLUSTER)}, not of {name}; leave it out."
        )


def _say_if_slow(options: CleaningOptions, store: ActivationStore) -> None:
    """Print an estimate of a search for neighbours that takes long, and what is faster."""
    from probekit.probes.ensemble import plan_for
    from probekit.probes.neighbors import exact_seconds

    name = _name(options, store)
    if name not in NEIGHBORS or options["approximate"]:
        return
    layers = [store.layers[-1] if options["layer"] is None else options["layer"]]
    if name == "ensemble" and options["layer"] is None:
        plan = plan_for(store)
        layers = [plan.layers[i] for i in plan.knn]
    rows = len(store)
    seconds = sum(exact_seconds(rows, store.info(layer).width) for layer in layers)
    if seconds < LONG_SECONDS:
        return
    ways = ["a GPU", "--probe logreg"]
    if "approximate" in REGISTRY[name].options:
        ways.insert(1, "--approximate")
    say(
        f"Note: searching the exact neighbours of {rows:,} rows takes about "
        f"{seconds / 60:,.0f} minutes here; {', '.join(ways[:-1])} or {ways[-1]} is faster."
    )


def _judge(
    act: Callable[..., Verdicts],
    options: CleaningOptions,
    store: ActivationStore,
    labels: WeakLabels,
    **settings: Any,
) -> Verdicts:
    """Fit one probe, write its verdicts and the probe itself."""
    from probekit.cleaning.predict import ELEUTHER
    from probekit.cleaning.saved import check_savable, save_fitted

    preset = options["preset"] is not None
    if preset:
        settings = {**ELEUTHER["both"], **settings}
    elif options["in_sample"]:
        settings["in_sample"] = True
    settings |= pick({**options, "n_folds": options["folds"]}, "disagreement", "n_folds")
    name = _name(options, store)
    probe = _probe(name, options, pairs=store.differences)
    if options["save_probe"] is not None:
        check_savable(probe, store, options["save_probe"])
        settings["on_scored"] = partial(save_fitted, store=store, folder=options["save_probe"])
    verdicts = act(
        store,
        labels,
        probe=probe,
        layer=options["layer"],
        seed=options["seed"],
        only_labelled=options["only_labelled"],
        **settings,
    )
    return _with_command(verdicts, options)


def _finish(
    verdicts: Verdicts, options: CleaningOptions, advice: Any, rows: Any
) -> tuple[dict[str, Any], str]:
    """Write verdicts and training set, print warnings, and return the result as JSON and text."""
    written = None
    verdicts.save(options["output"])
    say(f"{len(verdicts):,} verdicts written to {options['output']}")
    if options["save_probe"] is not None:
        say(f"The probe is in {options['save_probe']}")
    if rows is not None and options["write_data"] is not None:
        written = verdicts.write_data(rows, options["write_data"])
        say(f"{written:,} rows written to {options['write_data']}")
    return _report(verdicts, options, advice, written)


def _check_files(options: CleaningOptions) -> None:
    """Raise if an output cannot be written or the truth does not exist, before any work."""
    output, data, truth = options["output"], options["write_data"], options["truth"]
    # The truth is read last: with a corrected one, what was written before it stands.
    claim(options, "output", "write_data", incidental=("truth", "truth_column"))
    check_suffix(output, ".parquet", ".jsonl", "")
    if data is not None:
        check_suffix(data, ".jsonl")
    if truth is not None and suffix_of(truth) in SUFFIXES and not Path(truth).exists():
        raise DataError(f"{truth} does not exist.")


def _probe(name: str, options: CleaningOptions, *, pairs: bool = False) -> Any:
    """Make a probe from the preset's settings and the options; options overrule the preset."""
    from probekit.probes.registry import make_probe, probe_spec

    spec = probe_spec(name)
    own = spec.name in REGISTRY
    given, known = _given(options), _known(name)
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


NAMES = tuple(dict.fromkeys(name for each in REGISTRY.values() for name in each.options))


def _given(options: CleaningOptions) -> dict[str, Any]:
    """Parameters of probes that were given, by name."""
    return pick({**options, "n_folds": options["folds"]}, *NAMES)


def _known(name: str) -> tuple[str, ...]:
    """Names of the parameters that a probe has."""
    from probekit.probes.registry import parameter_kinds, probe_spec

    spec = probe_spec(name)
    if spec.name in REGISTRY:
        return tuple(spec.options)
    return (*filter(parameter_kinds(spec.name).__contains__, NAMES), "n_folds")


def _flag(name: str) -> str:
    flag = {"fit_intercept": "no-intercept", "n_folds": "folds"}.get(name, name)
    return "--" + flag.replace("_", "-")


def _with_command(verdicts: Verdicts, options: CleaningOptions) -> Verdicts:
    """The verdicts with the command that makes them, as it was typed, in their provenance.

    Of several probes it is the one of this probe alone.
    """
    changed = {name: value for name, value in options.items() if name in ("probe", "output")}
    changed |= {name: None for name in ("folds", *NAMES) if options.get(name, 0) is None}
    command = plain_command(typed_again(without=BESIDE, instead=changed), "filter", "relabel")
    if command is None:  # it holds line breaks or control characters
        return verdicts
    return replace(verdicts, provenance={**verdicts.provenance, "command": command})


def _report(
    verdicts: Verdicts, options: CleaningOptions, advice: Any, written: int | None
) -> tuple[dict[str, Any], str]:
    """Print warnings; return counts, and metrics if there is a truth, as JSON and as text."""
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
    return result, verdicts_text(verdicts, summary, evaluation)
