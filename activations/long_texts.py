"""Cut texts that are far longer than what is read of them, before they are tokenised.

A tokenizer needs some hundred bytes for each character that it is given, and gives the tokens of
the whole text of which a few hundred are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["longest_whole", "shortened"]

Tokens = Callable[[str], Sequence[int]]

# Characters for each token that is kept: English has five, runs of blanks in code some dozens.
PER_TOKEN, LEAST = 64, 1 << 16
# More are never tokenised; a text whose first two million give too few tokens is one word.
MOST = 1 << 21


def longest_whole(max_length: int) -> int:
    """Characters up to which a text is tokenised as it is."""
    return min(max(PER_TOKEN * max_length, LEAST), MOST)


def shortened(text: str, max_length: int, tokens: Tokens, *, side: str = "right") -> str:
    """Return a part of a long text with more than ``max_length`` tokens, the first the same.

    The text is cut where there is white space, and its tokens compared with those of half as much:
    what the cut can change lies near to it. Where they differ, or are too few, four times as much
    is taken, up to two million characters.

    Parameters
    ----------
    tokens
        From a text to its token ids, without special ones.
    side
        Where truncation takes tokens away: ``right``, or ``left`` (then the end is kept).
    """
    size, left = longest_whole(max_length), side == "left"
    while size < min(len(text), MOST):
        part, half = _cut(text, size, left=left), _cut(text, size // 2, left=left)
        long, short = tokens(part), tokens(half)
        kept = slice(-max_length, None) if left else slice(max_length)
        if len(short) > max_length and list(long[kept]) == list(short[kept]):
            return part
        size *= 4
    return _cut(text, MOST, left=left)


def _cut(text: str, size: int, *, left: bool) -> str:
    """The first (or last) ``size`` characters at most, up to white space where there is any."""
    if len(text) <= size:
        return text
    if left:
        part = text[-size:]
        at = next((i for i, c in enumerate(part[: size // 2]) if c.isspace()), 0)
        return part[at:]
    part = text[:size]
    at = next((i for i in range(size, size // 2, -1) if part[i - 1].isspace()), size + 1)
    return part[: at - 1]
