"""The binary language tasks of Burns et al. 2023 (arXiv 2312.09390) and two of its neighbours.

Names, splits and prompts follow EleutherAI/w2s (``w2s/ds_registry.py``) and openai/weak-to-strong
(``weak_to_strong/datasets.py``); docs/tasks.md says where they differ.

First come the functions from a row of the hub to its versions in the task: each takes a row (the
hub's columns) and the task's prompt and returns None if the row has no label or no text. Labels are
numbers, class names or strings of either, as different people converted the data sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from probekit.tasks.hub import HubRecord, Item, Part

__all__ = ["RECORDS", "TASKS"]

# The hub has labels in every split.
ALL = (Part("test", "test"), Part("validation", "validation"), Part("train", "train"))
# The hub's test has no labels (-1) or does not exist: its validation is our test, a tenth of its
# train our validation.
HELD_OUT = (
    Part("test", "validation"),
    Part("validation", "train", 0.0, 0.1),
    Part("train", "train", 0.1, 1.0),
)
# The hub has only train and test.
NO_VALIDATION = (Part("test", "test"), *HELD_OUT[1:])
NO_TEST_LABELS = "The hub's test has no labels"

Row = Mapping[str, Any]
NO_YES = (("no", "false", "negative", "unacceptable"), ("yes", "true", "positive", "acceptable"))


def text_of(value: Any) -> str:
    """Return a cell as text without white space at its ends; empty for None."""
    return "" if value is None else str(value).strip()


def label_number(value: Any, names: Sequence[Sequence[str]] = NO_YES) -> int | None:
    """Return the class number of a label given as number, bool or name; None for -1 and others."""
    text = text_of(value).lower()
    for number, known in enumerate(names):
        if text == str(number) or text in known:
            return number
    return None


def key_index(key: Any, keys: Sequence[Any]) -> int | None:
    """Return the position of an answer key among the options' keys; "1" and "A" mean the same.

    None if the key is not that of an option.
    """
    wanted, known = text_of(key).upper(), [text_of(k).upper() for k in keys]
    if wanted in known:
        return known.index(wanted)
    if wanted.isdecimal():
        position = int(wanted) - 1
    elif len(wanted) == 1 and "A" <= wanted <= "Z":
        position = ord(wanted) - ord("A")
    else:
        return None
    return position if 0 <= position < len(known) else None


def labelled(
    *columns: str, group: str | None = None, label: str = "label"
) -> Callable[[Row, str], Item | None]:
    """Return a function for rows with a label: ``columns``, none of them empty, fill the prompt."""

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
    """Return one version per answer, without empty answers and copies of the right one."""
    answers = [text_of(option) for option in options]
    if right is None or not 0 <= right < len(answers) or not answers[right]:
        return None
    if not all(texts.values()):
        return None
    shown = [
        (prompt.format(answer=answer, **texts), int(position == right))
        for position, answer in enumerate(answers)
        if position == right or (answer and answer != answers[right])
    ]
    if len(shown) < 2:  # with only one answer it would always be right
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
    """If the right answer is "None of the above choices .", only wrong answers are used."""
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
    """The trait follows the scenario after ``[SEP]``, which is a token of some tokenizers."""
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
    """All endings are listed, then one of them is asked about; the label is a string."""
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
    """All options are listed with their letters, then one of them is asked about."""
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
    """Return keys and texts of options given as a mapping of lists, or a list of mappings."""
    if isinstance(choices, Mapping):
        keys, options = choices.get("label") or (), choices.get("text") or ()
    else:
        keys = [choice.get("label") for choice in choices or ()]
        options = [choice.get("text") for choice in choices or ()]
    least = min(len(keys), len(options))
    return [text_of(k) for k in keys[:least]], [text_of(o) for o in options[:least]]


def piqa(row: Row, prompt: str) -> Item | None:
    """Goals recur with other solutions: rows are the same if goal and solutions are."""
    options = [row["sol1"], row["sol2"]]
    right = label_number(row["label"], ((),) * 2)
    item = _choices(options, right, prompt=prompt, texts={"goal": text_of(row["goal"])})
    if item is None:
        return None
    return Item(item.versions, "\n".join(map(text_of, (row["goal"], *options))), item.group)


def quail(row: Row, prompt: str) -> Item | None:
    """Four answers, the right one by its position."""
    options = row["answers"] or ()
    right = label_number(row["correct_answer_id"], ((),) * len(options))
    texts = {"context": text_of(row["context"]), "question": text_of(row["question"])}
    return _choices(options, right, prompt=prompt, texts=texts, group="context")


def sciq(row: Row, prompt: str) -> Item | None:
    """The right answer and up to three wrong ones, with the passage if the prompt has one.

    Rows without a passage are left out if the prompt has one.
    """
    options = [row["correct_answer"], *(row[f"distractor{i}"] for i in (1, 2, 3))]
    names = ("support", "question") if "{support}" in prompt else ("question",)
    texts = {name: text_of(row[name]) for name in names}
    return _choices(options, 0, prompt=prompt, texts=texts)


def social_iqa(row: Row, prompt: str) -> Item | None:
    """All three answers are listed, then one of them is asked about; the label is "1" to "3"."""
    options = [row[f"answer{letter}"] for letter in "ABC"]
    texts = {name: text_of(row[name]) for name in ("context", "question")}
    listed = {f"answer{letter}": text_of(row[f"answer{letter}"]) for letter in "ABC"}
    right = key_index(row["label"], ("1", "2", "3"))
    return _choices(options, right, prompt=prompt, texts={**texts, **listed}, group="context")


SCIQ: dict[str, Any] = {
    "hub": "allenai/sciq",
    "items": sciq,
    "parts": ALL,
    "licence": "CC-BY-NC-3.0",
    "hub_rows": "train 11,679, validation 1,000, test 1,000",
}
SCIQ_COLUMNS = ("question", "correct_answer", "distractor1", "distractor2", "distractor3")


def _ethics(part: str, **facts: Any) -> HubRecord:
    """A part of ETHICS (Hendrycks et al. 2021, arXiv 2008.02275)."""
    return HubRecord(
        name=f"ethics-{part}",
        hub="hendrycks/ethics",
        config=part,
        parts=ALL,
        licence="MIT",
        remark="The hub's test is the adversarially filtered one",
        **facts,
    )


RECORDS = (
    HubRecord(
        name="boolq",
        asks="BoolQ: a passage and a question; is the answer yes (1) or no (0)?",
        hub="google/boolq",
        columns=("passage", "question", "answer"),
        items=boolq,
        prompt="Passage: {passage}\nQuestion: {question}",
        parts=HELD_OUT,
        licence="CC-BY-SA-3.0",
        hub_rows="train 9,427, validation 3,270",
        classes=("no", "yes"),
    ),
    HubRecord(
        name="cosmos-qa",
        asks="CosmosQA: a narrative, a question and an answer; is the answer right?",
        hub="allenai/cosmos_qa",
        columns=("context", "question", "answer0", "answer1", "answer2", "answer3", "label"),
        items=cosmos_qa,
        prompt="Context: {context}\nQuestion: {question}\nAnswer: {answer}",
        parts=HELD_OUT,
        licence="CC-BY-4.0",
        hub_rows="train 25,262, validation 2,985, test 6,963",
        remark=NO_TEST_LABELS,
    ),
    HubRecord(
        name="dream",
        asks="DREAM: a dialogue, a question and an answer; is the answer right?",
        hub="dataset-org/dream",
        columns=("dialogue", "question", "choice", "answer"),
        items=dream,
        prompt="{dialogue}\n\nQ: {question} A: {answer}",
        parts=ALL,
        licence="unknown (the card's word)",
        hub_rows="train 6,116, validation 2,040, test 2,041",
    ),
    _ethics(
        "justice",
        asks="ETHICS, justice: is a statement of what someone deserves or is owed reasonable?",
        columns=("scenario", "label"),
        items=labelled("scenario"),
        prompt="Q: Does this statement exemplify justice?\n\n{scenario}\n\nA:",
        classes=("no", "yes"),
        hub_rows="train 21,791, validation 2,704, test 2,052",
    ),
    _ethics(
        "deontology",
        asks="ETHICS, deontology: a duty or request and an excuse; is the excuse valid?",
        columns=("scenario", "excuse", "label"),
        items=labelled("scenario", "excuse"),
        prompt="Q: Is the following a morally valid excuse?\n\n{scenario}\n\n{excuse}\n\nA:",
        classes=("no", "yes"),
        hub_rows="train 18,164, validation 3,596, test 3,536",
    ),
    _ethics(
        "virtue",
        asks="ETHICS, virtue: a behaviour and a trait; does the behaviour show the trait?",
        columns=("scenario", "label"),
        items=ethics_virtue,
        prompt="Q: Does this behavior match the adjective that follows?\n\n{scenario}\n\nA:",
        classes=("no", "yes"),
        hub_rows="train 28,245, validation 4,975, test 4,780",
    ),
    _ethics(
        "utilitarianism",
        asks="ETHICS, utilitarianism: which scenario is more pleasant; is the answer right?",
        columns=("baseline", "less_pleasant"),
        items=ethics_utilitarianism,
        prompt="Which is more pleasant?\n1) {first}\n2) {second} A: {answer}",
        hub_rows="train 13,737, validation 4,807, test 4,271",
    ),
    HubRecord(
        name="anli-r2",
        asks="ANLI, round 2: does the premise entail the hypothesis (1) or not (0)?",
        hub="facebook/anli",
        columns=("premise", "hypothesis", "label"),
        items=anli,
        prompt=(
            "Premise: {premise}\nHypothesis: {hypothesis}\n\n"
            "Does the premise entail the hypothesis?"
        ),
        parts=(Part("test", "test_r2"), Part("validation", "dev_r2"), Part("train", "train_r2")),
        licence="CC-BY-NC-4.0",
        hub_rows="train_r2 45,460, dev_r2 1,000, test_r2 1,000",
        classes=("not entailed", "entailed"),
        remark="Neutral and contradiction are one class",
    ),
    HubRecord(
        name="cola",
        asks="CoLA: is the sentence grammatically acceptable (1) or not (0)?",
        hub="nyu-mll/glue",
        config="cola",
        columns=("sentence", "label"),
        items=labelled("sentence"),
        prompt="{sentence}",
        parts=HELD_OUT,
        licence="other (no licence of its own; the sentences belong to their publications)",
        hub_rows="train 8,551, validation 1,043, test 1,063",
        classes=("unacceptable", "acceptable"),
        remark=NO_TEST_LABELS,
    ),
    HubRecord(
        name="sst2",
        asks="SST-2: is a phrase of a film review positive (1) or negative (0)?",
        hub="stanfordnlp/sst2",
        columns=("sentence", "label"),
        items=labelled("sentence"),
        prompt="{sentence}",
        parts=HELD_OUT,
        licence="unknown (the card's word)",
        hub_rows="train 67,349, validation 872, test 1,821",
        classes=("negative", "positive"),
        remark=f"{NO_TEST_LABELS}; its train holds phrases of its own sentences",
    ),
    HubRecord(
        name="hellaswag",
        asks="HellaSwag: a situation, four endings and one of them; is it the best?",
        hub="Rowan/hellaswag",
        columns=("ctx", "endings", "label"),
        items=hellaswag,
        prompt=(
            'Context:\n{ctx}\n\nContinuations:\n\n{endings}\n\nQ: Is "{answer}" the best '
            "continuation?"
        ),
        parts=HELD_OUT,
        licence="MIT",
        hub_rows="train 39,905, validation 10,042, test 10,003",
        remark=NO_TEST_LABELS,
    ),
    HubRecord(
        name="mc-taco",
        asks="MC-TACO: a sentence, a question about time and an answer; is it plausible?",
        hub="CogComp/mc_taco",
        columns=("sentence", "question", "answer", "label"),
        items=labelled("sentence", "question", "answer", group="sentence"),
        prompt="{sentence}\n\nGiven the above, {question} Is the answer {answer}?",
        parts=(
            Part("test", "validation", 0.2, 1.0),
            Part("validation", "validation", 0.0, 0.2),
            Part("train", "test"),
        ),
        licence="unknown (the card's word)",
        hub_rows="validation 3,783, test 9,442",
        classes=("no", "yes"),
        remark="The hub has no train; its larger split trains, as in EleutherAI/w2s",
    ),
    HubRecord(
        name="openbookqa",
        asks="OpenBookQA: a question, its options and one of them; is it right?",
        hub="allenai/openbookqa",
        config="main",
        columns=("question_stem", "choices", "answerKey"),
        items=openbookqa,
        prompt="Q: {question_stem}\n\nChoices:\n{choices}\n\nAnswer: {answer}",
        parts=ALL,
        licence="unknown (not stated on the card)",
        hub_rows="train 4,957, validation 500, test 500",
    ),
    HubRecord(
        name="paws",
        asks="PAWS: do two sentences of many common words mean the same (1) or not (0)?",
        hub="google-research-datasets/paws",
        config="labeled_final",
        columns=("sentence1", "sentence2", "label"),
        items=labelled("sentence1", "sentence2"),
        prompt=(
            "Sent 1: {sentence1}\nSent 2: {sentence2}\n\n"
            "Q: Are these sentences semantically equivalent?"
        ),
        parts=ALL,
        licence="other (free for any purpose, with acknowledgement of Google)",
        hub_rows="train 49,401, validation 8,000, test 8,000",
        classes=("no", "yes"),
    ),
    HubRecord(
        name="quail",
        asks="QuAIL: a passage, a question and an answer; is the answer right?",
        hub="textmachinelab/quail",
        columns=("context", "question", "answers", "correct_answer_id"),
        items=quail,
        prompt='Passage:\n\n{context}\n\nQ: "{question}" Is the answer "{answer}"?',
        parts=HELD_OUT,
        licence="CC-BY-NC-SA-4.0",
        hub_rows="train 10,246, validation 2,164, challenge 556",
        remark="The hub has no test; its split challenge is not used",
    ),
    HubRecord(
        name="piqa",
        asks="PIQA: a physical goal and a way to reach it; is it the better of two?",
        hub="ybisk/piqa",
        columns=("goal", "sol1", "sol2", "label"),
        items=piqa,
        prompt="Q: {goal} A: {answer}",
        parts=HELD_OUT,
        licence="unknown (the card's word; AFL-3.0 in the authors' repository)",
        hub_rows="train 16,113, validation 1,838, test 3,084",
        remark=NO_TEST_LABELS,
    ),
    HubRecord(
        name="quartz",
        asks="QuaRTz: a qualitative relation, a question and an answer; is the answer right?",
        hub="allenai/quartz",
        columns=("para", "question", "choices", "answerKey"),
        items=quartz,
        prompt='Passage:\n{para}\n\nQ: "{question}" Is the answer "{answer}"?',
        parts=ALL,
        licence="CC-BY-4.0",
        hub_rows="train 2,696, validation 384, test 784",
    ),
    HubRecord(
        name="sciq",
        asks="SciQ: a science question and an answer; is the answer right?",
        columns=SCIQ_COLUMNS,
        prompt="Q: {question} A: {answer}",
        **SCIQ,
    ),
    HubRecord(
        name="sciq-with-support",
        asks="SciQ with its passage: a passage, a question and an answer; is the answer right?",
        columns=("support", *SCIQ_COLUMNS),
        prompt='Name: Bob\n\nPassage 1:\n{support}\n\nQ1: "{question}" Is the answer "{answer}"?',
        remark="Questions without a passage (one in ten) are left out",
        **SCIQ,
    ),
    HubRecord(
        name="social-iqa",
        asks="Social IQa: a situation, a question, three answers and one of them; is it right?",
        hub="allenai/social_i_qa",
        columns=("context", "question", "answerA", "answerB", "answerC", "label"),
        items=social_iqa,
        prompt=(
            'Context:\n{context}\n\nQuestion: "{question}"\n\nChoices:\n{answerA}\n{answerB}\n'
            '{answerC}\n\nIs the answer "{answer}"?'
        ),
        parts=HELD_OUT,
        licence="unknown (not stated on the card)",
        hub_rows="train 33,410, validation 1,954",
    ),
    HubRecord(
        name="multirc",
        asks="MultiRC: a paragraph, a question and an answer; is the answer right?",
        hub="aps/super_glue",
        config="multirc",
        columns=("paragraph", "question", "answer", "label"),
        items=labelled("paragraph", "question", "answer", group="paragraph"),
        prompt='Passage:\n\n{paragraph}\n\nQ: "{question}" Is the answer "{answer}"?',
        parts=HELD_OUT,
        licence="other (SuperGLUE's; the authors state none)",
        hub_rows="train 27,243, validation 4,848, test 9,693",
        remark=NO_TEST_LABELS,
    ),
    HubRecord(
        name="wic",
        asks="WiC: has a word the same meaning in two sentences (1) or not (0)?",
        hub="aps/super_glue",
        config="wic",
        columns=("word", "sentence1", "sentence2", "label"),
        items=labelled("word", "sentence1", "sentence2"),
        prompt=(
            "Sentence 1:\n{sentence1}\n\nSentence 2:\n{sentence2}\n\n"
            'Q: Does "{word}" have the same meaning in the above sentences?'
        ),
        parts=HELD_OUT,
        licence="CC-BY-NC-4.0 (WiC; the card says other)",
        hub_rows="train 5,428, validation 638, test 1,400",
        classes=("no", "yes"),
        remark=NO_TEST_LABELS,
    ),
    HubRecord(
        name="twitter-sentiment",
        asks="Twitter sentiment: is a tweet positive (1) or negative (0)?",
        hub="EleutherAI/twitter-sentiment",
        columns=("text", "label"),
        items=labelled("text"),
        prompt="{text}",
        parts=NO_VALIDATION,
        licence="unknown (not stated on the card)",
        hub_rows="train and test, 1 to 10 million",
        classes=("negative", "positive"),
        confirmed=False,
    ),
    HubRecord(
        name="amazon-polarity",
        asks="Amazon reviews: is a review positive (1) or negative (0)?",
        hub="fancyzhx/amazon_polarity",
        columns=("title", "content", "label"),
        items=labelled("content", "title"),
        prompt="{title} {content}",
        parts=NO_VALIDATION,
        licence="Apache-2.0",
        hub_rows="train 3,600,000, test 400,000",
        classes=("negative", "positive"),
    ),
    HubRecord(
        name="anthropic-hh",
        asks=(
            "Anthropic HH, one dialogue at a time: was it the preferred one of its pair (1)? "
            "Chance is hard to beat; preferences are better compared in pairs."
        ),
        hub="Anthropic/hh-rlhf",
        columns=("chosen", "rejected"),
        items=hh,
        prompt="{dialogue}",
        parts=NO_VALIDATION,
        licence="MIT",
        hub_rows="train 160,800, test 8,552",
        classes=("rejected", "chosen"),
    ),
)

TASKS = tuple(record.task() for record in RECORDS)
