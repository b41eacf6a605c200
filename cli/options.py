"""What the commands share: option decorators, and how they talk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from probekit.safe import json_for_terminal, printable

F = TypeVar("F", bound=Callable[..., Any])

__all__ = [
    "emit",
    "json_option",
    "output_option",
    "overwrite_option",
    "quiet_option",
    "say",
    "seed_option",
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
    """Talk to the user on stderr; stdout is for data. Nothing in it steers the terminal."""
    click.echo(printable(message), err=True)


def emit(result: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Print a command's result on stdout: as one JSON object, or as text for people."""
    if as_json:
        text = json_for_terminal(json.dumps(result, ensure_ascii=False))
    click.echo(printable(text))
