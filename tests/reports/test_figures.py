"""Figures need no display and no backend."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

CODE = "from probekit.reports.figures import blank, png; print(len(png(blank(2, 1))))"


@pytest.mark.skipif(find_spec("matplotlib_inline") is not None, reason="it is installed here")
def test_a_notebooks_backend_that_is_not_installed_here_is_no_hindrance() -> None:
    """A command that a notebook starts inherits ``MPLBACKEND`` from another environment."""
    env = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
    plain = [sys.executable, "-c", "import matplotlib"]  # the control: by itself it fails
    failed = subprocess.run(plain, env=env, capture_output=True, text=True, check=False)
    assert "matplotlib_inline" in failed.stderr
    assert failed.returncode != 0
