"""One self-contained HTML page: it opens from disk, loads nothing from elsewhere, and prints."""

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

RECORDED = "The file records this command as the one that made it; read it before you run it:"
SCRIPTS = ("rows.js", "table.js", "map.js", "start.js")


@dataclass(frozen=True)
class PageTable:
    """A table under a heading."""

    title: str
    table: Table
    folded: bool = False
    """Whether a long table is collapsed until it is clicked."""


@dataclass(frozen=True)
class Figure:
    """An image embedded in the page."""

    caption: str
    png: bytes

    @property
    def source(self) -> str:
        """A ``data:`` URL."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class RowsSection:
    """The table of rows and, if there is one, the map of their states."""

    payload: Mapping[str, Any]
    """What :func:`probekit.reports.rows.rows_payload` returned."""
    title: str = "Rows"
    notes: tuple[str, ...] = ()
    """Sentences above the table."""
    map_notes: tuple[str, ...] = ()
    """Sentences below the map."""


@dataclass(frozen=True)
class Page:
    """The content of a page; every string is text, never markup."""

    title: str
    kind: str
    """The kind of report, in a word or two."""
    facts: tuple[tuple[str, str], ...] = ()
    """Key figures at the top: name and value."""
    alarms: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences above everything else."""
    tables: tuple[PageTable, ...] = ()
    figures: tuple[Figure, ...] = ()
    rows: RowsSection | None = None
    commands: tuple[tuple[str, str], ...] = ()
    """How to reproduce the page: a sentence and shell commands."""
    provenance: tuple[tuple[str, str], ...] = field(default=())
    """Name and value."""


def render_page(page: Page) -> str:
    """Render the page as HTML with style, script, data and images inline; its policy forbids more.

    The template escapes all text; the rows are JSON, which the script only shows as text.
    """
    from markupsafe import Markup

    style, script = _asset("page.css"), _script()
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    # Our own files, and JSON without any character that could end its block, are not escaped.
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
    """A sentence and a command that compute a folder's results again from scratch."""
    name = folder.absolute().name if folder.is_absolute() else str(folder)
    return (
        "This computes everything again; run it in the folder where the first run was started, "
        "since paths in config.yaml are relative to it:",
        f"probekit {command} --config {shlex.quote(f'{name}/config.yaml')} -o again "
        "--steps again-steps",
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> tuple[tuple[str, str], ...]:
    """Flatten nested settings to pairs such as ``("probe.parameters.k", "30")``."""
    lines: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += flat(value, f"{prefix}{name}.")
        else:
            listed = isinstance(value, list | tuple)
            lines.append((f"{prefix}{name}", ", ".join(map(str, value)) if listed else str(value)))
    return tuple(lines)


def settings(results: Mapping[str, Any], *parts: str) -> tuple[tuple[str, str], ...]:
    """:func:`flat` of the named parts of the results."""
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
    """The parts of the page's script as one program that defines nothing global."""
    parts = "\n".join(_asset(name) for name in SCRIPTS)
    return f'"use strict";\n(() => {{\n{parts}}})();\n'


def _digest(content: str) -> str:
    """The source expression that admits a block with this content under the page's policy."""
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _json(payload: Mapping[str, Any]) -> str:
    """JSON that is safe inside a script block: no tag, comment or entity can begin in it."""
    text = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
