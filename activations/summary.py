"""Look a layer over: how long its states are, and whether all of them are numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from probekit.activations.store import ActivationStore

__all__ = ["LayerSummary", "summarize_layer"]


@dataclass(frozen=True)
class LayerSummary:
    """What one layer's states look like, over the rows that are done."""

    layer: int
    shape: tuple[int, int]
    dtype: str
    mapped: bool
    """Whether it can be read as a memory map."""
    mean_norm: float | None
    """Mean L2 norm of the rows that are finite; None where there is none."""
    nonfinite_values: int
    nonfinite_rows: int


def summarize_layer(store: ActivationStore, layer: int) -> LayerSummary:
    """Read a layer once, block by block, whatever its size."""
    info = store.info(layer)
    total, finite_rows, rows_seen, values = 0.0, 0, 0, 0
    for _, states in store.batches(layer, max(1, (1 << 21) // max(1, info.width))):
        # In float64: the square of a large float32 may have no float32.
        squares = np.einsum("ij,ij->i", states, states, dtype=np.float64)
        finite = np.isfinite(squares)
        rows_seen += len(states)
        finite_rows += int(finite.sum())
        total += float(np.sqrt(squares[finite]).sum())
        if not finite.all():
            values += int((~np.isfinite(states[~finite])).sum())
    return LayerSummary(
        layer=layer,
        shape=(len(store), info.width),
        dtype=info.dtype,
        mapped=info.offset is not None,
        mean_norm=total / finite_rows if finite_rows else None,
        nonfinite_values=values,
        nonfinite_rows=rows_seen - finite_rows,
    )
