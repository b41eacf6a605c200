"""The moving bar: rates, time left from tokens, silence where nobody watches."""

from __future__ import annotations

import io
import re
import sys
from typing import Any

import pytest

from probekit.activations.progress import Progress, duration, no_moving_bars


def test_time_left_is_reckoned_in_tokens() -> None:
    progress = Progress(1000, done=200, show=False)
    # A window of 400 rows with 8,000 tokens; the longest 100 rows came first.
    progress.plan(400, 8000)
    progress.advance(100, 4000)
    # 800 rows are to do, about 16,000 tokens; 4,000 took 10 s, so 12,000 take 30 s.
    line = progress.line(10.0)
    assert line == "300/1,000 rows · 10 rows/s · 400 tokens/s · 0:30 left"


def test_quiet_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(10)
    for _ in range(3):
        progress.advance(1, 5)
    progress.clear()
    assert capsys.readouterr().err == ""
    progress.note("a note")
    assert capsys.readouterr().err == "a note\n"


def test_drawn_on_a_terminal_and_wiped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probekit.activations.progress.EVERY_SECONDS", 0.0)
    progress = Progress(10, show=True)
    progress.plan(10, 50)
    progress.advance(4, 20)
    *_, drawn = capsys.readouterr().err.split("\r")
    assert drawn.startswith(" 40% |")
    assert "| 4/10 rows · " in drawn
    progress.note("a note")
    assert "\ra note\n" in capsys.readouterr().err
    progress.clear()
    assert re.fullmatch(r"\r *\r", capsys.readouterr().err)
    progress.note("another")
    assert capsys.readouterr().err == "another\n"


class Notebook(io.StringIO):
    """What a kernel has for stderr."""

    def isatty(self) -> bool:
        return False


def test_drawn_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """There stderr is no terminal, and tqdm.auto draws with widgets."""
    from tqdm import auto, notebook

    made: list[dict[str, Any]] = []

    class Widget(notebook.tqdm_notebook):
        def __new__(cls, **options: Any) -> Any:
            made.append(options)
            return object()

    monkeypatch.setattr(sys, "stderr", Notebook())
    monkeypatch.setattr(auto, "tqdm", Widget)
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    Progress(10)
    assert made == []  # a script in a pipe
    monkeypatch.setitem(sys.modules, "IPython", sys)
    Progress(10, done=3)
    assert [(each["total"], each["initial"]) for each in made] == [(10, 3)]
    with no_moving_bars():
        Progress(10)
    assert len(made) == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (7, "0:07"), (750, "12:30"), (11100, "3:05:00")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
