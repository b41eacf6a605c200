"""What one row says, a text, a pair or chat messages, brought into one form where it comes in."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from probekit.errors import DataError
from probekit.safe import load_json

__all__ = [
    "Content",
    "Kind",
    "holds_messages",
    "normal",
    "other_parts",
    "repaired",
    "text_hash",
    "without_none",
]

Messages: TypeAlias = list[dict[str, Any]]
Content: TypeAlias = "str | tuple[str, str] | Messages"
Kind: TypeAlias = Literal["text", "pair", "messages"]

UNIT_SEPARATOR = "\x1f"
# Types of a content part that is text: of chat completions, of OpenAI's responses, of none.
TEXT_PARTS = ("text", "input_text", "output_text", None)
# A conversation is no larger; Python's parser takes some hundred bytes for each character.
LONGEST_LITERAL = 1 << 22


def text_hash(content: Content) -> str:
    """Hash a row's own content, before any template: 16 hex digits of SHA-256 (docs/format.md).

    A message's keys whose value is None are left out: Arrow fills absent keys in with None, and the
    same row must have one hash in JSONL and in Parquet.
    """
    if isinstance(content, str):
        text = content
    elif isinstance(content, tuple):
        text = UNIT_SEPARATOR.join(content)
    else:
        text = json.dumps(
            without_none(content), sort_keys=True, ensure_ascii=False, separators=(",", ":")
        )
    return hashlib.sha256(repaired(text).encode()).hexdigest()[:16]


def without_none(value: Any) -> Any:
    """Leave out keys whose value is None: Arrow fills absent ones in, templates test for them."""
    if isinstance(value, dict):
        return {k: without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [without_none(v) for v in value]
    return value


def repaired(text: str) -> str:
    """Text with U+FFFD for each half of a character; two halves that fit become one.

    JSON can escape the halves of an emoji one by one, and programs that cut texts leave one over.
    No tokenizer takes it, and no file in UTF-8 holds it.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def holds_messages(value: Any) -> bool:
    """Whether a value is a list of chat messages, or such a list written out as text."""
    listed = _listed(value)
    return listed is not None and (
        not isinstance(value, str)
        or (bool(listed) and all(isinstance(m, Mapping) and "role" in m for m in listed))
    )


def normal(content: Any, kind: Kind) -> Content | None:
    """The content in the one form that is hashed and tokenised; None where it is none of its kind.

    Halves of characters are U+FFFD; messages that are written out as text are parsed, and a
    message's text parts are joined.
    """
    if kind == "text":
        return repaired(content) if isinstance(content, str) else None
    if kind == "pair":
        if not all(isinstance(part, str) for part in content):
            return None
        return repaired(content[0]), repaired(content[1])
    listed = _listed(content)
    if listed is None:
        return None
    messages = [_message(message) for message in listed]
    found = [message for message in messages if message is not None]
    return found if len(found) == len(messages) else None


def other_parts(content: Any) -> list[str]:
    """Types of the parts in messages that are no text: images, sound, files."""
    return [
        str(part.get("type") or "of no type") if isinstance(part, Mapping) else type(part).__name__
        for message in _listed(content) or []
        if isinstance(message, Mapping)
        for part in _listed(message.get("content"), parse=False) or []
        if _part_text(part) is None
    ]


def _listed(value: Any, *, parse: bool = True) -> list[Any] | None:
    """A list, tuple or array as a list; of a text what it writes out; None for anything else."""
    if isinstance(value, list):
        return value
    if isinstance(value, str):
        return _parsed(value) if parse else None
    if isinstance(value, tuple):
        return list(value)
    if hasattr(value, "tolist"):
        found = value.tolist()
        return found if isinstance(found, list) else None
    return None


def _parsed(text: str) -> list[Any] | None:
    """The list that a text writes out in JSON, or as Python prints it (what pandas' CSV holds)."""
    if not text.lstrip().startswith("["):
        return None
    try:
        found = load_json(text, "messages")
    except DataError:
        if len(text) > LONGEST_LITERAL:
            return None
        try:
            found = ast.literal_eval(text.strip())
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return None
    return found if isinstance(found, list) else None


def _message(message: Any) -> dict[str, Any] | None:
    """A message with its content as text; None where it is none."""
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        return None
    content = message["content"]
    if content is not None and not isinstance(content, str):
        parts = [_part_text(part) for part in _listed(content, parse=False) or [None]]
        texts = [text for text in parts if text is not None]
        if len(texts) < len(parts):
            return None
        content = "".join(texts)
    found: dict[str, Any] = _repaired({**message, "content": content})
    return found


def _part_text(part: Any) -> str | None:
    """Text of a content part; None where it is something else."""
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type") in TEXT_PARTS:
        text = part.get("text")
        return text if isinstance(text, str) else None
    return None


def _repaired(value: Any) -> Any:
    if isinstance(value, str):
        return repaired(value)
    if isinstance(value, Mapping):
        return {_repaired(key): _repaired(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_repaired(each) for each in value]
    return value
