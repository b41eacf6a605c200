"""Write docs/cli.md from every command's ``--help``."""

from __future__ import annotations

from pathlib import Path

import click

from probekit.cli.main import cli

TARGET = Path(__file__).parent / "cli.md"
WIDTH = 80  # what a block shows beside the site's two columns of links
HEAD = """# Command line

Written by `make docs` from `--help`; a test checks that it is up to date.
"""


def _pages(command: click.Command, name: str, parent: click.Context | None = None) -> list[str]:
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    path = context.command_path
    pages = [f"## `{path}`\n\n```text\n{command.get_help(context).rstrip()}\n```\n"]
    if isinstance(command, click.Group):
        for sub in command.list_commands(context):
            child = command.get_command(context, sub)
            assert child is not None
            pages += _pages(child, sub, context)
    return pages


def render() -> str:
    """Return the page's text."""
    return "\n".join([HEAD, *_pages(cli, "probekit")])


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
