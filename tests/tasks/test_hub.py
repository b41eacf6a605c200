"""The hub, or a folder laid out like it; what cannot be read is one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from probekit.errors import DataError
from probekit.tasks.hub import read_hub

CARD = """---
configs:
- config_name: first
  data_files:
  - split: train
    path: odd/place.csv
---
"""


def test_a_folder_stands_for_the_hub(hub_folder: Callable[..., Path]) -> None:
    hub_folder("org/plain", train=[{"text": "a"}, {"text": "b"}], test=[{"text": "c"}])
    columns = read_hub("org/plain", None, "train").columns
    assert list(columns["text"]) == ["a", "b"]
    assert columns["text"][1:] == ["b"]
    assert list(read_hub("org/plain", None, "test").columns["text"]) == ["c"]
    assert list(read_hub("org/plain", None, "train[:1]").columns["text"]) == ["a"]


def test_a_configuration_is_a_folder_of_its_own(hub_folder: Callable[..., Path]) -> None:
    hub_folder("org/two", "first", train=[{"text": "one"}])
    hub_folder("org/two", "second", train=[{"text": "two"}])
    assert list(read_hub("org/two", "first", "train").columns["text"]) == ["one"]
    assert list(read_hub("org/two", "second", "train").columns["text"]) == ["two"]


def test_the_layout_of_the_hubs_own_copies_is_read(hub_folder: Callable[..., Path]) -> None:
    folder = hub_folder("org/copy", "first", **{"0000": [{"text": "one"}]})
    (folder / "first" / "train").mkdir()
    (folder / "first" / "0000.parquet").rename(folder / "first" / "train" / "0000.parquet")
    assert list(read_hub("org/copy", "first", "train").columns["text"]) == ["one"]


def test_a_card_says_where_its_configurations_are(hub_folder: Callable[..., Path]) -> None:
    folder = hub_folder("org/card", "first", train=[{"text": "not this"}])
    (folder / "odd").mkdir()
    (folder / "odd" / "place.csv").write_text("text\nthis\n")
    (folder / "README.md").write_text(CARD)
    assert list(read_hub("org/card", "first", "train").columns["text"]) == ["this"]


def test_a_data_set_that_the_folder_lacks_is_told_with_the_way_to_get_it(
    hub_folder: Callable[..., Path],
) -> None:
    hub_folder("org/there", train=[{"text": "a"}])
    with pytest.raises(DataError, match=r"PROBEKIT_DATASETS is .*hub, which has no folder org/no;"):
        read_hub("org/no", None, "train")
    with pytest.raises(DataError, match=r"hf download org/no --repo-type dataset --local-dir"):
        read_hub("org/no", None, "train")


def test_a_split_that_is_not_there_is_told_with_those_that_are(
    hub_folder: Callable[..., Path],
) -> None:
    hub_folder("org/plain", train=[{"text": "a"}])
    with pytest.raises(DataError, match=r"hf:org/plain@dev cannot be read: .*dev.*train") as caught:
        read_hub("org/plain", None, "dev")
    assert "\n" not in str(caught.value)


def test_without_hub_and_folder_the_sentence_names_the_variable() -> None:
    # The tests run with HF_HUB_OFFLINE=1.
    with pytest.raises(DataError, match=r"hf:nobody/nothing:part@train .*PROBEKIT_DATASETS"):
        read_hub("nobody/nothing", "part", "train")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Dataset scripts are no longer supported, but found ethics.py"),
        ValueError("BuilderConfig 'justice' not found. Available: ['default']"),
    ],
)
def test_what_only_a_script_could_load_is_read_from_the_hubs_copy(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def load_dataset(name: str, config: str | None = None, **options: Any) -> Any:
        asked.append((name, config, options))
        if "revision" not in options:
            raise error
        return datasets.Dataset.from_dict({"text": ["from the copy"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(read_hub("org/scripted", "justice", "test").columns["text"]) == ["from the copy"]
    copy = {"data_dir": "justice", "revision": "refs/convert/parquet", "split": "test"}
    assert asked[1] == ("org/scripted", None, copy)


def test_other_failures_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*_: Any, **__: Any) -> Any:
        asked.append(1)
        raise ValueError("Unknown split")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"Unknown split\.$"):
        read_hub("org/name", None, "dev")
    assert asked == [1]


def test_a_split_is_opened_once(
    hub_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_folder("org/plain", train=[{"text": "a"}])
    first = read_hub("org/plain", None, "train")
    monkeypatch.setattr(datasets, "load_dataset", None)  # calling it would fail
    assert read_hub("org/plain", None, "train") is first
