"""The course of filter and relabel: check, compute, write, and only then look at the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.cli.again import typed_again
from probekit.cli.labels import read_labels, read_truth
from probekit.cli.options import emit, say
from probekit.cli.outputs import claim
from probekit.errors import DataError, UsageError
from probekit.safe import plain_command
from probekit.tables import SUFFIXES, suffix_of

if TYPE_CHECKING:
    from probekit.verdicts import Verdicts

__all__ = ["pick", "rows_named", "run_cleaning", "truth_codes"]

# Options that change nothing in the verdicts themselves.
BESIDE = ("overwrite", "truth", "truth_column", "audit", "write_data", "rows")


def pick(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Take the options of these names that were given."""
    return {name: options[name] for name in names if options.get(name) is not None}


def run_cleaning(
    act: Callable[..., Verdicts],
    options: Mapping[str, Any],
    **how: Any,
) -> None:
    """Run one of the two actions from options to printed result.

    Parameters
    ----------
    act
        :func:`filter_labels` or :func:`relabel`.
    options
        What the user gave, by name.
    how
        Arguments of ``act`` beyond those that both take.
    """
    from probekit.activations.quiet import rare_collection

    with rare_collection():
        from probekit.activations.store import ActivationStore
        from probekit.cleaning.advice import advice_on
        from probekit.cleaning.predict import default_probe
        from probekit.cleaning.review import audit_path
        from probekit.cleaning.source_rows import find_rows

        _check_files(options)
        if options["probe"] is not None:
            _probe(options)  # what is wrong is told before anything is read
    with ActivationStore(options["acts"]) as store:
        if options["probe"] is None:
            preset = options["preset"] is not None
            named = "knn" if preset else default_probe(store, options["layer"])
            options = {**options, "probe": named}
        probe = _probe(options, pairs=store.differences)
        rows = None
        if options["write_data"] is not None:
            rows = find_rows(store, **rows_named(options))
        labels = read_labels(options, store.keys)
        if options["preset"] is not None:
            how = {"disagreement": "distance", "ties": "index", **how}
        verdicts = act(
            store,
            labels,
            probe=probe,
            layer=options["layer"],
            in_sample=options["in_sample"] or options["preset"] is not None,
            seed=options["seed"],
            only_labelled=options["only_labelled"],
            **{**how, **pick(options, "disagreement"), **_folds(options)},
        )
        advice = advice_on(
            verdicts.provenance["action"],
            store,
            labels,
            audit=options["audit"] or audit_path(options["labels"]),
            needed=options["audit"] is not None,
            **pick(options, "seed", "only_labelled"),
        )
    _with_command(verdicts).save(options["output"])
    say(f"{len(verdicts):,} verdicts written to {options['output']}")
    written = None
    if rows is not None:
        written = verdicts.write_data(rows, options["write_data"])
        say(f"{written:,} rows written to {options['write_data']}")
    _tell(verdicts, options, {"rows_written": written}, advice)


def _with_command(verdicts: Verdicts) -> Verdicts:
    """The verdicts with the command that is running in their provenance, as it was typed."""
    from dataclasses import replace

    command = plain_command(typed_again(without=BESIDE), "filter", "relabel")
    if command is None:  # a name of several lines, or one that steers a terminal
        return verdicts
    return replace(verdicts, provenance={**verdicts.provenance, "command": command})


def rows_named(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of :func:`find_rows` and its like: the rows, and the columns to read of them."""
    columns = {name: options.get(name) for name in ("text_column", "id_column")}
    return {"source": options["rows"], **columns}


def _tell(
    verdicts: Verdicts, options: Mapping[str, Any], written: Mapping[str, Any], advice: Any
) -> None:
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
        evaluation = evaluate(verdicts, truth_codes(verdicts, options))
    result = verdicts_json(verdicts, summary, evaluation)
    result |= {"output": str(options["output"]), **written}
    result["advice"] = advice
    emit(result, verdicts_text(verdicts, summary, evaluation), as_json=options["as_json"])


def _check_files(options: Mapping[str, Any]) -> None:
    """Refuse what cannot be written or is not there, before any work."""
    output, data = options["output"], options["write_data"]
    claim(options, "output", "write_data")
    if output.suffix not in (".parquet", ".jsonl"):
        raise UsageError(f"{output} must end in .parquet or .jsonl; these are what is written.")
    if data is not None and data.suffix != ".jsonl":
        raise UsageError(f"{data} must end in .jsonl; the training set is written so.")
    truth = options["truth"]
    if truth is not None and suffix_of(truth) in SUFFIXES and not Path(truth).exists():
        raise DataError(f"{truth} does not exist.")


def _probe(options: Mapping[str, Any], *, pairs: bool = False) -> Any:
    """Make the probe named, from the preset and what was given."""
    from probekit.probes.registry import REGISTRY, make_probe, parameter_kinds, probe_spec

    spec = probe_spec(options["probe"])
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
            f"The probe {spec.name!r} has no {', '.join(foreign)}; what it has is {listed}."
        )
    if options["preset"] is not None:
        if spec.preset is None:
            listed = ", ".join(name for name, each in REGISTRY.items() if each.preset is not None)
            raise UsageError(f"The preset eleuther has settings for {listed}, got {spec.name!r}.")
        given = {**spec.preset, **given}
    if not own:
        given.pop("n_folds", None)  # an argument of filter and relabel
    return make_probe(spec.name, seed=options["seed"], pairs=pairs, **given)


def _folds(options: Mapping[str, Any]) -> dict[str, int]:
    """Folds of a classifier that makes none of its own."""
    return {} if options["folds"] is None else {"n_folds": options["folds"]}


def _flag(name: str) -> str:
    flag = {"fit_intercept": "no-intercept", "n_folds": "folds"}.get(name, name)
    return "--" + flag.replace("_", "-")


def truth_codes(verdicts: Verdicts, options: Mapping[str, Any]) -> Any:
    """Class numbers of the truth, in the order of the verdicts."""
    truth = read_truth(options, verdicts.keys)
    return truth.align(verdicts.keys).labels.codes(verdicts.classes)
