"""Every wrong command line of the table ends in one sentence and leaves nothing behind."""

from __future__ import annotations

import contextlib
import shlex
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from probekit.cli.main import COMMANDS, cli

sys.path.insert(0, str(Path(__file__).parent))

import seeds
from bad_inputs import BAD_FILES, BAD_INPUTS

CASES = [(base, more, said) for base, rest in BAD_INPUTS.items() for more, said in rest]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small good file of each kind that the table names."""
    folder = tmp_path_factory.mktemp("world")
    with contextlib.chdir(folder):
        seeds._tables()
        seeds._model()
        for name, text in BAD_FILES.items():
            Path(name).write_text(text)
        extract = ("extract", "rows.jsonl", "-m", "model", "--layers", "all", "-o", "acts.h5")
        seeds.probekit(*extract)
        chosen = ("acts.h5", "--labels", "weak.jsonl", "--layer", "2")
        seeds.probekit("filter", *chosen, "--probe", "knn", "--k", "5", "-o", "verdicts.parquet")
        short = ("-m", "model", "--max-steps", "1", "--labels", "weak.jsonl", "-o", "student")
        seeds.probekit("finetune", "rows.jsonl", *short)
        seeds.probekit("predict", "rows.jsonl", "-m", "student/model", "-o", "predicted.parquet")
    return folder


@pytest.fixture(autouse=True)
def a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROBEKIT_TRACEBACK", raising=False)


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        found[str(path.relative_to(folder))] = (status.st_size * path.is_file(), status.st_mtime_ns)
    return found


def without_folders(found: dict[str, tuple[int, int]], folder: Path) -> dict[str, tuple[int, int]]:
    """Times of folders change with locks that come and go."""
    return {name: each for name, each in found.items() if not (folder / name).is_dir()}


@pytest.mark.parametrize(
    ("base", "more", "said"),
    CASES,
    ids=[f"{i}-{more[:40]}" for i, (_, more, _) in enumerate(CASES)],
)
def test_one_sentence_and_nothing_left(
    base: str, more: str, said: str, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    before = contents(world)
    result = CliRunner().invoke(cli, shlex.split(f"{base} {more}"))
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    sentences = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(sentences) == 1, result.stderr
    assert result.stderr.rstrip().endswith(sentences[0])
    assert said in sentences[0]
    after = contents(world)
    assert set(after) == set(before)
    assert without_folders(after, world) == without_folders(before, world)


def test_the_table_is_long_and_covers_every_command() -> None:
    assert len(CASES) >= 300
    assert len(set(CASES)) == len(CASES)
    assert {f"{base} {more}".split()[0] for base, more, _ in CASES} >= set(COMMANDS)


def test_good_command_lines_are_good(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: what the table adds to is refused for what it adds."""
    monkeypatch.chdir(world)
    quick = [base for base in BAD_INPUTS if base.split(" ")[0] in ("filter", "predict", "review")]
    assert len(quick) == 3
    for base in quick:
        result = CliRunner().invoke(cli, shlex.split(base))
        assert result.exit_code == 0, result.output
        for path in (*world.glob("new*"), *world.glob(".new*")):
            path.unlink()
