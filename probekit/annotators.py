"""Several labels a row: the votes of annotators, combined to one soft label."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np

from probekit.errors import LabelsError, UsageError, first_few
from probekit.extras import need
from probekit.joins import find_ids, key_text
from probekit.label_columns import OPTION, READ, is_soft, parse_labels, repair_column

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from probekit.joins import Keys
    from probekit.tables import Table

__all__ = ["Method", "alpha_krippendorff", "combine", "has_vote_rows"]

Method = Literal["votes", "dawid-skene"]
METHODS: tuple[Method, ...] = get_args(Method)
VOTE = re.compile(r"label_(\d+)", re.IGNORECASE)
# Names of the column of annotators, as annotation tools and crowd-kit write it.
ANNOTATOR = ("annotator", "annotator_id", "worker", "worker_id", "rater", "rater_id")
# Columns that say what a row is: its votes must agree on them.
TEXTS = ("text", "text_pair", "messages", "text_hash")
# EM stops when the evidence lower bound per vote grows by less.
TOLERANCE, MOST_STEPS = 1e-7, 300


class _Form(NamedTuple):
    """Where the votes of a table stand."""

    columns: tuple[str, ...]
    """Columns of votes."""
    annotator: str | None
    """Column of annotators, if a line is one vote; None: a line is a row."""


@dataclass(frozen=True)
class _Votes:
    """V votes of A annotators on n rows, each of one of C classes; one of an annotator on a row."""

    row: NDArray[np.int64]
    """Row (V,), 0 to n - 1."""
    annotator: NDArray[np.int64]
    """Annotator (V,), 0 to A - 1."""
    code: NDArray[np.int64]
    """Class (V,), 0 to C - 1."""
    n: int
    names: tuple[str, ...]
    """A names of annotators."""
    classes: tuple[str, ...]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of votes of each row for each class (n, C)."""
        counts = np.zeros((self.n, len(self.classes)), np.int64)
        np.add.at(counts, (self.row, self.code), 1)
        return counts


def combine(
    table: Table,
    method: Method | None = None,
    *,
    id_column: str | None = None,
    label_column: str | None = None,
    text_column: str | None = None,
    classes: Sequence[str] | None = None,
    column_option: str | None = OPTION,
) -> Table | None:
    """Combine the votes of a table to a column ``probs``, one line for each row.

    Votes are columns ``label_1``, ``label_2``, …; or lines with ids that repeat and a column
    ``annotator`` (or ``worker``, ``rater``), of which one line for each id remains, with the
    columns that its lines agree on. A row without a vote has None.

    Parameters
    ----------
    table : Table
    method : {"votes", "dawid-skene"}, default=None
        ``votes``: the share of votes of each class. ``dawid-skene``: the posterior of the classes
        under a confusion matrix for each annotator, by EM [1]_ (crowd-kit). None: votes, if the
        table has any.
    id_column, label_column, text_column : str, default=None
        Names of these columns, if they are not ``id``, ``label`` and ``text``.
    classes : sequence of str, default=None
        Class names in their order; None: those that were voted for.
    column_option : str, default="--label-column"
        Option that names the labels' column of this table, for messages; None if it has none.

    Returns
    -------
    Table or None
        With agreement and method in ``metadata["provenance"]["annotators"]`` and in the note; None
        if ``method`` is None and the table has no such votes.

    Raises
    ------
    LabelsError
        If votes contradict each other, are no classes, or are of one annotator.
    UsageError
        If a method is asked for and the table has no such votes.
    ProbekitError
        If crowd-kit is needed and not installed.

    References
    ----------
    .. [1] A. P. Dawid and A. M. Skene, "Maximum Likelihood Estimation of Observer Error-Rates
       Using the EM Algorithm", Applied Statistics 28(1), 1979. https://doi.org/10.2307/2346806

    Examples
    --------
    >>> from probekit.tables import Table
    >>> votes = {"label_1": ["good", "bad"], "label_2": ["good", "good"], "label_3": ["bad", None]}
    >>> combined = combine(Table(votes))
    >>> combined.metadata["classes"], combined.columns["probs"][1]
    (['bad', 'good'], [0.5, 0.5])
    """
    if method is not None and method not in METHODS:
        raise UsageError(f"annotators is one of {', '.join(METHODS)}, got {method!r}.")
    form = _form(table, id_column, label_column, column_option)
    if form is None:
        if method is None:
            return None
        raise UsageError(
            f"{table.source} has one label a row: several annotators need columns label_1, "
            f"label_2, …, or ids that repeat with a column annotator; it has "
            f"{', '.join(table.columns)}."
        )
    keys = find_ids(table.columns, id_column=id_column, source=table.source, error=LabelsError)
    places = {name: i for i, name in enumerate(dict.fromkeys(keys.ids))}
    row = np.array([places[i] for i in keys.ids], np.int64)
    votes, ids = _read(table, form, keys, row, classes), list(places)
    method = method or "votes"
    probs, about = _combined(votes, method)
    agreement = _agreement(votes)
    about |= {"method": method, "columns": list(form.columns), **agreement}
    columns: dict[str, Sequence[Any]] = dict(table.columns)
    notes = [table.note, _sentence(table.source, about)]
    if form.annotator is not None:
        about["annotator_column"] = form.annotator
        columns, differing = _one_line_each(table, form, row, ids, text_column)
        if differing:
            notes.append(
                f"Columns that differ between a row's votes are dropped: {first_few(differing)}."
            )
    voted = set(votes.row.tolist())
    columns["probs"] = [p if r in voted else None for r, p in enumerate(probs.tolist())]
    metadata = {"classes": list(votes.classes), "provenance": {"annotators": about}}
    return replace(
        table,
        columns=columns,
        metadata=metadata,
        class_names={k: v for k, v in table.class_names.items() if k in columns},
        note=" ".join(note for note in notes if note),
    )


def _form(
    table: Table, id_column: str | None, label_column: str | None, option: str | None
) -> _Form | None:
    """Where the votes stand; None if each row has one label."""
    columns = table.columns
    if has_vote_rows(columns, id_column):
        low = {name.strip().casefold(): name for name in columns}
        label = label_column or low.get("label")
        if label is None or label not in columns:
            raise LabelsError(
                f"{table.source} has no column {label_column or 'label'!r} of votes; it has "
                f"{', '.join(columns)}: {repair_column(option)}."
            )
        return _Form((label,), _annotator_column(columns))
    if label_column is not None:
        return None
    numbers = {name: int(m[1]) for name in columns if (m := VOTE.fullmatch(name.strip()))}
    names = tuple(sorted(numbers, key=numbers.__getitem__))
    if not names or any(name in columns for name in READ if name != "label"):
        return None
    if "label" in columns:
        alone = "remove these" if option is None else f"read it alone with {option} label"
        raise LabelsError(
            f"{table.source} has a column 'label' beside {first_few(names)}: {alone}, or remove it "
            "to combine the others."
        )
    if len(names) == 1:
        as_label = "rename it to 'label'"
        if option is not None:
            as_label = f"read it as labels with {option} {names[0]}"
        raise LabelsError(
            f"{table.source} has the votes of one annotator only ({names[0]!r}); add label_2, …, "
            f"or {as_label}."
        )
    return _Form(names, None)


def _annotator_column(columns: Mapping[str, Any]) -> str | None:
    low = {name.strip().casefold(): name for name in columns}
    return next((low[name] for name in ANNOTATOR if name in low), None)


def has_vote_rows(columns: Mapping[str, Sequence[Any]], id_column: str | None = None) -> bool:
    """Whether each line is one vote: ids repeat, and there is a column of annotators."""
    if _annotator_column(columns) is None:
        return False
    keys = find_ids(columns, id_column=id_column, source="the table", error=LabelsError)
    return len(set(keys.ids)) < len(keys)


def _read(
    table: Table,
    form: _Form,
    keys: Keys,
    row: NDArray[np.int64],
    classes: Sequence[str] | None,
) -> _Votes:
    """Votes of all columns, read as labels are; contradictions are refused."""
    source, k = table.source, len(form.columns)
    # Line by line, so that messages name the first rows.
    lists = [table.columns[name][:] for name in form.columns]
    values = [value for line in zip(*lists, strict=True) for value in line]
    ids = [name for name in keys.ids for _ in range(k)]
    shown = ", ".join(form.columns)
    wrong = [i for i, value in enumerate(values) if is_soft(value)]
    if wrong:
        raise LabelsError(
            f"{source} has {len(wrong)} votes in {shown} that are not classes (ids "
            f"{first_few(ids[i] for i in wrong)}), the first {str(values[wrong[0]])[:80]!r}; a "
            "vote is one class, and probabilities stand in a column prob or probs."
        )
    named = table.class_names.get(form.columns[0])
    read = parse_labels(
        {shown: values},
        ids,
        label_column=shown,
        classes=classes,
        class_names=None if named is None else {shown: named},
        source=source,
    )
    code = np.asarray(read.probs.argmax(axis=1), np.int64)
    line, column = np.divmod(read.rows, k)
    if form.annotator is None:
        names, annotator = form.columns, column
    else:
        names, annotator = _annotators(table, form.annotator, keys, line)
    seen = np.unique(annotator)
    if len(seen) < 2:
        raise LabelsError(
            f"{source} has the votes of one annotator only ({names[seen[0]]!r}); combining needs "
            "at least two."
        )
    annotator = np.searchsorted(seen, annotator)
    names = tuple(names[a] for a in seen)
    votes = _Votes(row[line], annotator, code, int(row.max()) + 1, names, read.classes)
    return _once(votes, source, keys.ids, line)


def _annotators(
    table: Table, column: str, keys: Keys, line: NDArray[np.int64]
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Names of the annotators, and the number of each vote's."""
    given = [key_text(value) for value in table.columns[column][:]]
    missing = [keys.ids[i] for i in line if given[i] is None]
    if missing:
        raise LabelsError(
            f"{table.source} has {len(missing)} votes without an annotator (ids "
            f"{first_few(missing)}); fill the column {column!r}."
        )
    named = [str(given[i]) for i in line]
    names = {name: a for a, name in enumerate(dict.fromkeys(named))}
    return tuple(names), np.array([names[name] for name in named], np.int64)


def _once(votes: _Votes, source: str, ids: Sequence[str], line: NDArray[np.int64]) -> _Votes:
    """The votes, each annotator's on a row once; two different ones are refused."""
    pair = votes.row * len(votes.names) + votes.annotator
    _, first, inverse = np.unique(pair, return_index=True, return_inverse=True)
    other = np.flatnonzero(votes.code != votes.code[first][inverse])
    if len(other):
        i = other[0]
        before = first[inverse[i]]
        raise LabelsError(
            f"{source} has {len(other)} votes that contradict another of the same annotator on the "
            f"same row (ids {first_few(dict.fromkeys(ids[line[j]] for j in other))}; the first is "
            f"{votes.names[votes.annotator[i]]!r} with {votes.classes[votes.code[before]]!r} and "
            f"{votes.classes[votes.code[i]]!r}); keep one of them."
        )
    first.sort()
    return replace(
        votes, row=votes.row[first], annotator=votes.annotator[first], code=votes.code[first]
    )


# Combination


def _combined(votes: _Votes, method: Method) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Class probabilities (n, C), and what the method adds to the provenance."""
    if method == "dawid-skene":
        return _dawid_skene(votes)
    counts = votes.counts
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), {}


def _dawid_skene(votes: _Votes) -> tuple[NDArray[np.float64], dict[str, Any]]:
    need("crowdkit")
    import pandas as pd
    from crowdkit.aggregation import DawidSkene

    table = pd.DataFrame({"task": votes.row, "worker": votes.annotator, "label": votes.code})
    with warnings.catch_warnings():
        # crowd-kit 1.4.2 calls pandas as pandas 4 will not allow.
        warnings.simplefilter("ignore", DeprecationWarning)
        model = DawidSkene(n_iter=MOST_STEPS, tol=TOLERANCE).fit(table)
    assert model.probas_ is not None
    assert model.errors_ is not None
    assert model.priors_ is not None
    rows, classes = range(votes.n), range(len(votes.classes))
    probs = model.probas_.reindex(index=rows, columns=classes, fill_value=0.0)
    errors = model.errors_.reindex(columns=classes, fill_value=0.0)
    prior = model.priors_.reindex(classes, fill_value=0.0).to_numpy()
    # P(annotator votes for the true class) = Σ_k prior(k) · P(vote k | true class k)
    worker, k = (errors.index.get_level_values(i).to_numpy() for i in ("worker", "label"))
    right = prior[k] * errors.to_numpy()[np.arange(len(k)), k]
    accuracy = np.bincount(worker, right, minlength=len(votes.names)).round(4).tolist()
    about = {"accuracy": dict(zip(votes.names, accuracy, strict=True))}
    return probs.to_numpy(np.float64), {**about, "steps": len(model.loss_history_)}


# Agreement


def alpha_krippendorff(counts: NDArray[np.int64]) -> float:
    """Krippendorff's alpha for nominal labels: 1 is full agreement, 0 is agreement by chance [1]_.

    Parameters
    ----------
    counts : array of int, shape (n, C)
        Number of votes of each row for each class; rows with fewer than two do not count.

    Returns
    -------
    float
        NaN if no row has two votes, or if all votes are of one class.

    References
    ----------
    .. [1] K. Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011.
       https://repository.upenn.edu/handle/20.500.14332/2089

    Examples
    --------
    >>> round(alpha_krippendorff(np.array([[2, 0], [0, 2], [1, 1]])), 4)
    0.4444
    """
    m = counts.sum(axis=1)
    counts, m = counts[m > 1], m[m > 1]
    total, of_class = int(m.sum()), counts.sum(axis=0)
    # D_o = 1/n Σ_u Σ_{c≠k} n_uc n_uk / (m_u − 1), D_e = 1/(n(n − 1)) Σ_{c≠k} n_c n_k
    expected = float(total**2 - (of_class.astype(float) ** 2).sum())
    if not expected:
        return float("nan")
    observed = float(((m**2 - (counts**2).sum(axis=1)) / (m - 1)).sum())
    return 1 - (total - 1) * observed / expected


def _agreement(votes: _Votes) -> dict[str, Any]:
    """Counts, the share of rows on which all agree, and alpha; None where nothing can agree."""
    counts = votes.counts
    m = counts.sum(axis=1)
    several = m > 1
    alike = counts.max(axis=1)[several] == m[several]
    alpha = alpha_krippendorff(counts)
    return {
        "rows": int((m > 0).sum()),
        "annotators": len(votes.names),
        "labels_per_row": round(float(m[m > 0].mean()), 4),
        "rows_with_several": int(several.sum()),
        "all_agree": round(float(alike.mean()), 4) if len(alike) else None,
        "krippendorff_alpha": None if np.isnan(alpha) else round(alpha, 4),
    }


def _sentence(source: str, about: Mapping[str, Any]) -> str:
    """The agreement, and what the votes were combined by."""
    text = (
        f"{source}: {about['annotators']} annotators, {about['rows']:,} rows, "
        f"{about['labels_per_row']:.1f} labels a row; "
    )
    if about["all_agree"] is None:
        text += "no row has two, so agreement is unknown"
    else:
        text += (
            f"all agree in {100 * about['all_agree']:.1f} % of the "
            f"{about['rows_with_several']:,} rows with two or more"
        )
    if about["krippendorff_alpha"] is not None:
        text += f", Krippendorff's alpha {about['krippendorff_alpha']:.2f}"
    if about["method"] == "votes":
        return f"{text}; combined by share of votes."
    ranked = sorted(about["accuracy"].items(), key=lambda pair: pair[1])
    (worst, low), (best, high) = ranked[0], ranked[-1]
    text += (
        f"; combined by Dawid-Skene, which estimates accuracies from {low:.2f} ({worst}) to "
        f"{high:.2f} ({best})."
    )
    if len(ranked) == 2:
        text += " From two annotators alone it cannot tell which one errs."
    return text


def _one_line_each(
    table: Table,
    form: _Form,
    row: NDArray[np.int64],
    ids: Sequence[str],
    text_column: str | None,
) -> tuple[dict[str, Sequence[Any]], list[str]]:
    """The columns that all votes of a row agree on, a line for each row, and the others' names."""
    first = np.unique(row, return_index=True)[1].tolist()
    columns: dict[str, Sequence[Any]] = {}
    differing = []
    for name in table.columns:
        if name in form.columns or name == form.annotator:
            continue
        values = list(table.columns[name][:])
        of_row = zip(row.tolist(), values, strict=True)
        differ = [r for r, value in of_row if not _same(value, values[first[r]])]
        if not differ:
            columns[name] = [values[i] for i in first]
        elif name in (text_column, *TEXTS):
            named = first_few(ids[r] for r in dict.fromkeys(differ))
            raise LabelsError(
                f"{table.source} has {len(set(differ))} ids with more than one {name!r} (ids "
                f"{named}); give each text its own id."
            )
        else:
            differing.append(name)
    return columns, differing


def _same(a: Any, b: Any) -> bool:
    """Whether two cells are equal, NaN and lists of arrays too."""
    return bool(a == b) if isinstance(a, str) and isinstance(b, str) else repr(a) == repr(b)
