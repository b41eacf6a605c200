"""What is extracted: model, layers, pooling, dtypes; and how a choice of layers is parsed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from probekit.errors import UsageError

POOLS = ("last", "first", "mean", "max")
DTYPES = ("float32", "float16", "bfloat16")
# What HDF5 itself and h5py can decompress.
COMPRESSIONS = ("gzip", "lzf")
# In the spec of a store that holds differences between the two texts of each row.
DIFFERENCE = {"pairs": "second minus first"}

# Keys that a spec has only if they are set: stores of 0.1.0 have none of them.
OPTIONAL = ("separator", "opening", "batches", "last_layer", "pairs")

# Number of characters shown of each of two values that differ.
SHOWN = 60

# 3-6 or 3:6; a negative end only with a colon or at the start: -4--1, -4:-1.
_RANGE = re.compile(r"(-?\d+)\s*[-:]\s*(-?\d+)")


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the keys in which two specs, as JSON types, differ.

    Examples
    --------
    >>> differing({"pooling": "mean", "model": "m"}, {"pooling": "last", "model": "m"})
    ['pooling']
    """
    return sorted(key for key in {*one, *other} if one.get(key) != other.get(key))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], place: str) -> str:
    """Return every key in which two specs differ, with both values; ``place`` is the old one's.

    Examples
    --------
    >>> differences({"pooling": "mean"}, {"pooling": "last", "max_length": 9}, "in the file")
    "max_length is not set in the file and 9 now; pooling is 'mean' in the file and 'last' now"
    """
    parts = []
    for key in differing(old, new):
        old_value, new_value = _shown(old.get(key), new.get(key))
        parts.append(f"{key} is {old_value} {place} and {new_value} now")
    return "; ".join(parts)


def _shown(*values: object) -> list[str]:
    """Return both values as text; of long ones the place where they differ."""
    texts = ["not set" if value is None else repr(value) for value in values]
    if max(map(len, texts)) <= SHOWN:
        return texts
    split = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), 0)
    start = max(0, split - SHOWN // 3)
    return [
        ("…" if start else "") + text[start : start + SHOWN] + "…" * (start + SHOWN < len(text))
        for text in texts
    ]


def storable(dtype: str) -> str:
    """Return the dtype in which states of ``dtype`` are stored if none is asked for."""
    return dtype if dtype in DTYPES else "float32"


@dataclass(frozen=True)
class ExtractionSpec:
    """What determines the states: two stores of equal specs and rows hold equal states."""

    model: str
    """Name on the hub, or the local folder's name (without its path)."""
    revision: str | None
    """Commit of the model on the hub; None for a local folder."""
    weights: str
    """Fingerprint of weights and configuration, wherever they are stored."""
    tokenizer: str
    """Fingerprint of the tokenizer."""
    layers: tuple[int, ...]
    """Numbers as in ``hidden_states``: 0 is the embeddings, the last is after the final norm."""
    pooling: str
    """One of ``POOLS``, over real tokens, special ones included."""
    dtype: str
    """Dtype that the model computes in."""
    store_dtype: str
    """Dtype that is stored."""
    max_length: int | None
    """Maximum number of tokens read per row; None: all."""
    kind: str
    """``text``, ``pair`` or ``messages``."""
    template: str | None = None
    """Fingerprint of the template (the tokenizer's own for messages); None without one."""
    quantization: dict[str, Any] | None = None
    """Settings that the weights were quantised with on loading; None: as stored."""

    separator: str | None = None
    """Text between the two texts of a pair; None: the tokenizer adds its own token."""
    opening: str | None = None
    """``once`` if texts begin with the token that the tokenizer puts before every text."""
    batches: str | None = None
    """``equal lengths`` for model families known to read padding."""
    last_layer: str | None = None
    """``after the final norm`` if the model's own hidden_states end before it."""
    pairs: str | None = None
    """``second minus first``: differences between the two texts of each row."""

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON types, for the store's header."""
        content = {**dataclasses.asdict(self), "layers": list(self.layers)}
        return {k: v for k, v in content.items() if v is not None or k not in OPTIONAL}


def parse_layers(asked: str | int | list[int] | tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Parse a choice of layers into sorted layer numbers from 0 to ``depth``, each once.

    Parameters
    ----------
    asked
        Numbers, or a comma list of numbers, ranges (``3-6`` or ``3:6``, both ends included),
        negative numbers (``-1`` is the last layer), ``mid`` (half of ``depth``), ``last``, ``all``.
    depth
        Number of the model's blocks; layer 0 is the embeddings, layer ``depth`` the last.

    Raises UsageError if a part is not a layer or range, or the model has no such layer.
    """
    if isinstance(asked, int):
        asked = [asked]
    parts = asked.split(",") if isinstance(asked, str) else [str(int(i)) for i in asked]
    layers: set[int] = set()
    for part in parts:
        layers.update(_parse_part(part.strip(), depth))
    if not layers:
        raise UsageError(f"No layer was given; {_layers_of(depth)}.")
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
        raise UsageError(f"The range of layers {part!r} runs backwards; {_layers_of(depth)}.")
    raise UsageError(
        f"{part!r} is not a layer: give numbers, ranges such as 3-6, mid, last or all; "
        f"{_layers_of(depth)}."
    )


def _number(text: str, depth: int) -> int:
    layer = int(text) + (depth + 1 if int(text) < 0 else 0)
    if not 0 <= layer <= depth:
        raise UsageError(f"There is no layer {text}; {_layers_of(depth)}.")
    return layer


def _layers_of(depth: int) -> str:
    return f"this model has the layers 0 (embeddings) to {depth}, or -{depth + 1} to -1"
