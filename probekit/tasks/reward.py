"""Preference pairs: which of two completions is the better one.

A row holds two whole texts, ``text`` (with the first completion) and ``text_pair`` (with the
second); its label is 1 if the second is preferred. Which comes first depends on the two texts
alone, not on the preference: the same two texts always have the same order and hash, and both
classes are about equally frequent. Each text is read alone, never beside the other: a score
M(dialogue, completion) and P(second) = σ(M₂ − M₁), Burns et al. 2023, arXiv 2312.09390.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from probekit.data import Rows, holds_messages, normalised, text_hash
from probekit.errors import DataError, first_few
from probekit.joins import find_ids
from probekit.tasks.hub import read_hub, sampled_positions
from probekit.tasks.registry import Task, draw

__all__ = ["CLASSES", "TASKS", "are_preferences", "preference_columns", "preference_rows"]

CLASSES = ("first", "second")
DEALT = ("id", "text", "text_pair", "label")
JUDGED = ("prompt", "chosen", "rejected")
HH = "Anthropic/hh-rlhf"
ROLES = {"user": "Human", "human": "Human", "assistant": "Assistant", "system": "System"}
VALIDATION_SHARE = 0.1
# Names of columns (in any case), in the order in which they form a user's turn.
SYSTEM = ("system", "system_prompt")
TURN = ("instruction", "context", "input", "question", "query", "user")
ASKING = ("user", "human")
HUMAN = "\n\nHuman:"
BARE = (
    "Chosen and rejected are compared bare: there is no column prompt, nor question, instruction, "
    "input, context or system."
)


def are_preferences(columns: Mapping[str, Any]) -> bool:
    """Whether a table has the columns ``chosen`` and ``rejected``, and no column text yet."""
    return {"chosen", "rejected"} <= set(columns) and "text" not in columns


def preference_columns(
    columns: Mapping[str, Sequence[Any]],
    *,
    seed: int = 0,
    source: str = "the pairs",
    id_column: str | None = None,
) -> dict[str, list[Any]]:
    """Assign ``chosen`` and ``rejected`` (after ``prompt``, if given) to first and second.

    The prompt may be in columns for system and user. Columns are texts, or lists of messages with
    role and content, which become dialogues of ``Human`` and ``Assistant`` as in Anthropic's data.
    A prompt that the completions begin with is not repeated. Pairs of two equal texts are left out;
    without an ``id`` the others keep their row numbers.

    Returns
    -------
    Columns id, text, text_pair and label.

    Raises
    ------
    DataError
        If a text is missing, or no pair is left.
    """
    return _deal(columns, seed=seed, source=source, id_column=id_column)[1]


def preference_rows(
    columns: Mapping[str, Sequence[Any]],
    *,
    seed: int = 0,
    source: str = "the pairs",
    id_column: str | None = None,
    note: str = "",
) -> Rows:
    """Return rows of :func:`preference_columns`, with all other columns.

    Their ``note`` names the columns of the prompt and counts the pairs left out.
    """
    positions, dealt = _deal(columns, seed=seed, source=source, id_column=id_column)
    others = [name for name in columns if name not in (*DEALT, *JUDGED)]
    dealt |= {name: _at(columns[name][:], positions) for name in others}
    equal = len(columns["chosen"]) - len(positions)
    left_out = f"{equal:,} pairs of two equal texts are left out." if equal else ""
    _, prompt_note = _find_prompts(columns)
    return Rows(dealt, source=source, note=" ".join(filter(None, (note, prompt_note, left_out))))


def _deal(
    columns: Mapping[str, Sequence[Any]], *, seed: int, source: str, id_column: str | None
) -> tuple[list[int], dict[str, list[Any]]]:
    """Return the positions of the pairs that are kept, and their columns."""
    ids = find_ids(columns, id_column=id_column, source=source).ids
    prompts, _ = _find_prompts(columns)
    result: dict[str, list[Any]] = {name: [] for name in DEALT}
    positions, wrong = [], []
    pairs = zip(prompts, columns["chosen"][:], columns["rejected"][:], strict=True)
    for position, (prompt, chosen, rejected) in enumerate(pairs):
        context = _normalised(prompt)
        better, worse = _whole(context, _normalised(chosen)), _whole(context, _normalised(rejected))
        if better is None or worse is None:
            wrong.append(ids[position])
        elif better != worse:
            first, second = _in_order(better, worse, seed)
            positions.append(position)
            row = (ids[position], first, second, int(second == better))
            for name, value in zip(DEALT, row, strict=True):
                result[name].append(value)
    if wrong:
        raise DataError(
            f"{source} has {len(wrong)} pairs without two texts (ids {first_few(wrong)}); chosen "
            "and rejected are texts or lists of messages with role and content."
        )
    if not positions:
        raise DataError(f"{source} has no pair of two different texts.")
    return positions, result


def _in_order(one: str, other: str, seed: int) -> tuple[str, str]:
    """Return the two texts in an order that depends on the seed, not on the arguments' order."""
    low, high = sorted((one, other))
    turned = draw(text_hash((low, high)), seed=seed, use="first") % 2
    return (high, low) if turned else (low, high)


def _whole(prompt: Any, completion: Any) -> str | None:
    """Return prompt and completion as one text; None if they are not text."""
    if isinstance(prompt, list) or isinstance(completion, list):
        # If one side is messages, a plain text beside it is a turn of its own.
        prompt, completion = _dialogue(prompt, "user"), _dialogue(completion, "assistant")
    if not isinstance(completion, str) or not (prompt is None or isinstance(prompt, str)):
        return None
    text = completion if prompt is None or completion.startswith(prompt) else prompt + completion
    return text if text.strip() else None


def _normalised(value: Any) -> Any:
    """Return messages in their normal form, also those given as text; others as they are."""
    return normalised(value, "messages") or value if holds_messages(value) else value


def _dialogue(part: Any, role: str) -> Any:
    """Return messages, or a text as the only turn of ``role``, as a dialogue; else as it is."""
    messages = [{"role": role, "content": part}] if isinstance(part, str) else part
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        return messages
    return "".join(f"\n\n{ROLES.get(m['role'], m['role'])}: {m['content']}" for m in messages)


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and all(
        isinstance(message.get(key), str) for key in ("role", "content")
    )


def _at(values: Sequence[Any], positions: Sequence[int]) -> list[Any]:
    return [values[position] for position in positions]


def _load(split: str, seed: int) -> Rows:
    """Return rows of Anthropic's pairs, ordered by the seed."""
    ids, pairs = _hh(split)
    named = {"id": ids, **pairs}
    rows = preference_rows(named, seed=seed, source=f"anthropic-hh-pairs@{split}")
    order = sorted(range(len(rows)), key=lambda i: draw(rows.ids[i], seed=seed, use="order"))
    return rows.select(order)


def _hh(split: str) -> tuple[list[str], dict[str, list[str]]]:
    """Return ids and pairs of a split: the hub's test, or a part of its train without test pairs.

    A tenth of the dialogues is the validation split, chosen by their opening, not by the seed.
    """
    part = "test" if split == "test" else "train"
    tested = set() if split == "test" else {frozenset(pair) for _, *pair in _pairs("test")}
    ids: list[str] = []
    columns: dict[str, list[str]] = {"chosen": [], "rejected": []}
    for position, chosen, rejected in _pairs(part):
        if split != "test":
            opening = str(chosen).partition("\n\nAssistant:")[0]
            validates = draw(opening, seed=0, use="carve") / 2**64 < VALIDATION_SHARE
            if validates != (split == "validation") or frozenset((chosen, rejected)) in tested:
                continue
        ids.append(f"hh-{part}-{position}")
        columns["chosen"].append(chosen)
        columns["rejected"].append(rejected)
    return ids, columns


def _pairs(split: str) -> Iterator[tuple[int, str, str]]:
    columns = read_hub(HH, None, split).columns
    if missing := [name for name in ("chosen", "rejected") if name not in columns]:
        raise DataError(
            f"{HH} ({split}) has no column {missing[0]!r}; it has {', '.join(columns)}."
        )
    chosen, rejected = columns["chosen"][:], columns["rejected"][:]
    for position in sampled_positions(len(chosen)):
        yield position, chosen[position], rejected[position]


def _find_prompts(columns: Mapping[str, Sequence[Any]]) -> tuple[list[Any], str]:
    """Return the prompt of each pair, and a sentence about its columns.

    A prompt is the text or messages in the column ``prompt``; else messages from the columns for
    system and user; else None. Pairs that begin with the user's turn contain their prompt.
    """
    names = {name.lower(): name for name in reversed(list(columns))}
    if "prompt" in names:
        beside = [names[n] for n in (*SYSTEM, *TURN) if n in names]
        note = f"Beside {names['prompt']}, nothing is read of {_listed(beside)}." if beside else ""
        return list(columns[names["prompt"]][:]), note
    texts = {n: list(columns[names[n]][:]) for n in (*SYSTEM, *TURN) if n in names}
    texts = {n: values for n, values in texts.items() if all(map(_is_text, values))}
    chosen = [normalised(c, "messages") if holds_messages(c) else c for c in columns["chosen"][:]]
    if not texts:
        bare = not all(map(_has_turns, chosen))
        return [None] * len(chosen), BARE if bare else ""
    prompts: list[Any] = []
    for position, completion in enumerate(chosen):
        row = {n: values[position] for n, values in texts.items() if values[position]}
        system = [{"role": "system", "content": row[n]} for n in SYSTEM if n in row][:1]
        turn = "\n\n".join(row[n] for n in TURN if n in row)
        asked = [{"role": "user", "content": turn}] if turn else []
        if not _has_turns(completion):
            prompts.append([*system, *asked] or None)
        elif isinstance(completion, str):  # in a dialogue given as text the system turn is text too
            prompts.append(f"\n\nSystem: {system[0]['content']}" if system else None)
        else:
            prompts.append(system or None)
    columns_read = _listed([names[n] for n in texts])
    return prompts, f"The prompt of each pair is read from {columns_read}."


def _listed(names: Sequence[str]) -> str:
    return f"the column{'s' * (len(names) > 1)} {', '.join(names)}"


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _has_turns(completion: Any) -> bool:
    """Whether a completion is a dialogue that begins with a turn of the user or system."""
    if isinstance(completion, list):
        first = completion[0] if completion else None
        return isinstance(first, Mapping) and first.get("role") in (*ASKING, "system")
    return isinstance(completion, str) and completion.startswith(HUMAN)


TASKS = (
    Task(
        name="anthropic-hh-pairs",
        description="Anthropic HH, two whole dialogues: is the second the preferred one (1)?",
        source=f"hf:{HH} (columns chosen, rejected; train 160,800, test 8,552)",
        licence="MIT",
        classes=CLASSES,
        splits=("train", "validation", "test"),
        load=_load,
        kind="reward",
        card=f"https://huggingface.co/datasets/{HH}",
        prompt="text = {dialogue with the first completion}, text_pair = {with the second}",
        notes=(
            "train = 90% of the hub's train; validation = 10% of the hub's train; test = the hub's "
            "test. Each dialogue is read alone; pairs of equal dialogues are left out"
        ),
    ),
)
