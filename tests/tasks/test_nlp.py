"""The records, and each formatter on rows in the hub's schema, odd cases included."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from real_files import REAL

from probekit.tasks import get_task, hub, nlp, task_names
from probekit.tasks.hub import HubRecord, Item
from probekit.tasks.nlp import RECORDS

BY_NAME = {record.name: record for record in RECORDS}

# One row of each task in the hub's schema, all of its columns, and every version it gives.
ROWS: dict[str, tuple[dict[str, Any], list[tuple[str, int]]]] = {
    "boolq": (
        {"question": "is it wet", "answer": True, "passage": "Water is wet."},
        [("Passage: Water is wet.\nQuestion: is it wet", 1)],
    ),
    "cosmos-qa": (
        {
            "id": "3Q9#a1",
            "context": "I went home .",
            "question": "Why ?",
            "answer0": "None of the above choices .",
            "answer1": "I was tired .",
            "answer2": "",
            "answer3": "It rained .",
            "label": 1,
        },
        [
            ("Context: I went home .\nQuestion: Why ?\nAnswer: None of the above choices .", 0),
            ("Context: I went home .\nQuestion: Why ?\nAnswer: I was tired .", 1),
            ("Context: I went home .\nQuestion: Why ?\nAnswer: It rained .", 0),
        ],
    ),
    "dream": (
        {
            "id": 0,
            "dialogue_id": "5-510",
            "dialogue": ["W: Tea?", "M: Please."],
            "question": "What does he want?",
            "choice": ["Coffee.", "Tea.", "Milk."],
            "answer": "Tea.",
        },
        [
            ("W: Tea?\nM: Please.\n\nQ: What does he want? A: Coffee.", 0),
            ("W: Tea?\nM: Please.\n\nQ: What does he want? A: Tea.", 1),
            ("W: Tea?\nM: Please.\n\nQ: What does he want? A: Milk.", 0),
        ],
    ),
    "ethics-justice": (
        {"label": 0, "scenario": "I deserve a boat."},
        [("Q: Does this statement exemplify justice?\n\nI deserve a boat.\n\nA:", 0)],
    ),
    "ethics-deontology": (
        {"label": 1, "scenario": "Could you cook?", "excuse": "No, I ate."},
        [
            (
                "Q: Is the following a morally valid excuse?\n\n"
                "Could you cook?\n\nNo, I ate.\n\nA:",
                1,
            )
        ],
    ),
    "ethics-virtue": (
        {"label": 1, "scenario": "Ann gave him her coat. [SEP] kind"},
        [
            (
                "Q: Does this behavior match the adjective that follows?\n\n"
                "Ann gave him her coat.\n\nkind\n\nA:",
                1,
            )
        ],
    ),
    "ethics-utilitarianism": (
        {"baseline": "I ate cake.", "less_pleasant": "I ate sand."},
        [
            ("Which is more pleasant?\n1) I ate cake.\n2) I ate sand. A: 1", 1),
            ("Which is more pleasant?\n1) I ate cake.\n2) I ate sand. A: 2", 0),
            ("Which is more pleasant?\n1) I ate sand.\n2) I ate cake. A: 1", 0),
            ("Which is more pleasant?\n1) I ate sand.\n2) I ate cake. A: 2", 1),
        ],
    ),
    "anli-r2": (
        {"uid": "u", "premise": "P.", "hypothesis": "H.", "label": 0, "reason": ""},
        [("Premise: P.\nHypothesis: H.\n\nDoes the premise entail the hypothesis?", 1)],
    ),
    "cola": ({"sentence": "They drank.", "label": 1, "idx": 0}, [("They drank.", 1)]),
    "sst2": ({"idx": 0, "sentence": "a mess ", "label": 0}, [("a mess", 0)]),
    "hellaswag": (
        {
            "ind": 4,
            "activity_label": "Ice",
            "ctx_a": "A man sits.",
            "ctx_b": "he",
            "ctx": "A man sits. he",
            "endings": ["stands.", "flies."],
            "source_id": "activitynet~v",
            "split": "train",
            "split_type": "indomain",
            "label": "0",
        },
        [
            (
                "Context:\nA man sits. he\n\nContinuations:\n\nstands.\nflies.\n\n"
                'Q: Is "stands." the best continuation?',
                1,
            ),
            (
                "Context:\nA man sits. he\n\nContinuations:\n\nstands.\nflies.\n\n"
                'Q: Is "flies." the best continuation?',
                0,
            ),
        ],
    ),
    "mc-taco": (
        {
            "sentence": "He left.",
            "question": "When did he leave?",
            "answer": "at noon",
            "label": 1,
            "category": 3,
        },
        [("He left.\n\nGiven the above, When did he leave? Is the answer at noon?", 1)],
    ),
    "openbookqa": (
        {
            "id": "7-980",
            "question_stem": "The sun is",
            "choices": {"text": ["hot", "cold"], "label": ["A", "B"]},
            "answerKey": "B",
        },
        [
            ("Q: The sun is\n\nChoices:\nA) hot\nB) cold\n\nAnswer: hot", 0),
            ("Q: The sun is\n\nChoices:\nA) hot\nB) cold\n\nAnswer: cold", 1),
        ],
    ),
    "paws": (
        {"id": 1, "sentence1": "A b.", "sentence2": "B a.", "label": 0},
        [("Sent 1: A b.\nSent 2: B a.\n\nQ: Are these sentences semantically equivalent?", 0)],
    ),
    "quail": (
        {
            "id": "f001_19",
            "context_id": "f001",
            "question_id": "19",
            "domain": "fiction",
            "metadata": {"author": "a", "title": "t", "url": "u"},
            "context": "Fall came.",
            "question": "What came?",
            "question_type": "Factual",
            "answers": ["fall", "spring", "not enough information"],
            "correct_answer_id": 0,
        },
        [
            ('Passage:\n\nFall came.\n\nQ: "What came?" Is the answer "fall"?', 1),
            ('Passage:\n\nFall came.\n\nQ: "What came?" Is the answer "spring"?', 0),
            (
                'Passage:\n\nFall came.\n\nQ: "What came?" Is the answer "not enough information"?',
                0,
            ),
        ],
    ),
    "piqa": (
        {"goal": "Open a jar", "sol1": "Hit it.", "sol2": "Turn it.", "label": 1},
        [("Q: Open a jar A: Hit it.", 0), ("Q: Open a jar A: Turn it.", 1)],
    ),
    "quartz": (
        {
            "id": "QRQA-1",
            "question": "Closer is _____.",
            "choices": {"text": ["higher", "lower"], "label": ["A", "B"]},
            "answerKey": "A",
            "para": "Near means more.",
            "para_id": "QRSent-1",
            "para_anno": {"effect_prop": ""},
            "question_anno": {"more_effect_dir": ""},
        },
        [
            ('Passage:\nNear means more.\n\nQ: "Closer is _____." Is the answer "higher"?', 1),
            ('Passage:\nNear means more.\n\nQ: "Closer is _____." Is the answer "lower"?', 0),
        ],
    ),
    "sciq": (
        {
            "question": "What burns?",
            "distractor3": "neon",
            "distractor1": "argon",
            "distractor2": "iron",
            "correct_answer": "hydrogen",
            "support": "",
        },
        [
            ("Q: What burns? A: hydrogen", 1),
            ("Q: What burns? A: argon", 0),
            ("Q: What burns? A: iron", 0),
            ("Q: What burns? A: neon", 0),
        ],
    ),
    "sciq-with-support": (
        {
            "question": "What burns?",
            "distractor3": None,
            "distractor1": "argon",
            "distractor2": "",
            "correct_answer": "hydrogen",
            "support": "Hydrogen burns.",
        },
        [
            (
                "Name: Bob\n\nPassage 1:\nHydrogen burns.\n\n"
                'Q1: "What burns?" Is the answer "hydrogen"?',
                1,
            ),
            (
                "Name: Bob\n\nPassage 1:\nHydrogen burns.\n\n"
                'Q1: "What burns?" Is the answer "argon"?',
                0,
            ),
        ],
    ),
    "social-iqa": (
        {
            "context": "Kim fell.",
            "question": "How did Kim feel?",
            "answerA": "sore",
            "answerB": "glad",
            "answerC": "rich",
            "label": "1",
        },
        [
            (
                'Context:\nKim fell.\n\nQuestion: "How did Kim feel?"\n\n'
                f'Choices:\nsore\nglad\nrich\n\nIs the answer "{answer}"?',
                label,
            )
            for answer, label in (("sore", 1), ("glad", 0), ("rich", 0))
        ],
    ),
    "multirc": (
        {
            "paragraph": "It rained. They left.",
            "question": "Who left?",
            "answer": "They",
            "idx": {"paragraph": 0, "question": 0, "answer": 0},
            "label": 1,
        },
        [('Passage:\n\nIt rained. They left.\n\nQ: "Who left?" Is the answer "They"?', 1)],
    ),
    "wic": (
        {
            "word": "place",
            "sentence1": "My place.",
            "sentence2": "No place for it.",
            "start1": 3,
            "start2": 3,
            "end1": 8,
            "end2": 8,
            "idx": 0,
            "label": 0,
        },
        [
            (
                "Sentence 1:\nMy place.\n\nSentence 2:\nNo place for it.\n\n"
                'Q: Does "place" have the same meaning in the above sentences?',
                0,
            )
        ],
    ),
    "twitter-sentiment": ({"text": "what a day", "label": 1}, [("what a day", 1)]),
    "amazon-polarity": (
        {"label": 0, "title": "Broke", "content": "It broke {soon}."},
        [("Broke It broke {soon}.", 0)],
    ),
    "anthropic-hh": (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello!",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Go.",
        },
        [("Human: Hi\n\nAssistant: Go.", 0), ("Human: Hi\n\nAssistant: Hello!", 1)],
    ),
}


def item(name: str, **changed: Any) -> Item | None:
    record = BY_NAME[name]
    row = {**ROWS[name][0], **changed}
    return record.items({column: row[column] for column in record.columns}, record.prompt)


def right(found: Item | None) -> list[str]:
    assert found is not None
    return [text for text, label in found.versions if label]


def test_every_task_is_shown_here() -> None:
    assert set(ROWS) == set(BY_NAME)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_row_of_the_hub_gives_these_versions(name: str) -> None:
    found = item(name)
    assert found is not None
    assert list(found.versions) == ROWS[name][1]
    assert found.question
    assert found.group


# What makes a row useless, task by task: no label (the hub's unlabelled tests), no text, a key
# that names no option, options that leave nothing to choose.
USELESS: list[tuple[str, dict[str, Any]]] = [
    ("boolq", {"answer": None}),
    ("boolq", {"passage": " "}),
    ("cosmos-qa", {"label": -1}),
    ("cosmos-qa", {"label": 2}),  # the right answer is empty
    ("cosmos-qa", {"context": ""}),
    ("dream", {"answer": "Wine."}),
    ("dream", {"dialogue": []}),
    ("dream", {"choice": None}),
    ("dream", {"choice": ["Tea."]}),
    ("ethics-justice", {"label": -1}),
    ("ethics-deontology", {"excuse": None}),
    ("ethics-virtue", {"scenario": ""}),
    ("ethics-utilitarianism", {"less_pleasant": "I ate cake."}),
    ("ethics-utilitarianism", {"baseline": None}),
    ("anli-r2", {"label": -1}),
    ("cola", {"label": -1}),
    ("sst2", {"label": -1}),
    ("hellaswag", {"label": ""}),
    ("hellaswag", {"label": "2"}),
    ("hellaswag", {"endings": None}),
    ("hellaswag", {"endings": ["", "flies."]}),
    ("mc-taco", {"label": -1}),
    ("openbookqa", {"answerKey": ""}),
    ("openbookqa", {"answerKey": "E"}),
    ("openbookqa", {"choices": {"text": [], "label": []}}),
    ("openbookqa", {"choices": None}),
    ("paws", {"label": -1}),
    ("quail", {"correct_answer_id": 3}),
    ("quail", {"answers": None}),
    ("quail", {"correct_answer_id": None}),
    ("piqa", {"label": -1}),
    ("piqa", {"sol2": "Hit it."}),
    ("quartz", {"answerKey": "C"}),
    ("sciq", {"correct_answer": ""}),
    ("sciq", {"distractor1": "", "distractor2": None, "distractor3": "hydrogen"}),
    ("sciq-with-support", {"support": ""}),
    ("sciq-with-support", {"support": None}),
    ("social-iqa", {"label": ""}),
    ("social-iqa", {"label": "4"}),
    ("social-iqa", {"label": "0"}),
    ("multirc", {"label": -1}),
    ("multirc", {"answer": ""}),
    ("wic", {"label": -1}),
    ("twitter-sentiment", {"label": 2}),
    ("amazon-polarity", {"title": None}),
    ("anthropic-hh", {"rejected": "\n\nHuman: Hi\n\nAssistant: Hello!"}),
    ("anthropic-hh", {"chosen": None}),
]


@pytest.mark.parametrize(("name", "changed"), USELESS)
def test_a_row_without_label_or_text_gives_nothing(name: str, changed: dict[str, Any]) -> None:
    assert item(name, **changed) is None


# Labels and keys in other clothes: the same row.
SAME: list[tuple[str, dict[str, Any]]] = [
    ("boolq", {"answer": 1}),
    ("boolq", {"answer": "True"}),
    ("cosmos-qa", {"label": "1"}),
    ("anli-r2", {"label": "entailment"}),
    ("cola", {"label": "acceptable"}),
    ("sst2", {"label": "negative"}),
    ("hellaswag", {"label": 0}),
    ("mc-taco", {"label": "yes"}),
    ("multirc", {"label": "True"}),
    ("wic", {"label": False}),
    ("amazon-polarity", {"label": "negative"}),
    ("piqa", {"label": "1"}),
    ("openbookqa", {"answerKey": "2"}),
    ("openbookqa", {"answerKey": "b "}),
    (
        "openbookqa",
        {"choices": [{"text": "hot", "label": "A"}, {"text": "cold", "label": "B"}]},
    ),
    ("quartz", {"answerKey": "1"}),
    ("social-iqa", {"label": 1}),
    ("social-iqa", {"label": "A"}),
]


@pytest.mark.parametrize(("name", "changed"), SAME)
def test_labels_come_as_numbers_names_and_strings(name: str, changed: dict[str, Any]) -> None:
    assert item(name, **changed) == item(name)


def test_options_with_the_keys_1_and_2() -> None:
    choices = {"text": ["hot", "cold"], "label": ["1", "2"]}
    found = item("openbookqa", choices=choices, answerKey="2")
    assert right(found) == ["Q: The sun is\n\nChoices:\n1) hot\n2) cold\n\nAnswer: cold"]
    assert right(item("openbookqa", choices=choices, answerKey="B")) == right(found)


def test_keys_of_options_come_before_their_places() -> None:
    # Where the keys themselves are numbers from 0, "1" is the second and not the first.
    assert nlp.key_index("1", ["0", "1", "2"]) == 1
    assert nlp.key_index("1", ["A", "B"]) == 0
    assert nlp.key_index("C", ["A", "B"]) is None
    assert nlp.key_index(None, ["A", "B"]) is None
    assert nlp.key_index("0", ["A", "B"]) is None


def test_neutral_and_contradiction_are_one_class() -> None:
    for label in (1, 2, "neutral", "contradiction"):
        found = item("anli-r2", label=label)
        assert found is not None
        assert found.versions[0][1] == 0


def test_a_question_whose_right_answer_is_none_of_them_is_only_shown_wrong() -> None:
    found = item("cosmos-qa", label=0)
    assert found is not None
    assert right(found) == []
    assert [text.partition("Answer: ")[2] for text, _ in found.versions] == [
        "I was tired .",
        "It rained .",
    ]


def test_a_wrong_answer_that_repeats_the_right_one_is_not_shown() -> None:
    found = item("dream", choice=["Tea.", "Tea. ", "Milk."])
    assert found is not None
    assert [label for _, label in found.versions] == [1, 0]


def test_the_question_of_an_item_holds_no_answer_and_no_label() -> None:
    def question(name: str, **changed: Any) -> str:
        found = item(name, **changed)
        assert found is not None
        return found.question

    assert question("sciq") == question("sciq", correct_answer="helium")
    assert question("dream") == question("dream", answer="Milk.")
    assert question("sst2") == question("sst2", label=1)
    assert question("cosmos-qa") != question("cosmos-qa", question="When ?")
    assert question("piqa") != question("piqa", sol1="Warm it.")


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("boolq", "question"),
        ("cosmos-qa", "question"),
        ("dream", "question"),
        ("mc-taco", "answer"),
        ("quail", "question"),
        ("quartz", "question"),
        ("social-iqa", "question"),
        ("multirc", "question"),
    ],
)
def test_carving_keeps_questions_on_one_passage_together(name: str, column: str) -> None:
    first, other = item(name), item(name, **{column: "another one"})
    assert first is not None
    assert other is not None
    assert first.group == other.group
    assert first.question != other.question


ROOT = Path(__file__).parents[2]
NAMES = (
    *("boolq", "cosmos-qa", "dream", "ethics-justice", "ethics-deontology", "ethics-virtue"),
    *("ethics-utilitarianism", "anli-r2", "cola", "sst2", "hellaswag", "mc-taco", "openbookqa"),
    *("paws", "quail", "piqa", "quartz", "sciq", "sciq-with-support", "social-iqa", "multirc"),
    *("wic", "twitter-sentiment", "amazon-polarity", "anthropic-hh"),
)


def test_every_task_of_the_papers_is_here() -> None:
    assert sorted(record.name for record in RECORDS) == sorted(NAMES)
    assert set(NAMES) <= set(task_names())


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_a_task_tells_its_source_without_reading(record: HubRecord) -> None:
    task = get_task(record.name)
    assert task.splits == ("train", "validation", "test")
    assert task.pool in task.splits
    assert task.test in task.splits
    assert task.kind == "classify"
    assert len(task.classes) == 2
    assert task.card == f"https://huggingface.co/datasets/{record.hub}"
    assert task.licence
    assert record.hub.count("/") == 1
    # The prompt asks for columns that are read, or for what a formatter makes of them.
    made = {"answer", "choices", "first", "second", "dialogue"}
    assert set(re.findall(r"{(\w+)}", task.prompt)) <= set(record.columns) | made


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_splits_are_shares_that_do_not_overlap(record: HubRecord) -> None:
    for first in record.parts:
        assert 0 <= first.start < first.stop <= 1
        for other in record.parts:
            if other is not first and other.split == first.split:
                assert first.stop <= other.start or other.stop <= first.start


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_the_docs_have_a_row_for_each_task(record: HubRecord) -> None:
    page = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith(f"| `{record.name}` |")]
    assert len(rows) == 1
    prompt = record.prompt.replace("\n", "⏎").replace("|", "\\|")
    parts = (f"[{record.hub}]({record.card})", record.licence, f"`{prompt}`", record.hub_rows)
    assert [part for part in (*parts, " / ".join(record.classes)) if part not in rows[0]] == []
    assert ("not confirmed" in rows[0]) != record.confirmed


BY_NAME = {record.name: record for record in RECORDS}


# Share of the rows that are left out: no label or text, or the text stands in another split.
LEFT_OUT = {"cola": 0.002, "sciq": 0.002, "sciq-with-support": 0.11}  # one in ten has no passage


@pytest.mark.realdata
@pytest.mark.parametrize("name", sorted(REAL))
def test_real_files(name: str, realdata: Any, hub_folder: Callable[..., Path]) -> None:
    record = BY_NAME[name]
    files = REAL[name](realdata.data)
    hub_folder(record.hub, record.config, **files)
    task = get_task(name)
    rows = {split: task.rows(split, seed=0) for split in task.splits}
    ids = [row_id for split in rows.values() for row_id in split.ids]
    assert len(ids) == len(set(ids))
    texts = {split: set(found.contents()) for split, found in rows.items()}
    assert not texts["test"] & texts["train"]
    assert not texts["test"] & texts["validation"]
    assert not texts["validation"] & texts["train"]
    for found in rows.values():
        labels = found.columns["label"]
        assert sum(labels) * 2 == len(labels)
    folder = os.environ[hub.DATASETS_VARIABLE]
    kept = 0
    for split in task.splits:
        items, _ = hub._items(record, split, folder)
        kept += len(items)
    given = sum(map(len, files.values()))
    assert given * (1 - LEFT_OUT.get(name, 0.0001)) <= kept <= given


def read_real(name: str, data: Path, hub_folder: Callable[..., Path]) -> list[tuple[Any, str, int]]:
    """Rows of train as (row of the file, text, label), the row found by the number in the id."""
    record = BY_NAME[name]
    files = REAL[name](data)
    hub_folder(record.hub, record.config, **files)
    rows = get_task(name).rows("train", seed=3)
    start = f"{name}-train-"
    numbers = [int(row_id.removeprefix(start).partition("-")[0]) for row_id in rows.ids]
    raw = [files["train"][number] for number in numbers]
    return list(zip(raw, map(str, rows.contents()), rows.columns["label"], strict=True))


@pytest.mark.realdata
def test_real_answers_are_right_where_the_label_says_so(
    realdata: Any, hub_folder: Callable[..., Path]
) -> None:
    shown = read_real("sciq", realdata.data, hub_folder)
    assert len(shown) > 11_000
    for row, text, label in shown:
        question, answer = row["question"].strip(), row["correct_answer"].strip()
        assert (text == f"Q: {question} A: {answer}") == bool(label)
    shown = read_real("hellaswag", realdata.data, hub_folder)
    for row, text, label in shown:
        right = row["endings"][int(row["label"])].strip()
        assert text.endswith(f'Q: Is "{right}" the best continuation?') == bool(label)


@pytest.mark.realdata
def test_real_labels_are_those_of_the_file(realdata: Any, hub_folder: Callable[..., Path]) -> None:
    shown = read_real("sst2", realdata.data, hub_folder)
    assert len(shown) > 50_000
    assert all((row["sentence"].strip(), row["label"]) == (t, label) for row, t, label in shown)
