"""Checks of what comes from outside: files, JSON, YAML, and text for a terminal.

Every file that a user names is opened here, every JSON and YAML text is parsed here, and every line
for a terminal passes ``printable`` (tests/test_house.py checks that).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from probekit.errors import DataError, ProbekitError

__all__ = [
    "expand",
    "json_for_terminal",
    "load_json",
    "load_yaml",
    "misfit",
    "one_line",
    "open_regular",
    "plain_command",
    "printable",
    "read_bytes",
    "read_json",
    "read_text",
    "regular_file",
    "repaired",
]

# Lists within lists: rows, labels and settings need a handful.
MAX_DEPTH = 64
# A whole number with more digits does not fit a float; the longest hashes have 155.
MAX_DIGITS = 308
# Bytes of settings, sidecars, templates: a larger file is of another kind.
MAX_BYTES = 1 << 26
# PyYAML reads about 100 kB a second.
MAX_YAML_CHARACTERS = 1 << 18
# Values of a YAML file with every alias expanded: ten lines can stand for a billion.
MAX_YAML_VALUES = 1 << 16

_LONG_NUMBER = re.compile(rf"[0-9]{{{MAX_DIGITS + 1}}}")
# C0 without newline and tab, DEL, C1, marks that change a text's direction, lone surrogates.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def expand(path: str | Path, *, error: type[ProbekitError] = DataError) -> Path:
    """Return the path with ``~`` and ``~name`` expanded.

    Raises
    ------
    DataError
        (or ``error``) If there is no such user, or the path contains a zero byte.
    """
    if "\0" in str(path):
        raise error(
            f"{printable(str(path))!r} is not a path: it contains a zero byte; name another one."
        )
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = Path(path).parts[0]
        raise error(
            f"{path} cannot be found: there is no user {user[1:]!r} here; write the folder in full "
            f"(./{user} if that is its name)."
        ) from None


def regular_file(path: str | Path, *, error: type[ProbekitError] = DataError) -> Path:
    """Return the path, ``~`` expanded, of a plain file or a link to one.

    Reading a pipe or /dev/zero might never end.

    Raises
    ------
    DataError
        (or ``error``) If it is missing, or a folder, a pipe, a socket, a device or a loop of links.
    """
    full_path = expand(path, error=error)
    try:
        mode = full_path.stat().st_mode
    except FileNotFoundError:
        raise error(f"{path} does not exist.") from None
    except OSError as failure:
        raise error(f"{path} cannot be read: {failure.strerror}.") from None
    _check_mode(mode, path, error)
    return full_path


def _check_mode(mode: int, path: str | Path, error: type[ProbekitError]) -> None:
    kinds = {
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    if stat.S_ISDIR(mode):
        raise error(f"{path} is a folder, not a file; name a file.")
    if not stat.S_ISREG(mode):
        kind = kinds.get(stat.S_IFMT(mode), "something else")
        raise error(f"{path} is {kind}, not a file; write its contents to a file and name that.")


def open_regular(path: str | Path, *, error: type[ProbekitError] = DataError) -> BinaryIO:
    """Open a plain file for reading bytes; raises as :func:`regular_file`."""
    full_path = regular_file(path, error=error)
    try:
        # Checked again once open: the path may lead to another file by now.
        handle = os.open(full_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as failure:
        raise error(f"{path} cannot be read: {failure.strerror}.") from None
    try:
        _check_mode(os.fstat(handle).st_mode, path, error)
    except BaseException:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def read_bytes(
    path: str | Path, *, limit: int | None = MAX_BYTES, error: type[ProbekitError] = DataError
) -> bytes:
    """Read a plain file of at most ``limit`` bytes (None: any size)."""
    with open_regular(path, error=error) as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise error(
                f"{path} has {size:,} bytes, and at most {limit:,} are read from a file of its "
                "kind; name another file."
            )
        try:
            return file.read()
        except OSError as failure:
            raise error(f"{path} cannot be read: {failure.strerror}.") from None


def read_text(
    path: str | Path, *, limit: int | None = MAX_BYTES, error: type[ProbekitError] = DataError
) -> str:
    """Read a plain file as UTF-8, without a byte order mark."""
    try:
        return read_bytes(path, limit=limit, error=error).decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        raise error(f"{path} is not UTF-8 text (byte {failure.start}); convert it first.") from None


def read_json(path: str | Path, *, error: type[ProbekitError] = DataError) -> Any:
    """Read a JSON file; raises as :func:`read_text` and :func:`load_json`."""
    return load_json(read_text(path, error=error), str(path), error=error)


def load_json(text: str | bytes, source: str, *, error: type[ProbekitError] = DataError) -> Any:
    """Parse JSON; ``source`` names it in messages.

    Raises
    ------
    DataError
        (or ``error``) If it is not JSON, is nested deeper than 64, or has a whole number of more
        than 308 digits.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        long = _LONG_NUMBER.search(text) is not None  # perhaps within a string, which may be long
        value = json.loads(text, parse_int=_whole_number if long else None)
    except json.JSONDecodeError as failure:
        place = f", line {failure.lineno}" if failure.lineno > 1 else ""
        raise error(f"{source}{place}: not JSON ({failure.msg}).") from None
    except UnicodeDecodeError as failure:
        raise error(f"{source}: not JSON (byte {failure.start} is not UTF-8).") from None
    except ValueError as failure:
        raise error(f"{source}: not JSON that probekit reads ({failure}).") from None
    except RecursionError:
        raise error(f"{source}: {_TOO_DEEP}.") from None
    # With fewer brackets it cannot be nested deeper.
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(value):
        raise error(f"{source}: {_TOO_DEEP}.")
    return value


_TOO_DEEP = f"not JSON that probekit reads (lists or objects nested more than {MAX_DEPTH} deep)"


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits; at most {MAX_DIGITS} are read")
    return int(digits)


def _is_deep(value: Any) -> bool:
    level: list[Any] = [value]  # lists and objects of one depth
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
    return bool(level)


def load_yaml(text: str, source: str, *, error: type[ProbekitError] = DataError) -> Any:
    """Parse YAML into plain values; ``source`` names it in messages. ``1e-2`` is a number.

    Raises
    ------
    DataError
        (or ``error``) If it is not YAML, has more than 262,144 characters, is nested deeper than
        64, has more than 65,536 values with its aliases expanded, or a whole number of more than
        308 digits.
    """
    import yaml

    if len(text) > MAX_YAML_CHARACTERS:
        raise error(
            f"{source} has {len(text):,} characters, and a YAML file may have "
            f"{MAX_YAML_CHARACTERS:,}; is it another kind of file?"
        )
    if _LONG_NUMBER.search(text.replace("_", "")):
        raise error(f"{source} holds a number of more than {MAX_DIGITS} digits; shorten it.")
    try:
        _check_events(yaml.parse(text, yaml.SafeLoader))
        value = yaml.load(text, _loader())  # noqa: S506 (a SafeLoader with one more rule)
    except yaml.YAMLError as failure:
        reason = one_line(str(failure).replace('in "<unicode string>", ', "at "))
        raise error(f"{source} is not YAML: {reason}.") from None
    # PyYAML's own constructors raise these on a tag that does not fit: !!int "", !!timestamp x.
    except (LookupError, AttributeError):
        raise error(f"{source} is not YAML: a value does not fit its tag (!!…).") from None
    except (ValueError, TypeError, ArithmeticError) as failure:
        raise error(
            f"{source} is not YAML that probekit reads: {one_line(str(failure))}."
        ) from None
    if _has_long_number(value):  # also 0xff…, 1:59:59…
        raise error(f"{source} holds a number of more than {MAX_DIGITS} digits; shorten it.")
    return value


def _has_long_number(value: Any) -> bool:
    level: list[Any] = [value]
    while level:
        if any(isinstance(v, int) and v.bit_length() > 1023 for v in level):
            return True
        level = [
            child
            for item in level
            if isinstance(item, dict | list | set | tuple)
            for child in ([*item, *item.values()] if isinstance(item, dict) else item)
        ]
    return False


def _check_events(events: Iterable[Any]) -> None:
    """Raise ValueError for YAML whose values would be too many or too deep, before they exist."""
    import yaml

    sizes: dict[str, int] = {}
    unfinished: list[tuple[str | None, int]] = []
    size = 0
    for event in events:
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            unfinished.append((anchor, size))
            size = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = unfinished.pop()
            if anchor is not None:
                sizes[anchor] = size
            size += before
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == name for name, _ in unfinished):
                raise ValueError(f"*{anchor} stands within itself")
            size += sizes.get(anchor or "", 1)
        elif isinstance(event, yaml.ScalarEvent):
            sizes |= {} if anchor is None else {anchor: 1}
            size += 1
        if len(unfinished) > MAX_DEPTH:
            raise ValueError(f"lists or mappings nested more than {MAX_DEPTH} deep")
        if size + sum(before for _, before in unfinished) > MAX_YAML_VALUES:
            raise ValueError(f"more than {MAX_YAML_VALUES:,} values with its aliases expanded")


def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.1 as PyYAML reads it, with the numbers of JSON."""

    # PyYAML reads 1e-2 and 1E5 as text: it requires a point and a sign.
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+"),
        list("-+.0123456789"),
    )
    return Loader


def misfit(value: Any, shape: Any, name: str) -> str | None:
    """Describe where a value from a file has another shape than its readers rely on.

    Parameters
    ----------
    shape
        A type; a tuple of shapes, one of which fits; ``[shape]`` for a list of any length; or a
        mapping of keys, where ``"key?"`` may be missing and ``"*"`` stands for all others, which
        may be anything without it. A boolean is not a number.
    name
        Name of the value in the sentence.

    Returns
    -------
    ``NAME is not a …`` for the first place that does not fit, else None.
    """
    if isinstance(shape, tuple):
        return None if any(misfit(value, s, name) is None for s in shape) else f"{name} is wrong"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{name} is not a list"
        reasons = (misfit(item, shape[0], f"{name}[{i}]") for i, item in enumerate(value))
        return next(filter(None, reasons), None)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{name} is not an object"
        for key, inner in shape.items():
            plain = key.removesuffix("?")
            if key == "*":
                others = {k: v for k, v in value.items() if k not in shape and f"{k}?" not in shape}
                places = (misfit(v, inner, f"{name}.{k}") for k, v in others.items())
                wrong = next(filter(None, places), None)
            elif plain in value:
                wrong = misfit(value[plain], inner, f"{name}.{plain}")
            else:
                wrong = None if key != plain else f"{name}.{plain} is missing"
            if wrong:
                return wrong
        return None
    right = type(value) is bool if shape is bool else isinstance(value, shape)
    right = right and not (shape in (int, float) and isinstance(value, bool))
    article = "an" if shape is int else "a"
    return None if right else f"{name} is not {article} {shape.__name__}"


def repaired(text: str) -> str:
    """Text with U+FFFD for each lone surrogate; two that fit become one character.

    JSON can escape the surrogates of an emoji one by one, and programs that cut texts leave one
    behind. Tokenizers and UTF-8 files cannot hold it.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def printable(text: str) -> str:
    """Text that is safe on a terminal: U+FFFD for control characters and direction marks.

    Newlines and tabs stay; ``one_line`` is for a name.
    """
    return _UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """A name or a reason as one printable line."""
    return printable(" ".join(text.split()))


def json_for_terminal(text: str) -> str:
    """The same JSON with characters that would control a terminal written as escapes."""
    return _UNPRINTABLE.sub(lambda character: f"\\u{ord(character[0]):04x}", text)


def plain_command(text: Any, *commands: str) -> str | None:
    """A command line from a file, every word quoted, so that it can start nothing else.

    None unless it is a plain ``probekit COMMAND …`` on one line, with one of ``commands``.
    """
    if not isinstance(text, str) or one_line(text) != text:
        return None
    try:
        words = shlex.split(text)
    except ValueError:
        return None
    plain = len(words) > 1 and words[0] == "probekit" and words[1] in commands
    return shlex.join(words) if plain else None
