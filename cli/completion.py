"""``probekit completion``: the script that completes commands and options in a shell."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict, Unpack

import click
from click.shell_completion import get_completion_class

from probekit.cli.options import SectionedCommand, argument, options_of

__all__ = ["command"]

SHELLS = ("bash", "zsh", "fish")


class CompletionOptions(TypedDict):
    """Options of ``probekit completion``."""

    shell: Annotated[
        Literal["bash", "zsh", "fish"], argument("The shell.", type=click.Choice(SHELLS))
    ]


@click.command("completion", cls=SectionedCommand)
@options_of(CompletionOptions)
def command(**options: Unpack[CompletionOptions]) -> None:
    """Print the script that completes commands in a shell.

    For bash: add `eval "$(probekit completion bash)"` to ~/.bashrc. For zsh: the same with zsh, in
    ~/.zshrc. For fish: probekit completion fish > ~/.config/fish/completions/probekit.fish

    Example: probekit completion bash
    """
    kind = get_completion_class(options["shell"])
    assert kind is not None
    root = click.get_current_context().find_root().command
    click.echo(kind(root, {}, "probekit", "_PROBEKIT_COMPLETE").source())
