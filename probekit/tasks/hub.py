"""Data sets of the Hugging Face hub, and one loader for every task whose rows are there.

If the environment variable ``PROBEKIT_DATASETS`` names a folder, ``org/name`` is read only from its
subfolder of that name, laid out as on the hub (``hf download org/name --repo-type dataset
--local-dir $PROBEKIT_DATASETS/org/name``): for machines without internet.

A task is a record of what differs. A row of the hub becomes an :class:`Item` with all its versions
in the task: one if the row has a label, one per answer if it is a question with several answers.
Seed and row decide which version is used, so each question becomes one row, right or wrong by a
fair draw.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from probekit.data import Rows, text_hash
from probekit.errors import DataError
from probekit.safe import expand, read_bytes
from probekit.tables import Table, dataset_table, no_progress_bars
from probekit.tasks.registry import Task, balanced, draw

__all__ = [
    "DATASETS_VARIABLE",
    "HubRecord",
    "Item",
    "Part",
    "UnreachedError",
    "read_hub",
    "rows_of",
    "sampled_positions",
]

DATASETS_VARIABLE = "PROBEKIT_DATASETS"

# The hub has Parquet copies here, also of data sets with loading scripts, which datasets 4 does not
# run.
CONVERTED = "refs/convert/parquet"
MAX_ROWS = 100_000
"""Maximum number of rows taken of a split of the hub, the same for every seed."""
CHUNK = 4096
SPLITS = ("train", "validation", "test")


class UnreachedError(DataError):
    """A data set of the hub that cannot be read from this machine."""


def read_hub(name: str, config: str | None, split: str) -> Table:
    """Read a split of a data set; its columns stay on disk and are read slice by slice.

    Parameters
    ----------
    name, config
        ``org/name`` and its configuration, None for the only one.
    split
        As ``datasets`` takes it: ``train``, ``train[:10%]``.

    Raises
    ------
    UnreachedError
        If the data set cannot be read.
    """
    return _read(name, config, split, os.environ.get(DATASETS_VARIABLE) or None)


@lru_cache(maxsize=8)  # a task's splits are compared with each other; each is opened once
def _read(name: str, config: str | None, split: str, folder: str | None) -> Table:
    whole = f"{name}{f':{config}' if config else ''}@{split}"
    try:
        with no_progress_bars():
            dataset = (
                _from_hub(name, config, split)
                if folder is None
                else _from_folder(expand(folder), name, config, split)
            )
    except DataError:
        raise
    except Exception as error:  # datasets, hub and HTTP raise some twenty types
        raise UnreachedError(f"hf:{whole} cannot be read: {_why(error)}") from error
    return dataset_table(dataset, source=f"hf:{whole}")


def _from_hub(name: str, config: str | None, split: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, config, split=split)
    except (RuntimeError, ValueError) as error:
        text = str(error)
        if "scripts are no longer supported" not in text and "BuilderConfig" not in text:
            raise
    return datasets.load_dataset(name, data_dir=config, revision=CONVERTED, split=split)


def _from_folder(root: Path, name: str, config: str | None, split: str) -> Any:
    import datasets

    folder = root / name
    if not folder.is_dir():
        raise UnreachedError(
            f"{DATASETS_VARIABLE} is {root}, which has no folder {name}; copy the data set there "
            f"with `hf download {name} --repo-type dataset --local-dir {folder}`, or unset "
            f"{DATASETS_VARIABLE} to read it from the Hugging Face hub."
        )
    # A card with configurations lists their files; without one each has a folder.
    card = folder / "README.md"
    listed = card.is_file() and "\nconfigs:" in read_bytes(card).decode("utf-8", "replace")
    if config is None or listed or not (folder / config).is_dir():
        return datasets.load_dataset(str(folder), config, split=split)
    return datasets.load_dataset(str(folder), data_dir=config, split=split)


def _why(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ConnectionError) or "offline" in text.lower():
        return (
            "the Hugging Face hub cannot be reached and the data set is not in its cache; check "
            f"the connection, give a local file, or set {DATASETS_VARIABLE} to a folder that holds "
            "org/name as on the hub."
        )
    if "doesn't exist on the Hub" in text or "NotFound" in type(error).__name__:
        return (
            "there is no such data set on the Hugging Face hub (private ones need `hf auth login`)."
        )
    return (text if len(text) <= 300 else text[:299] + "…").rstrip(".") + "."


@dataclass(frozen=True)
class Item:
    """A row of the hub in all its versions in the task."""

    versions: tuple[tuple[str, int], ...]
    """Texts with their labels."""
    question: str
    """Text that identifies the row across splits, without answer and label."""
    group: str
    """Rows that stay together when a split is carved: a passage with all its questions."""


@dataclass(frozen=True)
class Part:
    """A split of the task, as a share of a split of the hub."""

    name: str
    split: str
    """Name on the hub."""
    start: float = 0.0
    stop: float = 1.0
    """Rows whose group's draw (uniform, independent of the seed) is between start and stop."""


@dataclass(frozen=True)
class HubRecord:
    """Everything that distinguishes a task on the hub."""

    name: str
    asks: str
    """What a row is and what its label means."""
    hub: str
    """``org/name``."""
    columns: tuple[str, ...]
    """Columns of the hub that ``items`` reads."""
    items: Callable[[Mapping[str, Any], str], Item | None]
    """Function from a row of the hub and the prompt to an item; None without label or text."""
    prompt: str
    parts: tuple[Part, ...]
    """A text in several parts is kept in the first of them."""
    licence: str
    hub_rows: str
    """Number of rows of each split according to the card."""
    config: str | None = None
    classes: tuple[str, str] = ("wrong", "right")
    confirmed: bool = True
    """Whether the columns were checked against the data-set card."""
    remark: str = ""

    @property
    def card(self) -> str:
        """Link of the data-set card."""
        return f"https://huggingface.co/datasets/{self.hub}"

    @property
    def in_order(self) -> list[Part]:
        """The parts as train, validation, test."""
        return sorted(self.parts, key=lambda part: SPLITS.index(part.name))

    @property
    def carved(self) -> str:
        """Where each split comes from, in words."""
        parts = []
        for part in self.in_order:
            share = part.stop - part.start
            size = "" if share == 1 else f"{share:.0%} of "
            parts.append(f"{part.name} = {size}the hub's {part.split}")
        return "; ".join(parts)

    def task(self) -> Task:
        """Return the task of this record; nothing is read before its rows are used."""
        whole = f"hf:{self.hub}{f':{self.config}' if self.config else ''}"
        columns = "" if self.confirmed else ", not confirmed on the card"
        return Task(
            name=self.name,
            description=self.asks,
            source=f"{whole} (columns {', '.join(self.columns)}{columns}; {self.hub_rows})",
            licence=self.licence,
            classes=self.classes,
            splits=tuple(part.name for part in self.in_order),
            load=partial(rows_of, self),
            card=self.card,
            prompt=self.prompt,
            notes=". ".join(filter(None, (self.carved, self.remark))),
        )


def rows_of(record: HubRecord, split: str, seed: int) -> Rows:
    """Return the rows of a split, equally many of both classes, ordered by the seed.

    Raises
    ------
    DataError
        If the data set cannot be read, lacks a column, or has no rows of a class.
    """
    items, left_out = _items(record, split, os.environ.get(DATASETS_VARIABLE))
    shown = [_draw_version(key, item, seed) for key, item in items]
    shown.sort(key=lambda row: draw(row[0], seed=seed, use="order"))
    labels = [row[2] for row in shown]
    missing = [name for label, name in enumerate(record.classes) if label not in labels]
    if missing:
        raise DataError(
            f"The split {split!r} of the task {record.name!r} has no row of the class "
            f"{missing[0]!r} among {len(shown):,} usable rows of {record.hub} "
            f"({_describe(left_out)}); a labelled split is expected, with the columns "
            f"{', '.join(record.columns)}."
        )
    kept = [shown[position] for position in balanced(labels, n_classes=len(record.classes))]
    columns = {
        name: [row[position] for row in kept]
        for position, name in enumerate(("id", "text", "label"))
    }
    note = f"{_describe(left_out)}." if left_out else ""
    rows = Rows(columns, source=f"{record.name}@{split}", note=note)
    rows.groups = [row[3] for row in kept]
    return rows


def sampled_positions(rows: int, most: int = MAX_ROWS) -> list[int]:
    """Return positions of the rows to use: all, or one of each of ``most`` equal ranges."""
    if rows <= most:
        return list(range(rows))
    bounds = [rows * i // most for i in range(most + 1)]
    return [
        start + draw(str(start), seed=0, use="sample") % (stop - start)
        for start, stop in pairwise(bounds)
    ]


def _draw_version(key: str, item: Item, seed: int) -> tuple[str, str, int, str]:
    """Return id, text, label and group of the version for a seed; an id identifies one text."""
    wanted = draw(key, seed=seed, use="label") % 2
    positions = [i for i, (_, label) in enumerate(item.versions) if label == wanted]
    positions = positions or list(range(len(item.versions)))
    position = positions[draw(key, seed=seed, use="version") % len(positions)]
    text, label = item.versions[position]
    name = f"{key}-{position}" if len(item.versions) > 1 else key
    return name, text, label, text_hash(item.group)  # a passage may be long


@lru_cache(maxsize=4)
def _items(
    record: HubRecord, split: str, where: str | None
) -> tuple[list[tuple[str, Item]], Counter[str]]:
    """Return the items of a split with their keys, and counts of rows left out by reason."""
    names = [part.name for part in record.parts]
    part = record.parts[names.index(split)]
    used = {
        item.question
        for name in names[: names.index(split)]
        for _, item in _items(record, name, where)[0]
    }
    kept: list[tuple[str, Item]] = []
    left_out: Counter[str] = Counter()
    for position, row in _hub_rows(record, part.split):
        item = record.items(row, record.prompt)
        if item is None:
            left_out["without label or text"] += 1
        elif not part.start <= draw(item.group, seed=0, use="carve") / 2**64 < part.stop:
            continue
        elif item.question in used:
            left_out["standing in another split"] += 1
        else:
            kept.append((f"{record.name}-{part.split}-{position}", item))
    return kept, left_out


def _hub_rows(record: HubRecord, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    columns = read_hub(record.hub, record.config, split).columns
    missing = [name for name in record.columns if name not in columns]
    if missing:
        raise DataError(
            f"{record.hub} ({split}) has no column {missing[0]!r}; it has {', '.join(columns)}, "
            f"and the task {record.name!r} reads {', '.join(record.columns)}: see {record.card}."
        )
    rows = len(columns[record.columns[0]])
    positions = sampled_positions(rows)
    if len(positions) < rows:
        for position in positions:
            yield position, {name: columns[name][position] for name in record.columns}
        return
    for start in range(0, rows, CHUNK):
        parts = [columns[name][start : start + CHUNK] for name in record.columns]
        for offset, values in enumerate(zip(*parts, strict=True)):
            yield start + offset, dict(zip(record.columns, values, strict=True))


def _describe(left_out: Counter[str]) -> str:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(left_out.items()))
    return f"left out: {reasons}" if reasons else "none left out"
