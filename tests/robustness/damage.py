"""Ways to damage a file, each a function of its bytes and a seeded random generator."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

Damage = Callable[[bytes, random.Random], bytes]

HUGE = [10**400, -(10**25), 1e308, float("inf"), float("nan"), 2**63, 2**31, -1, 0]
OTHERS: list[Any] = [
    *(
        None,
        True,
        False,
        "",
        "x",
        "\ud800",
        "\x1b[2J\x9b",
        "9" * 5000,
        "../../etc/passwd",
        "/dev/zero",
    ),
    *([], {}, [[]], [None], {"a": {}}, [1, "x"], 0, 1, -1, 0.5, "0.5", "\0", "a\nb"),
]


def flip(data: bytes, rng: random.Random) -> bytes:
    """Flip a bit in one to twenty bytes."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 20)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    """Leave the beginning only; half of the time nearly all of it."""
    if rng.random() < 0.5:
        return data[: max(0, len(data) - rng.randint(1, 64))]
    return data[: rng.randrange(len(data))]


def zero(data: bytes, rng: random.Random) -> bytes:
    """Overwrite a stretch with zeros, as a crash of the file system does."""
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.choice([1, 8, 64, 512, 4096]))
    return data[:start] + bytes(stop - start) + data[stop:]


def splice(data: bytes, rng: random.Random) -> bytes:
    """Put a stretch of the file, or noise, to another place, over it or between."""
    start, at = rng.randrange(len(data)), rng.randrange(len(data))
    size = rng.choice([1, 4, 16, 256, 2048])
    piece = rng.randbytes(size) if rng.random() < 0.5 else data[start : start + size]
    return data[:at] + piece + data[at + (len(piece) if rng.random() < 0.5 else 0) :]


def tail(data: bytes, rng: random.Random) -> bytes:
    """Add noise at the end."""
    return data + rng.randbytes(rng.randint(1, 64))


BYTES: dict[str, Damage] = {"flip": flip, "cut": cut, "zero": zero, "splice": splice, "tail": tail}


def swap_value(content: Any, rng: random.Random) -> Any:
    """Change one place of parsed JSON: another type, a huge number, gone, deeper, or renamed."""
    places: list[tuple[Any, Any]] = []
    waiting = [content]
    for part in waiting:
        for key in part if isinstance(part, dict) else range(len(part)):
            places.append((part, key))
            if isinstance(part[key], dict | list):
                waiting.append(part[key])
    if not places:
        return rng.choice(OTHERS)
    # Every depth equally likely, so that long lists do not hide what stands above them.
    part, key = places[int(len(places) ** rng.random()) - 1]
    how = rng.random()
    if how < 0.5:
        part[key] = rng.choice(OTHERS)
    elif how < 0.7:
        part[key] = rng.choice(HUGE)
    elif how < 0.85:
        del part[key]
    elif how < 0.9:
        for _ in range(rng.choice([3, 100])):
            part[key] = [part[key]] if rng.random() < 0.5 else {"x": part[key]}
    elif isinstance(part, dict):
        part[rng.choice(["x", "", "\x1b[2J", "id", key + " "])] = part.pop(key)
    else:
        part.insert(key, part[key])
    return content


def swap_json(data: bytes, rng: random.Random) -> bytes:
    """Change one place of a JSON file, or of one of its lines."""
    text = data.decode("utf-8")
    try:
        return json.dumps(swap_value(json.loads(text), rng)).encode("utf-8", "surrogatepass")
    except json.JSONDecodeError:
        lines = text.splitlines()
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(swap_value(json.loads(lines[at]), rng))
        return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


def deepen(data: bytes, rng: random.Random) -> bytes:
    """Nest deeper than any parser goes, somewhere in the text."""
    at = rng.choice([0, len(data) // 2, len(data)])
    start = rng.choice([b"[", b'{"a":', b"- ", b"&a [*a, ", b"{% if x %}", b"(" * 10])
    return data[:at] + start * rng.choice([100, 100_000]) + data[at:]


def cells(data: bytes, rng: random.Random) -> bytes:
    """Change one cell of a table of text: another value, quotes, separators, a long number."""
    lines = data.decode("utf-8").splitlines()
    at = rng.randrange(len(lines))
    mark = "\t" if "\t" in lines[at] else ","
    fields = lines[at].split(mark)
    new = ['"', '""', "9" * 5000, "1e999", "nan", "", mark, "\0", "\x1b[2J", "[0.1", "[[1],2]", "-"]
    fields[rng.randrange(len(fields))] = rng.choice(new)
    lines[at] = mark.join(fields)
    return ("\n".join(lines) + "\n").encode("utf-8")


JSON: dict[str, Damage] = {**BYTES, "json": swap_json, "values": swap_json, "deep": deepen}
TEXT: dict[str, Damage] = {**BYTES, "cells": cells, "more cells": cells, "deep": deepen}
