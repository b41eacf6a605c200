"""Contents of rows into token ids: plain text, pairs, chat messages.

A template first renders a row as one text. It may come from a stranger, so its size, its time and
its output are limited.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from probekit.activations.batching import Array, Encoded
from probekit.data import Content, Rows, without_none
from probekit.errors import DataError, UsageError, first_few
from probekit.safe import read_text, repaired

# Rows and characters tokenised at once; the tokenizer's Python lists are freed after each part.
PART, PART_CHARACTERS = 1024, 1 << 20
# Between the texts of a pair if the tokenizer adds no token of its own.
SEPARATOR = "\n\n"

# Characters per token kept: English has five, runs of blanks in code some dozens.
PER_TOKEN, MIN_CHARACTERS = 64, 1 << 16
# No more are ever tokenised; a text whose first two million give too few tokens is one word.
MAX_TOKENISED = 1 << 21

# Characters of a template.
MAX_TEMPLATE = 1 << 20
# For one row: processor time, so that a busy machine does not matter; and characters.
MAX_SECONDS = 10.0
MAX_CHARACTERS = 1 << 28

Renderer = Callable[[Content], str]


@dataclass
class Survey:
    """What is known about rows before the first is tokenised."""

    refused: dict[str, str] = field(default_factory=dict)
    """Id to reason, of rows that the template refuses."""
    opened: bool = False
    """Whether a text begins with the token that the tokenizer adds (one of them is removed)."""
    long: int = 0
    """Number of rows with a text so long that it is cut before it is tokenised."""


class Encoder:
    """Turns contents of one kind into token ids, always in the same way.

    Parameters
    ----------
    tokenizer
        A tokenizer of transformers.
    kind
        ``text``, ``pair`` or ``messages``.
    max_length
        Maximum number of tokens kept of each row; None: all.
    template
        Jinja2 source. Messages: replaces the chat template. Text: is rendered with ``text``
        and ``text_pair``, never with a label.

    Attributes
    ----------
    template
        The template in use; None if texts are used as they are.

    Raises
    ------
    UsageError
        If messages have no chat template, the template is not Jinja2, or ``max_length`` leaves no
        room beside the special tokens.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        kind: str,
        max_length: int | None = None,
        template: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.kind = kind
        self.max_length = max_length
        self.template = template
        self._render: Renderer | None = None
        messages = kind == "messages"
        if messages and template is None:
            self.template = template = _chat_template(tokenizer)
        if template is not None:
            self._render = _make_renderer(tokenizer, template, messages=messages)
        self.opening = opening_token(tokenizer)
        self.separator = None
        self._openings_between = 0
        if self._pairs:
            self.separator, self._openings_between = _between(tokenizer, self.opening)
        special = tokenizer.num_special_tokens_to_add(pair=self._pairs) - self._openings_between
        if max_length is not None and max_length <= special:
            raise UsageError(
                f"A length of {max_length} tokens leaves no room: this tokenizer adds {special} "
                "tokens of its own to every row."
            )

    @property
    def _pairs(self) -> bool:
        return self.kind == "pair" and self._render is None

    def survey(self, rows: Rows) -> Survey:
        """Check all rows once, without tokenising: refused, too long, beginning with the token."""
        survey = Survey()
        opening = self._opening_text
        limit = None if self.max_length is None else longest_whole(self.max_length)
        # A template that writes BOS itself has always been accepted.
        once = bool(opening) and (self._render is None or not self.tokenizer.bos_token)
        if self._render is None and limit is None and not once:
            return survey
        for start in range(0, len(rows), PART):
            contents = rows.contents(start, start + PART)
            texts: list[Any] = list(contents)
            if self._render is not None:
                names = rows.ids[start : start + PART]
                rendered, refused = _render_all(self._render, zip(names, contents, strict=True))
                survey.refused |= refused
                texts = rendered
            for text in texts:
                sides = text if isinstance(text, tuple) else (text,)
                survey.long += limit is not None and any(len(side) > limit for side in sides)
                survey.opened |= once and sides[0].startswith(opening)
        return survey

    def encode(self, contents: Sequence[Content], names: Sequence[str]) -> Encoded:
        """Encode rows; ``names`` are their ids, for messages.

        Raises DataError if the template refuses rows, or rows have no tokens at all.
        """
        texts: Sequence[Any] = contents
        if self._render is not None:
            rendered, refused = _render_all(self._render, zip(names, contents, strict=True))
            if refused:
                raise refusal(refused, total=len(names))
            texts = rendered
        parts = [self._encode_part(texts[a:b], names[a:b]) for a, b in _parts(texts)]
        if len(parts) == 1:
            return parts[0]
        types = [p.types if p.types is not None else np.zeros_like(p.flat) for p in parts]
        return Encoded(
            flat=np.concatenate([p.flat for p in parts]),
            lengths=np.concatenate([p.lengths for p in parts]),
            truncated=np.concatenate([p.truncated for p in parts]),
            types=np.concatenate(types) if any(p.types is not None for p in parts) else None,
        )

    def _encode_part(self, contents: Sequence[Any], names: Sequence[str]) -> Encoded:
        ids: list[list[int]] = [[]] * len(contents)
        types: list[list[int]] = [[]] * len(contents)
        truncated = np.zeros(len(contents), bool)
        for positions, special, once in self._groups(contents):
            texts = [contents[i] for i in positions]
            encoded = self._tokenize(texts, special=special, once=once)
            for position, row_ids, row_types, cut in zip(positions.tolist(), *encoded, strict=True):
                ids[position], types[position], truncated[position] = row_ids, row_types, cut
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        if not lengths.all():
            empty = [names[i] for i in np.flatnonzero(lengths == 0).tolist()]
            raise DataError(
                f"{len(empty)} rows have no token (ids {first_few(empty)}): the tokenizer drops "
                "all of their text; remove them."
            )
        total = int(lengths.sum())
        flat_types = np.fromiter(chain.from_iterable(types), np.int32) if self._pairs else None
        return Encoded(
            flat=np.fromiter(chain.from_iterable(ids), np.int32, total),
            lengths=lengths,
            truncated=truncated,
            types=flat_types if flat_types is not None and flat_types.any() else None,
        )

    @property
    def _opening_text(self) -> str:
        if self._render is not None and (bos := getattr(self.tokenizer, "bos_token", None)):
            return str(bos)
        return (
            "" if self.opening is None else str(self.tokenizer.convert_ids_to_tokens(self.opening))
        )

    def _groups(self, contents: Sequence[Any]) -> list[tuple[Array, bool, bool]]:
        """Group contents by whether they begin with the token that the tokenizer adds.

        The model must not see it twice. A template that writes it writes all other special tokens
        too; from a plain text one of the two is removed. Returns positions, whether special tokens
        are added, and whether a repeated one is removed.
        """
        text = self._opening_text
        if not text:
            return [(np.arange(len(contents)), True, False)]
        first = (c[0] if isinstance(c, tuple) else c for c in contents)
        own = np.fromiter((t.startswith(text) for t in first), bool, len(contents))
        plain = self._render is None
        groups = [(np.flatnonzero(~own), True, False), (np.flatnonzero(own), plain, plain)]
        return [group for group in groups if len(group[0])]

    def _tokenize(
        self, contents: list[Any], *, special: bool, once: bool
    ) -> tuple[list[list[int]], list[list[int]], list[bool]]:
        shorter = [self._shortened(content) for content in contents]
        truncated = [a is not b for a, b in zip(contents, shorter, strict=True)]
        ids, types = self._call(shorter, special=special, once=once)
        # Cut in a second call: the first one shows which rows are too long, which is reported.
        limit = self.max_length
        if long := [i for i, row in enumerate(ids) if limit is not None and len(row) > limit]:
            texts = [shorter[i] for i in long]
            cut = self._call(texts, special=special, once=once, max_length=limit)
            for i, row_ids, row_types in zip(long, *cut, strict=True):
                ids[i], types[i], truncated[i] = row_ids, row_types, True
        return ids, types, truncated

    def _shortened(self, content: Any) -> Any:
        """Return the content, or a part of a very long one with more tokens than are kept."""
        if self.max_length is None:
            return content
        sides = content if isinstance(content, tuple) else (content,)
        keep = self.tokenizer.truncation_side
        cut = tuple(shortened(side, self.max_length, self._bare_ids, side=keep) for side in sides)
        if all(a is b for a, b in zip(cut, sides, strict=True)):
            return content
        return cut if isinstance(content, tuple) else cut[0]

    def _bare_ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(
            text, add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        return ids

    def _call(
        self, contents: list[Any], *, special: bool, once: bool, max_length: int | None = None
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Return token ids and types; repeated opening tokens are removed."""
        texts: list[Any] = [contents]
        if self._pairs:
            between = self.separator or ""
            texts = [[a for a, _ in contents], [f"{between}{b}" for _, b in contents]]
        options: dict[str, Any] = {}
        if max_length is not None:
            room = max_length + self._openings_between + once
            options = {"truncation": True, "max_length": room}
        encoding = self.tokenizer(
            *texts,
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=self._pairs,
            verbose=False,
            **options,
        )
        ids: list[list[int]] = encoding["input_ids"]
        types = encoding["token_type_ids"] if "token_type_ids" in encoding else [[]] * len(ids)
        if once or self._openings_between:
            for i, row in enumerate(ids):
                sides = encoding.sequence_ids(i) if self._openings_between else [0] * len(row)
                extra = self._extra(row, sides, once=once, max_length=max_length)
                ids[i] = [token for position, token in enumerate(row) if position not in extra]
                types[i] = [each for position, each in enumerate(types[i]) if position not in extra]
        return ids, types

    def _extra(
        self, row: list[int], sides: list[int | None], *, once: bool, max_length: int | None
    ) -> set[int]:
        """Return positions of opening tokens that the text, or a pair's second text, repeats."""
        extra = {
            position
            for position, (token, side) in enumerate(zip(row, sides, strict=True))
            if position > 0 and token == self.opening and side is None
        }
        if once and row[:2] == [self.opening] * 2:
            extra.add(1)
        # Truncation on the left has removed the text's own; another token goes instead.
        while max_length is not None and len(row) - len(extra) > max_length:
            extra.add(next(position for position in range(1, len(row)) if position not in extra))
        return extra


def _parts(contents: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """Yield start and end of parts within the limits on rows and characters; rows stay whole."""
    start = size = 0
    for position, content in enumerate(contents):
        sides = content if isinstance(content, tuple) else (content,)
        characters = sum(map(len, sides))
        if position > start and (position - start == PART or size + characters > PART_CHARACTERS):
            yield start, position
            start, size = position, 0
        size += characters
    yield start, len(contents)


def opening_token(tokenizer: Any) -> int | None:
    """Return the id of the special token that the tokenizer puts before every text, or None."""
    with_special = tokenizer("a", verbose=False)["input_ids"]
    bare = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    if not with_special or with_special[:1] == bare[:1]:
        return None
    first = int(with_special[0])
    return first if first in tokenizer.all_special_ids else None


def _between(tokenizer: Any, opening: int | None) -> tuple[str | None, int]:
    """Return the separator of a pair, and the number of opening tokens to remove between its texts.

    The separator is None if the tokenizer has a token of its own for it.
    """
    if not tokenizer.is_fast:
        own = tokenizer.num_special_tokens_to_add(pair=True)
        return (None if own > tokenizer.num_special_tokens_to_add(pair=False) else SEPARATOR), 0
    encoding = tokenizer(["a"], ["b"], verbose=False)
    sides, ids = encoding.sequence_ids(0), encoding["input_ids"][0]
    inner = range(sides.index(0), sides.index(1))
    special = [ids[position] for position in inner if sides[position] is None]
    n_opening = special.count(opening)
    return (None if len(special) > n_opening else SEPARATOR), n_opening


def longest_whole(max_length: int) -> int:
    """Return the number of characters up to which a text is tokenised whole."""
    return min(max(PER_TOKEN * max_length, MIN_CHARACTERS), MAX_TOKENISED)


def shortened(
    text: str, max_length: int, tokens: Callable[[str], Sequence[int]], *, side: str = "right"
) -> str:
    """Return a part of a long text with the same first ``max_length`` tokens, and more.

    A tokenizer needs some hundred bytes per character and returns the tokens of the whole text, of
    which a few hundred are kept.

    The text is cut at white space, and its tokens are compared with those of half of it: a cut
    changes only tokens near it. If they differ, or are too few, four times as much is taken, up to
    two million characters.

    Parameters
    ----------
    tokens
        From a text to its token ids, without special ones.
    side
        Side that truncation cuts: ``right``, or ``left`` (the end is kept).
    """
    size, left = longest_whole(max_length), side == "left"
    while size < min(len(text), MAX_TOKENISED):
        part, half = _cut(text, size, left=left), _cut(text, size // 2, left=left)
        long, short = tokens(part), tokens(half)
        kept = slice(-max_length, None) if left else slice(max_length)
        if len(short) > max_length and list(long[kept]) == list(short[kept]):
            return part
        size *= 4
    return _cut(text, MAX_TOKENISED, left=left)


def _cut(text: str, size: int, *, left: bool) -> str:
    """Return at most the first (or last) ``size`` characters, cut at white space if possible."""
    if len(text) <= size:
        return text
    if left:
        part = text[-size:]
        at = next((i for i, c in enumerate(part[: size // 2]) if c.isspace()), 0)
        return part[at:]
    part = text[:size]
    at = next((i for i in range(size, size // 2, -1) if part[i - 1].isspace()), size + 1)
    return part[: at - 1]


def read_template(path: str | Path | None) -> str | None:
    """Read a template file; raises UsageError if it cannot be read or is empty."""
    if path is None:
        return None
    try:
        text = read_text(path, limit=MAX_TEMPLATE, error=UsageError)
    except UsageError as error:
        raise UsageError(f"The template cannot be read: {error}") from None
    if not text.strip():
        raise UsageError(f"The template {path} is empty.")
    return text


def _chat_template(tokenizer: Any) -> str:
    """Return the tokenizer's own chat template; raises UsageError if it has none."""
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "The rows are chat messages and this model's tokenizer has no chat template; name a "
            "model that has one, or give one to `probekit extract` with --template FILE (Jinja2 "
            "over `messages`)."
        )
    try:
        template: str = tokenizer.get_chat_template()
    except ValueError as error:
        raise UsageError(
            f"The tokenizer has several chat templates ({str(error).splitlines()[0].rstrip('.')}); "
            "give the one to use to `probekit extract` with --template FILE."
        ) from None
    return template


def _make_renderer(tokenizer: Any, template: str, *, messages: bool) -> Renderer:
    """Return a function from a row's content to text.

    Raises UsageError if a template for texts is not Jinja2.
    """
    if len(template) > MAX_TEMPLATE:
        raise UsageError(
            f"The template has {len(template):,} characters, more than {MAX_TEMPLATE:,}."
        )
    if _has_powers(template):
        raise UsageError("The template computes a power (**), which can take for ever; multiply.")
    if not messages:
        return _text_renderer(template)
    render = partial(tokenizer.apply_chat_template, chat_template=template, tokenize=False)
    return lambda content: render(without_none(content))


def _has_powers(template: str) -> bool:
    """Whether ``**`` is between two values; a power can take hours, and nothing can stop it."""
    from jinja2 import Environment, TemplateError

    before = ""
    try:
        for _, kind, text in Environment(autoescape=False).lex(template):  # noqa: S701 (only read)
            if kind == "operator" and text == "**" and before not in ("(", ","):
                return True
            before = before if kind == "whitespace" else text
    except TemplateError:
        return False  # compiling it reports the error
    return False


def _text_renderer(template: str) -> Renderer:
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=False)
    try:
        compiled = environment.from_string(template)
    except (TemplateError, RecursionError, MemoryError, SyntaxError, ValueError) as error:
        raise UsageError(f"The template is not Jinja2: {_one_line(error)}.") from None

    def rendered(content: Content) -> str:
        if isinstance(content, tuple):
            return compiled.render(text=content[0], text_pair=content[1])
        return compiled.render(text=content)

    return rendered


def _render_all(
    renderer: Renderer, contents: Iterable[tuple[str, Content]]
) -> tuple[list[str], dict[str, str]]:
    """Render (id, content) one by one; return the texts, and id to reason of refused rows."""
    texts: list[str] = []
    refused: dict[str, str] = {}
    began = time.thread_time()
    for done, (name, content) in enumerate(contents):
        # A template takes a millisecond; ten seconds for every row would be days.
        if time.thread_time() - began > MAX_SECONDS * (1 + done / 100):
            raise UsageError(
                f"The template takes {(time.thread_time() - began) / done:.2g} s of processor time "
                "for a row; remove nested loops from it."
            )
        try:
            with _limited(name):
                text = renderer(content)
            if len(text) > MAX_CHARACTERS:
                raise ValueError(f"the text has {len(text):,} characters")
            texts.append(repaired(text))
        except UsageError:  # it would run for hours, on this row and on every other
            raise
        except Exception as error:  # a template may raise anything
            refused[name] = _one_line(error)
    return texts, refused


@contextmanager
def _limited(name: str) -> Iterator[None]:
    """Stop a template that runs too long; only in the main thread, which receives signals."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getitimer(signal.ITIMER_VIRTUAL)[0]:
        yield
        return

    def stop(*_: object) -> None:
        raise UsageError(
            f"The template takes more than {MAX_SECONDS:g} s of processor time for the row with id "
            f"{name!r}; remove nested loops from it."
        )

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, MAX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def refusal(refused: Mapping[str, str], *, total: int, leave_out: str = "") -> DataError:
    """Return the error for rows that a template refuses, of ``total`` rows.

    ``refused`` is id to reason; ``leave_out`` says how to leave them out.
    """
    first, reason = next(iter(refused.items()))
    if len(refused) == 1:
        return DataError(
            f"The template refuses the row with id {first!r}: {reason}; repair it{leave_out}."
        )
    return DataError(
        f"The template refuses {len(refused):,} of {total:,} rows (ids "
        f"{first_few(list(refused))}), the first one with: {reason}; repair them{leave_out}."
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
