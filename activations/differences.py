"""Differences of two texts' states, h(second) − h(first): the input of a preference probe.

Each distinct text is extracted alone, like any row, into a store beside the output; the differences
are computed from it, and it is removed when they are complete.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probekit.activations.batching import Array, Batch
from probekit.activations.create import Plan
from probekit.activations.extraction import estimate, prepare, read_rows, run, stored_spec
from probekit.activations.forward import as_stored
from probekit.activations.job import Job, Report, Request, is_folder
from probekit.activations.spec import DIFFERENCE
from probekit.activations.store import ActivationStore
from probekit.activations.writer import StoreWriter
from probekit.data import Rows
from probekit.errors import OutputExistsError, StaleStoreError, UsageError

__all__ = [
    "PairJob",
    "PairReport",
    "estimate_differences",
    "extract_differences",
    "prepare_differences",
    "run_differences",
    "texts_of_pairs",
]

CHUNK_BYTES = 1 << 26


@dataclass(frozen=True)
class PairJob:
    """An extraction of differences, ready to run."""

    request: Request
    path: Path
    pairs: Rows
    positions: Array
    """(n, 2): numbers of the first and the second text of each pair."""
    texts: Job
    """The extraction of the distinct texts."""
    spec: dict[str, Any]

    @property
    def store_dtype(self) -> str:
        """Dtype that is stored."""
        return str(self.spec["store_dtype"])

    @property
    def nbytes(self) -> int:
        """Bytes of the differences on disk."""
        ids, hashes = self.pairs.ids, self.pairs.hashes
        return Plan(self.spec, ids, hashes, self.texts.widths, self.store_dtype).nbytes


@dataclass(frozen=True)
class PairReport:
    """Summary of an extraction of differences."""

    path: str
    pairs: int
    texts: int
    """Number of distinct texts in them."""
    texts_forwarded: int
    """Number of texts that this run forwarded; the others were done before."""
    tokens_forwarded: int
    truncated: int
    """Number of pairs with a text longer than ``max_length``."""
    seconds: float
    forward_seconds: float
    """The part of ``seconds`` with the model loaded."""
    layers: list[int]
    pooling: str
    store_dtype: str
    device: str
    equal: int
    """Number of pairs, of those subtracted, whose two texts have identical states."""
    nonfinite: dict[int, int]
    """Layer to number of pairs, of those subtracted, with inf or NaN."""


def extract_differences(
    rows: Any,
    model: Any,
    *,
    output: str | Path,
    layers: str | int | list[int] = "mid",
    pool: str = "auto",
    **options: Any,
) -> ActivationStore:
    """Store h(second) − h(first) of every pair, each text read alone; resumes an interrupted call.

    The store has the pairs' ids and text hashes, so that labels and verdicts of pairs join it. The
    difference is computed in float32 from the model's states, then stored.

    Parameters
    ----------
    rows
        Pairs: rows with ``text`` and ``text_pair``, or with ``chosen`` and ``rejected``.
    model, output, layers, pool, options
        As :func:`probekit.activations.extraction.extract`.

    Raises
    ------
    ProbekitError
        As for ``extract``; a UsageError if the rows are not pairs.
    """
    progress = options.pop("progress", None)
    work = prepare_differences(Request(rows, model, output, layers, pool, **options))
    return ActivationStore(run_differences(work, show=progress).path)


def texts_of_pairs(rows: Rows) -> tuple[Rows, Array]:
    """Return the distinct texts of n pairs, and the row numbers (n, 2) of each pair's two texts.

    Raises
    ------
    UsageError
        If the rows are not pairs.
    """
    if rows.kind != "pair":
        raise UsageError(
            f"{rows.source} has rows of kind {rows.kind}; --compare needs two texts in each, in "
            "columns text and text_pair or chosen and rejected."
        )
    position: dict[str, int] = {}
    numbers = [
        position.setdefault(str(side), len(position)) for pair in rows.contents() for side in pair
    ]
    return Rows({"text": list(position)}, source=rows.source), np.array(numbers).reshape(-1, 2)


def prepare_differences(request: Request) -> PairJob:
    """Read pairs, configuration and tokenizer, and check all that can be checked without weights.

    Raises
    ------
    ProbekitError
        If anything is wrong, with one sentence about it.
    """
    if request.skip_refused:
        raise UsageError(
            "--skip-refused leaves out rows and --compare reads both texts of each; remove the "
            "pairs that the template refuses from the file."
        )
    if is_folder(request.output):
        raise OutputExistsError(f"--compare writes a file, and {request.output} is a folder.")
    path, pairs = Path(request.output), read_rows(request)
    real = Path(os.path.realpath(path))  # a link points to the disk that has room
    texts, positions = texts_of_pairs(pairs)
    job = prepare(
        replace(
            request,
            rows=texts,
            output=real.with_name(f".{real.name}.texts"),
            text_column=None,
            id_column=None,
            limit=None,
            store_dtype="same",
            compression=None,
            overwrite=False,
        )
    )
    dtype = job.spec.store_dtype if request.store_dtype == "same" else request.store_dtype
    spec = {**job.spec.to_json(), "store_dtype": dtype, **DIFFERENCE}
    stored = stored_spec(path) or {}
    if {**spec, "model": stored.get("model")} == stored:
        spec = stored  # only the model's folder was renamed
    return PairJob(request, path, pairs, positions, job, spec)


def estimate_differences(work: PairJob) -> dict[str, Any]:
    """Count pairs, texts, tokens and bytes on disk, without loading weights."""
    texts = estimate(work.texts)
    sizes = {layer: width * len(work.pairs) for layer, width in work.texts.widths.items()}
    itemsize = 4 if work.store_dtype == "float32" else 2
    return {
        **texts,
        "path": str(work.path),
        "pairs": len(work.pairs),
        "texts": texts.pop("rows"),
        "rows": len(work.pairs),
        "bytes_per_layer": {layer: count * itemsize for layer, count in sizes.items()},
        "bytes": work.nbytes,
        "temporary_bytes": texts["bytes"],
        "spec": work.spec,
    }


def run_differences(
    work: PairJob,
    *,
    show: bool | None = None,
    on_batch: Callable[[Batch], None] | None = None,
) -> PairReport:
    """Run the job; arguments as in ``extraction.run``.

    An existing output is replaced only when the states of the texts are complete.
    """
    start, report = time.monotonic(), None
    equal, nonfinite = 0, dict[int, int]()
    with ExitStack() as stack:
        writer = None
        if not (work.request.overwrite and work.path.exists()):
            writer = stack.enter_context(_open_writer(work))
        if writer is None or not writer.complete:
            report = _extract_texts(work.texts, show, on_batch)
            if writer is None:
                writer = stack.enter_context(_open_writer(work))
            equal, nonfinite = _subtract(work, writer)
        writer.finish()
    work.texts.path.unlink(missing_ok=True)
    with ActivationStore(work.path) as store:
        truncated = int(store.truncated.sum())
    return PairReport(
        path=str(work.path),
        pairs=len(work.pairs),
        texts=len(work.texts.rows),
        texts_forwarded=0 if report is None else report.rows_forwarded,
        tokens_forwarded=0 if report is None else report.tokens_forwarded,
        truncated=truncated,
        seconds=time.monotonic() - start,
        forward_seconds=0.0 if report is None else report.forward_seconds,
        layers=list(work.texts.spec.layers),
        pooling=work.texts.spec.pooling,
        store_dtype=work.store_dtype,
        device=work.texts.placement.device,
        equal=equal,
        nonfinite=nonfinite,
    )


def _open_writer(work: PairJob) -> StoreWriter:
    return StoreWriter.open(
        work.path,
        spec=work.spec,
        ids=work.pairs.ids,
        hashes=work.pairs.hashes,
        widths=work.texts.widths,
        store_dtype=work.store_dtype,
        source=work.pairs.source,
        keys=work.pairs.keys,
        groups=work.pairs.groups,
        overwrite=work.request.overwrite,
        compression=work.request.compression,
    )


def _extract_texts(job: Job, show: bool | None, on_batch: Callable[[Batch], None] | None) -> Report:
    """Resume the texts of an earlier run of the same pairs; those of another run are removed."""
    try:
        return run(job, show=show, on_batch=on_batch)
    except (StaleStoreError, OutputExistsError):
        job.path.unlink()
        return run(job, show=show, on_batch=on_batch)


def _subtract(work: PairJob, writer: StoreWriter) -> tuple[int, dict[int, int]]:
    """Write the missing differences; count those that are 0, and by layer those not finite."""
    equal, nonfinite = 0, dict[int, int]()
    dtype = getattr(torch, work.store_dtype)
    step = max(1, CHUNK_BYTES // (4 * sum(work.texts.widths.values())))
    todo = np.flatnonzero(~writer.done)
    with ActivationStore(work.texts.path) as store:
        n_tokens, truncated = store.n_tokens, store.truncated
        for at in range(0, len(todo), step):
            rows = todo[at : at + step]
            first, second = work.positions[rows].T
            states, differ = {}, torch.zeros(len(rows), dtype=torch.bool)
            for layer in store.layers:
                minuend = torch.from_numpy(store.read(layer, second))
                # torch, because NumPy would warn of inf - inf, which is counted here.
                difference = (minuend - torch.from_numpy(store.read(layer, first))).to(dtype)
                differ |= difference.ne(0).any(1)
                wrong = int((~torch.isfinite(difference).all(1)).sum())
                if wrong:
                    nonfinite[layer] = nonfinite.get(layer, 0) + wrong
                states[layer] = as_stored(difference)
            tokens = n_tokens[first] + n_tokens[second]
            writer.write(rows, states, tokens, truncated[first] | truncated[second])
            writer.flush()
            equal += int((~differ).sum())
    return equal, nonfinite
