"""Options and commands that messages name exist: every string of the package against click."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from probekit.cli.main import cli

ROOT = Path(__file__).parents[2]
SOURCES = [
    path for name in ("cli", "activations", "probekit") for path in (ROOT / name).rglob("*.py")
]
# Of other programs: ours never begin so.
OTHERS = {
    "--repo-type": "hf download",
    "--local-dir": "hf download",
    "--force-reinstall": "pip install",
    "--no-deps": "pip install",
    "--head": "ray start",
    "--hidden-legend": "a colour of the page's style",
}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
# As something to type: marked as code, on a line of its own, or after "with" and the like.
COMMAND = re.compile(
    r"(?:`|^[ ]*|\bwith |: )probekit ([a-z][a-z-]*)((?: (?:list|export|info))?)", flags=re.M
)


def commands() -> dict[str, click.Command]:
    """Name of every command, of the nested ones too (``tasks list``), to the command."""
    context, by_name = click.Context(cli), {}
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        by_name[name] = command
        if isinstance(command, click.Group):
            by_name |= {f"{name} {sub}": each for sub, each in command.commands.items()}
    return by_name


def options_of(command: click.Command) -> set[str]:
    named = {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)}
    return named | {"--help", "-h", "--version"}


COMMANDS = commands()
OPTIONS = set().union(*map(options_of, COMMANDS.values()))


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every string in a file; what an f-string computes is a blank word."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [p.value if isinstance(p, ast.Constant) else "X" for p in node.values]
            yield node.lineno, "".join(map(str, parts))
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in inside
        ):
            yield node.lineno, node.value


def wrong(text: str) -> list[str]:
    """Options and commands that a text names and that are none."""
    unknown = [o for o in OPTION.findall(text) if o not in OPTIONS and o not in OTHERS]
    for name, sub in COMMAND.findall(text):
        if name not in COMMANDS:
            unknown.append(f"probekit {name}")
        elif sub and name == "tasks" and name + sub not in COMMANDS:
            unknown.append(f"probekit {name}{sub}")
    return unknown


PAGES = [
    "README.md",
    "docs/decide.md",
    "docs/students.md",
    *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/how-to/*.md"))),
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_messages_name_exists(path: Path) -> None:
    problems = [
        f"{path.name}:{line}: {each}" for line, text in strings(path) for each in wrong(text)
    ]
    assert not problems


@pytest.mark.parametrize("name", PAGES)
def test_what_pages_name_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, flags=re.M | re.S)
    shown = re.findall(r"^probekit .*$", "\n".join(blocks), flags=re.M)
    assert [each for line in shown for each in wrong(line)] == []


def test_what_does_not_exist_is_found() -> None:
    assert wrong("pass --only-labeled to leave them out") == ["--only-labeled"]
    assert wrong("make it with `probekit extrat x`") == ["probekit extrat"]
    assert wrong("make it with `probekit extract x --layers all`") == []
    assert wrong("`probekit tasks info`") == ["probekit tasks info"]


def examples() -> Iterator[tuple[str, str]]:
    for name, command in COMMANDS.items():
        match = re.search(r"Example:\s*(.*)", command.help or "", flags=re.S)
        if match:
            for line in match[1].replace("\n", " ").split("&&"):
                yield name, line.strip()


@pytest.mark.parametrize(("name", "line"), list(examples()))
def test_examples_have_options_of_their_own_command(name: str, line: str) -> None:
    words = shlex.split(line)
    assert words[0] == "probekit"
    called = next(c for n in (2, 1) if (c := " ".join(words[1 : 1 + n])) in COMMANDS)
    flags = {word.partition("=")[0] for word in words if word.startswith("-") and len(word) > 1}
    assert flags <= options_of(COMMANDS[called])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_options(shell: str) -> None:
    printed = CliRunner().invoke(cli, ["completion", shell])
    assert printed.exit_code == 0, printed.output
    assert "_PROBEKIT_COMPLETE" in printed.stdout
    complete = ShellComplete(cli, {}, "probekit", "_PROBEKIT_COMPLETE")
    assert [item.value for item in complete.get_completions([], "fil")] == ["filter"]
    flags = [item.value for item in complete.get_completions(["filter"], "--contam")]
    assert flags == ["--contamination"]


def test_help_lists_options_by_section() -> None:
    text = CliRunner().invoke(cli, ["filter", "--help"]).stdout
    places = [text.index(f"\n{title}:\n") for title in ("Input", "Probe", "Amount", "Output")]
    assert places == sorted(places)
    assert places[1] < text.index("--k-cc") < places[2] < text.index("--rank") < places[3]
    assert text.index("--output") > places[3]
    assert text.index("--help") > places[3]
    plain = CliRunner().invoke(cli, ["info", "--help"]).stdout
    assert "\nInput:" not in plain
