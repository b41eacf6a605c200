"""The audit in the terminal: one row at a time, one key each."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from string import ascii_lowercase, digits
from typing import TYPE_CHECKING

import click

from probekit.errors import UsageError
from probekit.safe import printable

if TYPE_CHECKING:
    from probekit.cleaning.review import AuditFile

__all__ = ["Screen", "class_keys", "wrapped"]

UNSURE = "?"
# Keys that are not for classes.
COMMANDS = {"?": "cannot tell", "u": "undo", "+": "whole text", "q": "stop"}
LINES = 14
WIDEST = 100


def class_keys(classes: Sequence[str]) -> dict[str, str]:
    """Give each class a key: its name where that is one, else its first letter free, else a number.

    Raises
    ------
    UsageError
        For more classes than keys.
    """
    keys: dict[str, str] = {}
    taken = set(COMMANDS)
    for name in classes:
        if len(name) == 1 and name.lower() not in taken and name.isprintable():
            keys[name] = name.lower()
            taken.add(keys[name])
    for name in classes:
        if name in keys:
            continue
        letters = [c for c in name.lower() if c in ascii_lowercase + digits]
        free = [c for c in [*letters, *digits[1:], *ascii_lowercase] if c not in taken]
        if not free:
            raise UsageError(
                f"There are {len(classes)} classes and not so many keys; add --no-ask and fill in "
                "the CSV."
            )
        keys[name] = free[0]
        taken.add(free[0])
    return {keys[name]: name for name in classes}


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` characters; lines of the text stay lines."""
    lines: list[str] = []
    for line in printable(text).expandtabs(4).split("\n"):
        lines += textwrap.wrap(line, width, break_long_words=True) or [""]
    return lines


class Screen:
    """Asks about rows until all are answered or the reader stops.

    Parameters
    ----------
    file
        Where answers go, one by one.
    texts
        Id -> text.
    classes
        What an answer may be.
    settled
        Tells whether the answers so far settle it.
    """

    def __init__(
        self,
        file: AuditFile,
        texts: Mapping[str, str],
        classes: Sequence[str],
        settled: Callable[[], bool],
    ) -> None:
        self.file, self.texts, self.settled = file, texts, settled
        self.keys = class_keys(classes)

    def run(self, ids: Sequence[str]) -> None:
        """Ask about ``ids`` in their order, those already answered left out."""
        done = [name for name in self.file.answers if name in set(ids)]
        if done:
            click.echo(f"{len(done)} of {len(ids)} are answered already.", err=True)
        click.echo(self._help(), err=True)
        was_settled = self.settled()
        while True:
            waiting = [name for name in ids if name not in self.file.answers]
            if not waiting:
                return
            self._show(waiting[0], len(ids) - len(waiting) + 1, len(ids))
            key = self._key(waiting[0], can_undo=bool(done))
            if key == "q":
                click.echo(f"Stopped; {self.file.path} keeps your answers.", err=True)
                return
            if key == "u":
                last = done.pop()
                self.file.answer(last, None)
                click.echo("taken back", err=True)
                continue
            answer = self.keys.get(key, UNSURE)
            self.file.answer(waiting[0], answer)
            done.append(waiting[0])
            click.echo("cannot tell" if answer == UNSURE else printable(answer), err=True)
            now = self.settled()
            if now and not was_settled and len(waiting) > 1:
                click.secho(
                    "These answers settle it: q stops here, or go on.", fg="green", err=True
                )
            was_settled = now

    def _help(self) -> str:
        classes = "   ".join(f"{key} = {printable(name)}" for key, name in self.keys.items())
        return f"Keys: {classes}   " + "   ".join(f"{k} {what}" for k, what in COMMANDS.items())

    def _show(self, name: str, number: int, total: int) -> None:
        width = min(shutil.get_terminal_size().columns, WIDEST) - 2
        title = f" {number} of {total} "
        click.echo(err=True)
        click.secho(f"──{title}{'─' * max(0, width - len(title))}", dim=True, err=True)
        lines = wrapped(self.texts[name], max(width - 2, 20))
        hidden = max(0, len(lines) - LINES)
        for line in lines[: len(lines) - hidden]:
            click.echo(f"  {line}".rstrip(), err=True)
        if hidden:
            click.secho(f"  … {hidden} more lines: +", dim=True, err=True)

    def _key(self, name: str, *, can_undo: bool) -> str:
        """Wait for a key that means something here."""
        while True:
            click.echo("> ", nl=False, err=True)
            try:
                key = click.getchar()
            except (KeyboardInterrupt, EOFError):
                key = ""
            if key in ("", "\x03", "\x04"):  # the end of input, Ctrl-C, Ctrl-D
                click.echo(err=True)
                return "q"
            key = key if key in self.keys else key.lower()
            if key == "+":
                click.echo(err=True)
                for line in wrapped(self.texts[name], WIDEST - 4):
                    click.echo(f"  {line}".rstrip(), err=True)
            elif key == "u" and not can_undo:
                click.echo("nothing to undo", err=True)
            elif key in self.keys or key in COMMANDS:
                return key
            else:
                click.echo(self._help(), err=True)
