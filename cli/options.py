"""Typed options of the commands, and how commands print.

A group of options is a ``TypedDict``: ``test_rows: Annotated[int | None, option("Rows to test
on.")]`` is ``--test-rows``, a whole number. ``options_of`` declares the options of a group on a
command, which receives them as ``**options: Unpack[Group]``.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints
from weakref import WeakKeyDictionary

import click
from click.core import ParameterSource

from probekit.safe import json_for_terminal, printable

F = TypeVar("F", bound=Callable[..., Any])

__all__ = [
    "FILE",
    "OUTPUT_FILE",
    "AsJson",
    "BatchTokens",
    "IdColumn",
    "Overwrite",
    "Quiet",
    "Revision",
    "Rows",
    "SectionedCommand",
    "Seed",
    "TextColumn",
    "TrustRemoteCode",
    "argument",
    "at_terminal",
    "emit",
    "option",
    "options_of",
    "output_file",
    "output_table",
    "pick",
    "say",
    "source_of",
    "typed_again",
]

INPUT, OPTIONS, OUTPUT = "Input", "Options", "Output"
# Fields of every command that say what is written and printed.
WRITING = ("output", "write_data", "overwrite", "quiet", "as_json")
_SECTIONS: WeakKeyDictionary[click.Parameter, str] = WeakKeyDictionary()

FILE = click.Path(path_type=Path)
OUTPUT_FILE = click.Path(path_type=Path, dir_okay=False)


def option(help_text: str, *flags: str, **attributes: Any) -> Callable[..., Any]:
    """Declare a field as an option: its flag is the field's name, its click type the field's type.

    ``flags`` and ``attributes`` of :func:`click.option` overrule both.
    """

    def declare(name: str, kind: Any) -> Callable[[F], F]:
        named = flags or ("--" + name.replace("_", "-"),)
        return click.option(
            *named, name, help=help_text or None, **{**_of_type(kind), **attributes}
        )

    return declare


class _Argument(click.Argument):
    """An argument with a line in ``--help``, which click has from 8.5 on."""

    def __init__(self, *args: Any, about: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.about = about

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        return self.make_metavar(ctx), self.about


def argument(help_text: str, **attributes: Any) -> Callable[..., Any]:
    """Declare a field as an argument, with attributes of :func:`click.argument`."""
    return lambda name, _: click.argument(name, cls=_Argument, about=help_text, **attributes)


def options_of(group: type, **sections: type) -> Callable[[F], F]:
    """Add the options of a typed group to a command, in the order of its fields.

    ``sections`` are titles in ``--help`` and the groups whose fields stand there.
    """
    titles = {name: title for title, part in sections.items() for name in get_type_hints(part)}

    def declare(command: F) -> F:
        fields = get_type_hints(group, include_extras=True)
        for name, field in reversed(fields.items()):
            command = field.__metadata__[0](name, field.__origin__)(command)
            parameter = command.__click_params__[-1]  # type: ignore[attr-defined]
            title = titles.get(name, INPUT if sections else OPTIONS)
            _SECTIONS[parameter] = OUTPUT if name in WRITING else title
        return command

    return declare


class SectionedCommand(click.Command):
    """A command whose ``--help`` lists options by section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one list per section, in the order in which the sections come first."""
        parts: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                title = _SECTIONS.get(parameter, OUTPUT if OUTPUT in parts else OPTIONS)
                parts.setdefault(title, []).append(record)
        for title, records in sorted(parts.items(), key=lambda part: part[0] == OUTPUT):
            with formatter.section(title):
                formatter.write_dl(records)


def _of_type(kind: Any) -> dict[str, Any]:
    """Attributes of an option by its type: a bool is a flag, a tuple repeats, a Literal chooses."""
    if get_origin(kind) in (UnionType, Union):
        kind = get_args(kind)[0]  # the other one is None
    if kind is bool:
        return {"is_flag": True}
    if get_origin(kind) is tuple:
        return {"multiple": True}
    if get_origin(kind) is Literal:
        return {"type": click.Choice(get_args(kind))}
    return {"type": FILE if kind is Path else kind}


def output_file(help_text: str) -> Callable[..., Any]:
    """``-o/--output``, a required file."""
    return option(help_text, "-o", "--output", required=True, type=OUTPUT_FILE)


def output_table(help_text: str) -> Callable[..., Any]:
    """``-o/--output``, a required table: a file, or a folder of Parquet files."""
    text = f"{help_text} .parquet, .jsonl, or a folder of Parquet files."
    return option(text, "-o", "--output", required=True, type=FILE)


def _hide_progress(context: click.Context, _: click.Parameter, value: bool) -> bool:
    if value:
        from probekit.activations.progress import no_moving_bars

        context.with_resource(no_moving_bars())
    return value


AsJson = Annotated[bool, option("Print the result as JSON.", "--json")]
Overwrite = Annotated[bool, option("Replace the output if it exists.")]
Quiet = Annotated[
    bool, option("Show no progress; results and errors only.", callback=_hide_progress)
]
Seed = Annotated[int, option("Seed of every random choice; same seed, same result.", default=0)]


BatchTokens = Annotated[
    int | None, option("Padded tokens per batch.  [default: by device]", type=click.IntRange(1))
]
Revision = Annotated[str | None, option("Branch, tag or commit on the hub.")]
TrustRemoteCode = Annotated[bool, option("Run code that the checkpoint brings.")]
TextColumn = Annotated[str | None, option("Column of the text, if not text or messages.")]
IdColumn = Annotated[str | None, option("Column of the ids that join rows and labels, if not id.")]
Rows = Annotated[
    str | None,
    option("The rows that were extracted, if they are neither a task nor a file beside the store."),
]


def source_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of :func:`probekit.cleaning.source_rows.find_rows` and the like."""
    columns = {name: options.get(name) for name in ("text_column", "id_column")}
    return {"source": options["rows"], **columns}


def pick(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Take the options of these names that were given."""
    return {name: options[name] for name in names if options.get(name) is not None}


def at_terminal() -> bool:
    """Whether somebody can press keys."""
    return sys.stdin.isatty()


def say(message: str) -> None:
    """Print to stderr, without terminal control characters; stdout is for data."""
    click.echo(printable(message), err=True)


def emit(result: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Print a command's result on stdout: as one JSON object, or as text for people."""
    if as_json:
        text = json_for_terminal(json.dumps(result, ensure_ascii=False))
    click.echo(printable(text))


# Options of how a result is shown, not of what is computed.
SHOWN_ONLY = ("as_json", "quiet")


def typed_again(
    command: str | None = None,
    *,
    without: Sequence[str] = (),
    instead: Mapping[str, Any] | None = None,
) -> str:
    """Return the running command as it was typed, or another one with the same options.

    Parameters
    ----------
    command
        Name of another command; options that it does not have are left out.
    without
        Names of options to leave out.
    instead
        Other values of some options; None leaves the option out.
    """
    context = click.get_current_context()
    names = {param.name for param in context.command.params}
    if command is not None:
        group = context.find_root().command
        assert isinstance(group, click.Group)
        other = group.get_command(context, command)
        assert other is not None
        names &= {param.name for param in other.params}
    words = ["probekit", command or str(context.command.name)]
    for param in context.command.params:
        typed = context.get_parameter_source(str(param.name)) is ParameterSource.COMMANDLINE
        if typed and param.name in names and param.name not in (*without, *SHOWN_ONLY):
            value = {**context.params, **(instead or {})}[str(param.name)]
            words += [] if value is None else _words(param, value)
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
