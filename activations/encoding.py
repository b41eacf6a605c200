"""Contents of rows into token ids: plain text, pairs, chat messages, templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from probekit.activations.batching import Array, Encoded
from probekit.contents import Content, without_none
from probekit.errors import DataError, UsageError, first_few
from probekit.safe import read_text

__all__ = ["Encoder", "read_template"]

MAX_TEMPLATE = 1 << 20
# Rows that go to the tokenizer at once; its Python lists are freed after each part.
PART = 1024


def read_template(path: str | Path | None) -> str | None:
    """Read a template file, or say what is wrong with it."""
    if path is None:
        return None
    try:
        text = read_text(path, limit=MAX_TEMPLATE, error=UsageError)
    except UsageError as error:
        raise UsageError(f"The template cannot be read: {error}") from None
    if not text.strip():
        raise UsageError(f"The template {path} is empty.")
    return text


class Encoder:
    """Turns contents of one kind into token ids, always in the same way.

    Parameters
    ----------
    tokenizer
        A tokenizer of transformers.
    kind
        ``text``, ``pair`` or ``messages``.
    max_length
        Tokens that are kept of each row; None: all.
    template
        Jinja2 source. Messages: stands in for the tokenizer's chat template. Text: is rendered over
        ``text`` and ``text_pair``, never over a label.

    Attributes
    ----------
    template
        The template that is used; None where texts are taken as they are.

    Raises
    ------
    UsageError
        Where messages have no chat template, the template is no Jinja2, or ``max_length`` leaves no
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
        self._render: Callable[[Content], str] | None = None
        if kind == "messages":
            if template is None:
                self.template = template = chat_template(tokenizer)
            self._render = _chat_renderer(tokenizer, template)
        elif template is not None:
            self._render = _text_renderer(template)
        special = tokenizer.num_special_tokens_to_add(pair=self._pairs)
        if max_length is not None and max_length <= special:
            raise UsageError(
                f"A length of {max_length} tokens leaves no room: this tokenizer adds {special} of "
                "its own to every row."
            )

    @property
    def _pairs(self) -> bool:
        return self.kind == "pair" and self._render is None

    def encode(self, contents: Sequence[Content], names: Sequence[str]) -> Encoded:
        """Encode rows; ``names`` are their ids, for messages.

        Raises
        ------
        DataError
            Where the template refuses a row or a row has no tokens at all.
        """
        parts = [
            self._encode_part(contents[i : i + PART], names[i : i + PART])
            for i in range(0, len(contents), PART)
        ]
        if len(parts) == 1:
            return parts[0]
        types = [p.types if p.types is not None else np.zeros_like(p.flat) for p in parts]
        return Encoded(
            flat=np.concatenate([p.flat for p in parts]),
            lengths=np.concatenate([p.lengths for p in parts]),
            truncated=np.concatenate([p.truncated for p in parts]),
            types=np.concatenate(types) if any(p.types is not None for p in parts) else None,
        )

    def _encode_part(self, contents: Sequence[Content], names: Sequence[str]) -> Encoded:
        if self._render is None:
            groups = [(np.arange(len(contents)), list(contents), True)]
        else:
            texts = _render_all(self._render, contents, names)
            groups = self._by_start(texts)
        ids: list[list[int]] = [[]] * len(contents)
        types: list[list[int]] = [[]] * len(contents)
        truncated = np.zeros(len(contents), bool)
        for places, part, special in groups:
            found = self._tokenize(part, special=special)
            for place, row_ids, row_types, cut in zip(places.tolist(), *found, strict=True):
                ids[place], types[place], truncated[place] = row_ids, row_types, cut
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        if not lengths.all():
            empty = [names[i] for i in np.flatnonzero(lengths == 0).tolist()]
            raise DataError(
                f"{len(empty)} rows have no token (ids {first_few(empty)}): the tokenizer drops "
                "all that is in them; remove them."
            )
        total = int(lengths.sum())
        flat_types = np.fromiter(chain.from_iterable(types), np.int32) if self._pairs else None
        return Encoded(
            flat=np.fromiter(chain.from_iterable(ids), np.int32, total),
            lengths=lengths,
            truncated=truncated,
            types=flat_types if flat_types is not None and flat_types.any() else None,
        )

    def _by_start(self, texts: list[str]) -> list[tuple[Array, list[Content], bool]]:
        """Part rendered texts by whether they bring their own first special token.

        A template that writes the BOS token writes all the others too; the tokenizer must then add
        none, or the model would see BOS twice.
        """
        bos: str = getattr(self.tokenizer, "bos_token", None) or ""
        own = np.array([bool(bos) and text.startswith(bos) for text in texts])
        groups = []
        for special in (True, False):
            places = np.flatnonzero(own != special)
            if len(places):
                part: list[Content] = [texts[i] for i in places]
                groups.append((places, part, special))
        return groups

    def _tokenize(
        self, contents: list[Content], *, special: bool
    ) -> tuple[list[list[int]], list[list[int]], list[bool]]:
        ids, types = self._call(contents, special=special)
        if self.max_length is None:
            return ids, types, [False] * len(ids)
        # Cut in a second call: the first tells which rows are too long, which is what we report.
        truncated = [len(row) > self.max_length for row in ids]
        long = [i for i, cut in enumerate(truncated) if cut]
        if long:
            options = {"truncation": True, "max_length": self.max_length}
            cut_ids, cut_types = self._call([contents[i] for i in long], special=special, **options)
            for i, row_ids, row_types in zip(long, cut_ids, cut_types, strict=True):
                ids[i], types[i] = row_ids, row_types
        return ids, types, truncated

    def _call(
        self, contents: list[Content], *, special: bool, **options: Any
    ) -> tuple[list[list[int]], list[list[int]]]:
        texts: list[Any]
        if self._pairs:
            texts = [[pair[0] for pair in contents], [pair[1] for pair in contents]]
        else:
            texts = [contents]
        found = self.tokenizer(
            *texts,
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=self._pairs,
            verbose=False,
            **options,
        )
        ids: list[list[int]] = found["input_ids"]
        types = found["token_type_ids"] if "token_type_ids" in found else [[]] * len(ids)
        return ids, types


def chat_template(tokenizer: Any) -> str:
    """Return the tokenizer's own chat template, or raise UsageError where it has none."""
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "The rows are chat messages and this model's tokenizer has no chat template; give one "
            "with --template FILE (Jinja2 over `messages`)."
        )
    try:
        template: str = tokenizer.get_chat_template()
    except ValueError as error:
        raise UsageError(
            f"The tokenizer has several chat templates ({str(error).splitlines()[0].rstrip('.')}); "
            "give the one to use with --template FILE."
        ) from None
    return template


def _chat_renderer(tokenizer: Any, template: str) -> Callable[[Content], str]:
    def render(content: Content) -> str:
        messages = without_none(content)
        text: str = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
        return text

    return render


def _text_renderer(template: str) -> Callable[[Content], str]:
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=False)
    try:
        compiled = environment.from_string(template)
    except TemplateError as error:
        raise UsageError(f"The template is no Jinja2: {_one_line(error)}.") from None

    def render(content: Content) -> str:
        if isinstance(content, tuple):
            return compiled.render(text=content[0], text_pair=content[1])
        return compiled.render(text=content)

    return render


def _render_all(
    render: Callable[[Content], str], contents: Sequence[Content], names: Sequence[str]
) -> list[str]:
    from jinja2 import TemplateError

    texts = []
    for content, name in zip(contents, names, strict=True):
        try:
            texts.append(render(content))
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise DataError(
                f"The template refuses the row with id {name!r}: {_one_line(error)}."
            ) from None
    return texts


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
