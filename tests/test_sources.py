"""Rows by name: tasks, paths, the hub; unknown names are answered with near ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from probekit.data import Rows, text_hash
from probekit.errors import DataError, UsageError
from probekit.sources import load_rows
from probekit.tasks import registry


@pytest.fixture
def reptiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of two rows beside the real ones."""

    def rows(name: str, **_: Any) -> Rows:
        return Rows({"id": ["a", "b"], "text": ["newt", "skink"], "body": ["x", "y"]}, source=name)

    monkeypatch.setattr(registry, "task_names", lambda: ["docstrings", "reptiles"])
    monkeypatch.setattr(registry, "load_task_rows", rows)


def test_a_task_and_its_split(reptiles: None) -> None:
    result = load_rows("reptiles@student")
    assert result.ids == ["a", "b"]
    assert result.source == "reptiles@student"
    other = load_rows("reptiles", text_column="body", id_column="text")
    assert other.ids == ["newt", "skink"]
    assert other.hashes == [text_hash("x"), text_hash("y")]


def test_an_unknown_name_gives_near_ones_or_all(reptiles: None) -> None:
    with pytest.raises(UsageError, match=r"neither a file here nor a task; did you mean reptiles"):
        load_rows("reptile")
    with pytest.raises(UsageError, match=r"tasks are docstrings, reptiles"):
        load_rows("zzz")


def test_paths(write_jsonl: Callable[..., Path], tmp_path: Path) -> None:
    path = write_jsonl([{"name": 1, "body": "one"}, {"name": 2, "body": "two"}])
    for source in (path, str(path)):
        result = load_rows(source, text_column="body", id_column="name")
        assert result.ids == ["1", "2"]
        assert result.source == str(path)
    datasets.Dataset.from_dict({"text": ["p", "q"]}).save_to_disk(str(tmp_path / "saved"))
    assert load_rows(str(tmp_path / "saved")).contents() == ["p", "q"]


def test_a_file_named_like_a_task_is_the_file(
    reptiles: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    datasets.Dataset.from_dict({"text": ["from disk"]}).save_to_disk("reptiles")
    assert load_rows("reptiles").contents() == ["from disk"]


@pytest.mark.parametrize("source", ["none.jsonl", "no/such/thing", "./none", "none.csv.gz"])
def test_what_looks_like_a_path_is_missed_as_one(source: str) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_rows(source)


def test_the_hub_gives_a_split_of_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(name: str, config: str | None, *, split: str) -> Any:
        asked.append((name, config, split))
        result = datasets.Dataset.from_dict({"sentence": ["a", "b", "c"], "idx": [5, 6, 7]})
        return result.select([2, 0])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    columns = {"text_column": "sentence", "id_column": "idx"}
    result = load_rows("hf:org/name:config@train[:10%]", **columns)
    assert (result.ids, result.contents()) == (["7", "5"], ["c", "a"])
    assert result.source == "hf:org/name:config@train[:10%]"
    load_rows("hf:name@test", **columns)
    assert asked == [("org/name", "config", "train[:10%]"), ("name", None, "test")]


def test_a_hub_that_cannot_be_reached_is_one_sentence() -> None:
    # The tests run with HF_HUB_OFFLINE=1.
    with pytest.raises(DataError, match="hub cannot be reached") as caught:
        load_rows("hf:nobody/no-such-data@train")
    assert "\n" not in str(caught.value)


def test_other_failures_of_the_hub_keep_their_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ValueError('Unknown split "dev".\nShould be one of ["train"].')

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r'Unknown split "dev". Should be one of \["train"\]\.$'):
        load_rows("hf:org/name@dev")


@pytest.mark.parametrize("source", ["hf:", "hf:org/name", "hf:org/name:config", "hf:a:b:c@d"])
def test_hub_names_without_a_split_are_refused(source: str) -> None:
    with pytest.raises(UsageError, match="does not name a split"):
        load_rows(source)
