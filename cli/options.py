"""Typed options of the commands, and how commands print.

A group of options is a ``TypedDict``; each field holds the option's type and its click declaration:
``overwrite: Annotated[bool, option("--overwrite", is_flag=True)]``. ``options_of`` declares the
group's options on a command, which receives them as ``**options: Unpack[Group]``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import click

from probekit.safe import json_for_terminal, printable

F = TypeVar("F", bound=Callable[..., Any])

__all__ = [
    "FILE",
    "OUTPUT_FILE",
    "AsJson",
    "Overwrite",
    "Quiet",
    "Seed",
    "argument",
    "emit",
    "json_option",
    "option",
    "options_of",
    "output_file",
    "output_option",
    "overwrite_option",
    "quiet_option",
    "say",
    "seed_option",
]

FILE = click.Path(path_type=Path)
OUTPUT_FILE = click.Path(path_type=Path, dir_okay=False)


def option(*flags: str, **attributes: Any) -> Callable[..., Any]:
    """Declare a field as an option; the parameter takes the field's name."""
    return partial(click.option, *flags, **attributes)


def argument(**attributes: Any) -> Callable[..., Any]:
    """Declare a field as an argument; the parameter takes the field's name."""
    return partial(click.argument, **attributes)


def options_of(group: type) -> Callable[[F], F]:
    """Add the options of a typed group to a command, in the order of its fields."""

    def declare(command: F) -> F:
        fields = get_type_hints(group, include_extras=True)
        for name, field in reversed(fields.items()):
            command = field.__metadata__[0](name)(command)
        return command

    return declare


def output_file(help_text: str) -> Callable[..., Any]:
    """``-o/--output``, a required file."""
    return option("-o", "--output", required=True, type=OUTPUT_FILE, help=help_text)


def _hide_progress(context: click.Context, _: click.Parameter, value: bool) -> bool:
    if value:
        from probekit.activations.progress import no_moving_bars

        context.with_resource(no_moving_bars())
    return value


AsJson = Annotated[bool, option("--json", is_flag=True, help="Print the result as JSON.")]
Overwrite = Annotated[
    bool, option("--overwrite", is_flag=True, help="Replace the output if it exists.")
]
Quiet = Annotated[
    bool,
    option(
        "--quiet",
        is_flag=True,
        callback=_hide_progress,
        help="Show no progress; results and errors only.",
    ),
]
Seed = Annotated[
    int, option("--seed", default=0, help="Seed of every random choice; same seed, same result.")
]


def json_option(command: F) -> F:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(
        command
    )


def overwrite_option(command: F) -> F:
    """Add ``--overwrite``."""
    return click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")(
        command
    )


def quiet_option(command: F) -> F:
    """Add ``--quiet``: no moving bars while the command runs."""

    def hide(context: click.Context, param: click.Parameter, value: bool) -> bool:  # noqa: ARG001
        if value:
            from probekit.activations.progress import no_moving_bars

            context.with_resource(no_moving_bars())
        return value

    return click.option(
        "--quiet", is_flag=True, callback=hide, help="Show no progress; results and errors only."
    )(command)


def seed_option(command: F) -> F:
    """Add ``--seed``."""
    return click.option(
        "--seed", default=0, help="Seed of every random choice; same seed, same result."
    )(command)


def output_option(help_text: str) -> Callable[[F], F]:
    """Add ``-o/--output``, required."""
    return click.option(
        "-o",
        "--output",
        required=True,
        type=click.Path(path_type=Path, dir_okay=False),
        help=help_text,
    )


def say(message: str) -> None:
    """Print to stderr, without terminal control characters; stdout is for data."""
    click.echo(printable(message), err=True)


def emit(result: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Print a command's result on stdout: as one JSON object, or as text for people."""
    if as_json:
        text = json_for_terminal(json.dumps(result, ensure_ascii=False))
    click.echo(printable(text))
