"""Differences of two texts' states, h(second) − h(first): the input of a preference probe.

Each distinct text is extracted alone, like any row, into a store beside the output, or beside each
part of a folder; the differences are computed from it, and it is removed when they are complete.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from probekit.activations.batching import Array
from probekit.activations.forward import Counts, as_stored
from probekit.activations.job import Job
from probekit.activations.spec import storable
from probekit.activations.store import ActivationStore
from probekit.activations.writer import StoreWriter
from probekit.data import Rows
from probekit.errors import UsageError

CHUNK_BYTES = 1 << 26


def texts_of_pairs(rows: Rows) -> tuple[Rows, Array]:
    """Return the distinct texts of n pairs, and the row numbers (n, 2) of each pair's two texts.

    Raises UsageError if the rows are not pairs.
    """
    if rows.kind != "pair":
        raise UsageError(
            f"{rows.source} has rows of kind {rows.kind}; --compare needs two texts in each, in "
            "columns text and text_pair or chosen and rejected."
        )
    texts, numbers = _numbered(rows)
    return Rows({"text": texts}, source=rows.source), numbers


def _numbered(rows: Rows) -> tuple[list[str], Array]:
    position: dict[str, int] = {}
    numbers = [
        position.setdefault(str(side), len(position)) for pair in rows.contents() for side in pair
    ]
    return list(position), np.array(numbers).reshape(-1, 2)


def count_texts(pairs: Rows, start: int, stop: int) -> int:
    """Return the number of distinct texts in the pairs ``start`` to ``stop``."""
    return len({str(side) for pair in pairs.contents(start, stop) for side in pair})


def texts_job(job: Job) -> Job:
    """Return the extraction of the distinct texts of a job's pairs, in the model's own dtype."""
    real = Path(os.path.realpath(job.path))  # a link points to the disk that has room
    return replace(
        job,
        path=real.with_name(f".{real.name}.texts"),
        rows=texts_of_pairs(job.rows)[0],
        spec=replace(job.spec, pairs=None, store_dtype=storable(job.spec.dtype)),
        request=replace(job.request, compression=None, overwrite=False),
    )


def subtract(job: Job, texts: Path, writer: StoreWriter, counts: Counts) -> Counts:
    """Write a job's missing differences from the states of ``texts``.

    Returns ``counts`` with the number of differences that are 0 in all layers, and by layer of
    those that are not finite.
    """
    equal, nonfinite = 0, dict[int, int]()
    _, positions = _numbered(job.rows)
    dtype = getattr(torch, job.spec.store_dtype)
    step = max(1, CHUNK_BYTES // (4 * sum(job.widths.values())))
    todo = np.flatnonzero(~writer.done)
    with ActivationStore(texts) as store:
        for at in range(0, len(todo), step):
            rows = todo[at : at + step]
            first, second = positions[rows].T
            states, differ = {}, torch.zeros(len(rows), dtype=torch.bool)
            for layer in store.layers:
                minuend = torch.from_numpy(store.read(layer, second))
                # torch, because NumPy would warn of inf - inf, which is counted here.
                difference = (minuend - torch.from_numpy(store.read(layer, first))).to(dtype)
                differ |= difference.ne(0).any(1)
                if wrong := int((~torch.isfinite(difference).all(1)).sum()):
                    nonfinite[layer] = nonfinite.get(layer, 0) + wrong
                states[layer] = as_stored(difference)
            tokens = store.n_tokens[first] + store.n_tokens[second]
            writer.write(rows, states, tokens, store.truncated[first] | store.truncated[second])
            writer.flush()
            equal += int((~differ).sum())
    return replace(counts, equal=equal, nonfinite=dict(sorted(nonfinite.items())))
