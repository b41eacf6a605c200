"""``probekit``: registers the commands and turns every refusal into one sentence."""

from __future__ import annotations

import atexit
import gc
import importlib
import inspect
import os
import sys
import warnings
from functools import cache
from typing import Any

import click

from probekit.cli.checked import check_values
from probekit.cli.failures import sentence_of, stopped, terminable
from probekit.errors import did_you_mean
from probekit.kinds import shown
from probekit.safe import printable

# Name -> module of probekit.cli, imported only when the command is asked for or listed.
COMMANDS = {
    "audit": "audit",
    "demo": "demo",
    "diagnose": "diagnose",
    "extract": "extract",
    "filter": "filter",
    "finetune": "finetune",
    "info": "info",
    "merge": "merge",
    "predict": "predict",
    "readmit": "readmit",
    "relabel": "relabel",
    "report": "report",
    "review": "review",
    "run": "run",
    "saliency": "saliency",
    "sweep": "sweep",
    "tasks": "tasks",
    "weak-labels": "weak_labels",
}


class Group(click.Group):
    """A group whose commands live in files of their own and whose failures are one sentence."""

    _running: click.Command | None = None

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        """Name every command, sorted."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"probekit.cli.{COMMANDS[cmd_name]}")
        command: click.Command = module.command
        _set_example_apart(command)
        self._running = check_values(command)
        return self._running

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command; of one that is none, name the nearest."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = did_you_mean(args[0], COMMANDS)
            ctx.fail(f"There is no command {shown(args[0])}{near}.")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what click says of wrong arguments steers no terminal either."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            error.message = printable(error.message)  # type: ignore[misc]
            raise
        except KeyboardInterrupt as error:
            raise stopped(error) from None

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line; a failure becomes its sentence and its exit code."""
        _end_quickly()
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _one_line
                with terminable():
                    return super().main(*args, **kwargs)
        except Exception as error:
            told = sentence_of(error, self._running)
            if told is None:
                raise
            _fail(error, *told)


@cache
def _end_quickly() -> None:
    """Leave out the last look for garbage among what torch and transformers made: 0.6 s."""
    atexit.register(gc.freeze)


def _one_line(message: Warning | str, *_: Any, **__: Any) -> None:
    """Show a warning of Python as its sentence, without the line of code that gave it."""
    click.echo(printable(f"Warning: {message}"), err=True)


def _set_example_apart(command: click.Command) -> None:
    """Give the example a line of its own, never wrapped, so that it can be pasted."""
    text, found, example = inspect.cleandoc(command.help or "").partition("Example: ")
    if found:
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


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog="Set PROBEKIT_TRACEBACK=1 to see where an error came from.",
)
@click.version_option(package_name="probekit")
def cli() -> None:
    """Filter and relabel weak labels with probes on a strong model's hidden states.

    Example: probekit extract rows.jsonl -m MODEL -o acts.h5 &&
    probekit filter acts.h5 --labels weak.csv -o verdicts.parquet --write-data clean.jsonl
    """


_set_example_apart(cli)
