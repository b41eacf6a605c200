"""Completions: what a model wrote (or should write) after each row's prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.data import Rows
from probekit.errors import LabelsError, first_few
from probekit.files import write_table
from probekit.joins import find_ids
from probekit.safe import repaired
from probekit.sources import read_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CompletionRows", "Completions", "completion_rows", "exact_match", "load_completions"]

FORMAT = "probekit-completions"
VERSION = 1


@dataclass(frozen=True, eq=False)
class Completions:
    """One completion per row, n rows: a model's, or the truth."""

    ids: Sequence[str]
    """n row ids, each once."""
    hashes: Sequence[str]
    """n text hashes of the prompts."""
    texts: Sequence[str]
    """n completions, white space at the ends removed."""
    logprob: NDArray[np.float64]
    """Mean log-probability of the tokens that were written (n,); NaN where no model wrote them."""
    source: str = "completions"
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over ids, hashes and completions."""
        content = json.dumps([list(self.ids), list(self.hashes), list(self.texts)])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def of(self, rows: Rows) -> list[str]:
        """Completions of ``rows``, in their order.

        Raises
        ------
        LabelsError
            Where a row has none, or its text is another.
        """
        place = {name: i for i, name in enumerate(self.ids)}
        missing = [name for name in rows.ids if name not in place]
        if missing:
            raise LabelsError(
                f"{self.source} has no completion for {len(missing)} of {len(rows)} rows of "
                f"{rows.source} (ids {first_few(missing)}); complete these rows first."
            )
        order = [place[name] for name in rows.ids]
        other = [
            name
            for name, digest, i in zip(rows.ids, rows.hashes, order, strict=True)
            if self.hashes[i] != digest
        ]
        if other:
            raise LabelsError(
                f"{self.source} has another text than {rows.source} in {len(other)} of {len(rows)} "
                f"rows (ids {first_few(other)}); use completions of these rows."
            )
        return [self.texts[i] for i in order]

    def save(self, path: str | Path) -> None:
        """Write Parquet or JSONL: id, text_hash, completion, logprob."""
        columns = {
            "id": list(self.ids),
            "text_hash": list(self.hashes),
            "completion": list(self.texts),
            "logprob": self.logprob,
        }
        about = {"format": FORMAT, "version": VERSION, "provenance": dict(self.provenance)}
        write_table(columns, path, about)


def load_completions(path: str | Path) -> Completions:
    """Read what :meth:`Completions.save` wrote, or any table with id, text_hash and completion.

    Raises
    ------
    LabelsError
        Where a column is missing or an id stands twice.
    """
    columns = read_table(path).columns
    missing = [name for name in ("id", "text_hash", "completion") if name not in columns]
    if missing:
        raise LabelsError(
            f"{path} has no column {missing[0]!r}; completions have id, text_hash and completion, "
            f"it has {', '.join(columns)}."
        )
    ids = find_ids(columns, source=str(path), error=LabelsError).ids
    if len(set(ids)) < len(ids):
        raise LabelsError(f"{path} has ids more than once; give each row one completion.")
    logprob = columns.get("logprob")
    return Completions(
        ids=ids,
        hashes=[str(value) for value in columns["text_hash"][:]],
        texts=[repaired(str(value)).strip() for value in columns["completion"][:]],
        logprob=np.array(
            [np.nan] * len(ids) if logprob is None else list(logprob[:]), dtype=np.float64
        ),
        source=str(path),
    )


@dataclass(frozen=True, eq=False)
class CompletionRows:
    """What a model is trained on: prompts and what to write after them, and nothing else."""

    ids: Sequence[str]
    hashes: Sequence[str]
    prompts: Sequence[str]
    completions: Sequence[str]
    """What is learned; may be empty where a supervisor wrote nothing."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over ids, hashes and completions."""
        content = json.dumps([list(self.ids), list(self.hashes), list(self.completions)])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def completion_rows(rows: Rows, targets: Completions | None = None) -> CompletionRows:
    """Join prompts with completions.

    Parameters
    ----------
    rows
        Prompts in the column text.
    targets
        What to write, joined by id and text hash: a supervisor's completions. The rows' own column
        ``completion``, the truth, is then never read. None: that column.

    Raises
    ------
    LabelsError
        Where a row has no completion.
    """
    prompts = prompts_of(rows)
    if targets is None:
        if "completion" not in rows.columns:
            raise LabelsError(
                f"{rows.source} has no column 'completion' to learn; it has "
                f"{', '.join(rows.columns)}."
            )
        written = list(rows.columns["completion"][:])
        bad = [
            name
            for name, text in zip(rows.ids, written, strict=True)
            if not isinstance(text, str) or not text.strip()
        ]
        if bad:
            raise LabelsError(
                f"{rows.source} has {len(bad)} rows whose completion is empty or no text (ids "
                f"{first_few(bad)}); fill or remove them."
            )
        completions = [repaired(str(text)).strip() for text in written]
    else:
        completions = targets.of(rows)
    return CompletionRows(list(rows.ids), list(rows.hashes), prompts, completions)


def prompts_of(rows: Rows) -> list[str]:
    """Texts of the rows, which must be one text each."""
    if rows.kind != "text":
        raise LabelsError(
            f"{rows.source} holds rows of kind {rows.kind!r}; a prompt to complete is one text "
            "(column text)."
        )
    return [str(content) for content in rows.contents()]


def exact_match(predicted: Completions, rows: Rows) -> NDArray[np.bool_]:
    """Whether each completion equals the row's own, white space at the ends aside (n,).

    In the order of ``rows``, which bring the truth in their column ``completion``.
    """
    truth = completion_rows(rows)
    found = predicted.of(rows)
    return np.array([a.strip() == b for a, b in zip(found, truth.completions, strict=True)])
