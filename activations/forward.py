"""The forward loop: tokenise ahead, run the model, write behind."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from probekit.activations.batching import (
    Array,
    Batch,
    Buckets,
    Encoded,
    Evenness,
    by_length,
    cut_batches,
    pad,
    windows,
)
from probekit.activations.checkpoint import why
from probekit.activations.encoding import Encoder
from probekit.activations.hooks import CANNOT_RUN, Tap
from probekit.activations.progress import Progress
from probekit.activations.writer import StoreWriter
from probekit.data import Rows
from probekit.errors import ModelError, StoreError, is_out_of_memory

T = TypeVar("T")

# Rows are marked done this often; a kill loses only what was forwarded since.
FLUSH_SECONDS = 2.0
BFLOAT16_EXPONENT = 0x7F80  # all ones in inf and NaN
POLL_SECONDS = 0.1
_END: Any = object()


class Ahead(Generic[T]):
    """Iterates over ``items`` in a thread, at most ``depth`` finished ones ahead of the reader.

    An exception of the source is raised in the reader. ``close`` ends the thread early.
    """

    def __init__(self, items: Iterable[T], *, depth: int = 1) -> None:
        self._line = _Line(depth)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, args=(items,), name="ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while (item := self._line.get()) is not _END:
            yield item
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop after the item in progress."""
        self._stop.set()
        self._thread.join()

    def _work(self, items: Iterable[T]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
        except BaseException as error:
            self._error = error
        self._put(_END)

    def _put(self, item: Any) -> bool:
        while not self._stop.is_set():
            if self._line.put(item, timeout=POLL_SECONDS):
                return True
        return False


class _Line:
    """A queue of at most ``depth`` items that Ctrl-C cannot leave locked.

    ``queue.Queue`` acquires and releases its lock in Python, where a signal may interrupt it.
    """

    def __init__(self, depth: int) -> None:
        self._items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._places: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(depth):
            self._places.put(None)

    def put(self, item: Any, *, timeout: float | None = None) -> bool:
        """Add an item; False if there was no room within ``timeout`` seconds."""
        try:
            self._places.get(timeout=timeout)
        except queue.Empty:
            return False
        self._items.put(item)
        return True

    def end(self) -> None:
        """Add the end marker, room or not: an interrupted ``put`` may have lost a place."""
        self._items.put(_END)

    def get(self) -> Any:
        """Take the oldest item."""
        item = self._items.get()
        self._places.put(None)
        return item


class Behind(Generic[T]):
    """Calls ``work`` on items in a thread, in order, at most ``depth`` items behind the caller.

    An exception of ``work`` is raised by the next ``put`` or by ``close``; later items are dropped.
    """

    def __init__(self, work: Callable[[T], None], *, depth: int = 2) -> None:
        self._work_on = work
        self._line = _Line(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="behind", daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        """Add an item; waits while ``depth`` items are queued."""
        self._raise()
        self._line.put(item)

    def close(self) -> None:
        """Wait until every item is done."""
        self._line.end()
        self._thread.join()
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (item := self._line.get()) is not _END:
            if self._error is None:
                try:
                    self._work_on(item)
                except BaseException as error:
                    self._error = error


@dataclass(frozen=True)
class Window:
    """Some consecutive rows, tokenised and split into batches."""

    encoded: Encoded
    batches: list[Batch]


@dataclass
class Counts:
    """What this run has done."""

    rows: int = 0
    tokens: int = 0
    batches: int = 0
    batch_tokens: int = 0
    nonfinite: dict[int, int] = field(default_factory=dict)
    """Layer to number of rows with inf or NaN, if any."""
    equal: int = 0
    """Number of pairs whose two texts have identical states."""

    def __add__(self, later: Counts) -> Counts:
        wrong = Counter(self.nonfinite) + Counter(later.nonfinite)
        return Counts(
            self.rows + later.rows,
            self.tokens + later.tokens,
            self.batches + later.batches,
            later.batch_tokens,
            dict(sorted(wrong.items())),
            self.equal + later.equal,
        )


def read_windows(
    rows: Rows,
    encoder: Encoder,
    done: Array,
    *,
    batch_tokens: int,
    vocabulary: int,
    buckets: Buckets | None = None,
) -> Iterator[Window]:
    """Tokenise the windows with rows that are not done, and split them into batches.

    With ``buckets`` they are of few shapes.

    Raises ModelError if the tokenizer returns ids that the model has no embedding for.
    """
    for start, contents in windows(rows):
        stop = start + len(contents)
        if done[start:stop].all():
            continue
        encoded = encoder.encode(contents, rows.ids[start:stop])
        if (largest := int(encoded.flat.max())) >= vocabulary:
            raise ModelError(
                f"The tokenizer returns ids up to {largest} and the model has {vocabulary} "
                "embeddings; they do not belong together."
            )
        cut = cut_batches if buckets is None else buckets.cut
        cuts = cut(encoded.lengths, batch_tokens)
        yield Window(
            encoded,
            [Batch(start + positions, positions, encoded.lengths[positions]) for positions in cuts],
        )


@dataclass(frozen=True)
class Feed:
    """Turns a batch into the model's input and runs the model."""

    tap: Tap
    device: torch.device
    pad_id: int
    buckets: Buckets | None = None

    def width(self, batch: Batch) -> int | None:
        """Return the length to which a batch is padded; None: that of its longest row."""
        return None if self.buckets is None else self.buckets.width(int(batch.lengths.max()))

    def states(
        self, window: Window, batch: Batch, *, exact: bool = False
    ) -> dict[int, torch.Tensor]:
        """Return pooled states of a batch, by layer, on the device; ``exact``: without a bucket."""
        width = None if exact else self.width(batch)
        ids, mask, types = pad(window.encoded, batch.positions, pad_id=self.pad_id, width=width)
        return self.tap(
            self._move(ids),
            None if mask is None else self._move(mask),
            types=None if types is None else self._move(types),
        )

    def _move(self, array: Array) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


class Sink:
    """Writes batches into an open store, in its own thread.

    It marks rows done by time, and at least once per ``flush_rows`` if that is not None.
    """

    def __init__(
        self, writer: StoreWriter, *, dtype: torch.dtype, flush_rows: int | None = None
    ) -> None:
        self.writer = writer
        self.nonfinite: dict[int, int] = {}
        self._dtype = dtype
        self._flush_rows = flush_rows
        self._unflushed = 0
        self._flushed = time.monotonic()
        self._behind: Behind[tuple[Window, Batch, dict[int, torch.Tensor]]] = Behind(self._write)

    def put(self, window: Window, batch: Batch, states: dict[int, torch.Tensor]) -> None:
        """Queue a batch's states for writing; raises the error of an earlier one."""
        # States on the CPU are converted by the threads of the forward pass: see _finite.
        ready = {
            layer: pooled.to(self._dtype) if pooled.device.type == "cpu" else pooled
            for layer, pooled in states.items()
        }
        self._behind.put((window, batch, ready))

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write all queued batches and mark their rows done; the first error is the one raised."""
        with nullcontext() if kind is None else suppress(StoreError, OSError):
            self._behind.close()
            self.writer.flush()

    def _write(self, item: tuple[Window, Batch, dict[int, torch.Tensor]]) -> None:
        window, batch, states = item
        arrays = {}
        for layer, pooled in states.items():
            # Waiting for the device here, not in the loop, lets it continue with the next batch.
            stored = as_stored(pooled.to(self._dtype).cpu().contiguous())
            if wrong := int(np.count_nonzero(~_finite(stored).all(1))):
                self.nonfinite[layer] = self.nonfinite.get(layer, 0) + wrong
            arrays[layer] = stored
        truncated = window.encoded.truncated[batch.positions]
        self.writer.write(batch.rows, arrays, batch.lengths, truncated)
        self._unflushed += len(batch)
        due = self._flush_rows is not None and self._unflushed >= self._flush_rows
        if due or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.writer.flush()
            self._unflushed, self._flushed = 0, time.monotonic()


def as_stored(states: torch.Tensor) -> Array:
    """Return states as stored on disk: for bfloat16, which HDF5 lacks, its bits."""
    if states.dtype == torch.bfloat16:
        return states.view(torch.int16).numpy().view(np.uint16)
    return states.numpy()


def _finite(stored: Array) -> Array:
    """Return which numbers are neither inf nor NaN.

    By NumPy: torch would start OpenMP threads for this thread too, and with more threads than cores
    those of the forward pass sleep at every barrier.
    """
    finite: Array = np.isfinite(stored)
    if stored.dtype == np.uint16:  # bfloat16
        finite = (stored & BFLOAT16_EXPONENT) != BFLOAT16_EXPONENT
    return finite


def forward_all(
    source: Ahead[Window],
    feed: Feed,
    sink: Sink,
    *,
    ids: list[str],
    batch_tokens: int,
    progress: Progress,
    even: Evenness,
    on_batch: Callable[[Batch], None] | None = None,
) -> Counts:
    """Forward every batch that has a row not done yet.

    Rows are padded only if ``even`` finds that the model's states do not depend on it. A batch that
    does not fit into memory is run in halves, and later batches are split to that size.

    Raises ModelError if a single row does not fit into memory.
    """
    done = sink.writer.done
    counts = Counts(batch_tokens=batch_tokens)
    for window in source:
        todo = deque(batch for batch in window.batches if not done[batch.rows].all())
        progress.plan(sum(map(len, todo)), sum(int(b.lengths.sum()) for b in todo))
        while todo:
            batch = todo.popleft()
            if len(batch) > 1 and batch.padded_tokens > counts.batch_tokens:
                parts = cut_batches(batch.lengths, counts.batch_tokens)
                todo.extendleft(reversed(batch.split(parts)))
                continue
            if _uneven(even, feed, window, batch, progress):
                todo.extendleft(reversed(batch.split(by_length(batch.lengths))))
                continue
            states = _try(feed, window, batch, exact=even.needed)
            if states is None:
                counts.batch_tokens = _halve(batch, ids, progress)
                todo.appendleft(batch)
                continue
            sink.put(window, batch, states)
            counts.rows += len(batch)
            counts.tokens += int(batch.lengths.sum())
            counts.batches += 1
            progress.advance(len(batch), int(batch.lengths.sum()))
            if on_batch is not None:
                on_batch(batch)
    return counts


def _uneven(even: Evenness, feed: Feed, window: Window, batch: Batch, progress: Progress) -> bool:
    """Whether a batch must be split into rows of equal length."""
    if even.due(batch, width=feed.width(batch)) and even.test(
        batch,
        lambda part: _try(feed, window, part, exact=True),
        lambda part: _try(feed, window, part),
    ):
        progress.note(
            "This model's states depend on padding, so only rows of equal length are run together."
        )
    return even.needed and bool(batch.lengths.min() < batch.lengths.max())


def _try(
    feed: Feed, window: Window, batch: Batch, *, exact: bool = False
) -> dict[int, torch.Tensor] | None:
    """Return states of a batch, or None if memory does not suffice."""
    try:
        return feed.states(window, batch, exact=exact)
    except (MemoryError, *CANNOT_RUN) as error:
        if not is_out_of_memory(error):
            raise ModelError(
                f"The model cannot run {len(batch)} rows of {int(batch.lengths.max())} tokens: "
                f"{why(error)}"
            ) from error
    # Outside the handler: the exception holds the failed forward's tensors.
    if feed.device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def _halve(batch: Batch, ids: list[str], progress: Progress) -> int:
    if len(batch) == 1:
        raise ModelError(
            f"The row with id {ids[int(batch.rows[0])]!r} ({int(batch.lengths[0])} tokens) does "
            "not fit into memory even alone; lower --max-length, take a smaller dtype or another "
            "device."
        )
    budget = batch.padded_tokens // 2
    progress.note(
        f"Out of memory at {len(batch)} rows of {int(batch.lengths.max())} tokens; continuing with "
        f"at most {budget} tokens per batch (--batch-tokens {budget} starts with that)."
    )
    return budget
