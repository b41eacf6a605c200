"""A task's rows dealt to supervisor, student, validation and test, ground truth kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.cuts import by_id
from probekit.data import Rows, text_hash
from probekit.errors import DataError, LabelsError, UsageError, first_few
from probekit.experiments.task_kinds import task_kind
from probekit.groups import duplicate_groups
from probekit.labels import WeakLabels
from probekit.sources import read_table
from probekit.tasks.reward import are_preferences

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from probekit.experiments.config import RunConfig
    from probekit.tasks.registry import Task

__all__ = ["Splits", "chain_splits", "contents_only", "known_kind", "labelled", "run_splits"]

TEST_SHARE = 0.25
LEAST_ROWS = 4


@dataclass(frozen=True, eq=False)
class Splits:
    """Rows without labels by part, and the ground truth of each part."""

    task: str
    kind: str
    """As :func:`probekit.experiments.task_kinds.task_kind` has it."""
    classes: tuple[str, ...]
    """Names of the classes; none if the task asks for completions."""
    rows: dict[str, Rows] = field(default_factory=dict)
    truth: dict[str, Any] = field(default_factory=dict)
    """Ground truth in the form of the task's kind, WeakLabels where it has classes."""
    trusted: frozenset[str] = frozenset()
    """Ids of the student's rows that the supervisor's ground truth holds."""

    def trusted_labels(self) -> WeakLabels | None:
        """The true labels of these rows; None if there are none."""
        if not self.trusted:
            return None
        truth: WeakLabels = self.truth["student"]
        rows = [i for i, name in enumerate(truth.ids) if name in self.trusted]
        if not rows:
            return None
        hashes = None if truth.hashes is None else [truth.hashes[i] for i in rows]
        return replace(
            truth,
            ids=[truth.ids[i] for i in rows],
            hashes=hashes,
            probs=truth.probs[rows],
            key=None,
        )


@dataclass(frozen=True, eq=False)
class _Source:
    """Rows of a task to train on, dealt already or not, and test rows."""

    task: str
    kind: str
    classes: tuple[str, ...]
    halves: tuple[Rows, ...]
    """Rows of supervisor and student, or one Rows that is not dealt yet."""
    test: Rows


def run_splits(task: str, config: RunConfig, seed: int) -> Splits:
    """Deal a task's rows to ``supervisor``, ``student``, ``validation`` and ``test``.

    The training rows are halved by seed; copies of a text and rows of a group (such as a question)
    go to one half. Texts and groups of the test set are left out of both. Validation rows come from
    the student's half, and ``trusted_rows`` of the supervisor's join it after that.
    """
    source = _open(task, seed, config.group_column)
    rng = np.random.default_rng([seed, 0])
    both = config.student_rows
    if both is not None and config.validation_rows is not None:
        both += config.validation_rows
    limits = (config.supervisor_rows, both)
    if len(source.halves) == 2:
        parts = [
            _deal(half, [limit], rng)[0] for half, limit in zip(source.halves, limits, strict=True)
        ]
    else:
        parts = _deal(source.halves[0], list(limits), rng)
    train, validation = _hold_out(
        parts[1],
        "validation",
        config.validation_rows,
        rng,
        # Held-out rows choose checkpoints, where a task has class probabilities.
        share=config.validation_share if task_kind(source.kind).stops_early else 0.0,
    )
    trusted: frozenset[str] = frozenset()
    if config.trusted_rows is not None:
        parts[0], moved = _hold_out(parts[0], "trusted", config.trusted_rows, rng)
        assert moved is not None  # a number was given
        train, trusted = _joined([train, moved]), frozenset(moved.ids)
    dealt = {"supervisor": parts[0], "student": train}
    if validation is not None:
        dealt["validation"] = validation
    if config.weak_on == "train":
        dealt["student"] = parts[0]
    return replace(_split(source, dealt, config.test_rows, seed), trusted=trusted)


def chain_splits(task: str, config: RunConfig, seed: int) -> Splits:
    """Deal a task's training rows to ``part0``, ``part1`` and so on, one per model of the chain."""
    source = _open(task, seed, config.group_column)
    pool = source.halves[0] if len(source.halves) == 1 else _joined(source.halves)
    limits = [config.supervisor_rows] + [config.student_rows] * (len(config.chain) - 1)
    parts = _deal(pool, limits, np.random.default_rng([seed, 1]))
    named = {f"part{i}": part for i, part in enumerate(parts)}
    return _split(source, named, config.test_rows, seed)


def labelled(splits: Splits, labels: WeakLabels) -> tuple[Splits, dict[str, WeakLabels], list[str]]:
    """Join weak labels of any source to the rows of a run.

    Returns
    -------
    The splits without the student's and validation rows that have no label; the labels by part, in
    the order of the rows and the task's classes, those of the test rows only if all have one; and
    a sentence for each part with rows that have none.

    Raises
    ------
    LabelsError
        If the labels have other classes or texts than the task, or too few rows have one.
    """
    labels = _in_classes(labels, splits)
    chosen = replace(splits, rows=dict(splits.rows), truth=dict(splits.truth))
    parts: dict[str, WeakLabels] = {}
    notes: list[str] = []
    for part in (name for name in ("student", "validation", "test") if name in splits.rows):
        rows = splits.rows[part]
        place = labels.joined(rows.keys).place
        known = np.flatnonzero(place >= 0)
        if len(known) < len(rows):
            effect = "there is no weak floor" if part == "test" else "the others are left out"
            notes.append(
                f"{labels.source} has labels for {len(known):,} of the {len(rows):,} {part} rows "
                f"of {splits.task}; {effect}."
            )
            if part == "test":
                continue
            if len(known) < LEAST_ROWS:
                raise LabelsError(
                    f"{labels.source} has labels for {len(known)} of the {len(rows)} {part} rows "
                    f"of {splits.task}, at least {LEAST_ROWS} are needed; its ids are "
                    f"{first_few(labels.ids)}, the rows' {first_few(rows.ids)}."
                )
            chosen.rows[part] = rows = rows.select(known.tolist())
            chosen.truth[part] = splits.truth[part].align(rows.keys).labels
        parts[part] = labels.align(rows.keys, rows_name=f"the {part} rows").labels
    return chosen, parts, notes


def _in_classes(labels: WeakLabels, splits: Splits) -> WeakLabels:
    """The labels with the task's classes; numbers stand for classes by their place."""
    classes = list(splits.classes)
    numbers = [str(number) for number in range(len(classes))]
    names = classes if set(labels.classes) <= set(classes) else numbers
    strange = [name for name in labels.classes if name not in names]
    if strange:
        raise LabelsError(
            f"{labels.source} has the classes {first_few(strange)}, {splits.task} has "
            f"{first_few(classes, 10)}; name classes alike in both, or by their numbers from 0."
        )
    probs = np.zeros((len(labels), len(classes)))
    probs[:, [names.index(name) for name in labels.classes]] = labels.probs
    # A run's rows have ids, if only row numbers, and are joined by these.
    return replace(labels, probs=probs, classes=splits.classes, key=None)


def contents_only(rows: Rows) -> Rows:
    """Return the rows with their ids and texts and no other column."""
    columns: dict[str, Any] = {"id": list(rows.ids)}
    contents = rows.contents()
    if rows.kind == "pair":
        columns["text"] = [content[0] for content in contents]
        columns["text_pair"] = [content[1] for content in contents]
    else:
        columns[rows.kind] = contents
    bare = Rows(columns, source=rows.source)
    bare.groups = rows.groups
    return bare


def _split(source: _Source, parts: dict[str, Rows], limit: int | None, seed: int) -> Splits:
    test = source.test
    if limit is not None and limit < len(test):
        chosen = np.argsort(by_id(test.hashes, seed=[seed, 2]), kind="stable")[:limit]
        test = test.select(np.sort(chosen).tolist())
    splits = Splits(source.task, source.kind, source.classes)
    for name, rows in {**parts, "test": test}.items():
        if len(rows) < LEAST_ROWS:
            repair = "take a task with more rows"
            if name == "validation":
                repair = f"raise student_rows, set validation_share to 0, or {repair}"
            raise DataError(
                f"{source.task} leaves {len(rows)} rows for {name}, at least {LEAST_ROWS} are "
                f"needed; {repair}."
            )
        splits.rows[name] = contents_only(rows)
        splits.truth[name] = task_kind(source.kind).truth(
            rows, source.classes, f"the ground truth of {source.task}"
        )
    return splits


def _deal(rows: Rows, limits: Sequence[int | None], rng: np.random.Generator) -> list[Rows]:
    """Deal rows to equal parts of at most ``limits`` rows, each text and group to one part."""
    groups = duplicate_groups(hashes=rows.hashes, groups=rows.groups)
    order = rng.permutation(int(groups.max()) + 1)
    part = np.empty(len(order), dtype=np.int64)
    for number, chunk in enumerate(np.array_split(order, len(limits))):
        part[chunk] = number
    # By a hash of the text, so that the file's order does not matter.
    drawn = by_id(rows.hashes, seed=int(rng.integers(2**32)))
    dealt = []
    for number, limit in enumerate(limits):
        places = np.flatnonzero(part[groups] == number)
        if limit is not None and limit < len(places):
            places = np.sort(places[np.argsort(drawn[places], kind="stable")[:limit]])
        if not len(places):
            raise DataError(f"{rows.source} has too few rows for {len(limits)} parts.")
        dealt.append(rows.select(places.tolist()))
    return dealt


def _hold_out(
    rows: Rows,
    name: str,
    n_rows: int | None,
    rng: np.random.Generator,
    *,
    share: float = 0.0,
) -> tuple[Rows, Rows | None]:
    """Split off ``n_rows`` or a share of the rows, each text and group on one side."""
    if not share and n_rows is None:
        return rows, None
    groups = duplicate_groups(hashes=rows.hashes, groups=rows.groups)
    drawn = rng.random(int(groups.max()) + 1)
    draw = drawn[groups]
    if n_rows is None:
        chosen = draw < share
    else:
        # Group by group in the order of the draw, while they fit.
        sizes = np.bincount(groups)
        order = np.argsort(drawn, kind="stable")
        fits = order[np.cumsum(sizes[order]) <= n_rows]
        chosen = np.isin(groups, fits)
    if chosen.all() or not chosen.any():
        asked = f"share of {share}" if n_rows is None else f"set of {n_rows}"
        raise UsageError(
            f"A {name} {asked} of {len(rows)} rows leaves one side empty; give more "
            f"rows or another {name}_{'share' if n_rows is None else 'rows'}."
        )
    train, held_out = (np.flatnonzero(each).tolist() for each in (~chosen, chosen))
    return rows.select(train), rows.select(held_out)


def _joined(halves: Sequence[Rows]) -> Rows:
    names = [name for name in halves[0].columns if all(name in h.columns for h in halves)]
    columns = {name: [v for half in halves for v in half.columns[name]] for name in names}
    joined = Rows(columns, source=halves[0].source.partition("@")[0])
    if all(half.groups is not None for half in halves):
        joined.groups = [name for half in halves for name in half.groups or ()]
    return joined


def known_kind(name: str) -> str | None:
    """The kind of a task that probekit knows, without its rows; None of a file."""
    task = _known(name)
    return None if task is None else task.kind


def _known(name: str) -> Task | None:
    """The task of this name; a file comes first."""
    from probekit.tasks.registry import get_task, task_names

    known = not Path(name).exists() and name.partition(":")[0] in task_names()
    return get_task(name) if known else None


def _open(name: str, seed: int, group_column: str | None) -> _Source:
    if (task := _known(name)) is not None:
        halves = (
            (task.rows(task.pool, seed=seed),)
            if task.halves is None
            else tuple(task.rows(split, seed=seed) for split in task.halves)
        )
        test = task.rows(task.test, seed=seed)
        if group_column is not None:
            halves = tuple(half.grouped(group_column) for half in halves)
            test = test.grouped(group_column)
        return _apart(_Source(name, task.kind, task.classes, halves, test))
    return _apart(_open_file(name, group_column))


def _open_file(name: str, group_column: str | None) -> _Source:
    """Open a file of rows with a column label, or completion, or a pair chosen and rejected.

    Column split names the test rows, else a quarter is drawn.
    """
    from probekit.sources import load_rows

    table = read_table(name)
    rows = load_rows(table)
    rows = rows if group_column is None else rows.grouped(group_column)
    if "label" not in rows.columns and "completion" in rows.columns:
        columns = {**contents_only(rows).columns, "completion": rows.columns["completion"]}
        return _dealt_file(name, rows, columns, kind="completion", classes=())
    if "label" not in rows.columns:
        raise LabelsError(
            f"{name} has no column 'label' with the ground truth; it has {', '.join(rows.columns)}."
        )
    labels = WeakLabels.from_columns(
        {"id": rows.ids, "label": rows.columns["label"]},
        class_names=table.class_names,
        source=name,
    )
    if labels.missing:
        raise LabelsError(
            f"{name} has {len(labels.missing)} rows without a label (ids "
            f"{first_few(labels.missing)}); fill or remove them."
        )
    codes: NDArray[np.int64] = labels.hard
    columns = {**contents_only(rows).columns, "label": codes.tolist()}
    preferences = rows.kind == "pair" and are_preferences(table.columns)
    kind = "reward" if preferences else "classify"
    return _dealt_file(name, rows, columns, kind=kind, classes=labels.classes)


def _dealt_file(
    name: str, rows: Rows, columns: dict[str, Any], *, kind: str, classes: tuple[str, ...]
) -> _Source:
    """Divide the rows of a file, with ``columns``, into rows to train on and to test on."""
    groups = rows.groups
    rows = Rows({**columns, "split": _test_column(rows)}, source=name)
    rows.groups = groups
    test = [i for i, split in enumerate(rows.columns["split"]) if split == "test"]
    train = [i for i, split in enumerate(rows.columns["split"]) if split == "train"]
    if not test or not train:
        raise DataError(
            f"{name} has {len(train)} rows to train on and {len(test)} to test on; a column split "
            "holds train and test, or is left out."
        )
    return _Source(Path(name).name, kind, classes, (rows.select(train),), rows.select(test))


def _test_column(rows: Rows) -> list[str]:
    if "split" in rows.columns:
        return [str(value) for value in rows.columns["split"]]
    # The hash of a text serves as the draw, for every seed and order alike; groups stay whole.
    names = rows.groups or [""] * len(rows)
    drawn = [text_hash(g) if g else h for h, g in zip(rows.hashes, names, strict=True)]
    return ["test" if int(h, 16) / 16**16 < TEST_SHARE else "train" for h in drawn]


def _apart(source: _Source) -> _Source:
    """Remove texts and groups of the test set from the halves."""
    tested = set(source.test.hashes)
    groups = set(source.test.groups or ()) - {""}
    halves = []
    for half in source.halves:
        names = half.groups or [""] * len(half)
        kept = [
            i
            for i, (digest, name) in enumerate(zip(half.hashes, names, strict=True))
            if digest not in tested and name not in groups
        ]
        halves.append(half if len(kept) == len(half) else half.select(kept))
    return _Source(source.task, source.kind, source.classes, tuple(halves), source.test)
