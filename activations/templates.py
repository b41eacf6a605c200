"""Templates: chat messages, or texts and pairs, into the text that a model reads."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probekit.data import Content, without_none
from probekit.errors import DataError, UsageError, first_few
from probekit.safe import read_text, repaired

__all__ = ["Renderer", "chat_template", "make_renderer", "read_template", "refusal", "render"]

MAX_TEMPLATE = 1 << 20
# Of one row: processor time, so that a busy machine refuses nothing; and characters.
MAX_SECONDS = 10.0
MAX_CHARACTERS = 1 << 28

Renderer = Callable[[Content], str]


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


def make_renderer(tokenizer: Any, template: str, *, messages: bool) -> Renderer:
    """Function from a row's content to text.

    Raises
    ------
    UsageError
        Where a template over texts is no Jinja2.
    """
    if len(template) > MAX_TEMPLATE:
        raise UsageError(
            f"The template has {len(template):,} characters, more than {MAX_TEMPLATE:,}."
        )
    if _has_powers(template):
        raise UsageError("The template computes a power (**), which can take for ever; multiply.")
    return _chat_renderer(tokenizer, template) if messages else _text_renderer(template)


def _has_powers(template: str) -> bool:
    """Whether ``**`` stands between two values; one power can take hours, and nothing stops it."""
    from jinja2 import Environment, TemplateError

    before = ""
    try:
        for _, kind, text in Environment(autoescape=False).lex(template):  # noqa: S701 (only read)
            if kind == "operator" and text == "**" and before not in ("(", ","):
                return True
            before = before if kind == "whitespace" else text
    except TemplateError:
        return False  # whoever compiles it says so
    return False


def _chat_renderer(tokenizer: Any, template: str) -> Renderer:
    def rendered(content: Content) -> str:
        messages = without_none(content)
        text: str = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
        return text

    return rendered


def _text_renderer(template: str) -> Renderer:
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=False)
    try:
        compiled = environment.from_string(template)
    except (TemplateError, RecursionError, MemoryError, SyntaxError, ValueError) as error:
        raise UsageError(f"The template is no Jinja2: {_one_line(error)}.") from None

    def rendered(content: Content) -> str:
        if isinstance(content, tuple):
            return compiled.render(text=content[0], text_pair=content[1])
        return compiled.render(text=content)

    return rendered


def render(
    renderer: Renderer, contents: Iterable[tuple[str, Content]]
) -> tuple[list[str], dict[str, str]]:
    """Render (id, content) one by one: the texts, and id to reason where the template refuses."""
    texts: list[str] = []
    refused: dict[str, str] = {}
    began = time.thread_time()
    for done, (name, content) in enumerate(contents):
        # A template takes a thousandth of a second; ten seconds for every row would be days.
        if time.thread_time() - began > MAX_SECONDS * (1 + done / 100):
            raise EndlessTemplateError(
                f"The template takes {(time.thread_time() - began) / done:.2g} s of processor time "
                "for a row; take loops in loops out of it."
            )
        try:
            with _limited(name):
                text = renderer(content)
            if len(text) > MAX_CHARACTERS:
                raise ValueError(f"it makes {len(text):,} characters of it")
            texts.append(repaired(text))
        except EndlessTemplateError:
            raise
        except Exception as error:  # a template may raise whatever it likes
            refused[name] = _one_line(error)
    return texts, refused


class EndlessTemplateError(UsageError):
    """A template that would go on for hours, on this row and on every other."""


@contextmanager
def _limited(name: str) -> Iterator[None]:
    """Stop a template that loops in loops; only in the main thread, where signals arrive."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getitimer(signal.ITIMER_VIRTUAL)[0]:
        yield
        return

    def stop(*_: object) -> None:
        raise EndlessTemplateError(
            f"The template takes more than {MAX_SECONDS:g} s of processor time for the row with id "
            f"{name!r}; take loops in loops out of it."
        )

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, MAX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def refusal(refused: Mapping[str, str], *, total: int, leave_out: str = "") -> DataError:
    """One sentence about the rows that a template refuses.

    Parameters
    ----------
    refused
        Id to reason.
    total
        Rows that were looked at.
    leave_out
        How to go on without them.
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
