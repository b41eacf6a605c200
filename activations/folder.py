"""A folder that holds a model: what in it is loaded, and that all of it lies there."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from probekit.errors import ModelError
from probekit.safe import load_json, misfit, read_json, read_text

__all__ = ["check_counts", "check_inside_folder", "weight_files"]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, TOKENIZER = "config.json", "tokenizer.json"


# What a model is made of many times over; the deepest models have some hundred layers.
COUNTED = ("layer", "block", "expert", "depth")
MOST = 10_000
MOST_TOKENS = 10**8
_LONG_ID = re.compile(r":\s*\d{9}")


def check_counts(folder: Path) -> None:
    """Refuse a configuration of more layers or experts than anything could build.

    A billion layers would be built, one by one, before anything else could be told to be wrong.

    Raises
    ------
    ModelError
        Where the configuration is no JSON object, a count in it is above 10,000, or a token's
        number above a hundred million.
    """
    config = read_json(folder / CONFIG, error=ModelError)
    if not isinstance(config, dict):
        raise ModelError(f"{folder / CONFIG} is no model's: it holds no JSON object.")
    _check_token_ids(folder / TOKENIZER)
    waiting = [config]
    for part in waiting:
        waiting += [value for value in part.values() if isinstance(value, dict)]
        for key, value in part.items():
            counted = any(word in key for word in COUNTED)
            if counted and isinstance(value, int) and value > MOST:
                raise ModelError(
                    f"{folder / CONFIG} says {key}: {value}, and models have at most {MOST:,}; is "
                    "it damaged?"
                )


def _check_token_ids(path: Path) -> None:
    """Refuse ids that no vocabulary reaches: room for all ids below would be made, or not found."""
    if not path.is_file():
        return
    text = read_text(path, limit=None, error=ModelError)
    if _LONG_ID.search(text) is None:
        return
    found = load_json(text, str(path), error=ModelError)
    model = found.get("model") if isinstance(found, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    added = found.get("added_tokens") if isinstance(found, dict) else None
    ids = [*vocabulary.values()] if isinstance(vocabulary, dict) else []
    ids += [t.get("id") for t in added if isinstance(t, dict)] if isinstance(added, list) else []
    for number in ids:
        if isinstance(number, int) and number >= MOST_TOKENS:
            raise ModelError(f"{path} has a token with the number {number:,}; is it damaged?")


def weight_files(folder: Path) -> list[Path]:
    """Every safetensors file beside the configuration, and those that it or an index names.

    Raises
    ------
    ModelError
        Where a name leads out of the folder, is no safetensors file or is not there.
    """
    found = set(folder.glob("*.safetensors"))
    # Weights in one file come before those of an index, which may be left from an earlier save.
    indexes = [] if (folder / WEIGHTS).is_file() else [folder / INDEX]
    config = read_json(folder / CONFIG, error=ModelError)
    named = config.get("transformers_weights") if isinstance(config, dict) else None
    if named is not None:
        if not isinstance(named, str):
            raise ModelError(f"{folder / CONFIG} is damaged: transformers_weights is no name.")
        path = _inside(folder, named, CONFIG)
        indexes, found = ([path], found) if named.endswith(".index.json") else ([], found | {path})
    for index in indexes:
        if index.is_file():
            found |= _shards(folder, index)
    return sorted(found)


def _shards(folder: Path, index: Path) -> set[Path]:
    content = read_json(index, error=ModelError)
    if wrong := misfit(content, {"weight_map": dict}, "it"):
        raise ModelError(f"{index} names no shards: {wrong}; save the model again.")
    shards = set()
    for name in set(map(str, content["weight_map"].values())):
        if not name.endswith(".safetensors"):
            raise ModelError(
                f"{index} names {name!r}, which is no safetensors file; convert the model to "
                "safetensors where you trust it."
            )
        shards.add(_inside(folder, name, index.name))
    return shards


def _inside(folder: Path, name: str, source: str) -> Path:
    path = Path(os.path.normpath(folder / name))
    if "\0" in name or not path.is_relative_to(folder) or Path(name).is_absolute():
        raise ModelError(
            f"{folder / source} names {name!r}, which lies outside the folder; put the file into "
            "the folder and its plain name there."
        )
    if not path.is_file():
        raise ModelError(f"{folder / source} names {name!r}, which is not in the folder.")
    return path


def check_inside_folder(folder: Path) -> None:
    """Refuse links that lead out of a model's folder, and what is no file or folder.

    Links to the ``blobs`` of the folder's own place in a Hugging Face cache are the cache's, and a
    link to a file of its own name is one that somebody made to another model's folder.

    Raises
    ------
    ModelError
        Naming the first of them.
    """
    root = Path(os.path.realpath(folder))
    homes = [root]
    if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
        homes.append(root.parent.parent / "blobs")
    # As deep as anything in it is read: 1_Pooling/config.json, additional_chat_templates/x.jinja.
    try:
        entries = [each for each in root.iterdir() if not each.name.startswith(".")]
        inner = [e for sub in entries if sub.is_dir() for e in sub.iterdir()]
    except OSError as error:
        raise ModelError(f"{error.filename} cannot be read: {error.strerror}.") from None
    for path in sorted([*entries, *inner]):
        real = Path(os.path.realpath(path))
        allowed = any(real.is_relative_to(home) for home in homes) or real.name == path.name
        if path.is_symlink() and not allowed:
            raise ModelError(
                f"{path} is a link out of its folder, to {real}; put the file itself there "
                "(cp -L) where you trust it."
            )
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}.") from None
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ModelError(f"{path} is a pipe, socket or device, not a file; remove it.")
