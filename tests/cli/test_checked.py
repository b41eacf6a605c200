"""Every option of every command is checked while the command line is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import pytest
from click.testing import CliRunner

from probekit.cli.checked import Checked, CheckedRange, Nearest
from probekit.cli.main import cli

CONTEXT = click.Context(cli)


def commands(command: click.Command = cli, path: tuple[str, ...] = ()) -> Iterator[Any]:
    if isinstance(command, click.Group):
        for name in command.list_commands(CONTEXT):
            sub = command.get_command(CONTEXT, name)
            assert sub is not None
            yield from commands(sub, (*path, name))
    else:
        yield path, command


PARAMETERS = [(path, param) for path, command in commands() for param in command.params]


@pytest.mark.parametrize(
    ("path", "param"), PARAMETERS, ids=[f"{p[-1]}-{q.name}" for p, q in PARAMETERS]
)
def test_every_parameter_has_a_kind(path: tuple[str, ...], param: click.Parameter) -> None:
    if not getattr(param, "is_flag", False):
        assert isinstance(param.type, Checked | CheckedRange | Nearest), path


def test_there_are_parameters() -> None:
    assert len(PARAMETERS) > 250
    assert {path[0] for path, _ in PARAMETERS} == set(cli.list_commands(CONTEXT))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("filtre", "no command 'filtre' (did you mean filter?)"),
        ("filter a --lables b", "--lables"),
        ("filter a --labels b -o c --probe knm", "got 'knm' (did you mean knn?)"),
        ("filter a --labels b -o c --k 1_0", "whole number from 1 to 1,000,000,000, got '1_0'"),
        ("filter a --labels b -o c --seed -1", "whole number from 0 to 4,294,967,295, got '-1'"),
        ("filter a --labels b -o c --contamination nan", "auto, confident or a number in (0, 1)"),
        ("relabel a --labels b -o c --blend 1e999", "a number in (0, 1], got '1e999'"),
        ("extract a -m b -o c --layers mdi", "did you mean mid"),
        ("run --seeds 1,1", "different seeds"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_read(words: str, sentence: str) -> None:
    told = CliRunner().invoke(cli, words.split())
    assert told.exit_code == 2
    assert sentence in told.stderr.splitlines()[-1]
