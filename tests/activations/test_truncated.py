"""Models cut to their first blocks: ``NAME@layers=K``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from probekit.activations.checkpoint import open_checkpoint, split_model_name
from probekit.activations.extraction import extract
from probekit.errors import ModelError, StaleStoreError, UsageError

TEXTS = ["a sentence", "quite another sentence, and longer", "x"]


def test_the_name_is_taken_apart(tmp_path: Path) -> None:
    assert split_model_name("org/name@layers=2") == ("org/name", 2)
    assert split_model_name("org/name") == ("org/name", None)
    odd = tmp_path / "m@layers=3"
    odd.mkdir()
    assert split_model_name(str(odd)) == (str(odd), None)  # a folder of that name is itself


@pytest.mark.parametrize("layers", ["0", "-1", "two", ""])
def test_a_number_of_layers_must_be_one(layers: str) -> None:
    with pytest.raises(UsageError, match="NAME@layers=K"):
        split_model_name(f"org/name@layers={layers}")


def test_states_are_those_of_the_whole_model(minilm: str, tmp_path: Path) -> None:
    whole = extract(TEXTS, minilm, layers="all", output=tmp_path / "whole.h5")
    cut = extract(TEXTS, f"{minilm}@layers=2", layers="all", output=tmp_path / "cut.h5")
    assert cut.layers == [0, 1, 2]
    assert whole.layers == list(range(7))
    assert cut.spec["model"].endswith("@layers=2")
    for layer in cut.layers:
        np.testing.assert_array_equal(cut.layer(layer), whole.layer(layer))
    assert np.abs(whole.layer(3) - whole.layer(2)).max() > 0.01  # the control


@pytest.mark.parametrize(
    "name", ["bert", "gpt2", "llama", "qwen2", "gemma2", "opt", "t5", "bart", "deberta-v3"]
)
def test_any_architecture_can_be_cut(
    name: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_model(name)
    checkpoint = open_checkpoint(f"{folder}@layers=2")
    assert checkpoint.depth == 2 < open_checkpoint(str(folder)).depth
    assert checkpoint.weights != open_checkpoint(str(folder)).weights
    whole = extract(TEXTS, str(folder), layers="1", output=tmp_path / "whole.h5")
    cut = extract(TEXTS, f"{folder}@layers=2", layers="1", output=tmp_path / "cut.h5")
    np.testing.assert_array_equal(cut.layer(1), whole.layer(1))


def test_a_store_of_the_whole_model_is_another_one(minilm: str, tmp_path: Path) -> None:
    extract(TEXTS, minilm, layers="1", output=tmp_path / "acts.h5")
    with pytest.raises(StaleStoreError, match="model"):
        extract(TEXTS, f"{minilm}@layers=2", layers="1", output=tmp_path / "acts.h5")


def test_more_layers_than_there_are(minilm: str) -> None:
    with pytest.raises(UsageError, match="has 6 layers; @layers=7"):
        open_checkpoint(f"{minilm}@layers=7")


def test_a_missing_folder_is_named_without_the_suffix(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere does not exist"):
        open_checkpoint(f"{tmp_path}/nowhere@layers=2")
