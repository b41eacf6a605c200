"""``probekit``: lists the commands, and turns every failure into one sentence and an exit code."""

from __future__ import annotations

import atexit
import errno
import gc
import importlib
import inspect
import keyword
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from textwrap import shorten
from types import FrameType
from typing import Any

import click

import probekit
from probekit import __version__
from probekit.errors import (
    NO_SPACE,
    ProbekitError,
    StoppedError,
    did_you_mean,
    disk_errno,
    disk_sentence,
    is_out_of_memory,
)
from probekit.extras import both_installed
from probekit.files import written
from probekit.kinds import shown
from probekit.safe import printable

# Name of a command -> its line in `probekit --help`, which imports none of them. Each command lives
# in the module of probekit.cli with its name.
COMMANDS = {
    "audit": "Ask for true labels where probe and weak label disagree, and conclude what to do.",
    "clean": "Clean the labels of a table: one command from a file to a training set.",
    "completion": "Print the script that completes commands and options in a shell.",
    "demo": "Run an experiment on real text in a minute and show whether cleaning labels helped.",
    "diagnose": "Advise, without ground truth, whether to filter, to relabel or to leave the "
    "labels alone.",
    "extract": "Store a model's hidden states of every row.",
    "filter": "Drop the rows whose weak label the probe disagrees with most.",
    "finetune": "Finetune a model on rows and their weak labels.",
    "import": "Make a store of states that were computed elsewhere, such as embeddings from an "
    "API.",
    "info": "Report what an activation store holds, complete or not.",
    "merge": "Join stores of one model into one.",
    "predict": "Label rows with a classifier that was finetuned, or a store's rows with a saved "
    "probe.",
    "readmit": "Re-admit dropped rows of whose class students trained on the rest are sure.",
    "relabel": "Relabel every row by a blend of its weak label and a probe.",
    "report": "Write one HTML page that opens from disk: tables, figures, provenance, the rows "
    "themselves.",
    "review": "Write the most disagreeing rows for human review, and merge the corrected labels.",
    "run": "Measure what a student recovers of the gap between weak supervisor and ceiling.",
    "saliency": "Compare linear probes with finetuning: how salient a concept is in the strong "
    "model.",
    "sweep": "Try every probe at every strength on every layer, out of fold, and choose without "
    "the truth.",
    "tasks": "List, show and export tasks with ground truth.",
    "weak-labels": "Label rows with a probe trained on some true labels.",
}


class Group(click.Group):
    """A group that imports a command when it runs, and prints a failure as one sentence."""

    _running: click.Command | None = None

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        """Name every command, sorted."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        from probekit.cli.checked import check_values

        name = cmd_name.replace("-", "_") + "_" * keyword.iskeyword(cmd_name)
        module = importlib.import_module(f"probekit.cli.{name}")
        command: click.Command = module.command
        _set_example_apart(command)
        self._running = check_values(command)
        return self._running

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        names = self.list_commands(ctx)
        limit = formatter.width - 6 - max(map(len, names))
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, shorten(COMMANDS[name], limit, placeholder="...")) for name in names]
            )

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command, or name the nearest one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = did_you_mean(args[0], COMMANDS)
            ctx.fail(f"There is no command {shown(args[0])}{near}.")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; the messages of click, too, hold no terminal control characters."""
        if conflict := both_installed(Path(str(probekit.__file__)).parents[1]):
            click.echo(printable(f"Warning: {conflict}"), err=True)
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            error.message = printable(error.message)  # type: ignore[misc]
            raise
        except KeyboardInterrupt as error:
            raise _stopped(error) from None

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line; a failure becomes its sentence and its exit code."""
        _end_quickly()
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _one_line
                with _terminable():
                    return super().main(*args, **kwargs)
        except Exception as error:
            failure = _sentence_of(error, self._running)
            if failure is None:
                raise
            _fail(error, *failure)


@cache
def _end_quickly() -> None:
    """Skip the last garbage collection, which takes 0.6 s after torch and transformers."""
    atexit.register(gc.freeze)


def _one_line(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a Python warning as its sentence, without the line of code that raised it."""
    click.echo(printable(f"Warning: {message}"), err=True)


def _set_example_apart(command: click.Command) -> None:
    """Put the example on a line of its own, unwrapped, so that it can be pasted."""
    text, marker, example = inspect.cleandoc(command.help or "").partition("Example: ")
    if marker:
        lines = " ".join(example.split()).replace(" && ", "\n  ")
        command.help = f"{text}\b\nExample:\n  {lines}"
    if isinstance(command, click.Group):
        for sub in command.commands.values():
            _set_example_apart(sub)


def _fail(error: BaseException, sentence: str, code: int) -> None:
    if os.environ.get("PROBEKIT_TRACEBACK"):
        raise error
    click.echo(printable(f"Error: {sentence}"), err=True)
    sys.exit(code)


# Options that reduce the memory that a command needs -> the words of the message.
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


def _sentence_of(error: Exception, command: click.Command | None) -> tuple[str, int] | None:
    """The sentence about a failure and the exit code; None for a bug."""
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


def _stopped(error: KeyboardInterrupt) -> StoppedError:
    """What an interruption left, and how to resume: Ctrl-C exits with 130, SIGTERM with 143."""
    notes = list(getattr(error, "__notes__", []))
    if not notes and written():
        done = ", ".join(str(path) for path in written())
        notes = [f"{done} is written; the same command resumes from there."]
    elif not notes:
        notes = ["No output was changed; the same command begins again."]
    stop = StoppedError(" ".join(["Interrupted.", *notes]))
    if error.args == (signal.SIGTERM,):
        stop.exit_code = 128 + signal.SIGTERM
    return stop


@contextmanager
def _terminable() -> Iterator[None]:
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
    ways = [words for name, words in SAVING.items() if name in has]
    ways.append("close other programs")
    return f"The memory does not suffice: take {', or '.join(ways)}; what is done so far is kept."


def _last_written() -> Path:
    """The output that is most likely meant if a library does not say which."""
    return written()[-1] if written() else Path.cwd() / "the output"


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog="Set PROBEKIT_TRACEBACK=1 to see where an error came from.",
)
@click.version_option(__version__)
def cli() -> None:
    """Filter and relabel weak labels with probes on a strong model's hidden states.

    Example: probekit clean reviews.csv -m MODEL -o cleaned &&
    probekit extract rows.jsonl -m MODEL -o acts.h5 &&
    probekit filter acts.h5 --labels weak.csv -o verdicts.parquet --write-data clean.jsonl
    """


_set_example_apart(cli)
