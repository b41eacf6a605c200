"""Flags that ``run`` and ``saliency`` share, joined to a configuration."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from probekit.kinds import SettingError, shown
from probekit.safe import one_line

__all__ = ["read_pairs", "read_run_config", "refuse_failures"]

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
    from probekit.experiments.presets import read_preset
    from probekit.settings import in_file, read_settings

    content: dict[str, Any] = {}
    file: dict[str, Any] = {}
    if options["preset"] is not None:
        content |= read_preset(options["preset"])
    if options["config"] is not None:
        file = read_settings(options["config"])
        content |= file
    content |= _flags(options)
    for flag, path in (
        ("epochs", "finetune.epochs"),
        ("weak_lr", "weak_finetune.lr"),
        ("strong_lr", "strong_finetune.lr"),
        ("lora", "finetune.lora"),
    ):
        if options[flag] not in (None, False):
            _put(content, path, options[flag])
    for path, value in read_pairs("--set", options["settings"]).items():
        _put(content, path, value)
    if "task" not in content:
        raise click.UsageError("Name a --task, a --config or a --preset.")
    try:
        return make(content)
    except SettingError as error:
        # What stands in the file as it does in the whole is wrong there.
        there = error.place[:1] and error.place[0] in file
        if there and _at(content, error.place) is _at(file, error.place):
            raise in_file(error, options["config"]) from None
        raise


def read_pairs(flag: str, given: Sequence[str]) -> dict[str, Any]:
    """Read ``KEY=VALUE`` given to ``flag``; a value is YAML, and a later one of a key wins."""
    from probekit.errors import UsageError
    from probekit.safe import load_yaml

    found = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"{flag} takes KEY=VALUE, got {shown(pair)}.")
        found[key.strip()] = load_yaml(value, f"{flag} {one_line(key)}", error=UsageError)
    return found


def _flags(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that have a flag of their own."""
    content: dict[str, Any] = {n: _list(options[n]) for n in LISTS if options.get(n) is not None}
    content |= {n: options[n] for n in PLAIN if options.get(n) is not None}
    content |= {n: True for n in FLAGS if options.get(n)}
    if options.get("layer") is not None:
        content["layer"] = _number(options["layer"])
    if options["seeds"] is not None:
        content["seeds"] = _seeds(options["seeds"])
    return content


def _seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise click.UsageError(f"--seeds takes how many, or seeds as 0,1,2; got {text!r}.")
    numbers = [int(part) for part in parts]
    return numbers if "," in text else list(range(numbers[0]))


def refuse_failures(results: Mapping[str, Any], folder: Path) -> None:
    """End with exit code 1 where parts of an experiment failed; everything is written by then.

    Raises
    ------
    RunError
        With the list of what failed.
    """
    from probekit.errors import RunError

    failures = results["failures"]
    if failures:
        again = any(": failed: " in each for each in failures)
        error = RunError(
            f"{len(failures)} parts of {folder} failed or give one class only; all others are done"
            f"{', and the same command tries what failed again' if again else ''}:"
        )
        for failure in failures:
            error.add_note(f"  {failure}")
        raise error


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _put(content: dict[str, Any], path: str, value: Any) -> None:
    """Set a field, or a setting inside one: ``finetune.epochs``."""
    *outer, last = path.split(".")
    for name in outer:
        inner = content.get(name)
        content[name] = dict(inner) if isinstance(inner, dict) else {}
        content = content[name]
    content[last] = value


def _at(content: Any, place: Sequence[str]) -> Any:
    """What stands at a path; None where nothing does."""
    for name in place:
        content = content.get(name) if isinstance(content, dict) else None
    return content


def _number(text: str) -> str | int:
    return int(text) if re.fullmatch(r"-?[0-9]{1,4}", text.strip()) else text
