"""Metadata beside a JSONL file, which has no schema: ``x.jsonl.meta.json`` beside ``x.jsonl``.

The two files are one commit: the metadata are written first, identify the data by size and hash,
and keep the metadata of the previous data under ``before`` until the new data are in place.
Whenever a writer is stopped, exactly one of the two descriptions fits the data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probekit.errors import DataError, OutputExistsError
from probekit.safe import read_json

__all__ = ["check_sidecar", "drop_sidecar", "read_sidecar", "sidecar", "with_before"]


def sidecar(path: str | Path) -> Path:
    """Path of the file beside ``path`` that holds its metadata."""
    return Path(f"{path}.meta.json")


def read_sidecar(path: str | Path) -> dict[str, Any] | None:
    """Read the metadata beside a file; None if there are none that can be read.

    Raises
    ------
    DataError
        If they describe another file.
    """
    path = Path(path)
    known = _load(sidecar(path))
    if known is None or "data" not in known:
        return known
    for candidate in (known, known.get("before")):
        if isinstance(candidate, dict) and _fits(candidate, path):
            return {name: value for name, value in candidate.items() if name != "before"}
    raise DataError(
        f"{path} is not the file that {sidecar(path)} describes: one of the two was changed or "
        "replaced; make the file again with --overwrite, or remove the second one to read the "
        "first without its class names."
    )


def with_before(path: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Add to new metadata those of the file at ``path`` now, if there are any."""
    try:
        before = read_sidecar(path) if path.is_file() and _is_ours(sidecar(path)) else None
    except DataError:
        before = None
    return dict(about) if before is None else {**about, "before": before}


def drop_sidecar(path: str | Path) -> None:
    """Remove metadata that probekit wrote beside an earlier file at ``path``."""
    if _is_ours(sidecar(path)):
        sidecar(path).unlink(missing_ok=True)


def check_sidecar(path: str | Path) -> None:
    """Raise OutputExistsError if another program wrote the file of ``path``'s metadata."""
    place = sidecar(path)
    if place.exists() and not _is_ours(place):
        raise OutputExistsError(
            f"{place} would be replaced and was not written by probekit; remove it, or name "
            "another output."
        )


def _is_ours(place: Path) -> bool:
    known = _load(place)
    return known is not None and (
        "data" in known or str(known.get("format")).startswith("probekit-")
    )


def _fits(about: Mapping[str, Any], path: Path) -> bool:
    data = about.get("data")
    if data is None:  # written before metadata identified their data
        return True
    try:
        if not isinstance(data, dict) or path.stat().st_size != data.get("bytes"):
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == data.get("sha256")
    except OSError:
        return False


def _load(path: Path) -> dict[str, Any] | None:
    try:
        content = read_json(path)
    except DataError:
        return None
    return content if isinstance(content, dict) else None
