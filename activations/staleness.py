"""Say how a store on disk differs from the one that is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from probekit.activations.create import Plan
from probekit.activations.layout import Header
from probekit.errors import first_few

__all__ = ["groups_difference", "rows_difference", "spec_difference"]

MISSING = object()
SHOWN = 60


def spec_difference(header: Header, plan: Plan) -> str:
    """Name every key of the spec that differs, with both values; empty where none does."""
    there: dict[str, Any] = dict(header.spec)
    here: dict[str, Any] = dict(plan.spec)
    if not (parts := _differences(there, here)):
        # A spec should tell these; they decide what fits into the file all the same.
        there = {"layers": {i: layer.width for i, layer in header.layers.items()}}
        there["store_dtype"] = sorted({layer.dtype for layer in header.layers.values()})
        here = {"layers": plan.widths, "store_dtype": [plan.store_dtype]}
        parts = _differences(there, here)
    return "; ".join(parts)


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    parts = []
    for key in [*there, *(key for key in here if key not in there)]:
        old, new = there.get(key, MISSING), here.get(key, MISSING)
        if old != new:
            shown_old, shown_new = _shown(old, new)
            parts.append(f"{key} is {shown_old} in the file and {shown_new} now")
    return parts


def _shown(*values: object) -> list[str]:
    """Write both values; of long ones the place where they part."""
    texts = ["not set" if value is MISSING else repr(value) for value in values]
    if max(map(len, texts)) <= SHOWN:
        return texts
    parting = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), 0)
    start = max(0, parting - SHOWN // 3)
    return [
        ("…" if start else "") + text[start : start + SHOWN] + "…" * (start + SHOWN < len(text))
        for text in texts
    ]


def groups_difference(header: Header, plan: Plan) -> str:
    """Say how the groups of rows differ; empty where they do not."""
    old, new = header.groups_fingerprint, plan.groups_fingerprint
    if old == new:
        return ""
    if old is None:
        return "rows without groups, and now they have some"
    return "rows in groups, and now they have none" if new is None else "rows in other groups"


def rows_difference(ids: Sequence[str], hashes: Sequence[str], plan: Plan) -> str:
    """Say which rows of a store (``ids``, ``hashes``) are not those of ``plan``."""
    if len(ids) != len(plan.ids):
        return f"it holds {len(ids)} rows and there are {len(plan.ids)} now"
    if other := [new for old, new in zip(ids, plan.ids, strict=True) if old != new]:
        if sorted(ids) == sorted(plan.ids):
            return f"{len(other)} of {len(ids)} rows stand elsewhere (ids {first_few(other)})"
        return f"{len(other)} of {len(ids)} rows have another id (now {first_few(other)})"
    changed = [i for i, old, new in zip(ids, hashes, plan.hashes, strict=True) if old != new]
    return f"{len(changed)} of {len(ids)} rows have another text (ids {first_few(changed)})"
