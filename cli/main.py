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

# Section of `probekit --help` -> name of a command -> its line there, which imports none of them.
# Each command lives in the module of probekit.cli with its name.
SECTIONS = {
    "Start here": {
        "demo": "Show on real text, in two minutes, what cleaning is worth.",
        "clean": "Clean a table's labels, from one file to a training set.",
    },
    "Step by step": {
        "extract": "Store a model's hidden states of every row.",
        "import": "Make a store of states that were computed elsewhere.",
        "diagnose": "Advise without ground truth: filter, relabel or leave labels.",
        "audit": "Ask for a few true labels: how many are wrong, and what to do.",
        "certify": "Bound the wrong labels left, with few true labels.",
        "filter": "Drop the rows whose label the probe disagrees with most.",
        "relabel": "Relabel every row by a blend of its weak label and a probe.",
        "review": "Write the most doubtful rows for a person; merge the answers.",
        "readmit": "Re-admit dropped rows of whose class students are sure.",
        "report": "Write one HTML page: tables, figures, and the rows.",
        "sweep": "Try every probe, strength and layer, and choose one.",
    },
    "Students and experiments": {
        "weak-labels": "Label rows with a probe trained on some true labels.",
        "finetune": "Finetune a model on rows and their weak labels.",
        "predict": "Label rows with a finetuned classifier or a saved probe.",
        "run": "Measure a student between weak supervisor and ceiling.",
        "saliency": "Compare linear probes with finetuning on one concept.",
        "tasks": "List, show and export tasks with ground truth.",
    },
    "Other": {
        "info": "Report what an activation store holds, complete or not.",
        "merge": "Join stores of one model into one file.",
        "completion": "Print the script that completes commands in a shell.",
    },
}
COMMANDS = {name: line for section in SECTIONS.values() for name, line in section.items()}
NAME_WIDTH = max(map(len, COMMANDS))


class Group(click.Group):
    """A group that imports a command when it runs, and prints a failure as one sentence."""

    _running: click.Command | None = None

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        """Name every command, section by section."""
        return list(COMMANDS)

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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands by section, without importing them."""
        for title, lines in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:{NAME_WIDTH}}", line) for name, line in lines.items()])

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
    """Find, drop and repair wrong labels with a pretrained model's hidden states.

    A command's --help lists its options and their defaults. MODEL is a name on Hugging Face, such
    as Qwen/Qwen3-0.6B, or a folder.

    Example: probekit demo && probekit clean reviews.csv -m MODEL -o cleaned &&
    probekit extract rows.jsonl -m MODEL -o acts.h5 &&
    probekit filter acts.h5 --labels weak.csv -o verdicts.parquet --write-data clean.jsonl
    """


_set_example_apart(cli)
