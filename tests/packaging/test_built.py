"""What is built installs into an empty environment, whole, and the demo runs from there."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command with an environment that knows nothing of this checkout."""
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "PIP_INDEX_URL", "PIP_FIND_LINKS", "PIP_CONFIG_FILE")
    env = {name: os.environ[name] for name in kept if name in os.environ}
    env |= {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel and an sdist, built from a copy of what git tracks: no link, no stray file."""
    copy, output = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if not (ROOT / name).is_dir() and (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--outdir", output, cwd=copy)
    return output


def modules(names: list[str], prefix: str = "") -> set[str]:
    return {n.removeprefix(prefix) for n in names if n.endswith((".py", ".yaml", ".html", ".js"))}


def test_wheel_and_sdist_are_well_formed(dist: Path) -> None:
    wheel, sdist = next(dist.glob("*.whl")), next(dist.glob("*.tar.gz"))
    scripts = Path(sys.executable).parent
    run(scripts / "check-wheel-contents", wheel, cwd=dist)
    run(scripts / "twine", "check", "--strict", wheel, sdist, cwd=dist)


def test_the_wheel_holds_every_module_and_the_sdist_makes_the_same(dist: Path) -> None:
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as archive:
        inside = {n for n in archive.namelist() if n.startswith("probekit/")}
    for folder, target in (("probekit", "probekit"), ("activations", "probekit/activations")):
        sources = {
            f"{target}/{path.relative_to(ROOT / folder)}"
            for path in (ROOT / folder).rglob("*.py")
            if not (ROOT / folder / path.relative_to(ROOT / folder).parts[0]).is_symlink()
        }
        assert sources <= inside
    assert any(n.endswith(".yaml") for n in inside)
    assert any("templates/" in n for n in inside)
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = archive.getnames()
    assert any(n.endswith("activations/store.py") for n in names)
    assert any(n.endswith("cli/main.py") for n in names)


def test_the_demo_runs_from_an_empty_environment(dist: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "env", cwd=tmp_path)
    python, probekit = tmp_path / "env/bin/python", tmp_path / "env/bin/probekit"
    constraints = ("--constraint", ROOT / "constraints.txt")
    run(python, "-m", "pip", "install", "--quiet", *constraints, "torch", cwd=tmp_path)
    wheel = next(dist.glob("*.whl"))
    run(python, "-m", "pip", "install", "--quiet", *constraints, f"{wheel}[demo]", cwd=tmp_path)
    where = run(python, "-c", "import probekit; print(probekit.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(tmp_path)
    assert "weak-labels" in run(probekit, "--help", cwd=tmp_path)
    printed = run(probekit, "demo", cwd=tmp_path)
    assert "ceiling" in printed.lower() or "ground truth" in printed.lower()
