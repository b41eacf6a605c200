"""Workflows are well formed and call nothing but make targets, which run on any machine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(
    path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"
)
TARGETS = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))


def check_schema(schema: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Hold a file against a schema that comes with check-jsonschema."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def steps_of(path: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def test_there_are_workflows_and_forms() -> None:
    assert {path.stem for path in WORKFLOWS} == {"docs", "release", "tests"}
    assert {path.stem for path in FORMS} == {"bug", "idea"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_follow_the_schema(path: Path, tmp_path: Path) -> None:
    checked = check_schema("vendor.github-workflows", path)
    assert checked.returncode == 0, checked.stdout
    broken = tmp_path / "broken.yml"  # the control: a job that runs nowhere
    broken.write_text(path.read_text().replace("runs-on", "runs-at"))
    assert check_schema("vendor.github-workflows", broken).returncode != 0


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_make_targets_that_exist(path: Path) -> None:
    for step in steps_of(path):
        if "run" in step:
            program, *words = step["run"].split()
            assert program == "make"
            assert {word for word in words if "=" not in word} <= TARGETS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_may_write_nothing_unless_a_job_needs_it(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert content["permissions"] == {"contents": "read"}
    for name, job in content["jobs"].items():
        assert "permissions" not in job or name == "publish"
    assert "secrets." not in path.read_text()


def test_the_matrix_starts_at_the_oldest_python() -> None:
    content = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())
    oldest = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert oldest is not None
    assert content["jobs"]["linux"]["strategy"]["matrix"]["python"][0] == oldest[1]
    assert content["jobs"]["lowest"]["steps"][1]["with"]["python-version"] == oldest[1]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_ask_something(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert fields
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)
