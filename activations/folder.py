"""A model's folder: checks that it is complete and safe, its weights, and settings for its use.

A sentence-transformers model states its pooling and maximum length: ``modules.json`` names the
folder of a transformer (the folder itself, or ``0_Transformer``) and that of a pooling
(https://sbert.net/docs/package_reference/sentence_transformer/).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from probekit.errors import ModelError
from probekit.safe import load_json, misfit, one_line, read_json, read_text

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, TOKENIZER, ADAPTER = "config.json", "tokenizer.json", "adapter_config.json"
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.spm", "*.tiktoken", "merges.txt")

# Parts that a model has in numbers; the deepest models have some hundred layers.
COUNTED = ("layer", "block", "expert", "depth")
MAX_COUNT = 10_000
MAX_TOKENS = 10**8
_LONG_ID = re.compile(r":\s*\d{9}")


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json``; raises ModelError if it is not a JSON object."""
    config = read_json(folder / CONFIG, error=ModelError)
    if not isinstance(config, dict):
        raise ModelError(f"{folder / CONFIG} is not a model's: it is not a JSON object.")
    return config


def check_folder(folder: Path) -> None:
    """Raise ModelError unless a folder holds configuration, weights as safetensors and tokenizer.

    No link may lead out of it, and no count may be larger than in any model.
    """
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder} has no config.json; give a folder that save_pretrained wrote.")
    _check_inside(folder)
    _check_counts(folder)
    if not weight_files(folder):
        pickled = sorted({*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")})
        if pickled:
            raise ModelError(
                f"{folder} has only pickled weights ({pickled[0].name}), which can run any code "
                "when they are read; convert them to safetensors if you trust them."
            )
        raise ModelError(f"{folder} has no weights: no file ends with .safetensors.")
    if not any(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):
        raise ModelError(
            f"{folder} has no tokenizer (tokenizer.json); save the tokenizer that the model was "
            "trained with there."
        )


def check_adapter(folder: Path) -> None:
    """Raise ModelError if the folder holds an adapter: transformers would load its base model."""
    if not (folder / ADAPTER).is_file():
        return
    content = read_json(folder / ADAPTER, error=ModelError)
    base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    beside = " beside a model" if (folder / CONFIG).is_file() else ""
    raise ModelError(
        f"{folder} holds an adapter{beside} ({ADAPTER}, for the base model "
        f"{one_line(str(base or 'that it was trained on'))}), not a model of its own; merge "
        "both (peft: merge_and_unload, then save_pretrained of model and tokenizer) and give that "
        "folder."
    )


def _check_inside(folder: Path) -> None:
    """Raise ModelError if a link leads out of a model's folder, or an entry is not a file.

    Links to the ``blobs`` beside it in a Hugging Face cache are allowed, and links to a file of the
    same name, which a user made to another model's folder.
    """
    root = Path(os.path.realpath(folder))
    homes = [root]
    if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
        homes.append(root.parent.parent / "blobs")
    # As deep as files are read: 1_Pooling/config.json, additional_chat_templates/x.jinja.
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
                "(cp -L) if you trust it."
            )
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}.") from None
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ModelError(f"{path} is a pipe, socket or device, not a file; remove it.")


def _check_counts(folder: Path) -> None:
    """Raise ModelError if a configuration has more layers or experts than any model.

    A billion layers would be built, one by one, before any other check could fail.
    """
    config = read_config(folder)
    _check_token_ids(folder / TOKENIZER)
    pending = [config]
    for part in pending:
        pending += [value for value in part.values() if isinstance(value, dict)]
        for key, value in part.items():
            counted = any(word in key for word in COUNTED)
            if counted and isinstance(value, int) and value > MAX_COUNT:
                raise ModelError(
                    f"{folder / CONFIG} has {key}: {value}, and models have at most {MAX_COUNT:,}; "
                    "is it damaged?"
                )


def _check_token_ids(path: Path) -> None:
    """Raise ModelError if a token id is impossibly large: loading allocates all ids below it."""
    if not path.is_file():
        return
    text = read_text(path, limit=None, error=ModelError)
    if _LONG_ID.search(text) is None:
        return
    content = load_json(text, str(path), error=ModelError)
    model = content.get("model") if isinstance(content, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    added = content.get("added_tokens") if isinstance(content, dict) else None
    ids = [*vocabulary.values()] if isinstance(vocabulary, dict) else []
    ids += [t.get("id") for t in added if isinstance(t, dict)] if isinstance(added, list) else []
    for number in ids:
        if isinstance(number, int) and number >= MAX_TOKENS:
            raise ModelError(f"{path} has a token with the id {number:,}; is it damaged?")


def weight_files(folder: Path) -> list[Path]:
    """Return every safetensors file beside the configuration, and those that it or an index names.

    Raises ModelError if a name leads out of the folder, is not a safetensors file or does not
    exist.
    """
    files = set(folder.glob("*.safetensors"))
    # A single file of weights wins over an index, which may be left from an earlier save.
    indexes = [] if (folder / WEIGHTS).is_file() else [folder / INDEX]
    named = read_config(folder).get("transformers_weights")
    if named is not None:
        if not isinstance(named, str):
            raise ModelError(f"{folder / CONFIG} is damaged: transformers_weights is not a name.")
        path = _inside(folder, named, CONFIG)
        indexes, files = ([path], files) if named.endswith(".index.json") else ([], files | {path})
    for index in indexes:
        if index.is_file():
            files |= _shards(folder, index)
    return sorted(files)


def _shards(folder: Path, index: Path) -> set[Path]:
    content = read_json(index, error=ModelError)
    if wrong := misfit(content, {"weight_map": dict}, "it"):
        raise ModelError(f"{index} does not list shards: {wrong}; save the model again.")
    shards = set()
    for name in set(map(str, content["weight_map"].values())):
        if not name.endswith(".safetensors"):
            raise ModelError(
                f"{index} names {name!r}, which is not a safetensors file; convert the model to "
                "safetensors if you trust it."
            )
        shards.add(_inside(folder, name, index.name))
    return shards


def _inside(folder: Path, name: str, source: str) -> Path:
    path = Path(os.path.normpath(folder / name))
    if "\0" in name or not path.is_relative_to(folder) or Path(name).is_absolute():
        raise ModelError(
            f"{folder / source} names {name!r}, which is outside the folder; put the file into the "
            "folder and its plain name there."
        )
    if not path.is_file():
        raise ModelError(f"{folder / source} names {name!r}, which is not in the folder.")
    return path


MODULES = "modules.json"
# Files with max_seq_length; older versions named the file after the architecture.
SIZES = [
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
# Names of poolings there -> here; there also pooling_mode_cls_token, pooling_mode_mean_tokens, ….
POOLINGS = {"cls": "first", "mean": "mean", "max": "max", "lasttoken": "last"}
Reader = Callable[[str], Any]


@dataclass(frozen=True)
class SentenceSettings:
    """How a sentence-transformers model is meant to be read."""

    transformer: str
    """Folder of the transformer, within the model's; empty: the model's folder itself."""
    pooling: str | None
    """One of ``POOLS``; None if the model pools in another way."""
    max_length: int | None
    """Maximum number of tokens per row; None if not given."""
    left_out: tuple[str, ...] = ()
    """Module types that change the pooled state and are not applied to hidden states."""

    def describe(self, *, pooling: bool, max_length: bool) -> str:
        """Return a sentence about the settings that are used; empty if none is."""
        parts = []
        if pooling and self.pooling is not None:
            parts.append(f"states are pooled by {self.pooling}")
        if max_length and self.max_length is not None:
            parts.append(f"at most {self.max_length:,} tokens of a row are read")
        if not parts:
            return ""
        rest = f"; its {', '.join(self.left_out)} is not applied" if self.left_out else ""
        return (
            f"This is a sentence-transformers model: {' and '.join(parts)}, as it states "
            f"(--pool and --max-length override it){rest}."
        )


def local_reader(folder: Path) -> Reader:
    """Return a function that reads JSON files of a folder by name; None for a missing file."""

    def read(name: str) -> Any:
        path = folder / name
        return read_json(path, error=ModelError) if path.is_file() else None

    return read


def read_settings(read: Reader) -> SentenceSettings | None:
    """Read settings from ``modules.json`` and the files it names; None without that file.

    ``read``: from a file's name within the model's folder to its JSON, or None if it is missing.
    Raises ModelError if a module is outside of the folder, or none is a transformer.
    """
    listed = read(MODULES)
    if not isinstance(listed, list):
        return None
    described = [each for each in listed if isinstance(each, dict)]
    modules = [(str(each.get("type", "")), str(each.get("path", ""))) for each in described]
    for _, path in modules:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ModelError(
                f"{MODULES} names the module {one_line(path)!r} outside of its folder."
            )
    kinds = [(one_line(kind).rsplit(".", 1)[-1], path) for kind, path in modules]
    transformer = next((path for kind, path in kinds if kind == "Transformer"), None)
    if transformer is None:
        raise ModelError(
            "This is a sentence-transformers model without a transformer "
            f"({', '.join(kind for kind, _ in kinds) or 'no module'}), so it has no hidden states."
        )
    pooling = next((path for kind, path in kinds if kind == "Pooling"), None)
    return SentenceSettings(
        transformer=transformer,
        pooling=None if pooling is None else _pooling(read(os.path.join(pooling, "config.json"))),
        max_length=_max_length(read, transformer),
        left_out=tuple(k for k, _ in kinds if k not in ("Transformer", "Pooling", "Normalize")),
    )


def _pooling(content: Any) -> str | None:
    """Return the one known pooling that a configuration names; None for others, and for several."""
    if not isinstance(content, dict):
        return None
    named = content.get("pooling_mode")
    asked = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    asked = asked or [k for k, v in content.items() if k.startswith("pooling_mode_") and v is True]
    names = [re.sub("^pooling_mode_|_tokens?$", "", str(name)) for name in asked]
    return POOLINGS.get(names[0]) if len(names) == 1 else None


def _max_length(read: Reader, transformer: str) -> int | None:
    for name in SIZES:
        content = read(os.path.join(transformer, name))
        if isinstance(content, dict):
            value = content.get("max_seq_length")
            sane = isinstance(value, int) and not isinstance(value, bool) and value > 0
            return value if sane else None
    return None
