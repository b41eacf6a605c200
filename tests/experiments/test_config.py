"""A run's configuration: read, checked, written so that it replays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from probekit.errors import DataError, UsageError
from probekit.experiments.config import RunConfig, read_config, write_config

BASE: dict[str, Any] = {"task": "docstrings", "weak": "a", "strong": ["b", "c"]}


def test_one_name_is_a_list_of_one() -> None:
    config = RunConfig.from_mapping(BASE)
    assert (config.task, config.weak, config.strong) == (("docstrings",), ("a",), ("b", "c"))
    assert config.seeds == (0,)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    config = RunConfig.from_mapping(
        {
            **BASE,
            "seeds": [3, 4],
            "layer": 2,
            "losses": ["xent", "logconf"],
            "finetune": {"epochs": 2, "lora": True},
            "probe_options": {"knn": {"k": 50}},
            "validation_share": 0,
        }
    )
    path = tmp_path / "config.yaml"
    write_config(config, path)
    assert read_config(path) == config
    assert read_config(path).differences(config) == []
    assert config.changed(rounds=2).differences(config) == ["rounds"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"taks": "x"}, r"^taks is not a setting \(did you mean task"),
        ({"losses": ["xnet"]}, r"no loss 'xnet' \(did you mean xent"),
        ({"probes": ["knm"]}, r"no probe 'knm' \(did you mean knn\?\); there are knn, logreg"),
        ({"actions": ["drop"]}, "no action 'drop'"),
        ({"probes": ["knn", "knn"]}, "'knn' occurs twice"),
        (
            {"seeds": ["one"]},
            "seeds is a list, each a whole number from 0 to 4,294,967,295, and it contains 'one'",
        ),
        ({"rounds": 0}, "rounds is a whole number from 1 to 1,000, got 0"),
        ({"rounds": "two"}, "rounds is a whole number from 1 to 1,000, got 'two'"),
        ({"weak_on": "both"}, "weak_on is one of heldout, train, got 'both'"),
        ({"validation_share": 1}, r"validation_share is a number in \[0, 1\), got 1"),
        ({"finetune": 3}, r"finetune is a mapping of settings \(name: value\), got 3"),
        ({"weak": []}, "needs weak"),
        ({"chain": ["a"]}, "at least two models"),
        ({"student_rows": 2}, "student_rows is a whole number from 4 to 1,000,000,000, got 2"),
        (
            {"probe_options": {"logregg": {}}},
            r"probe_options.logregg is none of knn, .* \(did you mean logreg",
        ),
    ],
)
def test_what_is_wrong_is_told(change: dict[str, Any], sentence: str) -> None:
    RunConfig.from_mapping(BASE)  # the control
    with pytest.raises(UsageError, match=sentence):
        RunConfig.from_mapping({**BASE, **change})


@pytest.mark.parametrize("text", ["- a\n- b\n", "task: [", "\tx"])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=r"run\.yaml (is not YAML|has no fields)"):
        read_config(path)


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("task: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(DataError, match="is not YAML"):
        read_config(path)


def test_a_chain_needs_no_pair() -> None:
    config = RunConfig.from_mapping({"task": "docstrings", "chain": ["a", "b", "c"]})
    assert config.weak == ()
