"""Complete configurations by name, one YAML file each: published experiments, and the demo."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from probekit.errors import UsageError, did_you_mean
from probekit.safe import load_yaml

__all__ = ["preset_names", "read_preset"]


def preset_names() -> list[str]:
    """Return the names of all presets, sorted."""
    listed = files("probekit.experiments.presets").iterdir()
    return sorted(each.name[:-5] for each in listed if each.name.endswith(".yaml"))


def read_preset(name: str) -> dict[str, Any]:
    """Read the fields of a preset.

    Raises
    ------
    UsageError
        If there is none of that name.
    """
    names = preset_names()
    if name not in names:
        raise UsageError(
            f"There is no preset {name!r}{did_you_mean(name, names)}; there are {', '.join(names)}."
        )
    text = (files("probekit.experiments.presets") / f"{name}.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = load_yaml(text, name)
    return content
