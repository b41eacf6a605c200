"""Differences of two texts' states: what a probe for preferences reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from probekit.activations.extract import run
from probekit.activations.request import Job, Request, prepare
from probekit.activations.store import ActivationStore
from probekit.activations.writer import StoreWriter
from probekit.data import Rows
from probekit.errors import StaleStoreError, UsageError
from probekit.sources import load_rows

__all__ = ["extract_differences", "is_difference", "prepare_texts", "texts_of_pairs"]

CHUNK = 4096
KEY, VALUE = "pairs", "second minus first"


def is_difference(store: ActivationStore) -> bool:
    """Whether a store holds differences of the states of two texts."""
    return bool(store.spec.get(KEY) == VALUE)


def texts_of_pairs(rows: Rows) -> tuple[Rows, np.ndarray[Any, np.dtype[np.int64]]]:
    """Every different text of n pairs once, and where each pair's two are: (n, 2) row numbers.

    Raises
    ------
    UsageError
        Where the rows are no pairs.
    """
    if rows.kind != "pair":
        raise UsageError(
            f"{rows.source} holds rows of kind {rows.kind}; to be compared they need two texts, in "
            "columns text and text_pair or chosen and rejected."
        )
    place: dict[str, int] = {}
    pairs = np.array(
        [[place.setdefault(str(side), len(place)) for side in pair] for pair in rows.contents()]
    )
    return Rows({"text": list(place)}, source=rows.source), pairs


def prepare_texts(rows: Any, model: Any, output: str | Path, **options: Any) -> tuple[Job, Rows]:
    """The extraction of every pair's texts, into a file beside ``output``, and the pairs."""
    columns = {name: options.pop(name, None) for name in ("text_column", "id_column")}
    given = rows if isinstance(rows, Rows) else None
    if given is None and isinstance(rows, str | Path):
        given = load_rows(rows, **columns)
    pairs = Rows.from_any(rows, **columns) if given is None else given
    limit = options.pop("limit", None)
    if limit is not None and limit < len(pairs):
        pairs = pairs.select(range(limit))
    if options.get("compression") is not None:
        raise UsageError("Differences are stored without compression; leave it out.")
    output = Path(os.path.realpath(output))
    texts, _ = texts_of_pairs(pairs)
    beside = output.with_name(f".{output.name}.texts")
    return prepare(Request(texts, model, beside, **options)), pairs


def extract_differences(
    rows: Any, model: Any, *, output: str | Path, **options: Any
) -> ActivationStore:
    """Store h(second) − h(first) of every pair; each text is read alone.

    The store has the pairs' ids and text hashes, so that labels and verdicts of pairs join it.
    Differences are float32, whatever the model computes in. Resumes what the same call began.

    Parameters
    ----------
    rows
        Pairs: rows with ``text`` and ``text_pair``, or with ``chosen`` and ``rejected``.
    model, output, options
        As :func:`probekit.activations.extract.extract`.

    Raises
    ------
    ProbekitError
        As there; a UsageError where the rows are no pairs.
    """
    show, overwrite = options.pop("progress", None), options.pop("overwrite", False)
    job, pairs = prepare_texts(rows, model, output, **options)
    spec = {**job.spec.to_json(), "store_dtype": "float32", KEY: VALUE}
    with StoreWriter.open(
        output,
        spec=spec,
        ids=pairs.ids,
        hashes=pairs.hashes,
        widths=job.widths,
        store_dtype="float32",
        source=pairs.source,
        overwrite=overwrite,
    ) as writer:
        if not writer.complete:
            _extract_texts(job, show)
            _subtract(job.path, pairs, writer)
            writer.finish()
    job.path.unlink(missing_ok=True)
    return ActivationStore(output)


def _extract_texts(job: Job, show: bool | None) -> None:
    """Go on with the texts that an earlier run of the same pairs left, or begin anew."""
    try:
        run(job, show=show)
    except StaleStoreError:
        job.path.unlink()
        run(job, show=show)


def _subtract(texts: Path, rows: Rows, writer: StoreWriter) -> None:
    _, pairs = texts_of_pairs(rows)
    with ActivationStore(texts) as store:
        n_tokens, truncated = store.n_tokens.astype(np.int64), store.truncated
        todo = np.flatnonzero(~writer.done)
        for start in range(0, len(todo), CHUNK):
            part = todo[start : start + CHUNK]
            first, second = pairs[part].T
            states = {
                layer: store.read(layer, second) - store.read(layer, first)
                for layer in store.layers
            }
            tokens = n_tokens[first] + n_tokens[second]
            writer.write(part, states, tokens, truncated[first] | truncated[second])
            writer.flush()
