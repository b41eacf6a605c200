"""Where the prompt of a preference pair stands: in ``prompt``, or in columns of other names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from probekit.data import holds_messages, normal

__all__ = ["find_prompts"]

# Names of columns, in any case, in the order in which a user's turn is written from them.
SYSTEM = ("system", "system_prompt")
TURN = ("instruction", "context", "input", "question", "query", "user")
ASKING = ("user", "human")
HUMAN = "\n\nHuman:"


def find_prompts(columns: Mapping[str, Sequence[Any]]) -> tuple[list[Any], str]:
    """Prompt of each pair, and a sentence about where it was found.

    A prompt is a text or messages as they stand in the column ``prompt``; else messages made of the
    columns for system and user; else None. Pairs that open with the user's turn have their prompt.
    """
    names = {name.lower(): name for name in reversed(list(columns))}
    if "prompt" in names:
        beside = [names[n] for n in (*SYSTEM, *TURN) if n in names]
        told = f"Beside {names['prompt']}, nothing is read of {_listed(beside)}." if beside else ""
        return list(columns[names["prompt"]][:]), told
    texts = {n: list(columns[names[n]][:]) for n in (*SYSTEM, *TURN) if n in names}
    texts = {n: values for n, values in texts.items() if all(map(_is_text, values))}
    chosen = [normal(c, "messages") if holds_messages(c) else c for c in columns["chosen"][:]]
    if not texts:
        bare = not all(map(_has_turns, chosen))
        return [None] * len(chosen), BARE if bare else ""
    prompts: list[Any] = []
    for place, completion in enumerate(chosen):
        row = {n: values[place] for n, values in texts.items() if values[place]}
        system = [{"role": "system", "content": row[n]} for n in SYSTEM if n in row][:1]
        turn = "\n\n".join(row[n] for n in TURN if n in row)
        asked = [{"role": "user", "content": turn}] if turn else []
        if not _has_turns(completion):
            prompts.append([*system, *asked] or None)
        elif isinstance(completion, str):  # a dialogue written out has its system written out
            prompts.append(f"\n\nSystem: {system[0]['content']}" if system else None)
        else:
            prompts.append(system or None)
    found = _listed([names[n] for n in texts])
    return prompts, f"The prompt of each pair is read from {found}."


BARE = (
    "Chosen and rejected are compared bare: there is no column prompt, nor question, instruction, "
    "input, context or system."
)


def _listed(names: Sequence[str]) -> str:
    return f"the column{'s' * (len(names) > 1)} {', '.join(names)}"


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _has_turns(completion: Any) -> bool:
    """Whether a completion is a dialogue that opens with what was asked."""
    if isinstance(completion, list):
        first = completion[0] if completion else None
        return isinstance(first, Mapping) and first.get("role") in (*ASKING, "system")
    return isinstance(completion, str) and completion.startswith(HUMAN)
