"""States must not depend on what a row is padded beside: find out, and keep such models even.

Most models hide padded places from the others. Some mix all places whatever the mask says (Fourier
transforms, convolutions, landmarks, hashes); rows of one length then go together, unpadded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from probekit.activations.batching import Array, Batch

__all__ = ["Evenness", "by_length", "equal_lengths", "mixes_padding"]

States = Mapping[int, torch.Tensor]

# Families known to do it, so that the spec can say so before their weights are there
# (benchmarks/families.py finds them); any other is found out when it is run.
MIXERS = ("convbert", "cpmant", "fnet", "nystromformer", "yoso")
# Largest relative distance of a row's states alone and padded: sums in another order make 1e-6 of
# it in float32 and 1e-2 in half precision, families that mix 0.1 to 1.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
HALF_TOLERANCE = 5e-2


def mixes_padding(model_type: str) -> bool:
    """Whether a family is known to read padded places."""
    return model_type in MIXERS


def equal_lengths(batch: Batch) -> list[Batch]:
    """Part a batch into batches of rows of one length."""
    cuts = np.flatnonzero(np.diff(batch.lengths)) + 1
    parts = np.split(np.arange(len(batch)), cuts)
    return [Batch(batch.rows[p], batch.places[p], batch.lengths[p]) for p in parts]


def by_length(lengths: Array) -> list[Array]:
    """Places of the rows of each length, the longest first."""
    order = np.argsort(-lengths, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1)


class Evenness:
    """Decides whether batches may be padded; asks the model when rows get twice as long.

    Parameters
    ----------
    dtype
        Numbers that the model computes in.
    known
        Whether the family is known to read padded places.
    """

    def __init__(self, dtype: torch.dtype, *, known: bool = False) -> None:
        self.needed = known
        self._tolerance = TOLERANCE.get(dtype, HALF_TOLERANCE)
        self._checked = 0

    def due(self, batch: Batch) -> bool:
        """Whether the model must be asked before this batch is run."""
        longest, shortest = int(batch.lengths.max()), int(batch.lengths.min())
        return not self.needed and shortest < longest and longest > 2 * self._checked

    def ask(self, batch: Batch, run: Callable[[Batch], States | None]) -> bool:
        """Run the shortest row alone and beside the longest; return whether it makes a difference.

        ``run`` gives pooled states by layer, or None where memory does not suffice.
        """
        ends = np.array([int(batch.lengths.argmax()), int(batch.lengths.argmin())])
        alone, beside = (
            run(Batch(batch.rows[part], batch.places[part], batch.lengths[part]))
            for part in (ends[1:], ends)
        )
        if alone is None or beside is None:
            return False
        self._checked = int(batch.lengths.max())
        self.needed = any(
            _distance(beside[layer][1], alone[layer][0]) > self._tolerance for layer in alone
        )
        return self.needed


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative distance; 0 where the states are no numbers anyway."""
    a, b = found.double(), expected.double()
    distance = float((a - b).norm() / b.norm().clamp_min(1e-12))
    return distance if np.isfinite(distance) else 0.0
