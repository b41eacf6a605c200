"""Grids of numbers as they are written on a command line: ``1:500:log``, ``1e-4:1e1:11:log``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from probekit.errors import UsageError
from probekit.kinds import Number

__all__ = ["parse_grid", "parse_numbers"]

SCALES = ("log", "lin")
# Values of a grid whose number is not given: so many for each factor of ten, or in all.
PER_DECADE = {True: 4, False: 2}
LINEAR = 11
MOST = 1000


def parse_grid(
    text: str,
    *,
    name: str,
    whole: bool = False,
    low: float = 0.0,
    high: float = math.inf,
    open_ends: bool = False,
) -> tuple[float, ...]:
    """Read a grid: ``LOW:HIGH[:N]:log|lin``, both ends included, or a list such as ``1,5,10``.

    Parameters
    ----------
    text
        What was given. Without N a ``log`` grid of whole numbers has 4 values for each factor of
        ten and one of real numbers 2 (1e-4:1e1:log is 11 values); a ``lin`` grid has 11.
    name
        The option, for messages.
    whole
        Round to whole numbers (then fewer may be left).
    low, high
        Least and largest value allowed; with ``open_ends`` both are excluded.

    Returns
    -------
    Values in ascending order, each once.

    Raises
    ------
    UsageError
        For anything that cannot be read, is empty, or lies outside what is allowed.
    """
    parts = [part.strip() for part in text.split(":")]
    if len(parts) == 1:
        values = [
            _number(part, name, text, whole=whole) for part in text.split(",") if part.strip()
        ]
    else:
        values = _spread(parts, name, text, whole=whole)
    if not values:
        raise UsageError(f"{name} {text!r} is empty; give a list such as 1,5,10 or {_FORM}.")
    for value in values:
        inside = low < value < high if open_ends else low <= value <= high
        if not inside:
            raise UsageError(
                f"{name} {text!r} holds {value:g}; allowed is {_allowed(low, high, open_ends)}."
            )
    return tuple(sorted({int(v) if whole else float(v) for v in values}))


def parse_numbers(text: str, known: Iterable[int], *, name: str, place: str) -> tuple[int, ...]:
    """Read whole numbers that must be among ``known``: ``all``, ``last``, ``1,3``, ``2-5``, ``-1``.

    ``place`` says in messages what holds them.
    """
    there = sorted(known)
    chosen: set[int] = set()
    for part in (p.strip() for p in text.split(",") if p.strip()):
        if part == "all":
            chosen.update(there)
        elif part == "last":
            chosen.add(there[-1])
        else:
            chosen.update(_numbers(part, there, name, place))
    if not chosen:
        raise UsageError(f"{name} {text!r} is empty; {place} holds {_listed(there)}.")
    return tuple(sorted(chosen))


_FORM = "LOW:HIGH:log, LOW:HIGH:lin or LOW:HIGH:N:log"


def _spread(parts: list[str], name: str, text: str, *, whole: bool) -> list[float]:
    if len(parts) not in (3, 4) or parts[-1] not in SCALES:
        raise UsageError(f"{name} {text!r} is no range; give {_FORM}, or a list such as 1,5,10.")
    scale = parts[-1]
    low, high = (_number(part, name, text, whole=whole) for part in parts[:2])
    if low > high:
        raise UsageError(
            f"{name} {text!r} is an empty range: its lower end {low:g} exceeds its upper end "
            f"{high:g}; exchange them."
        )
    if scale == "log" and low <= 0:
        raise UsageError(
            f"{name} {text!r}: a log range begins above 0, got {low:g}; use lin, or a list."
        )
    if len(parts) == 4:
        count = int(_number(parts[2], name, text, whole=True))
        if not 1 <= count <= MOST:
            raise UsageError(f"{name} {text!r} asks for {count} values; allowed are 1 to {MOST}.")
    elif scale == "log":
        count = 1 + max(1, round(PER_DECADE[whole] * (math.log10(high) - math.log10(low))))
    else:
        count = LINEAR
    if low == high:
        return [low]
    spaced: Callable[..., np.ndarray] = np.geomspace if scale == "log" else np.linspace
    values = spaced(low, high, count)
    if whole:
        return [float(v) for v in np.rint(values)]
    # Twelve digits: 1e-4:1e1:log holds 0.1, not 0.10000000000000002.
    return [float(f"{v:.12g}") for v in values]


def _number(part: str, name: str, text: str, *, whole: bool) -> float:
    try:
        value = float(Number().parse(part))
    except ValueError:
        raise UsageError(
            f"{name} {text!r} holds {part!r}, which is no number; give {_FORM}, or a list such as "
            "1,5,10."
        ) from None
    if whole and value != int(value):
        raise UsageError(f"{name} {text!r} holds {part}; whole numbers are needed.")
    return value


def _numbers(part: str, there: list[int], name: str, place: str) -> list[int]:
    first, dash, last = part[1:].partition("-")
    first = part[0] + first
    try:
        ends = [int(first), int(last)] if dash else [int(first)]
    except ValueError:
        raise UsageError(
            f"{name} {part!r} cannot be read; give all, last, numbers such as 1,3 or ranges such "
            f"as 2-5; {place} holds {_listed(there)}."
        ) from None
    if len(ends) == 2:
        asked = list(range(ends[0], ends[1] + 1))
        if not asked:
            raise UsageError(f"{name} {part!r} runs backwards; write the smaller number first.")
    else:
        asked = [there[ends[0]] if -len(there) <= ends[0] < 0 else ends[0]]
    lost = [number for number in asked if number not in there]
    if lost:
        raise UsageError(f"{name}: {place} holds no {lost[0]}; it holds {_listed(there)}.")
    return asked


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _allowed(low: float, high: float, open_ends: bool) -> str:
    if math.isinf(high):
        return f"more than {low:g}" if open_ends else f"{low:g} or more"
    return f"{low:g} to {high:g}" + (", both excluded" if open_ends else "")
