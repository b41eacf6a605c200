"""Configurations: frozen pydantic dataclasses whose errors are one sentence each.

A field is ``Annotated[float, Number(0)]`` (probekit.kinds) or a plain type, which is then strict:
``"false"`` is not a boolean and ``"5"`` is not a number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from probekit.errors import DataError, UsageError, did_you_mean
from probekit.kinds import SettingError, shown
from probekit.safe import load_yaml, one_line, read_text

__all__ = [
    "configuration",
    "from_mapping",
    "in_file",
    "read_settings",
    "within",
]

C = TypeVar("C")


@dataclass_transform(frozen_default=True)
def configuration(cls: type[C]) -> type[C]:
    """Make a class a frozen dataclass whose constructor checks its fields.

    The constructor and ``dataclasses.replace`` raise UsageError for the first wrong field.
    """
    rules = ConfigDict(arbitrary_types_allowed=True, strict=True, extra="forbid")
    checked: Any = pydantic_dataclass(frozen=True, config=rules)(cls)
    construct: Callable[..., None] = checked.__init__

    def __init__(self: Any, *args: Any, **values: Any) -> None:  # noqa: N807 (it replaces that)
        try:
            construct(self, *args, **values)
        except ValidationError as error:
            raise _sentence(error, [each.name for each in fields(checked)]) from None

    checked.__init__ = wraps(construct)(__init__)
    result: type[C] = checked
    return result


def from_mapping(cls: type[C], content: Mapping[str, Any]) -> C:
    """Make a configuration from settings by name.

    Raises
    ------
    UsageError
        If a name is unknown (the message has the nearest known one), or a value is wrong.
    """
    if not isinstance(content, Mapping):
        raise UsageError(f"Settings are a mapping (name: value), got {shown(content)}.")
    names = [each.name for each in fields(cls)]  # type: ignore[arg-type]
    for name in content:
        if name not in names:
            raise SettingError(f" is not a setting{did_you_mean(name, names)}.", (str(name),))
    return cls(**content)


def within(error: UsageError, *outer: str) -> SettingError:
    """The same error, for a setting inside the settings ``outer``."""
    if isinstance(error, SettingError):
        return SettingError(error.reason, (*outer, *error.place))
    return SettingError(f": {error}", outer)


def read_settings(path: Path) -> dict[str, Any]:
    """Read a mapping of settings from a YAML file.

    Raises
    ------
    DataError
        If it is missing, not YAML, or not a mapping.
    """
    content = load_yaml(read_text(path), str(path))
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise DataError(f"{path} has no fields; write them as `name: value`.")
    return content


def in_file(error: SettingError, path: Path) -> SettingError:
    """The same error, with the file and the line of the setting in it."""
    line = _line(path, error.place)
    return SettingError(
        error.reason, error.place, f"{path}{'' if line is None else f', line {line}'}: "
    )


def _line(path: Path, place: Sequence[str]) -> int | None:
    """Line, from 1, of the innermost part of ``place`` that the file has."""
    import yaml

    node, line = yaml.compose(read_text(path), yaml.SafeLoader), None
    for name in place:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        matches = [(key, value) for key, value in pairs if key.value == name]
        if not matches:
            break
        key, node = matches[-1]
        line = key.start_mark.line + 1
    return line


def _sentence(error: ValidationError, names: Sequence[str]) -> UsageError:
    """The first error of pydantic, as one sentence."""
    first = error.errors(include_url=False)[0]
    place = [str(part) for part in first["loc"]]
    reason = first.get("ctx", {}).get("error")
    if isinstance(reason, UsageError):  # raised by __post_init__
        return reason
    kind, name = first["type"], place[0] if place else ""
    if kind == "unexpected_keyword_argument":
        return SettingError(f" is not a setting{did_you_mean(name, names)}.", place)
    if kind.startswith("missing"):
        return SettingError(" is missing; it has no default.", place)
    words = str(reason) if reason is not None else _allowed(first["msg"])
    return SettingError(f" is {words}, got {shown(first['input'])}.", place[:1])


def _allowed(message: str) -> str:
    """Turn pydantic's "Input should be a valid boolean" into "true or false"."""
    words = message.removeprefix("Input should be ").replace("valid ", "")
    plain = {"a boolean": "true or false", "a string": "text", "a integer": "a whole number"}
    return plain.get(words, one_line(words))
