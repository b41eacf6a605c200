"""A model's folder: nothing outside it is loaded, and what is loaded is in its fingerprint."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from probekit.activations.checkpoint import folder_weights, open_checkpoint
from probekit.activations.folder import weight_files
from probekit.errors import ModelError

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tiny_model: Callable[..., Path], tmp_path: Path) -> Path:
    made = tmp_path / "model"
    shutil.copytree(tiny_model("bert"), made)
    return made


def in_shards(folder: Path, names: tuple[str, str] = ("a.safetensors", "b.safetensors")) -> Path:
    """Take the weights apart, every second tensor into the other shard; returns the index."""
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {key: names[i % 2] for i, key in enumerate(sorted(whole))}
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        part = {key: whole[key] for key in whole if where[key] == name}
        save_file(part, folder / name, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder / INDEX


def rename(index: Path, old: str, new: str) -> None:
    index.write_text(index.read_text().replace(json.dumps(old), json.dumps(new)))


def test_shards_in_the_folder_are_read_and_fingerprinted(folder: Path) -> None:
    whole = folder_weights(folder)
    in_shards(folder, ("a.safetensors", "inner/b.safetensors"))
    assert [f.relative_to(folder).as_posix() for f in weight_files(folder)] == [
        "a.safetensors",
        "inner/b.safetensors",
    ]
    before = folder_weights(folder)
    assert before != whole
    weights = load_file(folder / "inner" / "b.safetensors")
    name = max(weights)
    weights[name] = weights[name] + 1
    save_file(weights, folder / "inner" / "b.safetensors", metadata={"format": "pt"})
    assert folder_weights(folder) != before
    assert open_checkpoint(str(folder)).weights == folder_weights(folder)


def test_weights_in_one_file_go_before_an_index_that_was_left(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": "gone.safetensors"}}))
    assert [file.name for file in weight_files(folder)] == ["model.safetensors"]
    open_checkpoint(str(folder))


@pytest.mark.parametrize("how", ["up", "absolute", "through", "zero"])
def test_a_shard_outside_is_refused(how: str, folder: Path) -> None:
    index = in_shards(folder)
    outside = folder.parent / "b.safetensors"
    shutil.copy(folder / "b.safetensors", outside)
    name = {
        "up": "../b.safetensors",
        "absolute": str(outside),
        "through": "inner/../../b.safetensors",
        "zero": "b\0.safetensors",
    }[how]
    (folder / "inner").mkdir()
    rename(index, "b.safetensors", name)
    with pytest.raises(ModelError, match="outside the folder"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"weight_map": {"x": "pytorch_model.bin"}}, "not a safetensors file"),
        ({"weight_map": {"x": "gone.safetensors"}}, "not in the folder"),
        ({"weight_map": []}, "does not list shards"),
        ([1], "does not list shards"),
    ],
)
def test_a_wrong_index_is_reported(content: Any, words: str, folder: Path) -> None:
    in_shards(folder).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=words):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_link_out_of_the_folder_is_refused(name: str, folder: Path) -> None:
    outside = folder.parent / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(ModelError, match="is a link out of its folder"):
        open_checkpoint(str(folder))
    (folder / name).unlink()
    shutil.copy(outside, folder / f"same-{name}")
    (folder / name).symlink_to(f"same-{name}")  # the control: a link within the folder
    if name != "model.safetensors":
        open_checkpoint(str(folder))


def test_a_folder_of_links_to_another_models_files_is_read(folder: Path, tmp_path: Path) -> None:
    """As ``ln -s MODEL/* .`` makes it, to change one file."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in folder.iterdir():
        (linked / file.name).symlink_to(file)
    assert open_checkpoint(str(linked)).weights == folder_weights(folder)


def test_a_snapshot_in_a_cache_of_the_hub_is_read(folder: Path, tmp_path: Path) -> None:
    """There every file is a link to ../../blobs; a folder that only looks so is none."""
    place = tmp_path / "models--org--name"
    snapshot = place / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (place / "blobs").mkdir()
    for file in folder.iterdir():
        shutil.copy(file, place / "blobs" / f"hash-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/hash-{file.name}")
    assert open_checkpoint(str(snapshot)).weights == folder_weights(folder)
    (tmp_path / "link").symlink_to(snapshot)  # the folder itself may be a link
    assert open_checkpoint(str(tmp_path / "link")).weights == folder_weights(folder)
    place.rename(tmp_path / "other")
    with pytest.raises(ModelError, match="is a link out of its folder"):
        open_checkpoint(str(tmp_path / "other" / "snapshots" / ("0" * 40)))


@pytest.mark.parametrize("name", ["tokenizer.json", "extra.safetensors"])
def test_a_pipe_in_the_folder_is_refused(name: str, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(ModelError, match="is a pipe, socket or device"):
        open_checkpoint(str(folder))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": "x"},
        {"hidden_size": 0},
        {"hidden_size": -1},
        {"hidden_size": [1]},
        {"vocab_size": 10**30},
        {"hidden_act": "no such"},
        {"model_type": "no such"},
        {"model_type": 3},
        {"torch_dtype": "int7", "dtype": "int7"},
        {"transformers_weights": "../model.safetensors"},
        {"transformers_weights": 3},
    ],
    ids=str,
)
def test_a_wrong_configuration_is_one_sentence(values: dict[str, Any], folder: Path) -> None:
    change(folder / "config.json", **values)
    with pytest.raises(ModelError) as caught:
        open_checkpoint(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("longest", ["many", True, [512]])
def test_a_longest_row_that_is_no_number_is_one_sentence(longest: Any, folder: Path) -> None:
    change(folder / "tokenizer_config.json", model_max_length=longest)
    with pytest.raises(ModelError, match=r"has model_max_length .*; set it to a number"):
        open_checkpoint(str(folder)).length(None)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_damaged_json_is_one_sentence(name: str, text: str, folder: Path) -> None:
    (folder / name).write_text(text)
    try:
        checkpoint = open_checkpoint(str(folder))
    except ModelError as error:
        assert not re.search("\n|Traceback", str(error))  # noqa: PT017
    else:  # some files are not needed
        assert name == "tokenizer_config.json"
        assert np.isfinite(checkpoint.depth)
