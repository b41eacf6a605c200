"""Flags that ``run`` and ``saliency`` share, joined to a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

__all__ = ["read_run_config"]

# Flag -> field of the configuration; what is given on the command line overrules the file.
LISTS = ("task", "weak", "strong", "losses", "probes", "actions", "chain")
PLAIN = (
    "weak_on",
    "rounds",
    "supervisor_rows",
    "student_rows",
    "test_rows",
    "random_drops",
    "layers",
)
FLAGS = ("lm_first", "curves", "after_truth")
C = TypeVar("C")


def read_run_config(options: Mapping[str, Any], make: Callable[[Mapping[str, Any]], C]) -> C:
    """Join preset, file and flags, the later ones winning.

    ``options`` are those of the command line by name; ``make`` takes the fields' values.
    """
    from probekit.experiments.config import read_yaml
    from probekit.experiments.presets import read_preset

    content: dict[str, Any] = {}
    if options["preset"] is not None:
        content |= read_preset(options["preset"])
    if options["config"] is not None:
        content |= read_yaml(options["config"])
    content |= {n: _list(options[n]) for n in LISTS if options.get(n) is not None}
    content |= {n: options[n] for n in PLAIN if options.get(n) is not None}
    content |= {n: True for n in FLAGS if options.get(n)}
    if options.get("layer") is not None:
        content["layer"] = _number(options["layer"])
    if options["seeds"] is not None:
        content["seeds"] = _seeds(options["seeds"])
    for flag, path in (
        ("epochs", "finetune.epochs"),
        ("weak_lr", "weak_finetune.lr"),
        ("strong_lr", "strong_finetune.lr"),
    ):
        if options[flag] is not None:
            _put(content, path, options[flag])
    if options["lora"]:
        _put(content, "finetune.lora", value=True)
    for setting in options["settings"]:
        path, given, value = setting.partition("=")
        if not given:
            raise click.UsageError(f"--set takes KEY=VALUE, got {setting!r}.")
        _put(content, path.strip(), _yaml(value))
    if "task" not in content:
        raise click.UsageError("Name a --task, a --config or a --preset.")
    return make(content)


def _list(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _put(content: dict[str, Any], path: str, value: Any) -> None:
    """Set a field, or a setting inside one: ``finetune.epochs``."""
    *outer, last = path.split(".")
    for name in outer:
        inner = content.get(name)
        content[name] = dict(inner) if isinstance(inner, dict) else {}
        content = content[name]
    content[last] = value


def _yaml(text: str) -> Any:
    from probekit.errors import UsageError
    from probekit.safe import load_yaml

    return load_yaml(text, repr(text), error=UsageError)


def _number(text: str) -> str | int:
    return int(text) if text.lstrip("-").isdecimal() else text


def _seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise click.UsageError(f"--seeds takes how many, or seeds as 0,1,2; got {text!r}.")
    numbers = [int(part) for part in parts]
    return numbers if "," in text else list(range(numbers[0]))
