"""``store.json`` of a folder: which parts make one store, and which rows each of them holds.

It is written before the first part. A part is a store of its own, made under another name and
renamed into place: a part that exists is complete. Nobody has to record that, so any number of
processes can write parts at once, and a kill leaves a folder to resume.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from probekit.activations.create import Plan, portable_source
from probekit.activations.layout import LAYER, Array, Header
from probekit.activations.part import Part
from probekit.activations.spec import differing
from probekit.data import rows_fingerprint
from probekit.errors import IncompleteStoreError, NotAStoreError, StaleStoreError
from probekit.files import atomic_write
from probekit.safe import misfit, read_json

INDEX, FORMAT, VERSION = "store.json", "probekit-store", 1
SHAPE = {
    "spec": dict,
    "widths": {"*": int},
    "dtype": str,
    "rows_fingerprint": str,
    "groups_fingerprint": (str, type(None)),
    "source": (str, type(None)),
    "parts": [{"file": str, "rows": int, "rows_fingerprint": str}],
}


@dataclass(frozen=True)
class Index:
    """What a folder of parts holds."""

    spec: dict[str, Any]
    layers: dict[int, tuple[int, str]]
    """Layer to width and dtype of its states."""
    rows_fingerprint: str
    """Of all rows, as of a store in one file."""
    groups_fingerprint: str | None
    source: str | None
    counts: tuple[int, ...]
    """Number of rows of each part."""
    fingerprints: tuple[str, ...]
    """Fingerprint of each part's rows."""

    @classmethod
    def of(cls, plan: Plan, folder: Path, size: int) -> Index:
        """Plan parts of ``size`` rows for a folder: the same for any number of processes."""
        cuts = [(i, min(i + size, len(plan.ids))) for i in range(0, len(plan.ids), size)]
        source = None if plan.source is None else portable_source(plan.source, folder.parent)
        return cls(
            plan.spec,
            {layer: (width, plan.store_dtype) for layer, width in sorted(plan.widths.items())},
            plan.rows_fingerprint,
            plan.groups_fingerprint,
            source,
            tuple(b - a for a, b in cuts),
            tuple(rows_fingerprint(plan.ids[a:b], plan.hashes[a:b]) for a, b in cuts),
        )

    @cached_property
    def starts(self) -> Array:
        """(parts + 1,) first row of each part, and the number of rows."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    def paths(self, folder: Path) -> list[Path]:
        """Return the path of each part."""
        return [folder / name_of(number) for number in range(len(self.counts))]

    def missing(self, folder: Path) -> list[int]:
        """Return the numbers of the parts that do not exist."""
        names = set(os.listdir(folder))
        return [i for i, path in enumerate(self.paths(folder)) if path.name not in names]

    def check_complete(self, folder: Path) -> None:
        """Raise IncompleteStoreError if a part is missing."""
        if missing := self.missing(folder):
            done = sum(self.counts) - sum(self.counts[i] for i in missing)
            raise IncompleteStoreError(
                f"{folder} is incomplete: {done:,} of {sum(self.counts):,} rows are done "
                f"(missing parts: {len(missing):,} of {len(self.counts):,}, the first is "
                f"{name_of(missing[0])}); run the same extract command again to finish it, or copy "
                "the missing parts into it."
            )

    def header(self, first: Header) -> Header:
        """Return the header of the whole store, given that of its first part."""
        return replace(
            first,
            spec=self.spec,
            layers={layer: first.layers[layer] for layer in self.layers},
            rows_fingerprint=self.rows_fingerprint,
            groups_fingerprint=self.groups_fingerprint,
            source=self.source,
            n_rows=sum(self.counts),
        )

    def difference(self, number: int, header: Header) -> str:
        """Return why a part is not the one that belongs here; empty if it is.

        It may have further layers: they are added part by part, and then to ``store.json``.
        """
        of_layers = {"layers"} if self.spec.get("last_layer") else {"layers", "last_layer"}
        if keys := [key for key in differing(header.spec, self.spec) if key not in of_layers]:
            return f"was made with another spec ({', '.join(keys)})"
        layers = {i: (layer.width, layer.dtype) for i, layer in header.layers.items()}
        if not self.layers.items() <= layers.items():
            return "has other layers"
        if header.rows_fingerprint != self.fingerprints[number]:
            return f"does not hold the {self.counts[number]:,} rows of this part"
        if (header.groups_fingerprint is None) != (self.groups_fingerprint is None):
            return "was made with other groups"
        return "" if header.complete else "is incomplete"

    def check(self, number: int, part: Part) -> None:
        """Raise StaleStoreError if a part is not the one that belongs here."""
        if why := self.difference(number, part.header):
            raise StaleStoreError(
                f"{part.path} {why}, which {INDEX} beside it describes; remove this part and run "
                "the same extract command again."
            )

    def write(self, folder: Path) -> None:
        """Write ``store.json``, whole or not at all."""
        parts = enumerate(zip(self.counts, self.fingerprints, strict=True))
        content = {
            "format": FORMAT,
            "version": VERSION,
            "spec": self.spec,
            "widths": {str(layer): width for layer, (width, _) in self.layers.items()},
            "dtype": next(iter(self.layers.values()))[1],
            "rows": sum(self.counts),
            "rows_fingerprint": self.rows_fingerprint,
            "groups_fingerprint": self.groups_fingerprint,
            "source": self.source,
            "parts": [
                {"file": name_of(i), "rows": n, "rows_fingerprint": rows} for i, (n, rows) in parts
            ],
        }
        with atomic_write(folder / INDEX, "w") as file:
            file.write(json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def name_of(number: int) -> str:
    """Return the file name of a part."""
    return f"part-{number:05}.h5"


def read_index(folder: Path) -> Index:
    """Read ``store.json``.

    Raises NotAStoreError if there is none, it is damaged or of a newer version.
    """
    path = folder / INDEX
    if not path.exists():
        raise NotAStoreError(
            f"{folder} is a folder without {INDEX}, not an activation store; name a store."
        )
    content = read_json(path, error=NotAStoreError)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise NotAStoreError(f"{path} is of another format and does not describe a store.")
    if content.get("version") != VERSION:
        raise NotAStoreError(
            f"{path} has version {content.get('version')!r} of the format and this probekit reads "
            f"version {VERSION}; install a newer probekit."
        )
    wrong = misfit(content, SHAPE, "it")
    parts = [] if wrong else content["parts"]
    # Names are never followed: a file from a stranger could name any other file.
    named = [each["file"] for each in parts] == [name_of(i) for i in range(len(parts))]
    if not wrong and not all(LAYER.fullmatch(layer) for layer in content["widths"]):
        wrong = "its layers have no numbers"
    if wrong or not parts or not named or any(each["rows"] < 1 for each in parts):
        raise NotAStoreError(
            f"{path} is damaged: {wrong or 'its parts are not numbered from 0'}; restore it, or "
            "extract into another folder."
        )
    return Index(
        content["spec"],
        {int(i): (width, content["dtype"]) for i, width in content["widths"].items()},
        content["rows_fingerprint"],
        content["groups_fingerprint"],
        content["source"],
        tuple(each["rows"] for each in parts),
        tuple(each["rows_fingerprint"] for each in parts),
    )
