"""The course of filter and relabel: check, compute, write, and only then look at the truth."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.cli.cleaning_advice import told_of
from probekit.cli.labels import read_labels, read_truth
from probekit.cli.options import emit, say
from probekit.cli.outputs import claim
from probekit.errors import DataError, UsageError, first_few
from probekit.tables import SUFFIXES, suffix_of

if TYPE_CHECKING:
    from probekit.activations.store import ActivationStore
    from probekit.data import Rows
    from probekit.verdicts import Verdicts

__all__ = ["find_rows", "pick", "read_rows", "run_cleaning", "truth_codes"]


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
    from probekit.activations.imports import rare_collection

    with rare_collection():
        from probekit.activations.store import ActivationStore
        from probekit.cleaning.scoring import default_probe

        _check_files(options)
        if options["probe"] is not None:
            _probe(options)  # what is wrong is told before anything is read
    with ActivationStore(options["acts"]) as store:
        if options["probe"] is None:
            preset = options["preset"] is not None
            named = "knn" if preset else default_probe(store, options["layer"])
            options = {**options, "probe": named}
        probe = _probe(options, pairs=store.differences)
        rows = find_rows(store, options) if options["write_data"] is not None else None
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
        advice = told_of(verdicts.provenance["action"], store, labels, options)
    verdicts.save(options["output"])
    say(f"{len(verdicts):,} verdicts written to {options['output']}")
    written = None
    if rows is not None:
        written = verdicts.write_data(rows, options["write_data"])
        say(f"{written:,} rows written to {options['write_data']}")
    _tell(verdicts, options, {"rows_written": written}, advice)


def _tell(
    verdicts: Verdicts, options: Mapping[str, Any], written: Mapping[str, Any], advice: Any
) -> None:
    from probekit.cleaning.evaluate import evaluate, summarize
    from probekit.cli.cleaning_report import as_json, as_text

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
    result = as_json(verdicts, summary, evaluation)
    result |= {"output": str(options["output"]), **written}
    result["advice"] = advice
    emit(result, as_text(verdicts, summary, evaluation), as_json=options["as_json"])


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
    from probekit.probes.registry import (
        REGISTRY,
        make_probe,
        pair_settings,
        parameter_kinds,
        probe_spec,
    )

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
    if pairs:
        given = {**pair_settings(spec.name), **given}
    if not own:
        given.pop("n_folds", None)  # an argument of filter and relabel
    return make_probe(spec.name, seed=options["seed"], **given)


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


def find_rows(
    store: ActivationStore,
    options: Mapping[str, Any],
    *,
    purpose: str = "--write-data needs the rows' own columns",
) -> Rows:
    """Rows that the store was made from, with their own columns; others are refused."""
    from dataclasses import replace

    from probekit.joins import match, other_texts

    source = options["rows"] or _recorded(store, purpose)
    rows = read_rows(source, options)
    # Verdicts and audits go by the store's ids, so nothing else may join these rows.
    keys = replace(store.keys, columns={})
    place = match(keys, rows.keys).place
    missing = [name for name, i in zip(store.ids, place, strict=True) if i < 0]
    if missing:
        raise DataError(
            f"{source} lacks {len(missing)} of {len(store)} rows of {store.path} (ids "
            f"{first_few(missing)}); name the rows that were extracted with --rows, and their id "
            "with --id-column."
        )
    if other := other_texts(keys, rows.keys, place):
        raise DataError(
            f"{source} has another text than {store.path} in {len(other)} of {len(store)} rows "
            f"(ids {first_few(other)}); name the rows that were extracted with --rows, and their "
            "text with --text-column."
        )
    return rows


def read_rows(source: str, options: Mapping[str, Any]) -> Rows:
    """Read rows by the columns that were named; the id's may be one of the labels alone."""
    from probekit.data import Rows
    from probekit.sources import load_rows

    text_column, id_column = options["text_column"], options["id_column"]
    rows = load_rows(source, text_column=text_column)
    if id_column is None or id_column not in rows.columns:
        return rows
    return Rows(rows.columns, text_column=text_column, id_column=id_column, source=rows.source)


def _recorded(store: ActivationStore, purpose: str) -> str:
    """The source that the store names: a task, or a file that lies beside the store.

    A store may come from anywhere, so no other path in it is followed.
    """
    from probekit.tasks.registry import task_names

    source = store.source
    if source is not None and source.partition("@")[0] in task_names():
        return source
    if source is not None and not Path(source).is_absolute():
        folder = Path(os.path.realpath(store.path)).parent
        with contextlib.suppress(ValueError, OSError):  # what is no name of a file at all
            path = Path(os.path.realpath(folder / source))
            if path.is_relative_to(folder) and path.exists():
                return str(path)
    recorded = (
        "does not say where its rows are from"
        if source is None
        else f"names {source!r}, which is no task and no file beside it"
    )
    raise UsageError(f"{purpose}, and {store.path} {recorded}; name them with --rows.")
