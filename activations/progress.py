"""How far the work is, on stderr: a line that moves on a terminal, notes everywhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

from probekit.safe import printable

__all__ = ["MovingLine", "Progress", "duration", "no_moving_lines"]

EVERY_SECONDS = 0.25
_hidden = ContextVar("hidden", default=False)


@contextmanager
def no_moving_lines() -> Iterator[None]:
    """Draw no moving line within the block; notes are still said."""
    token = _hidden.set(True)
    try:
        yield
    finally:
        _hidden.reset(token)


class MovingLine:
    """A line on stderr that is drawn over itself.

    Parameters
    ----------
    show
        Whether to draw it; None: where stderr is a terminal.
    """

    def __init__(self, *, show: bool | None = None) -> None:
        self._stream: TextIO = sys.stderr
        self._show = self._stream.isatty() and not _hidden.get() if show is None else show
        self._shown = time.monotonic()
        self._width = 0

    def due(self) -> bool:
        """Whether it is time to draw again."""
        now = time.monotonic()
        if not self._show or now - self._shown < EVERY_SECONDS:
            return False
        self._shown = now
        return True

    def note(self, message: str) -> None:
        """Say something that must be seen, terminal or not."""
        self.clear()
        self._stream.write(f"{printable(message)}\n")
        self._stream.flush()

    def clear(self) -> None:
        """Wipe the line."""
        if self._width:
            self.draw("")

    def draw(self, text: str) -> None:
        """Show a text where the last one stood."""
        self._stream.write(f"\r{text:<{self._width}}" + ("" if text else "\r"))
        self._stream.flush()
        self._width = len(text)


class Progress(MovingLine):
    """Counts rows and tokens and shows their rates and the time that is left.

    Parameters
    ----------
    total
        Rows in all.
    done
        Rows that an earlier run has done.
    show
        As of :class:`MovingLine`.
    """

    def __init__(self, total: int, *, done: int = 0, show: bool | None = None) -> None:
        super().__init__(show=show)
        self._total, self._before = total, done
        self._start = self._shown
        self.rows = 0
        self.tokens = 0
        self._planned_rows = 0
        self._planned_tokens = 0

    def plan(self, rows: int, tokens: int) -> None:
        """Learn how many tokens the next ``rows`` rows have: long rows come first in a window."""
        self._planned_rows += rows
        self._planned_tokens += tokens

    def advance(self, rows: int, tokens: int) -> None:
        """Count a batch."""
        self.rows += rows
        self.tokens += tokens
        if self.due():
            self.draw(self.line(self._shown - self._start))

    def line(self, elapsed: float) -> str:
        """Write what is shown after ``elapsed`` seconds."""
        elapsed = max(elapsed, 1e-9)
        left = "?"
        if self.tokens and self._planned_rows:
            per_row = self._planned_tokens / self._planned_rows
            missing = (self._total - self._before) * per_row - self.tokens
            left = duration(max(0.0, missing) * elapsed / self.tokens)
        return (
            f"{self._before + self.rows:,}/{self._total:,} rows · {self.rows / elapsed:,.0f} rows/s"
            f" · {self.tokens / elapsed:,.0f} tokens/s · {left} left"
        )


def duration(seconds: float) -> str:
    """Write seconds as ``0:07``, ``12:30`` or ``3:05:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
