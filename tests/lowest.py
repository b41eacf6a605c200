"""Print constraints that hold every dependency at the oldest version that pyproject.toml admits."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
wanted = [*project["dependencies"], *project["optional-dependencies"]["demo"], "pandas>=2.2.3"]
sys.stdout.writelines(line.replace(">=", "==") + "\n" for line in wanted)
