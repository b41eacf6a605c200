"""Commands that a message suggests, made of what was typed, so that they can be pasted."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import click
from click.core import ParameterSource

__all__ = ["typed_again"]

# Of a table, not of what is asked for.
SHOWN_ONLY = ("as_json", "quiet")


def typed_again(command: str | None = None, *, without: Sequence[str] = ()) -> str:
    """Write the command that is running as it was typed, or another with the same options.

    Parameters
    ----------
    command
        Name of another command; options that it does not have are left out.
    without
        Names of options to leave out.
    """
    context = click.get_current_context()
    names = {param.name for param in context.command.params}
    if command is not None:
        group = context.find_root().command
        assert isinstance(group, click.Group)
        found = group.get_command(context, command)
        assert found is not None
        names &= {param.name for param in found.params}
    words = ["probekit", command or str(context.command.name)]
    for param in context.command.params:
        typed = context.get_parameter_source(str(param.name)) is ParameterSource.COMMANDLINE
        if typed and param.name in names and param.name not in (*without, *SHOWN_ONLY):
            words += _words(param, context.params[str(param.name)])
    return shlex.join(words)


def _words(param: click.Parameter, value: Any) -> list[str]:
    if isinstance(param, click.Argument):
        return [str(value)]
    flag = param.opts[0]
    if isinstance(param, click.Option) and param.is_flag:
        return [flag if value else param.secondary_opts[0]]
    values = value if param.multiple else [value]
    return [word for each in values for word in (flag, _word(each))]


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
