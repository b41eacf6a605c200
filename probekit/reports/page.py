"""One self-contained HTML page: opens from disk, reads nothing from anywhere, prints."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.files import atomic_write
from probekit.reports.tables import Table

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = [
    "RECORDED",
    "Figure",
    "Page",
    "PageTable",
    "RowsSection",
    "flat",
    "folder_command",
    "render_page",
    "settings",
    "write_page",
]

RECORDED = "As the file records it, this made it; read it before you run it:"
SCRIPTS = ("rows.js", "table.js", "map.js", "start.js")


@dataclass(frozen=True)
class PageTable:
    """A table below a heading."""

    title: str
    table: Table
    folded: bool = False
    """Whether it is opened by a click; for long ones."""


@dataclass(frozen=True)
class Figure:
    """A picture that is part of the page."""

    caption: str
    png: bytes

    @property
    def source(self) -> str:
        """A ``data:`` address."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class RowsSection:
    """The table of rows and, where there is one, the map of their states."""

    payload: Mapping[str, Any]
    """What :func:`probekit.reports.rows.rows_payload` returned."""
    title: str = "Rows"
    notes: tuple[str, ...] = ()
    """Sentences above the table."""
    map_notes: tuple[str, ...] = ()
    """Sentences below the map."""


@dataclass(frozen=True)
class Page:
    """What a page shows; every string is text, never markup."""

    title: str
    kind: str
    """What it is a report of, in a word or two."""
    facts: tuple[tuple[str, str], ...] = ()
    """Figures at the top: name and value."""
    alarms: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences before all else."""
    tables: tuple[PageTable, ...] = ()
    figures: tuple[Figure, ...] = ()
    rows: RowsSection | None = None
    commands: tuple[tuple[str, str], ...] = ()
    """What to run to get this again: a sentence and the lines of a shell."""
    provenance: tuple[tuple[str, str], ...] = field(default=())
    """Name and value."""


def render_page(page: Page) -> str:
    """The page as HTML: style, script, data and pictures are in it, and its policy forbids more.

    Text is escaped by the template; the rows' data are JSON that the script shows as text only.
    """
    from markupsafe import Markup

    style, script = _asset("page.css"), _script()
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    # Our own files, and JSON without any character that could end its block, go in as they are.
    return (
        _environment()
        .get_template("page.html")
        .render(
            page=page,
            policy=policy,
            style=Markup(style),  # noqa: S704
            script=Markup(script),  # noqa: S704
            data=None if page.rows is None else Markup(_json(page.rows.payload)),  # noqa: S704
        )
    )


def write_page(page: Page, path: str | Path) -> None:
    """Write :func:`render_page`; a lone surrogate, which UTF-8 cannot hold, becomes ``?``."""
    text = render_page(page)
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", "replace"))


def folder_command(command: str, folder: Path) -> tuple[str, str]:
    """A sentence and a command that compute a folder's results again, from nothing."""
    here = folder.absolute().name if folder.is_absolute() else str(folder)
    return (
        "Run where it was started (paths in config.yaml are from there), this computes all of it "
        "again:",
        f"probekit {command} --config {shlex.quote(f'{here}/config.yaml')} -o again "
        "--steps again-steps",
    )


def flat(values: Mapping[str, Any], before: str = "") -> tuple[tuple[str, str], ...]:
    """Nested settings as lines: ``probe.parameters.k`` and its value."""
    lines: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += flat(value, f"{before}{name}.")
        else:
            listed = isinstance(value, list | tuple)
            lines.append((f"{before}{name}", ", ".join(map(str, value)) if listed else str(value)))
    return tuple(lines)


def settings(results: Mapping[str, Any], *parts: str) -> tuple[tuple[str, str], ...]:
    """:func:`flat` of these parts of the results."""
    return flat({part: results.get(part, {}) for part in parts})


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("probekit.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _asset(name: str) -> str:
    from importlib.resources import files

    return files("probekit.reports").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _script() -> str:
    """The parts of the page's script as one program that names nothing outside itself."""
    parts = "\n".join(_asset(name) for name in SCRIPTS)
    return f'"use strict";\n(() => {{\n{parts}}})();\n'


def _digest(content: str) -> str:
    """How the policy names a block whose text is ``content``."""
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _json(payload: Mapping[str, Any]) -> str:
    """JSON that is safe inside a script block: no tag, comment or entity can begin in it."""
    text = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
