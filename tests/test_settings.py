"""Settings: what each kind takes and refuses, and how a configuration says so."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.errors import ProbekitError, UsageError
from probekit.experiments.config import RunConfig, read_config
from probekit.kinds import (
    ACTION_KINDS,
    KINDS,
    Choice,
    Flag,
    Kind,
    Layers,
    Listed,
    Maybe,
    Number,
    Settings,
    Text,
    Whole,
    Words,
    check,
)
from probekit.settings import configuration, from_mapping
from probekit.students.config import FinetuneConfig

RUN = {"task": "t", "weak": "a", "strong": "b"}
KIND_LIST: list[Kind] = [
    *(Whole(0, 5), Number(0, 1), Number(), Flag(), Text(), Choice("a", "b"), Settings(), Layers()),
    *(Words("auto", other=Number(0)), Maybe(Whole(1)), Listed(Whole(0), alone=True)),
]
# Everything that YAML, JSON or a caller may bring.
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**300, 10**5000)
    | st.floats()
    | st.text()
    | st.binary()
    | st.sampled_from(
        [np.float32(1), np.int64(3), np.bool_(True), np.zeros(2), Path("a"), object()]
    ),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=5,
)


@configuration
class Small:
    """A configuration of this test."""

    lr: Annotated[float | None, Maybe(Number(0, above=True))] = None
    shuffle: bool = False


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Whole(0, 5), [0, 5, np.int64(3)], [-1, 6, True, 1.0, "1", None, math.nan, 10**400]),
        (Number(0, 1, above=True), [1, 0.5, np.float32(0.5)], [0, 2, "1e-2", True, math.nan]),
        (Number(), [0, -1e300], [math.inf, -math.inf, math.nan, 10**400, "0", None]),
        (Flag(), [True, np.bool_(False)], ["false", "", 0, 1, None, []]),
        (Text(), ["a"], ["", " ", "a\0", "a" * 5000, 5, None]),
        (Choice("a", "b"), ["a"], ["A", "", None, 0, ["a"]]),
        (Words("auto", other=Number(0)), ["auto", 0], ["Auto", -1, "1"]),
        (Maybe(Whole(1)), [None, 1], [0, "None"]),
        (Listed(Whole(0)), [[], [1, 2], (3,), range(3)], [1, "1", [1, 1], [True], {1: 2}]),
        (Listed(Text(), alone=True), ["a", ["a"]], [["a", ""], {}, None]),
        (
            Layers(),
            ["mid", "1, 3-6,-1", 3, [1, 2]],
            ["", "1,,2", "٣", "9" * 5000, True, 1.5, [], None],
        ),
        (Settings(), [{}, {"a": 1}], [[], "a", {1: 2}, None]),
    ],
)
def test_kinds(kind: Kind, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        kind.read(value)
    for value in bad:
        with pytest.raises(ValueError, match=r"\w"):
            kind.read(value)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Whole(0), {"5": 5, " 7 ": 7}, ["", "1_0", "٣", "5.0", "1e1", "9" * 5000, "-1", "x"]),
        (
            Number(0),
            {"1e-2": 0.01, ".5": 0.5},
            ["", "nan", "inf", "1e999", "1_0", "0x1", "-1", "1,5"],
        ),
    ],
)
def test_text_of_a_command_line(kind: Kind, good: dict[str, Any], bad: list[str]) -> None:
    for text, value in good.items():
        assert kind.parse(text) == value
    for text in bad:
        with pytest.raises(ValueError, match="number"):
            kind.parse(text)


def refusal(make: Callable[[], object]) -> str | None:
    """The error, or None if it was accepted; any other exception is a failure."""
    try:
        make()
    except ValueError as error:
        if not isinstance(error, UsageError) and type(error) is not ValueError:
            raise
        return str(error)
    return None


@settings(deadline=None)
@given(ANYTHING)
def test_anything_is_taken_or_refused_in_one_sentence(value: Any) -> None:
    for kind in KIND_LIST:
        message = refusal(lambda kind=kind: kind.read(value))
        assert message is None or "\n" not in message


@settings(deadline=None)
@given(st.sampled_from(sorted(inspect.signature(FinetuneConfig).parameters)), ANYTHING)
def test_any_value_of_any_setting_of_finetuning(name: str, value: Any) -> None:
    message = refusal(lambda: FinetuneConfig.from_mapping({"model": "m", name: value}))
    if message is None:
        created = FinetuneConfig.from_mapping({"model": "m", name: value})
        json.dumps(created.to_json(), allow_nan=False)
    else:
        assert name in message
        assert "\n" not in message


@settings(deadline=None)
@given(st.sampled_from(sorted(inspect.signature(RunConfig).parameters)), ANYTHING)
def test_any_value_of_any_field_of_a_run(name: str, value: Any) -> None:
    message = refusal(lambda: RunConfig.from_mapping({**RUN, name: value}))
    assert message is None or "\n" not in message


def test_a_configuration_refuses_everywhere_in_its_own_words() -> None:
    created = Small(lr=1)
    assert isinstance(created.lr, int)  # as it was written
    for refused in (
        lambda: Small(lr=-1.0),
        lambda: replace(created, lr=-1.0),
        lambda: from_mapping(Small, {"lr": -1.0}),
    ):
        with pytest.raises(UsageError, match=r"^lr is a finite number above 0, got -1\.0\.$"):
            refused()
    with pytest.raises(UsageError, match=r"^shuffle is true or false, got 'false'\.$"):
        Small(shuffle="false")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"^shufle is not a setting \(did you mean shuffle\?\)\.$"):
        from_mapping(Small, {"shufle": True})


@pytest.mark.parametrize(
    ("text", "line", "sentence"),
    [
        (
            "finetune:\n  epochs: 2\n  lrr: 1\n",
            6,
            r"finetune\.lrr is not a setting \(did you mean lr",
        ),
        ("finetune: {lr: 1e-2, epochs: .inf}\n", 4, r"finetune\.epochs is a number in .* got inf"),
        ("probe_options:\n  knn:\n    k: 0\n", 6, r"probe_options\.knn\.k is a whole number"),
        ("loss_options: {logconf: {amax: 1}}\n", 4, r"did you mean a_max"),
        (
            "action_options:\n  filter: {per_class: 'no'}\n",
            5,
            "per_class is true or false, got 'no'",
        ),
        ("extract: {pool: mena}\n", 4, r"extract\.pool is one of .*did you mean mean"),
        ("extract: {rows: x}\n", 4, r"extract\.rows is set by the run"),
        ("strong_finetune: {seed: 3}\n", 4, r"strong_finetune\.seed is set by seeds"),
        ("seeds: 0b11111111111111111111111111111111111111\n", 4, "seeds is a list, each a whole"),
        ("lm_first: 1\n", 4, "lm_first is true or false, got 1"),
        ("curves: off\nrounds: 1e0\n", 5, r"rounds is a whole number .* got 1\.0"),
    ],
)
def test_file_and_line_are_named(text: str, line: int, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("task: t\nweak: a\nstrong: b\n")
    read_config(path)  # the control
    path.write_text("task: t\nweak: a\nstrong: b\n" + text)
    with pytest.raises(UsageError, match=rf"run\.yaml, line {line}: .*{sentence}") as caught:
        read_config(path)
    assert "\n" not in str(caught.value)


def test_numbers_of_yaml_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("task: t\nweak: a\nstrong: b\nfinetune: {lr: 1e-2, weight_decay: 1E-3}\n")
    assert read_config(path).finetune == {"lr": 0.01, "weight_decay": 0.001}


def test_hashes_of_steps_are_what_they_were() -> None:
    """A folder of 0.1.0 is resumed: these were computed by it."""
    some = {"epochs": 2, "lr": 1, "warmup": 40, "lora_modules": ["a", "b"], "loss": "logconf"}
    for chosen, known in (
        ({}, "d222ba4cd41ab937"),
        ({**some, "loss_options": {"a_max": 1}}, "4153912ad9e12451"),
    ):
        created = FinetuneConfig.from_mapping({"model": "m", **chosen})
        text = json.dumps(created.to_json(), sort_keys=True, default=str)
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == known
    assert asdict(created)["epochs"] == 2


def test_a_run_checks_what_it_hands_on() -> None:
    """Every argument that a run file may set is one of the functions, and the other way round."""
    from probekit.cleaning.predict import filter_labels, relabel
    from probekit.probes.registry import REGISTRY, make_probe, parameter_kinds

    given = {"states", "labels", "probe", "layer", "seed", "only_labelled", "on_scored"}
    given |= {"trusted", "supervisor_states"}  # a run takes them from its own rows
    for name, function in (("filter", filter_labels), ("relabel", relabel)):
        assert set(inspect.signature(function).parameters) - given == set(ACTION_KINDS[name])
    for name in REGISTRY:
        kinds = parameter_kinds(name)
        created = make_probe(name).get_params(deep=False)
        created.pop("random_state", None)  # the run's seed
        assert set(created) == set(kinds)
        for parameter, value in created.items():
            kinds[parameter].read(value)  # its default is one of what is allowed


def test_arguments_of_functions() -> None:
    check(seed=0, layer=None, n_folds=5, l2="auto")
    for name, value in (("seed", "0"), ("seed", 2**32), ("layer", 1.5), ("l2", math.nan)):
        with pytest.raises(UsageError, match=f"^{name} is "):
            check(**{name: value})
    assert all(isinstance(kind, Kind) and kind.words for kind in KINDS.values())
    with pytest.raises(ProbekitError, match="in_sample is true or false, got 'no'"):
        check(in_sample="no")
