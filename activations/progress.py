"""How far an extraction is, on stderr: a line that moves on a terminal, notes everywhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from probekit.safe import printable

__all__ = ["Progress", "duration"]

EVERY_SECONDS = 0.25


class Progress:
    """Counts rows and tokens and shows their rates and the time that is left.

    Parameters
    ----------
    total
        Rows in all.
    done
        Rows that an earlier run has done.
    show
        Whether to draw the moving line; None: where stderr is a terminal.
    """

    def __init__(self, total: int, *, done: int = 0, show: bool | None = None) -> None:
        self._stream: TextIO = sys.stderr
        self._show = self._stream.isatty() if show is None else show
        self._total, self._before = total, done
        self._start = self._shown = time.monotonic()
        self._width = 0
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
        now = time.monotonic()
        if self._show and now - self._shown >= EVERY_SECONDS:
            self._shown = now
            self._draw(self.line(now - self._start))

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

    def note(self, message: str) -> None:
        """Say something that must be seen, terminal or not."""
        self.clear()
        self._stream.write(f"{printable(message)}\n")
        self._stream.flush()

    def clear(self) -> None:
        """Wipe the moving line."""
        if self._width:
            self._draw("")

    def _draw(self, text: str) -> None:
        self._stream.write(f"\r{text:<{self._width}}" + ("" if text else "\r"))
        self._stream.flush()
        self._width = len(text)


def duration(seconds: float) -> str:
    """Write seconds as ``0:07``, ``12:30`` or ``3:05:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
