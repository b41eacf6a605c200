"""Preference pairs: which of two completions is the better one.

A row holds two whole texts, ``text`` (with the first completion) and ``text_pair`` (with the
second); its label is 1 where the second is preferred. Which comes first is decided by a hash, so
that both classes are equally frequent. Each text is read alone, never beside the other: a score
M(dialogue, completion) and P(second) = σ(M₂ − M₁), Burns et al. 2023, arXiv 2312.09390.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from probekit.data import Rows, text_hash
from probekit.errors import DataError, first_few
from probekit.tasks.hub import read_hub
from probekit.tasks.registry import Task

__all__ = ["CLASSES", "TASKS", "are_preferences", "preference_columns", "preference_rows"]

CLASSES = ("first", "second")
HH = "Anthropic/hh-rlhf"
ROLES = {"user": "Human", "human": "Human", "assistant": "Assistant", "system": "System"}
VALIDATION_SHARE = 0.1


def are_preferences(columns: Mapping[str, Any]) -> bool:
    """Whether a table has the columns ``chosen`` and ``rejected`` and is not dealt out yet."""
    return {"chosen", "rejected"} <= set(columns) and "text" not in columns


def preference_columns(
    columns: Mapping[str, Sequence[Any]], *, seed: int = 0, source: str = "the pairs"
) -> dict[str, list[Any]]:
    """Deal ``chosen`` and ``rejected`` (after ``prompt``, if there) to first and second.

    Texts, or lists of messages with role and content, which are written as dialogues of ``Human``
    and ``Assistant``, Anthropic's way. Pairs of two equal texts are left out.

    Returns
    -------
    Columns id, text, text_pair and label.

    Raises
    ------
    DataError
        Where a text is missing, or no pair is left.
    """
    many = len(columns["chosen"])
    prompts = columns["prompt"][:] if "prompt" in columns else [None] * many
    ids = columns["id"][:] if "id" in columns else range(many)
    found: dict[str, list[Any]] = {name: [] for name in ("id", "text", "text_pair", "label")}
    wrong = []
    for row_id, prompt, chosen, rejected in zip(
        ids, prompts, columns["chosen"][:], columns["rejected"][:], strict=True
    ):
        better, worse = _whole(prompt, chosen), _whole(prompt, rejected)
        if better is None or worse is None:
            wrong.append(row_id)
        elif better != worse:
            second = _draw(text_hash((better, worse)), seed)
            first, other = (worse, better) if second else (better, worse)
            for name, value in zip(found, (str(row_id), first, other, int(second)), strict=True):
                found[name].append(value)
    if wrong:
        raise DataError(
            f"{source} has {len(wrong)} pairs without two texts (ids {first_few(wrong)}); chosen "
            "and rejected are texts or lists of messages."
        )
    if not found["id"]:
        raise DataError(f"{source} has no pair of two different texts.")
    return found


def preference_rows(
    columns: Mapping[str, Sequence[Any]], *, seed: int = 0, source: str = "the pairs"
) -> Rows:
    """Rows of :func:`preference_columns`, of kind ``pair``, with their label."""
    return Rows(preference_columns(columns, seed=seed, source=source), source=source)


def _whole(prompt: Any, completion: Any) -> str | None:
    """Dialogue with its completion; None where it is no text."""
    parts = [_text(part) for part in (prompt, completion) if part is not None]
    if not parts or any(part is None for part in parts):
        return None
    text = "".join(str(part) for part in parts)
    return text if text.strip() else None


def _text(part: Any) -> str | None:
    if isinstance(part, str):
        return part
    if isinstance(part, list) and all(isinstance(m, Mapping) and "content" in m for m in part):
        return "".join(
            f"\n\n{ROLES.get(str(m.get('role', 'user')), str(m.get('role')))}: {m['content']}"
            for m in part
        )
    return None


def _draw(digest: str, seed: int) -> bool:
    return bool(hashlib.sha256(f"{seed}\x1f{digest}".encode()).digest()[0] & 1)


def _load(split: str, seed: int) -> Rows:
    """Anthropic's pairs: the hub's test, and its train of which a tenth validates."""
    columns = read_hub(HH, None, "test" if split == "test" else "train")
    listed = {name: list(columns[name][:]) for name in ("chosen", "rejected")}
    digests = [text_hash((a, b)) for a, b in zip(*listed.values(), strict=True)]
    if split == "test":
        places = list(range(len(digests)))
    else:
        tested = read_hub(HH, None, "test")
        hidden = {
            text_hash((a, b))
            for a, b in zip(tested["chosen"][:], tested["rejected"][:], strict=True)
        }
        places = [
            i
            for i, digest in enumerate(digests)
            if digest not in hidden
            and (int(digest, 16) / 16**16 < VALIDATION_SHARE) == (split == "validation")
        ]
    dealt = preference_columns(
        {
            "id": [f"hh-{'test' if split == 'test' else 'train'}-{i}" for i in places],
            **{name: [values[i] for i in places] for name, values in listed.items()},
        },
        seed=seed,
        source=f"hf:{HH}",
    )
    order = sorted(
        range(len(dealt["id"])),
        key=lambda i: hashlib.sha256(f"{seed}\x1f{dealt['id'][i]}".encode()).digest(),
    )
    return Rows(
        {name: [values[i] for i in order] for name, values in dealt.items()},
        source=f"anthropic-hh-pairs@{split}",
    )


TASKS = (
    Task(
        name="anthropic-hh-pairs",
        description="Anthropic HH, two whole dialogues: is the second the preferred one (1)?",
        source=f"hf:{HH}",
        licence="MIT",
        classes=CLASSES,
        splits=("train", "validation", "test"),
        load=_load,
        kind="reward",
        card=f"https://huggingface.co/datasets/{HH}",
        prompt="each dialogue as it is, in text and text_pair; each is read alone",
        notes="a tenth of the hub's train validates; pairs of equal dialogues are left out",
    ),
)
