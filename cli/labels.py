"""Labels and truth on the command line: their options, how they are read, and what is printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import click

from probekit.cli.options import FILE, IdColumn, argument, option, pick, say
from probekit.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from probekit.activations.store import ActivationStore
    from probekit.joins import Keys, Match
    from probekit.labels import WeakLabels
    from probekit.verdicts import Verdicts

__all__ = [
    "Annotators",
    "ByPosition",
    "Classes",
    "LabelledStoreOptions",
    "LabelsOptions",
    "Trusted",
    "TrustedOptions",
    "TrustedRows",
    "Truth",
    "TruthColumn",
    "TruthOptions",
    "print_labels",
    "read_labels",
    "read_trusted",
    "read_truth",
    "read_truth_codes",
    "reading",
    "supervisor_store",
]

CLASSES_SHOWN = 12


def _names(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(name.strip() for name in value.split(","))


Classes = Annotated[
    tuple[str, ...] | None,
    option(
        "Class names in their order; a word for no label (none, -1) among them is a class.",
        callback=_names,
        metavar="A,B,…",
        multiple=False,
    ),
]
ByPosition = Annotated[
    bool, option("Join by position: the same rows in the same order, whatever ids they have.")
]


Annotators = Annotated[
    Literal["votes", "dawid-skene"] | None,
    option(
        "How several labels a row (label_1, label_2, … or repeated ids with a column annotator) "
        "become one: share of votes, or Dawid-Skene, which weighs annotators by their errors.  "
        "[default: votes]"
    ),
]


Truth = Annotated[
    str | None,
    option("Ground truth (id and label) to evaluate the result; never used to produce it."),
]
TruthColumn = Annotated[str | None, option("Column of the truth, if not label.")]


class TruthOptions(TypedDict):
    """Ground truth to evaluate a result with."""

    truth: Truth
    truth_column: TruthColumn


Trusted = Annotated[
    str | None,
    option(
        "True labels (id and label) of some rows, 50 or more: they correct what the probe says of "
        "all rows, and these rows get their true label."
    ),
]


class TrustedRows(TypedDict):
    """True labels of some rows."""

    trusted: Trusted
    trusted_column: Annotated[str | None, option("Column of the trusted labels, if not label.")]


class TrustedOptions(TrustedRows):
    """True labels of some rows to learn from, and the supervisor's states."""

    supervisor_acts: Annotated[
        Path | None,
        option(
            "Store of the weak supervisor's own states of the rows; with trusted labels.", type=FILE
        ),
    ]


class LabelsOptions(TypedDict):
    """How weak labels are read and joined, and which rows take part."""

    label_column: Annotated[str | None, option("Column of the label, if not probs, prob or label.")]
    confidence_column: Annotated[
        str | None,
        option("Column of the probability of the class in the label, which becomes soft."),
    ]
    id_column: IdColumn
    classes: Classes
    by_position: ByPosition
    only_labelled: Annotated[bool, option("Leave out rows without a label.")]
    annotators: Annotators


class StoreOptions(TypedDict):
    """A store and weak labels of its rows."""

    acts: Annotated[Path, argument("Activation store, as `probekit extract` writes it.", type=FILE)]
    labels: Annotated[
        str,
        option(
            "Weak labels: CSV, JSONL, Parquet, … with id and label, prob or probs.", required=True
        ),
    ]


class LabelledStoreOptions(StoreOptions, LabelsOptions):
    """A store, weak labels of its rows, and how they are read and joined."""


def reading(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of :func:`load_labels` for weak labels, of the options that were given."""
    names = ("id_column", "label_column", "confidence_column", "text_column", "classes")
    position = {"by_position": True} if options.get("by_position") else {}
    return pick(options, *names, "annotators") | position


def read_labels(options: Mapping[str, Any], rows: Keys) -> WeakLabels:
    """Read ``--labels``, print what was read and how it is joined, and return the rows' labels."""
    from probekit.labels import load_labels

    labels = load_labels(options["labels"], **reading(options))
    match = labels.joined(rows)
    print_labels(labels, rows, match)
    joined = labels.align(rows, only_labelled=options["only_labelled"], joined=match).labels
    for note in joined.notes[len(labels.notes) :]:
        say(f"Note: {note}")
    return joined


def read_truth(options: Mapping[str, Any], rows: Keys | None = None) -> WeakLabels:
    """Read ``--truth``; ``--id-column`` is the labels', which a truth may not have."""
    return _read_true(options, "truth", rows)


def _read_true(options: Mapping[str, Any], name: str, rows: Keys | None) -> WeakLabels:
    """Read the true labels that the option ``name`` gives."""
    from dataclasses import replace

    from probekit.cleaning.answers import ANSWER, UNSURE
    from probekit.joins import same_column
    from probekit.label_columns import READ
    from probekit.labels import load_labels
    from probekit.sources import read_table

    source, id_column = options[name], options.get("id_column")
    column = options.get(f"{name}_column")
    # Some commands with a truth have no option for its column.
    column_option = f"--{name}-column" if f"{name}_column" in options else None
    if id_column is not None or column is None:
        source = read_table(source)
        id_column = id_column if id_column and same_column(source.columns, id_column) else None
        named = {name.strip().casefold() for name in source.columns}
        if column is None and ANSWER in source.columns and not named & set(READ):
            column = ANSWER  # of an audit, where "?" is no answer
            told = ["" if str(v).strip() == UNSURE else v for v in source.columns[ANSWER]]
            source = replace(source, columns={**source.columns, ANSWER: told})
    truth = load_labels(
        source,
        id_column=id_column,
        label_column=column,
        one_class=True,
        column_option=column_option,
    )
    if options.get("by_position") and truth.keys.counted:
        truth = replace(truth, key=replace(truth.keys, by_position=True))
    print_labels(truth, rows)
    return truth


def read_trusted(
    options: Mapping[str, Any], store: ActivationStore, classes: Sequence[str], audit: Path
) -> WeakLabels | dict[str, str] | None:
    """Read ``--trusted``, or else the answers of an audit of these rows; None without either.

    An audit that was not named and is of other rows is passed over, which is said.
    """
    from probekit.cleaning.answers import UNSURE
    from probekit.cleaning.review import AuditFile

    answers: dict[str, str] = {}
    if audit.is_file():
        hashes = dict(zip(store.ids, store.hashes, strict=True))
        try:
            answers = AuditFile(audit, hashes, classes, flag="--audit").answers
        except DataError as error:
            if options["audit"] is not None:
                raise
            say(f"Passed over: {error}")
    if options["trusted"] is not None:
        return _read_true(options, "trusted", store.keys)
    known = {name: answer for name, answer in answers.items() if answer != UNSURE}
    if known:
        say(f"{audit}: {len(known)} true labels, which are trusted.")
    return known or None


@contextmanager
def supervisor_store(options: Mapping[str, Any]) -> Iterator[ActivationStore | None]:
    """Open ``--supervisor-acts``; None without it."""
    if options["supervisor_acts"] is None:
        yield None
        return
    from probekit.activations.store import ActivationStore

    with ActivationStore(options["supervisor_acts"]) as store:
        yield store


def read_truth_codes(options: Mapping[str, Any], verdicts: Verdicts) -> NDArray[np.int64]:
    """Class numbers of ``--truth`` in the order of the verdicts."""
    truth = read_truth(options, verdicts.keys)
    return truth.align(verdicts.keys, every_row=True).labels.codes(verdicts.classes)


def print_labels(labels: WeakLabels, rows: Keys | None = None, match: Match | None = None) -> None:
    """Print what was read: the column, the number of labels of each class, and how they are joined.

    ``match`` is :meth:`WeakLabels.joined` of the two, if it is known already.
    """
    import numpy as np

    from probekit.safe import one_line

    counts = np.bincount(labels.hard, minlength=len(labels.classes)).tolist()
    named = zip(map(one_line, labels.classes), counts, strict=True)
    pairs = [f"{name} {count:,}" for name, count in named]
    shown = ", ".join(pairs[:CLASSES_SHOWN]) + (
        f", … ({len(pairs)} classes)" if len(pairs) > CLASSES_SHOWN else ""
    )
    without = f"; {len(labels.missing):,} rows without one" if labels.missing else ""
    joined = (
        "" if rows is None else f"; joined with {rows.name} {(match or labels.joined(rows)).how}"
    )
    say(
        f"{labels.source}: {len(labels):,} labels, read from {labels.column}: "
        f"{shown}{without}{joined}."
    )
    for note in labels.notes:
        say(f"Note: {note}")
