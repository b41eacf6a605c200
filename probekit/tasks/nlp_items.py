"""From a row of the hub to the versions of it that a task could show.

Each function takes a row (the hub's columns) and the task's prompt and returns None where the row
has no label or no text. Labels come as numbers, as class names or as strings of either: data sets
were converted from scripts by different hands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from probekit.tasks.hub_task import Item

__all__ = [
    "anli",
    "boolq",
    "cosmos_qa",
    "dream",
    "ethics_utilitarianism",
    "ethics_virtue",
    "hellaswag",
    "hh",
    "key_index",
    "label_number",
    "labelled",
    "openbookqa",
    "piqa",
    "quail",
    "quartz",
    "sciq",
    "social_iqa",
]

Row = Mapping[str, Any]
NO_YES = (("no", "false", "negative", "unacceptable"), ("yes", "true", "positive", "acceptable"))


def text_of(value: Any) -> str:
    """A cell as text without white space at its ends; nothing for None."""
    return "" if value is None else str(value).strip()


def label_number(value: Any, names: Sequence[Sequence[str]] = NO_YES) -> int | None:
    """Class number of a label given as number, bool or name; None for -1, nothing and others."""
    text = text_of(value).lower()
    for number, known in enumerate(names):
        if text == str(number) or text in known:
            return number
    return None


def key_index(key: Any, keys: Sequence[Any]) -> int | None:
    """Place of an answer key among the keys of the options; "1" and "A" mean the same.

    None where the key names no option.
    """
    wanted, known = text_of(key).upper(), [text_of(k).upper() for k in keys]
    if wanted in known:
        return known.index(wanted)
    if wanted.isdecimal():
        place = int(wanted) - 1
    elif len(wanted) == 1 and "A" <= wanted <= "Z":
        place = ord(wanted) - ord("A")
    else:
        return None
    return place if 0 <= place < len(known) else None


def labelled(
    *columns: str, group: str | None = None, label: str = "label"
) -> Callable[[Row, str], Item | None]:
    """Function for rows that have a label: ``columns`` fill the prompt, all of them or none."""

    def item(row: Row, prompt: str) -> Item | None:
        number = label_number(row[label])
        texts = {name: text_of(row[name]) for name in columns}
        if number is None or not all(texts.values()):
            return None
        text = prompt.format(**texts)
        return Item(((text, number),), text, texts[group] if group else text)

    return item


def _choices(
    options: Sequence[Any],
    right: int | None,
    *,
    prompt: str,
    texts: Mapping[str, str],
    group: str | None = None,
) -> Item | None:
    """One version per answer. Left out are empty answers and copies of the right one."""
    answers = [text_of(option) for option in options]
    if right is None or not 0 <= right < len(answers) or not answers[right]:
        return None
    if not all(texts.values()):
        return None
    shown = [
        (prompt.format(answer=answer, **texts), int(place == right))
        for place, answer in enumerate(answers)
        if place == right or (answer and answer != answers[right])
    ]
    if len(shown) < 2:  # a question with one answer would always be right
        return None
    question = "\n".join(texts.values())
    return Item(tuple(shown), question, texts[group] if group else question)


def boolq(row: Row, prompt: str) -> Item | None:
    """BoolQ on the hub calls its label ``answer``, a bool."""
    return labelled("passage", "question", group="passage", label="answer")(row, prompt)


def anli(row: Row, prompt: str) -> Item | None:
    """Entailment (1) against neutral and contradiction (0)."""
    number = label_number(row["label"], (("entailment",), ("neutral",), ("contradiction",)))
    entails = None if number is None else int(number == 0)
    return labelled("premise", "hypothesis")({**row, "label": entails}, prompt)


def cosmos_qa(row: Row, prompt: str) -> Item | None:
    """Where the right answer is "None of the above choices .", only wrong answers are shown."""
    options = [row[f"answer{i}"] for i in range(4)]
    texts = {"context": text_of(row["context"]), "question": text_of(row["question"])}
    right = label_number(row["label"], ((),) * 4)
    item = _choices(options, right, prompt=prompt, texts=texts, group="context")
    if item is None or right is None or "None of the above choices" not in str(options[right]):
        return item
    wrong = tuple(version for version in item.versions if version[1] == 0)
    return Item(wrong, item.question, item.group)


def dream(row: Row, prompt: str) -> Item | None:
    """The right answer is given as text; the dialogue as a list of turns."""
    options = [text_of(option) for option in row["choice"] or ()]
    answer = text_of(row["answer"])
    texts = {
        "dialogue": "\n".join(map(text_of, row["dialogue"] or ())),
        "question": text_of(row["question"]),
    }
    right = options.index(answer) if answer in options else None
    return _choices(options, right, prompt=prompt, texts=texts, group="dialogue")


def ethics_virtue(row: Row, prompt: str) -> Item | None:
    """The trait follows the scenario after ``[SEP]``, which a tokenizer would take as its own."""
    scenario = "\n\n".join(map(str.strip, text_of(row["scenario"]).split("[SEP]")))
    return labelled("scenario")({**row, "scenario": scenario}, prompt)


def ethics_utilitarianism(row: Row, prompt: str) -> Item | None:
    """Both orders of the two scenarios, with either answer; ``baseline`` is the more pleasant."""
    better, worse = text_of(row["baseline"]), text_of(row["less_pleasant"])
    if not better or not worse or better == worse:
        return None
    versions = tuple(
        (prompt.format(first=first, second=second, answer=answer), int(answer == right))
        for first, second, right in ((better, worse, 1), (worse, better, 2))
        for answer in (1, 2)
    )
    return Item(versions, f"{better}\n{worse}", better)


def hellaswag(row: Row, prompt: str) -> Item | None:
    """All endings are shown, then one of them is asked for; the label is a string."""
    endings = [text_of(ending) for ending in row["endings"] or ()]
    right = label_number(row["label"], ((),) * len(endings))
    texts = {"ctx": text_of(row["ctx"]), "endings": "\n".join(endings)}
    return _choices(endings, right, prompt=prompt, texts=texts, group="ctx")


def hh(row: Row, prompt: str) -> Item | None:
    """One of the two dialogues, alone: chosen (1) or rejected (0)."""
    chosen, rejected = text_of(row["chosen"]), text_of(row["rejected"])
    if not chosen or not rejected or chosen == rejected:
        return None
    versions = tuple(
        (prompt.format(dialogue=text), label) for text, label in ((rejected, 0), (chosen, 1))
    )
    return Item(versions, f"{chosen}\n{rejected}", chosen.partition("\n\nAssistant:")[0])


def openbookqa(row: Row, prompt: str) -> Item | None:
    """All options are shown with their letters, then one of them is asked for."""
    keys, options = _keyed(row["choices"])
    listed = "\n".join(f"{key}) {option}" for key, option in zip(keys, options, strict=True))
    texts = {"question_stem": text_of(row["question_stem"]), "choices": listed}
    right = key_index(row["answerKey"], keys)
    return _choices(options, right, prompt=prompt, texts=texts, group="question_stem")


def quartz(row: Row, prompt: str) -> Item | None:
    """Two options with the keys A and B."""
    keys, options = _keyed(row["choices"])
    texts = {"para": text_of(row["para"]), "question": text_of(row["question"])}
    right = key_index(row["answerKey"], keys)
    return _choices(options, right, prompt=prompt, texts=texts, group="para")


def _keyed(choices: Any) -> tuple[list[str], list[str]]:
    """Keys and texts of options: a mapping of lists, or a list of mappings."""
    if isinstance(choices, Mapping):
        keys, options = choices.get("label") or (), choices.get("text") or ()
    else:
        keys = [choice.get("label") for choice in choices or ()]
        options = [choice.get("text") for choice in choices or ()]
    least = min(len(keys), len(options))
    return [text_of(k) for k in keys[:least]], [text_of(o) for o in options[:least]]


def piqa(row: Row, prompt: str) -> Item | None:
    """Goals recur with other solutions: the same row is the same goal with the same solutions."""
    options = [row["sol1"], row["sol2"]]
    right = label_number(row["label"], ((),) * 2)
    item = _choices(options, right, prompt=prompt, texts={"goal": text_of(row["goal"])})
    if item is None:
        return None
    return Item(item.versions, "\n".join(map(text_of, (row["goal"], *options))), item.group)


def quail(row: Row, prompt: str) -> Item | None:
    """Four answers, the right one by its place."""
    options = row["answers"] or ()
    right = label_number(row["correct_answer_id"], ((),) * len(options))
    texts = {"context": text_of(row["context"]), "question": text_of(row["question"])}
    return _choices(options, right, prompt=prompt, texts=texts, group="context")


def sciq(row: Row, prompt: str) -> Item | None:
    """The right answer and up to three wrong ones, with the passage where the prompt has one.

    Rows without a passage are left out where the prompt asks for it.
    """
    options = [row["correct_answer"], *(row[f"distractor{i}"] for i in (1, 2, 3))]
    names = ("support", "question") if "{support}" in prompt else ("question",)
    texts = {name: text_of(row[name]) for name in names}
    return _choices(options, 0, prompt=prompt, texts=texts)


def social_iqa(row: Row, prompt: str) -> Item | None:
    """All three answers are shown, then one of them is asked for; the label is "1" to "3"."""
    options = [row[f"answer{letter}"] for letter in "ABC"]
    texts = {name: text_of(row[name]) for name in ("context", "question")}
    listed = {f"answer{letter}": text_of(row[f"answer{letter}"]) for letter in "ABC"}
    right = key_index(row["label"], ("1", "2", "3"))
    return _choices(options, right, prompt=prompt, texts={**texts, **listed}, group="context")
