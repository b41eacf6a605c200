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
from textwrap import shorten
from typing import Any

import click

from probekit import __version__
from probekit.cli.failures import sentence_of, stopped, terminable
from probekit.errors import did_you_mean
from probekit.kinds import shown
from probekit.safe import printable

# Name of a command -> what stands beside it in `probekit --help`, which imports none of them. Each
# lives in the module of probekit.cli of its name.
COMMANDS = {
    "audit": "Ask for true labels where probe and weak label disagree, and say what to do.",
    "clean": "Clean the labels of a table: one command from a file to a training set.",
    "demo": "Run an experiment on real text in a minute and show whether cleaning labels helped.",
    "diagnose": "Tell, without any truth, whether to filter, to relabel or to leave the labels "
    "alone.",
    "extract": "Store a model's hidden states of every row.",
    "filter": "Drop the rows whose weak label the probe disagrees with most.",
    "finetune": "Finetune a model on rows and their weak labels.",
    "info": "Report what an activation store holds, complete or not.",
    "merge": "Join stores of one model into one.",
    "predict": "Label rows with a classifier that was finetuned.",
    "readmit": "Re-admit rows that a filter dropped where students trained on the rest are sure of "
    "them.",
    "relabel": "Relabel every row by a blend of its weak label and a probe.",
    "report": "Write one HTML page that opens from disk: tables, figures, provenance, the rows "
    "themselves.",
    "review": "Write the most disagreeing rows for human review, and merge the corrected labels.",
    "run": "Measure what a student recovers of the gap between weak supervisor and ceiling.",
    "saliency": "Compare linear probes with finetuning: how salient a concept is in the strong "
    "model.",
    "sweep": "Try every probe at every strength on every layer, out of fold, and choose without "
    "the truth.",
    "tasks": "List, show and export tasks whose truth is known.",
    "weak-labels": "Label rows with a probe that some true labels have taught.",
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
        from probekit.cli.checked import check_values

        module = importlib.import_module(f"probekit.cli.{cmd_name.replace('-', '_')}")
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
@click.version_option(__version__)
def cli() -> None:
    """Filter and relabel weak labels with probes on a strong model's hidden states.

    Example: probekit extract rows.jsonl -m MODEL -o acts.h5 &&
    probekit filter acts.h5 --labels weak.csv -o verdicts.parquet --write-data clean.jsonl
    """


_set_example_apart(cli)
