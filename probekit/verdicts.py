"""Verdicts: for every row, in data order, whether to keep it, and its label for training."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.cuts import by_key
from probekit.data import Rows, text_hash
from probekit.errors import DataError, first_few, repeated
from probekit.files import atomic_write, json_line
from probekit.joins import Keys, find_ids, match, other_texts
from probekit.label_columns import class_values
from probekit.output_tables import check_format, save_table
from probekit.safe import load_json, misfit
from probekit.sidecars import drop_sidecar
from probekit.sources import read_table
from probekit.states import finite_rows
from probekit.strings import any_twice, arrow_column, taken
from probekit.tables import Table, dataset_table, frame_columns, no_progress_bars, record_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Verdicts"]

FORMAT = "probekit-verdicts"
VERSION = 1
NO_FOLD = -1
MATRICES = ("weak", "probe", "label")
COLUMNS = ("id", "text_hash", *MATRICES, "keep", "weight", "disagreement", "fold")

NUMBER = (int, float)
# Shape of the metadata that readers of verdicts rely on.
METADATA = {
    "classes": [str],
    "provenance": {
        "action?": str,
        "probe?": {"name": str, "parameters?": dict, "l2?": NUMBER},
        "store?": {"name": str, "fingerprint?": str},
        "labels?": {"source": str},
        "layers?": [int],
        "layer?": int,  # of files of 0.1.0 in place of layers
        "in_sample?": bool,
        "per_class?": bool,
        "seed?": (int, [int]),
        "notes?": [str],
        "command?": str,
        "form?": str,
        "contamination?": (*NUMBER, str),
        **dict.fromkeys(("threshold?", "blend?", "only_above?", "flip?"), NUMBER),
        "certificate?": {
            **dict.fromkeys(("max_error", "confidence", "failure"), NUMBER),
            **dict.fromkeys(("rows", "max_wrong", "sample", "labelled", "unreviewed"), int),
            **dict.fromkeys(("wrong_in_sample", "corrected", "cannot_tell", "seed"), int),
            "bound": str,
        },
        "estimates?": {"hoc": [NUMBER], "confident_joint": [NUMBER]},
    },
}


@dataclass(frozen=True, eq=False, repr=False)
class Verdicts:
    """One verdict per row, n rows and C classes, in data order.

    ``load`` reads a file that ``save`` wrote; ``apply`` carries the verdicts to a data set.
    """

    ids: Sequence[str]
    """n row ids."""
    hashes: Sequence[str]
    """n text hashes (docs/format.md), "" if unknown."""
    classes: tuple[str, ...]
    """C class names; columns of the three matrices."""
    weak: NDArray[np.float32]
    """Weak labels (n, C)."""
    probe: NDArray[np.float32]
    """The probe's class probabilities (n, C), out of fold unless asked otherwise."""
    label: NDArray[np.float32]
    """Labels to train on (n, C)."""
    keep: NDArray[np.bool_]
    """Whether to train on the row at all (n,)."""
    weight: NDArray[np.float32]
    """Weight of the row in the loss (n,)."""
    disagreement: NDArray[np.float32]
    """Disagreement of the probe with the weak label, in [0, 1] (n,): 1 − P(its class), or half the
    absolute difference of ``probe`` and ``weak`` if the provenance says ``distance``."""
    fold: NDArray[np.int16]
    """Fold whose model predicted the row (n,), -1 if the row alone was left out."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """How they were made: probe and parameters, layer, fingerprints, version, seed."""

    def __post_init__(self) -> None:
        """Check shapes: a mistake here would train a student on another row's label."""
        n, c = len(self.ids), len(self.classes)
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(MATRICES, (n, c))
        shapes |= dict.fromkeys(("keep", "weight", "disagreement", "fold"), (n,))
        for name, shape in shapes.items():
            given = getattr(self, name).shape
            if given != shape:
                raise DataError(f"Verdicts' {name!r} has the shape {given}, not {shape}.")
        if len(self.hashes) != n:
            raise DataError(f"Verdicts have {n} ids and {len(self.hashes)} text hashes.")
        if any_twice(self.ids):
            twice = repeated(self.ids)
            raise DataError(f"Verdicts have {len(twice)} ids more than once ({first_few(twice)}).")
        for name in (*MATRICES, "weight", "disagreement"):
            finite = finite_rows(getattr(self, name))
            if not finite.all():
                bad = [self.ids[i] for i in np.flatnonzero(~finite).tolist()]
                raise DataError(
                    f"Verdicts' {name!r} is missing or not finite in {len(bad)} rows (ids "
                    f"{first_few(bad)})."
                )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        """Show the counts instead of every row."""
        kept = int(self.keep.sum())
        return f"Verdicts({len(self):,} rows, {kept:,} kept, classes {first_few(self.classes, 5)})"

    @property
    def hard(self) -> NDArray[np.int64]:
        """Column of each row's class to train on (n,); ties go to the first."""
        return np.asarray(self.label.argmax(axis=1), np.int64)

    @property
    def keys(self) -> Keys:
        """What the rows can be joined by."""
        column = self.provenance.get("id_column", "id")
        return Keys(
            ids=self.ids,
            hashes=self.hashes,
            id_column=None if column is None else str(column),
            chosen="id_column" not in self.provenance,
            name="the verdicts",
        )

    @property
    def tied(self) -> int:
        """Number of verdicts that a tie decided: equal rows had another verdict."""
        return int(self.provenance.get("ties", {}).get("rows", 0))

    @property
    def ties(self) -> NDArray[np.uint64]:
        """Order of equal rows (n,): a hash of seed and id."""
        seed = self.provenance.get("seed", 0)
        return by_key(self.keys, seed=seed if isinstance(seed, int) else 0)

    @property
    def ranking(self) -> NDArray[np.int64]:
        """Row numbers (n,), the largest disagreement first, equal ones by ``ties``."""
        return np.asarray(np.lexsort((self.ties, -self.disagreement)), np.int64)

    @property
    def layers(self) -> list[int]:
        """Layers of the store that the probe read; empty without a store."""
        if "layers" in self.provenance:
            return list(self.provenance["layers"])
        return [self.provenance["layer"]] if "layer" in self.provenance else []

    def class_values(self) -> list[Any]:
        """Class names as they are written into data: whole numbers if all of them are."""
        return class_values(self.classes)

    def save(self, path: str | Path) -> None:
        """Write Parquet, or JSONL with the metadata beside it in ``<path>.meta.json``."""
        import pyarrow as pa

        offsets = np.arange(len(self) + 1, dtype=np.int32) * len(self.classes)
        columns: dict[str, Any] = {"id": arrow_column(self.ids)}
        columns["text_hash"] = arrow_column(self.hashes)
        for name in MATRICES:
            values = getattr(self, name).astype(np.float32).ravel()
            columns[name] = pa.ListArray.from_arrays(offsets, values)
        columns["keep"] = pa.array(self.keep)
        columns["weight"] = pa.array(self.weight.astype(np.float32))
        columns["disagreement"] = pa.array(self.disagreement.astype(np.float32))
        columns["fold"] = pa.array(self.fold.astype(np.int16), mask=self.fold == NO_FOLD)
        metadata = {"classes": list(self.classes), "provenance": dict(self.provenance)}
        # Checked now, so that the file can be read.
        _check_metadata(load_json(json.dumps(metadata), str(path)), path)
        save_table(columns, path, FORMAT, VERSION, **metadata)

    @classmethod
    def load(cls, path: str | Path | Table) -> Verdicts:
        """Read a file that ``save`` wrote, or its table.

        Raises
        ------
        DataError
            If the file is missing, damaged or without verdicts.
        """
        table = path if isinstance(path, Table) else read_table(path)
        path = table.source if isinstance(path, Table) else path
        columns = table.columns
        missing = [name for name in COLUMNS if name not in columns]
        if missing:
            raise DataError(
                f"{path} has no verdicts: the columns {', '.join(missing)} are missing; make such "
                "a file with `probekit filter` or `probekit relabel`."
            )
        metadata = table.metadata
        check_format(metadata, path, FORMAT, VERSION, repair="`probekit filter` or `relabel`")
        _check_metadata(metadata, path)
        try:
            classes = tuple(str(name) for name in metadata["classes"])
            keep = list(columns["keep"][:])
            if not keep:
                raise ValueError("it has no rows")
            if not all(isinstance(value, bool) for value in keep):
                raise ValueError("'keep' has other values than true and false")
            matrices = {
                name: np.array(columns[name][:], np.float32).reshape(len(keep), len(classes))
                for name in MATRICES
            }
            fold = [NO_FOLD if value is None else value for value in columns["fold"][:]]
            return cls(
                ids=[str(value) for value in columns["id"][:]],
                hashes=[value or "" for value in columns["text_hash"][:]],
                classes=classes,
                **matrices,
                keep=np.array(keep, bool),
                weight=np.array(columns["weight"][:], np.float32),
                disagreement=np.array(columns["disagreement"][:], np.float32),
                fold=np.array(fold, np.int16),
                provenance=metadata["provenance"],
            )
        except DataError as error:
            error.add_note(f"In {path}.")
            raise
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise DataError(f"{path} is damaged: {error}.") from None

    def apply(
        self, dataset: Any, *, text_column: str | None = None, id_column: str | None = None
    ) -> Any:
        """Return the kept rows of a data set, with ``label``, ``probs`` and ``weight`` set.

        Parameters
        ----------
        dataset
            A ``datasets.Dataset``, pandas DataFrame or list of dicts; the same kind is returned.
            Rows are joined by id (row number if there is no id column), and their text hashes are
            compared if there is a text. Rows without a verdict are left out.

        Raises
        ------
        DataError
            If rows of the verdicts are not in the data set, or their texts differ.
        """
        columns, kind = _columns_of(dataset)
        where, mine = self._join(columns, text_column, id_column)
        values = self.class_values()
        added = {
            "label": [values[c] for c in self.hard[mine]],
            "probs": self.label[mine].tolist(),
            "weight": self.weight[mine].tolist(),
        }
        if kind == "list":
            rows = [dict(dataset[i]) for i in where]
            for name, column in added.items():
                for row, value in zip(rows, column, strict=True):
                    row[name] = value
            return rows
        if kind == "frame":
            return dataset.iloc[where].assign(**added)
        return _with_columns(dataset.select(where), added)

    def write_data(self, rows: Rows, path: str | Path) -> int:
        """Write the kept rows with their own columns as JSONL; return their number.

        Each line gets ``label`` (class to train on), ``probs`` (soft form) and ``weight``.
        """
        written = 0
        with atomic_write(path, "w") as file:
            for record, added in self.kept_records(rows):
                file.write(json_line(record | added))
                written += 1
        drop_sidecar(path)  # of an earlier file
        return written

    def kept_records(self, rows: Rows) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield the own columns of every kept row, and its ``label``, ``probs`` and ``weight``."""
        values, hard = self.class_values(), self.hard
        for record, i in zip(rows.records(), self.join(rows), strict=True):
            if i is not None and self.keep[i]:
                probs = [float(f"{p:.7g}") for p in self.label[i]]
                yield (
                    record,
                    {
                        "label": values[hard[i]],
                        "probs": probs,
                        "weight": float(self.weight[i]),
                    },
                )

    def join(self, rows: Rows) -> list[int | None]:
        """Place of each row's verdict, by id, None without one; texts must be the same.

        Raises
        ------
        DataError
            If verdicts are of other rows, or rows have another text than they were made from.
        """
        return self._verdict_of(rows.keys)

    def _join(
        self, columns: Mapping[str, Any], text_column: str | None, id_column: str | None
    ) -> tuple[list[int], list[int]]:
        """Row numbers of the kept rows in the data set, in its order, and their verdicts."""
        name = "the data set"
        keys = replace(find_ids(columns, id_column=id_column, source=name), columns=columns)
        text = text_column or next((n for n in ("text", "messages") if n in columns), None)
        if text is not None:
            contents = Rows(
                {k: v for k, v in columns.items() if k in (text, "text_pair")}, text_column=text
            ).contents()
            keys = replace(keys, hashes=[text_hash(content) for content in contents])
        place = self._verdict_of(keys)
        pairs = [(i, v) for i, v in enumerate(place) if v is not None and self.keep[v]]
        return [i for i, _ in pairs], [v for _, v in pairs]

    def _verdict_of(self, rows: Keys) -> list[int | None]:
        """Place of each data row's verdict, None without one; every verdict must have a row."""
        place = match(rows, self.keys).place
        used = np.zeros(len(self), bool)
        used[place[place >= 0]] = True
        if not used.all():
            lost = taken(self.ids, np.flatnonzero(~used))
            raise DataError(
                f"{len(lost)} of {len(self)} rows of the verdicts are not in {rows.name} (ids "
                f"{first_few(lost)}); apply verdicts to the rows that they were made from."
            )
        if len(self) < (place >= 0).sum():
            raise DataError(f"{rows.name} has an id twice; make ids unique.")
        if other := other_texts(rows, self.keys, place):
            raise DataError(
                f"{len(other)} rows of {rows.name} have another text than the verdicts were made "
                f"from (ids {first_few(other)}); apply verdicts to the rows that they were made "
                "from."
            )
        return [i if i >= 0 else None for i in place.tolist()]


def _columns_of(dataset: Any) -> tuple[Mapping[str, Any], str]:
    if hasattr(dataset, "iloc"):
        return frame_columns(dataset), "frame"
    if hasattr(dataset, "features") and hasattr(dataset, "data"):
        return dataset_table(dataset).columns, "dataset"
    if isinstance(dataset, Sequence) and all(isinstance(row, Mapping) for row in dataset):
        return record_columns(dataset), "list"
    raise DataError(
        f"Verdicts apply to a datasets.Dataset, a DataFrame or a list of dicts, not to "
        f"{type(dataset).__name__}."
    )


def _with_columns(dataset: Any, added: Mapping[str, list[Any]]) -> Any:
    """Set columns of a ``datasets.Dataset``."""
    with no_progress_bars():
        dataset = dataset.remove_columns([n for n in added if n in dataset.column_names])
        for name, column in added.items():
            dataset = dataset.add_column(name, column)
    return dataset


def _check_metadata(metadata: Mapping[str, Any], path: str | Path) -> None:
    if wrong := misfit(metadata, METADATA, "metadata"):
        raise DataError(f"{path} is damaged: {wrong}; make it again with `probekit filter`.")
