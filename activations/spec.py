"""What is extracted: model, layers, pooling, numbers; and how the layers asked for are read."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from probekit.errors import UsageError

__all__ = ["COMPRESSIONS", "DIFFERENCE", "DTYPES", "POOLS", "ExtractionSpec", "parse_layers"]

POOLS = ("last", "first", "mean", "max")
DTYPES = ("float32", "float16", "bfloat16")
# What HDF5 itself, and h5py, can unpack.
COMPRESSIONS = ("gzip", "lzf")
# In the spec of a store that holds differences between the two texts of each row.
DIFFERENCE = {"pairs": "second minus first"}

# Keys that stand in a spec only where they are set: stores of 0.1.0 have none of them.
OPTIONAL = ("separator", "opening", "batches", "last_layer")

# 3-6 or 3:6; a negative end only with a colon or at the start: -4--1, -4:-1.
_RANGE = re.compile(r"(-?\d+)\s*[-:]\s*(-?\d+)")


@dataclass(frozen=True)
class ExtractionSpec:
    """What makes the states of a row: two stores of equal specs and rows hold equal states."""

    model: str
    """Name on the hub, or the name of the local folder (without its place)."""
    revision: str | None
    """Commit of the model on the hub; None for a local folder."""
    weights: str
    """Fingerprint of weights and configuration, wherever they lie."""
    tokenizer: str
    """Fingerprint of the tokenizer."""
    layers: tuple[int, ...]
    """Numbers as in ``hidden_states``: 0 is the embeddings, the last is after the final norm."""
    pooling: str
    """One of ``POOLS``, over real tokens, special ones included."""
    dtype: str
    """Numbers that the model computes in."""
    store_dtype: str
    """Numbers that are stored."""
    max_length: int | None
    """Tokens per row that are read; None: all."""
    kind: str
    """``text``, ``pair`` or ``messages``."""
    template: str | None = None
    """Fingerprint of the template (the tokenizer's own for messages); None without one."""
    quantization: dict[str, Any] | None = None
    """What the weights were quantised with while they were loaded; None: they are as stored."""

    separator: str | None = None
    """What stands between the texts of a pair; None: what the tokenizer puts there itself."""
    opening: str | None = None
    """``once`` where texts bring the token that the tokenizer opens every text with."""
    batches: str | None = None
    """``equal lengths`` of families that are known to read padded places."""
    last_layer: str | None = None
    """``after the final norm`` where the configuration says that hidden_states end before it."""

    def __post_init__(self) -> None:
        """Refuse what no extraction can be."""
        if self.pooling not in POOLS:
            raise UsageError(f"Pooling is one of {', '.join(POOLS)}, not {self.pooling!r}.")
        if self.store_dtype not in DTYPES:
            raise UsageError(
                f"States are stored as {', '.join(DTYPES)}, not as {self.store_dtype!r}."
            )
        if not self.layers:
            raise UsageError("No layer was asked for; name at least one.")

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON types, for the store's header."""
        found = {**dataclasses.asdict(self), "layers": list(self.layers)}
        return {k: v for k, v in found.items() if v is not None or k not in OPTIONAL}


def parse_layers(asked: str | int | list[int] | tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Turn what was asked for into sorted layer numbers from 0 to ``depth``, each once.

    Parameters
    ----------
    asked
        Numbers, or a comma list of numbers, ranges (``3-6`` or ``3:6``, both ends included),
        negative numbers (``-1`` is the last layer), ``mid`` (half of ``depth``), ``last``, ``all``.
    depth
        Number of the model's blocks; layer 0 is the embeddings, layer ``depth`` the last.

    Raises
    ------
    UsageError
        If a part cannot be read or the model has no such layer.
    """
    if isinstance(asked, int):
        asked = [asked]
    parts = asked.split(",") if isinstance(asked, str) else [str(int(i)) for i in asked]
    layers: set[int] = set()
    for part in parts:
        layers.update(_parse_part(part.strip(), depth))
    if not layers:
        raise UsageError(f"No layer was asked for; {_what_there_is(depth)}.")
    return tuple(sorted(layers))


def _parse_part(part: str, depth: int) -> list[int]:
    named = {"all": range(depth + 1), "mid": [depth // 2], "last": [depth]}
    if part in named:
        return list(named[part])
    if re.fullmatch(r"-?\d+", part):
        return [_number(part, depth)]
    if matched := _RANGE.fullmatch(part):
        first, last = (_number(end, depth) for end in matched.groups())
        if first <= last:
            return list(range(first, last + 1))
        raise UsageError(f"The range of layers {part!r} runs backwards; {_what_there_is(depth)}.")
    raise UsageError(
        f"{part!r} is no layer: give numbers, ranges such as 3-6, mid, last or all; "
        f"{_what_there_is(depth)}."
    )


def _number(text: str, depth: int) -> int:
    layer = int(text) + (depth + 1 if int(text) < 0 else 0)
    if not 0 <= layer <= depth:
        raise UsageError(f"There is no layer {text}; {_what_there_is(depth)}.")
    return layer


def _what_there_is(depth: int) -> str:
    return f"this model has the layers 0 (embeddings) to {depth}, or -{depth + 1} to -1"
