"""What ends a command, as one sentence and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from probekit.errors import (
    NO_SPACE,
    ProbekitError,
    StoppedError,
    disk_errno,
    disk_sentence,
    is_out_of_memory,
)
from probekit.files import written

__all__ = ["sentence_of", "stopped", "terminable"]

# Options that make a command need less memory, and how they are told.
SAVING = {
    "batch_tokens": "a smaller --batch-tokens",
    "batch_size": "a smaller --batch-size",
    "gradient_checkpointing": "--gradient-checkpointing",
    "lora": "--lora",
    "max_length": "a smaller --max-length",
    "limit": "a smaller --limit",
    "layers": "fewer --layers",
    "student_rows": "fewer --student-rows",
}


def sentence_of(error: Exception, command: click.Command | None) -> tuple[str, int] | None:
    """Give the sentence about a failure and the exit code; None for one that nobody expected."""
    if isinstance(error, ProbekitError):
        return "\n".join([str(error), *getattr(error, "__notes__", [])]), error.exit_code
    if is_out_of_memory(error):
        return _memory(command), 1
    code = disk_errno(error)
    name = getattr(error, "filename", None)
    if code in (*NO_SPACE, errno.EROFS):
        path = Path(os.fsdecode(name)) if isinstance(name, str | bytes) else _last_written()
        return disk_sentence(path, code), 1
    if not isinstance(error, OSError):
        return None
    if code in (errno.EACCES, errno.EPERM) and name:
        return f"{name} cannot be opened: you have no right to; change its rights.", 1
    return f"{error.strerror or error}" + (f" ({name})." if name else "."), 1


def stopped(error: KeyboardInterrupt) -> StoppedError:
    """Say what an interruption leaves and how to go on: Ctrl-C exits with 130, SIGTERM with 143."""
    notes = list(getattr(error, "__notes__", []))
    if not notes and written():
        done = ", ".join(str(path) for path in written())
        notes = [f"{done} is written; the same command goes on from there."]
    elif not notes:
        notes = ["No output was changed; the same command begins again."]
    made = StoppedError(" ".join(["Interrupted.", *notes]))
    if error.args == (signal.SIGTERM,):
        made.exit_code = 128 + signal.SIGTERM
    return made


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does, with a sentence about what is kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number))

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _memory(command: click.Command | None) -> str:
    has = {parameter.name for parameter in command.params} if command else set()
    ways = [told for name, told in SAVING.items() if name in has]
    ways.append("close other programs")
    return f"The memory does not suffice: take {', or '.join(ways)}; what is done so far is kept."


def _last_written() -> Path:
    """The output that is most likely meant where a library does not say which."""
    return written()[-1] if written() else Path.cwd() / "the output"
