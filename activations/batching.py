"""Rows into windows, windows into batches of equal cost, batches into padded arrays.

A row's states must not depend on the rows that it is padded with. Most models mask padding. Some
mix all positions whatever the mask says (Fourier transforms, convolutions, landmarks, hashes):
these are detected, and their rows are run with rows of the same length, unpadded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from probekit.data import Content, Rows
from probekit.errors import UsageError

Array: TypeAlias = npt.NDArray[Any]
States: TypeAlias = Mapping[int, torch.Tensor]

# Rows are sorted by length within a window: memory stays flat, and the next window is tokenised
# while this one runs. The first is small so that the first batch does not wait.
FIRST_ROWS, WINDOW_ROWS = 1024, 16384
WINDOW_CHARACTERS = 1 << 24

# Padded tokens per batch. Matrices larger than a CPU's caches do not help it.
BATCH_TOKENS = {"cpu": 4096, "mps": 8192}
GPU_BATCH_TOKENS = 32768

# Each batch costs this part of its token budget besides its tokens.
OVERHEAD_SHARE = 64
# Maximum number of different lengths in a batch; more would be mostly padding.
LOOKBACK = 256

# Shortest length to which batches are padded where each new shape costs a kernel.
SHORTEST_BUCKET = 8

# Families known to read padding, so that the spec can state it before the weights are loaded
# (benchmarks/families.py finds them); any other is detected when it runs.
MIXERS = ("convbert", "cpmant", "fnet", "nystromformer", "yoso")
# Largest relative distance of a row's states alone and padded: sums in another order give 1e-6 in
# float32 and 1e-2 in half precision, families that mix give 0.1 to 1.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
HALF_TOLERANCE = 5e-2


@dataclass(frozen=True)
class Encoded:
    """Token ids of some rows, one after the other."""

    flat: Array
    """int32, token ids of all rows."""
    lengths: Array
    """(n,) int64, number of tokens of each row."""
    truncated: Array
    """(n,) bool, rows that had more tokens."""
    types: Array | None = None
    """Like ``flat``: token types; None if all are 0."""

    @cached_property
    def starts(self) -> Array:
        """(n,) start of each row in ``flat``."""
        return np.cumsum(self.lengths) - self.lengths


@dataclass(frozen=True)
class Batch:
    """Some rows of one window that are forwarded together, the longest first."""

    rows: Array
    """(b,) row numbers in the data."""
    positions: Array
    """(b,) positions of these rows in the window."""
    lengths: Array
    """(b,) number of tokens of each row."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def padded_tokens(self) -> int:
        """Number of tokens, padding included."""
        return len(self.rows) * int(self.lengths.max())

    def take(self, chosen: Array) -> Batch:
        """Return the rows ``chosen`` as a batch."""
        return Batch(self.rows[chosen], self.positions[chosen], self.lengths[chosen])

    def split(self, parts: list[Array]) -> list[Batch]:
        """Return each of ``parts`` of the rows as a batch."""
        return [self.take(part) for part in parts]


def default_batch_tokens(device: str) -> int:
    """Return padded tokens per batch for a kind of device (``cpu``, ``cuda``, ``mps``)."""
    return BATCH_TOKENS.get(device, GPU_BATCH_TOKENS)


def windows(rows: Rows) -> Iterator[tuple[int, list[Content]]]:
    """Split rows into windows: yield the first row's number and the contents.

    Windows depend on the rows alone, so a resumed run has the same ones.
    """
    start, size, limit = 0, 0, FIRST_ROWS
    window: list[Content] = []
    for begin in range(0, len(rows), FIRST_ROWS):
        for content in rows.contents(begin, begin + FIRST_ROWS):
            characters = _characters(content)
            if window and (len(window) >= limit or size + characters > WINDOW_CHARACTERS):
                yield start, window
                start, size, limit, window = start + len(window), 0, WINDOW_ROWS, []
            window.append(content)
            size += characters
    if window:
        yield start, window


def _characters(content: Content) -> int:
    return len(content) if isinstance(content, str) else sum(len(str(part)) for part in content)


def cut_batches(lengths: Array, budget: int) -> list[Array]:
    """Split rows, the longest first (ties in their order), into batches of at most ``budget``.

    The split minimises padding plus a fixed cost per batch: few rows of very different lengths
    become small batches, a lot of rows full ones with hardly any padding. ``lengths`` (n,) are in
    tokens; ``budget`` is padded tokens, and a longer row becomes a batch of its own.

    Returns the positions of each batch's rows; together every position once.
    """
    if budget < 1:
        raise UsageError(f"A batch has at least one token, not {budget}.")
    lengths = np.maximum(np.asarray(lengths, np.int64), 1)
    order = np.argsort(-lengths, kind="stable")
    values, counts = np.unique(-lengths, return_counts=True)
    ends = np.cumsum(counts)
    capacity = np.maximum(budget // -values, 1)
    batches = []
    for first, last in _segments(-values, ends, capacity, overhead=budget // OVERHEAD_SHARE):
        start, stop = int(ends[first] - counts[first]), int(ends[last])
        number = -(-(stop - start) // int(capacity[first]))
        # Of even size: a last batch of a few rows would cost almost as much as a full one.
        batches += np.array_split(order[start:stop], number)
    return batches


def _segments(
    values: Array, ends: Array, capacity: Array, *, overhead: int
) -> list[tuple[int, int]]:
    """Split G descending lengths into runs that are padded to their longest, at the least cost.

    ``values`` (G,) are the lengths, ``ends`` (G,) the number of rows up to and with each,
    ``capacity`` (G,) the rows per batch of each. Returns first and last of each run.
    """
    size = len(values)
    before = np.concatenate([[0], ends])
    cost = np.zeros(size + 1, np.int64)  # of the best split of the first lengths
    begin = np.zeros(size + 1, np.int64)
    for stop in range(1, size + 1):
        first = np.arange(max(0, stop - LOOKBACK), stop)
        rows = before[stop] - before[first]
        total = cost[first] + rows * values[first] - (-rows // capacity[first]) * overhead
        begin[stop] = first[int(total.argmin())]
        cost[stop] = total.min()
    runs, stop = [], size
    while stop > 0:
        runs.append((int(begin[stop]), stop - 1))
        stop = int(begin[stop])
    return runs[::-1]


@dataclass(frozen=True)
class Buckets:
    """Lengths to which batches are padded, where each new shape costs a kernel.

    8, 16, 24, 32, 48, 64, …: powers of two and their halfway points, so that at most a third is
    padding above 8, and a text of any length has one of few shapes.
    """

    longest: int | None = None
    """Maximum number of tokens that the model reads; None: any number."""

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype, longest: int | None) -> Buckets | None:
        """Return the buckets of a device and dtype: bfloat16 on a CPU has them."""
        return cls(longest) if device.type == "cpu" and dtype == torch.bfloat16 else None

    def width(self, length: int) -> int:
        """Return the length to which rows of at most ``length`` tokens are padded."""
        power = max(SHORTEST_BUCKET, 1 << (length - 1).bit_length())
        half = power * 3 // 4
        wide = half if half >= max(length, 2 * SHORTEST_BUCKET) else power
        return wide if self.longest is None else max(length, min(wide, self.longest))

    def cut(self, lengths: Array, budget: int) -> list[Array]:
        """Split rows into batches of few shapes, the longest first.

        All rows of a batch have one width, and their number is a power of two: the largest that
        ``budget`` padded tokens allow, for the rest smaller ones.
        """
        widths = np.array([self.width(max(int(n), 1)) for n in lengths.tolist()])
        batches = []
        for width in np.unique(widths)[::-1].tolist():
            mine = np.flatnonzero(widths == width)
            mine = mine[np.argsort(-lengths[mine], kind="stable")]
            size = 1 << (max(budget // width, 1).bit_length() - 1)
            while len(mine):
                while size > len(mine):
                    size //= 2
                batches.append(mine[:size])
                mine = mine[size:]
        return batches


def pad(
    encoded: Encoded, positions: Array, *, pad_id: int, width: int | None = None
) -> tuple[Array, Array | None, Array | None]:
    """Put the rows at ``positions`` of a window into arrays, padded on the right.

    ``width`` is the length to pad to; None: that of the longest row.

    Right, whatever the tokenizer's setting, so that a model's own position numbers are right too.

    Returns
    -------
    tuple
        Ids (b, s) int64; the mask of real tokens (b, s) bool, or None without padding;
        token types (b, s) int64, or None.
    """
    lengths, starts = encoded.lengths[positions], encoded.starts[positions]
    width = int(lengths.max()) if width is None else width
    mask = np.arange(width) < lengths[:, None]
    # Token j of the row that begins at s lies at flat[s + j]; real tokens come in row order.
    ends = np.cumsum(lengths)
    source = np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)

    def spread(flat: Array, filler: int) -> Array:
        out = np.full((len(positions), width), filler, np.int64)
        out[mask] = flat[source]
        return out

    ids = spread(encoded.flat, pad_id)
    types = None if encoded.types is None else spread(encoded.types, 0)
    return ids, (None if int(lengths.min()) == width else mask), types


def mixes_padding(model_type: str) -> bool:
    """Whether a family is known to read padding."""
    return model_type in MIXERS


def by_length(lengths: Array) -> list[Array]:
    """Return the positions of the rows of each length, the longest first."""
    order = np.argsort(-lengths, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1)


class Evenness:
    """Decides whether batches may be padded; tests the model when rows get twice as long.

    ``dtype`` is what the model computes in; ``known``: its family is known to read padding.
    """

    def __init__(self, dtype: torch.dtype, *, known: bool = False) -> None:
        self.needed = known
        self._tolerance = TOLERANCE.get(dtype, HALF_TOLERANCE)
        self._checked = 0

    def due(self, batch: Batch, *, width: int | None = None) -> bool:
        """Whether the model must be tested before this batch is run, padded to ``width``."""
        longest, shortest = int(batch.lengths.max()), int(batch.lengths.min())
        padded = shortest < (longest if width is None else width)
        return not self.needed and padded and longest > 2 * self._checked

    def test(
        self,
        batch: Batch,
        run: Callable[[Batch], States | None],
        padded_run: Callable[[Batch], States | None] | None = None,
    ) -> bool:
        """Run the shortest row alone and padded; return whether its states differ.

        ``run`` returns pooled states by layer, or None if memory does not suffice; ``padded_run``
        does so with the padding of a bucket.
        """
        ends = np.array([int(batch.lengths.argmax()), int(batch.lengths.argmin())])
        alone, padded = run(batch.take(ends[1:])), (padded_run or run)(batch.take(ends))
        if alone is None or padded is None:
            return False
        self._checked = int(batch.lengths.max())
        self.needed = any(
            _distance(padded[layer][1], alone[layer][0]) > self._tolerance for layer in alone
        )
        return self.needed


def _distance(states: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the relative distance; 0 if the states are not finite."""
    a, b = states.double(), expected.double()
    distance = float((a - b).norm() / b.norm().clamp_min(1e-12))
    return distance if np.isfinite(distance) else 0.0
