"""The examples in the docstrings of the probes print what they say."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

from probekit import probes

MODULES = [
    f"probekit.probes.{path.stem}"
    for path in sorted(Path(probes.__file__).parent.glob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]
ESTIMATORS = [name for name in probes.__all__ if name.endswith("Probe")]


@pytest.mark.parametrize("module", MODULES)
def test_examples_print_what_they_say(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_has_an_example_and_a_type_for_each_parameter(name):
    estimator = getattr(probes, name)
    text = inspect.getdoc(estimator)
    assert ">>>" in text
    assert "See Also" in text
    for parameter in inspect.signature(estimator).parameters:
        lines = [line.partition(" : ") for line in text.splitlines() if " : " in line]
        assert [kind for names, _, kind in lines if parameter in names.split(", ")], parameter


def test_a_wrong_example_fails():
    def wrong() -> None:
        """Examples.

        >>> 1 + 1
        3
        """

    (test,) = doctest.DocTestFinder().find(wrong, globs={})
    assert doctest.DocTestRunner().run(test, out=lambda _: None).failed == 1
