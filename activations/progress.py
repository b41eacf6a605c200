"""Progress on stderr: a bar on a terminal or in a notebook, notes everywhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from probekit.safe import printable

EVERY_SECONDS = 0.25
_hidden = ContextVar("hidden", default=False)


@contextmanager
def no_moving_bars() -> Iterator[None]:
    """Draw no bar within the block; notes are still printed."""
    token = _hidden.set(True)
    try:
        yield
    finally:
        _hidden.reset(token)


class MovingBar:
    """A bar of tqdm with a text beside it; ``done`` of ``total`` steps are of an earlier run.

    ``show``: whether to draw it; None: on a terminal and in a notebook.
    """

    def __init__(self, total: int, *, done: int = 0, show: bool | None = None) -> None:
        self._stream = sys.stderr
        self._bar: Any = None
        if _is_watched() and not _hidden.get() if show is None else show:
            from tqdm.auto import tqdm

            self._bar = tqdm(
                total=total,
                initial=done,
                file=self._stream,
                leave=False,
                miniters=1,
                mininterval=EVERY_SECONDS,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}% |{bar}| {desc}",
            )

    def move(self, done: int, text: str) -> None:
        """Show that ``done`` steps are done, if it is time to draw again."""
        if self._bar is not None:
            self._bar.set_description_str(text, refresh=False)
            self._bar.update(done - self._bar.n)

    def note(self, message: str) -> None:
        """Print a message, on a terminal or not."""
        if self._bar is not None:
            self._bar.write(printable(message), file=self._stream)
        else:
            self._stream.write(f"{printable(message)}\n")
            self._stream.flush()

    def clear(self) -> None:
        """Remove the bar, for good."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _is_watched() -> bool:
    """Whether stderr is a terminal, or tqdm would draw into a notebook."""
    if sys.stderr.isatty():
        return True
    if "IPython" not in sys.modules:
        return False
    from tqdm.auto import tqdm
    from tqdm.notebook import tqdm_notebook

    return issubclass(tqdm, tqdm_notebook)


class Progress(MovingBar):
    """Counts rows and tokens and shows their rates and the time left; a step is a row."""

    def __init__(self, total: int, *, done: int = 0, show: bool | None = None) -> None:
        super().__init__(total, done=done, show=show)
        self._total, self._before = total, done
        self._start = time.monotonic()
        self.rows = 0
        self.tokens = 0
        self._planned_rows = 0
        self._planned_tokens = 0

    def plan(self, rows: int, tokens: int) -> None:
        """Add a plan: tokens of the next ``rows`` rows (in a window long rows come first)."""
        self._planned_rows += rows
        self._planned_tokens += tokens

    def advance(self, rows: int, tokens: int) -> None:
        """Count a finished batch."""
        self.rows += rows
        self.tokens += tokens
        self.move(self._before + self.rows, self.line(time.monotonic() - self._start))

    def line(self, elapsed: float) -> str:
        """Return the text to show after ``elapsed`` seconds."""
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
    """Format seconds as ``0:07``, ``12:30`` or ``3:05:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
