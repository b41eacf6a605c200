"""Print constraints that hold every dependency at the oldest version that pyproject.toml admits."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

INSTALLED = ("chess", "demo", "finetune", "report")
project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
added = [line for name in INSTALLED for line in extras[name]]
wanted = [*project["dependencies"], *added, "pandas>=2.2.3"]
own = project["name"]
sys.stdout.writelines(
    line.replace(">=", "==") + "\n" for line in wanted if not line.startswith(own)
)
