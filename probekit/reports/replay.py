"""The command that makes verdicts again, from what their provenance says."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from probekit.probes.registry import spec_of_class
from probekit.safe import one_line

__all__ = ["RECORDED", "recorded_command", "replay_command"]

RECORDED = "As the file records it, this made it; read it before you run it:"


def replay_command(provenance: Mapping[str, Any], output: str = "verdicts.parquet") -> str | None:
    """Command line that repeats these verdicts, run where store and labels lie.

    None where none does: verdicts made from Python with something that has no option, dropped at
    random, or re-admitted by a student.
    """
    try:
        return shlex.join(_arguments(provenance, output))
    except (LookupError, TypeError, ValueError):
        return None


def recorded_command(said: Any, command: str) -> str | None:
    """A command line that a file brings along, every word quoted: it can start nothing else.

    None where it is no plain ``probekit COMMAND …`` on one line.
    """
    if not isinstance(said, str) or one_line(said) != said:
        return None
    try:
        words = shlex.split(said)
    except ValueError:
        return None
    return shlex.join(words) if words[:2] == ["probekit", command] else None


def _file(name: str) -> str:
    """A file's name that is no option and one line; else ValueError."""
    if one_line(name) != name:
        raise ValueError(name)
    return f"./{name}" if name.startswith("-") else name


def _arguments(said: Mapping[str, Any], output: str) -> list[str]:
    action = said["action"]
    if action not in ("filter", "relabel") or "readmitted" in said:
        raise ValueError(action)
    store, labels = (_file(said[of][key]) for of, key in (("store", "name"), ("labels", "source")))
    arguments = ["probekit", action, store, "--labels", labels]
    layers = said["layers"] if "layers" in said else [said["layer"]]
    if len(layers) == 1:  # of several, the probe chooses them itself
        arguments += ["--layer", str(layers[0])]
    spec = spec_of_class(said["probe"]["name"])
    parameters = said["probe"]["parameters"]
    # These two have no option of their own; a preset sets them, what else it sets stands behind it.
    if parameters.get("self_neighbor") or parameters.get("standardize") is False:
        arguments += ["--preset", "eleuther"]
    elif said["in_sample"]:
        arguments.append("--in-sample")
    arguments += ["--probe", spec.name]
    for option in spec.options:
        arguments += _option(option, parameters.get(option))
    arguments += _amount(said, parameters)
    return [*arguments, "--seed", str(said["seed"]), "-o", output]


def _option(name: str, value: Any) -> Iterator[str]:
    if name == "fit_intercept":
        yield "--intercept" if value else "--no-intercept"
    elif value is True:
        yield _flag(name)
    elif value is not None and value is not False:
        yield from (_flag("folds" if name == "n_folds" else name), _number(value))


def _amount(said: Mapping[str, Any], parameters: Mapping[str, Any]) -> Iterator[str]:
    """How many rows are dropped, or how labels are made."""
    for name in ("threshold", "blend", "only_above", "contamination"):
        value = said.get(name, parameters.get(name))  # TopoFilter has its own contamination
        if value is not None:
            yield from (_flag(name), _number(value))
    if said.get("form", "").startswith("hard") and "threshold" not in said:
        yield "--hard"
    if said.get("per_class") is False or parameters.get("per_class") is False:
        yield "--global"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _number(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)
