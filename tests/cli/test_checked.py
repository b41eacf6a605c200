"""Every option of every command is checked while the command line is read."""

from __future__ import annotations

import re
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
        ("filter a --labels b -o c --probe knm", "(did you mean knn?), got 'knm'"),
        ("filter a --labels b -o c --k 1_0", "whole number from 1 to 1,000,000,000, got '1_0'"),
        ("filter a --labels b -o c --seed -1", "whole number from 0 to 4,294,967,295, got '-1'"),
        ("filter a --labels b -o c --contamination nan", "auto, confident or a number in (0, 1)"),
        ("relabel a --labels b -o c --blend 1e999", "a number in (0, 1], got '1e999'"),
        ("extract a -m b -o c --layers mdi", "did you mean mid"),
        ("run --seeds 1,1", "different seeds"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_read(words: str, sentence: str) -> None:
    result = CliRunner().invoke(cli, words.split())
    assert result.exit_code == 2
    assert sentence in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "filter a --labels b -o c --truth-column d",
            "--truth-column does nothing without --truth",
        ),
        ("filter a --labels b -o c --rows d", "--rows does nothing without --write-data"),
        ("filter a --labels b -o c --global --threshold 0.5", "--global does nothing with"),
        ("filter a --labels b -o c.parquet --probe logreg --k 3", "'logreg' has no --k"),
        ("filter a --labels b -o c.parquet --probe knn --no-intercept", "has no --no-intercept"),
        ("relabel a --labels b -o c --rows d", "--rows does nothing without --write-data"),
        ("finetune a -m b -o c --lora-rank 4", "--lora-rank does nothing without --lora"),
        ("finetune a -m b -o c --set lora_alpha=4", "lora_alpha does nothing without --lora"),
        ("finetune a -m b -o c --patience 4", "--patience does nothing without --early-stop"),
        ("finetune a -m b -o c --objective lm --loss kl", "--loss does nothing with this"),
        (
            "finetune a -m b -o c --objective lm --labels d",
            "--labels does nothing with --objective",
        ),
        ("finetune a -m b -o c --truth d", "--truth does nothing without --predict"),
        ("review a -o b --merge c --acts d --rows e", "--acts, --rows do nothing with --merge"),
        ("review a -o b --no-text --rows e", "--rows does nothing with --no-text"),
        ("saliency --task a --losses xent,kl", "--losses does nothing beyond the first loss"),
        ("saliency --task a --set rounds=2", "--set rounds does nothing in saliency"),
    ],
)
def test_what_does_nothing_is_refused(words: str, sentence: str) -> None:
    result = CliRunner().invoke(cli, words.split())
    assert result.exit_code == 2
    assert sentence in result.stderr.splitlines()[-1]


def test_a_default_does_no_harm() -> None:
    """The same options, not typed: what is refused then is the file that is not there."""
    result = CliRunner().invoke(
        cli, ["sweep", "a", "--labels", "b", "-o", "c.parquet", "--probes", "knn"]
    )
    assert "a does not exist" in result.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("sweep a --labels b -o c.parquet --probes logreg --k 5", "--k does nothing without knn"),
        ("sweep a --labels b -o c.parquet --probes knn --no-standardize", "--no-standardize does"),
        ("sweep a --labels b -o c.parquet --probes knn --zeta 0.5", "--zeta does nothing without"),
        ("finetune a -m b -o c --epochs 1 --max-steps 9", "--epochs does nothing with --max-steps"),
    ],
)
def test_what_does_nothing_is_told(words: str, sentence: str) -> None:
    result = CliRunner().invoke(cli, words.split())
    assert f"Note: {sentence}" in result.stderr.splitlines()[0]
    assert re.search("does not exist|neither a file", result.stderr.splitlines()[-1])
