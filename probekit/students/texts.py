"""Rows of text as tokens for a language-model loss, and which rows are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from probekit.activations.encoding import Encoder
from probekit.data import Rows
from probekit.errors import DataError
from probekit.groups import duplicate_groups
from probekit.students.language_model import IGNORED, LanguageModel, Tokens, collate

__all__ = ["hide_some", "masking_collator", "plain_collator", "split_held_out", "text_tokens"]

HIDDEN_SHARE = 0.15
HELD_OUT_SHARE, MOST_HELD_OUT, LEAST_ROWS = 0.05, 500, 40


def text_tokens(language: LanguageModel, rows: Rows, max_length: int | None) -> list[Tokens]:
    """Encode texts, pairs or chat messages; rows without a token to predict are left out.

    Causal: every token but the first is predicted. Masked: every token but the special ones may be
    hidden.
    """
    checkpoint = language.checkpoint
    tokenizer = checkpoint.tokenizer
    encoder = Encoder(tokenizer, kind=rows.kind, max_length=checkpoint.length(max_length))
    encoded = encoder.encode(rows.contents(), rows.ids)
    ends = np.cumsum(encoded.lengths)[:-1]
    parts = [part.tolist() for part in np.split(encoded.flat, ends)]
    types: Sequence[Any] = [None] * len(parts)
    if encoded.types is not None:
        types = [part.tolist() for part in np.split(encoded.types, ends)]
    found = []
    special = set(tokenizer.all_special_ids)
    for ids, row_types, cut in zip(parts, types, encoded.truncated.tolist(), strict=True):
        if language.kind == "causal":
            labels = [IGNORED, *ids[1:]]
        else:
            labels = [IGNORED if token in special else token for token in ids]
        if any(label != IGNORED for label in labels):
            found.append(Tokens(ids, labels, row_types, cut))
    if not found:
        raise DataError(
            f"{rows.source} has no row with a token to predict: each is one token or special ones "
            "only; give it longer texts."
        )
    return found


def split_held_out(rows: Rows, *, seed: int) -> tuple[Rows, Rows | None]:
    """Take 5 % of the rows (at most 500) out of training.

    Copies of a text and rows of a group stay together. None are taken where there are fewer than 40
    rows.
    """
    many = min(int(HELD_OUT_SHARE * len(rows)), MOST_HELD_OUT)
    if len(rows) < LEAST_ROWS:
        return rows, None
    numbers = duplicate_groups(hashes=rows.hashes, groups=rows.groups)
    first: dict[int, str] = {}
    for number, digest in zip(numbers.tolist(), rows.hashes, strict=True):
        first[number] = min(first.get(number, digest), digest)
    groups: dict[str, list[int]] = {}
    for place, number in enumerate(numbers.tolist()):
        groups.setdefault(first[number], []).append(place)
    held: set[int] = set()
    for digest in sorted(groups, key=lambda d: hashlib.sha256(f"{seed}\x1f{d}".encode()).digest()):
        if len(held) + len(groups[digest]) <= many:
            held.update(groups[digest])
    if not held:
        return rows, None
    rest = [place for place in range(len(rows)) if place not in held]
    return rows.select(rest), rows.select(sorted(held))


def hide_some(
    row: Tokens, *, mask_id: int, vocabulary: int, generator: torch.Generator | None = None
) -> Tokens:
    """Hide 15 % of the tokens that have a label, at least one, and label only these.

    Of these, 80 % become the mask, 10 % a random token, 10 % stay (Devlin et al. 2019,
    https://arxiv.org/abs/1810.04805).
    """
    draws = torch.rand(len(row.ids), 2, generator=generator)
    replacements = torch.randint(vocabulary, (len(row.ids),), generator=generator).tolist()
    chance, how = draws.T.tolist()
    open_ = [i for i, label in enumerate(row.labels) if label != IGNORED]
    hidden = {i for i in open_ if chance[i] < HIDDEN_SHARE} or {min(open_, key=chance.__getitem__)}
    ids = [
        token if i not in hidden or how[i] >= 0.9 else mask_id if how[i] < 0.8 else replacements[i]
        for i, token in enumerate(row.ids)
    ]
    labels = [label if i in hidden else IGNORED for i, label in enumerate(row.labels)]
    return Tokens(ids, labels, row.types, row.truncated)


def plain_collator(pad_id: int) -> Callable[[Sequence[Tokens]], dict[str, torch.Tensor]]:
    """Rows as they are."""
    return lambda rows: collate(rows, pad_id)


def masking_collator(
    pad_id: int, *, mask_id: int, vocabulary: int
) -> Callable[[Sequence[Tokens]], dict[str, torch.Tensor]]:
    """Rows with other tokens hidden each time, drawn from torch's global generator."""
    return lambda rows: collate(
        [hide_some(row, mask_id=mask_id, vocabulary=vocabulary) for row in rows], pad_id
    )
