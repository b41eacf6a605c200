"""What a model of sentence-transformers says about itself: pooling, and how much of a text is read.

Such a folder holds ``modules.json``, which names a folder of a transformer (the folder itself, or
``0_Transformer``) and one of a pooling (https://sbert.net/docs/package_reference/sentence_transformer/).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from probekit.errors import ModelError
from probekit.safe import one_line, read_json

__all__ = ["SentenceSettings", "local_reader", "read_settings"]

Reader = Callable[[str], Any]

MODULES = "modules.json"
# Where max_seq_length stands; older versions named the file after the architecture.
SIZES = [
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
# Names of poolings there -> here.
POOLINGS = {
    "cls": "first",
    "cls_token": "first",
    "mean": "mean",
    "mean_tokens": "mean",
    "max": "max",
    "max_tokens": "max",
    "lasttoken": "last",
}


@dataclass(frozen=True)
class SentenceSettings:
    """How a model of sentence-transformers is meant to be read."""

    transformer: str
    """Folder of the transformer, within the model's; empty: that one itself."""
    pooling: str | None
    """One of ``POOLS``; None where it is another way of pooling."""
    max_length: int | None
    """Tokens per row; None where nothing is said."""
    left_out: tuple[str, ...] = ()
    """Kinds of modules that change the pooled state and are not applied to hidden states."""

    def told(self, *, pooling: bool, max_length: bool) -> str:
        """One sentence about what of it is used; empty where nothing is."""
        parts = []
        if pooling and self.pooling is not None:
            parts.append(f"states are pooled by {self.pooling}")
        if max_length and self.max_length is not None:
            parts.append(f"at most {self.max_length:,} tokens of a row are read")
        if not parts:
            return ""
        rest = f"; its {', '.join(self.left_out)} is not applied" if self.left_out else ""
        return (
            f"The model is one of sentence-transformers: {' and '.join(parts)}, as it says "
            f"(--pool and --max-length say otherwise){rest}."
        )


def local_reader(folder: Path) -> Reader:
    """Read JSON files within a folder by their names; None where there is none."""

    def read(name: str) -> Any:
        path = folder / name
        return read_json(path, error=ModelError) if path.is_file() else None

    return read


def read_settings(read: Reader) -> SentenceSettings | None:
    """What ``modules.json`` and the files it names say; None where there is none.

    Parameters
    ----------
    read
        From a file's name within the model's folder to its JSON, or None where it is missing.

    Raises
    ------
    ModelError
        Where a module lies outside of the folder, or none is a transformer.
    """
    listed = read(MODULES)
    if not isinstance(listed, list):
        return None
    modules = [(str(m.get("type", "")), str(m.get("path", ""))) for m in listed if _is_module(m)]
    for _, path in modules:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ModelError(
                f"{MODULES} names the module {one_line(path)!r} outside of its folder."
            )
    kinds = [(one_line(kind).rsplit(".", 1)[-1], path) for kind, path in modules]
    transformer = next((path for kind, path in kinds if kind == "Transformer"), None)
    if transformer is None:
        raise ModelError(
            "The model is one of sentence-transformers without a transformer "
            f"({', '.join(kind for kind, _ in kinds) or 'no module'}), so it has no hidden states."
        )
    pooling = next((path for kind, path in kinds if kind == "Pooling"), None)
    return SentenceSettings(
        transformer=transformer,
        pooling=None if pooling is None else _pooling(read(_within(pooling, "config.json"))),
        max_length=_max_length(read, transformer),
        left_out=tuple(k for k, _ in kinds if k not in ("Transformer", "Pooling", "Normalize")),
    )


def _is_module(value: Any) -> bool:
    return isinstance(value, dict)


def _within(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _pooling(content: Any) -> str | None:
    """The one known pooling that a configuration asks for; None for others, and for several."""
    if not isinstance(content, dict):
        return None
    named = content.get("pooling_mode")
    asked = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    asked = asked or [
        key.removeprefix("pooling_mode_")
        for key, value in content.items()
        if key.startswith("pooling_mode_") and value is True
    ]
    return POOLINGS.get(str(asked[0])) if len(asked) == 1 else None


def _max_length(read: Reader, transformer: str) -> int | None:
    for name in SIZES:
        content = read(_within(transformer, name))
        if isinstance(content, dict):
            value = content.get("max_seq_length")
            sane = isinstance(value, int) and not isinstance(value, bool) and value > 0
            return value if sane else None
    return None
