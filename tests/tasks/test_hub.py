"""The hub or a folder laid out like it, and the one loader: versions, draws, splits, ids."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from probekit.errors import DataError
from probekit.tasks import hub
from probekit.tasks.hub import HubRecord, Part, read_hub, rows_of, sampled_positions
from probekit.tasks.nlp import ALL, HELD_OUT, labelled, quail

CARD = """---
configs:
- config_name: first
  data_files:
  - split: train
    path: odd/place.csv
---
"""


def test_a_folder_stands_for_the_hub(hub_folder: Callable[..., Path]) -> None:
    hub_folder("org/plain", train=[{"text": "a"}, {"text": "b"}], test=[{"text": "c"}])
    columns = read_hub("org/plain", None, "train").columns
    assert list(columns["text"]) == ["a", "b"]
    assert columns["text"][1:] == ["b"]
    assert list(read_hub("org/plain", None, "test").columns["text"]) == ["c"]
    assert list(read_hub("org/plain", None, "train[:1]").columns["text"]) == ["a"]


def test_a_configuration_is_a_folder_of_its_own(hub_folder: Callable[..., Path]) -> None:
    hub_folder("org/two", "first", train=[{"text": "one"}])
    hub_folder("org/two", "second", train=[{"text": "two"}])
    assert list(read_hub("org/two", "first", "train").columns["text"]) == ["one"]
    assert list(read_hub("org/two", "second", "train").columns["text"]) == ["two"]


def test_the_layout_of_the_hubs_own_copies_is_read(hub_folder: Callable[..., Path]) -> None:
    folder = hub_folder("org/copy", "first", **{"0000": [{"text": "one"}]})
    (folder / "first" / "train").mkdir()
    (folder / "first" / "0000.parquet").rename(folder / "first" / "train" / "0000.parquet")
    assert list(read_hub("org/copy", "first", "train").columns["text"]) == ["one"]


def test_a_card_says_where_its_configurations_are(hub_folder: Callable[..., Path]) -> None:
    folder = hub_folder("org/card", "first", train=[{"text": "not this"}])
    (folder / "odd").mkdir()
    (folder / "odd" / "place.csv").write_text("text\nthis\n")
    (folder / "README.md").write_text(CARD)
    assert list(read_hub("org/card", "first", "train").columns["text"]) == ["this"]


def test_a_data_set_that_the_folder_lacks_is_reported_with_the_way_to_get_it(
    hub_folder: Callable[..., Path],
) -> None:
    hub_folder("org/there", train=[{"text": "a"}])
    with pytest.raises(DataError, match=r"PROBEKIT_DATASETS is .*hub, which has no folder org/no;"):
        read_hub("org/no", None, "train")
    with pytest.raises(DataError, match=r"hf download org/no --repo-type dataset --local-dir"):
        read_hub("org/no", None, "train")


def test_a_split_that_is_not_there_is_reported_with_those_that_are(
    hub_folder: Callable[..., Path],
) -> None:
    hub_folder("org/plain", train=[{"text": "a"}])
    with pytest.raises(DataError, match=r"hf:org/plain@dev cannot be read: .*dev.*train") as caught:
        read_hub("org/plain", None, "dev")
    assert "\n" not in str(caught.value)


def test_without_hub_and_folder_the_sentence_names_the_variable() -> None:
    # The tests run with HF_HUB_OFFLINE=1.
    with pytest.raises(DataError, match=r"hf:nobody/nothing:part@train .*PROBEKIT_DATASETS"):
        read_hub("nobody/nothing", "part", "train")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Dataset scripts are no longer supported, but found ethics.py"),
        ValueError("BuilderConfig 'justice' not found. Available: ['default']"),
    ],
)
def test_what_only_a_script_could_load_is_read_from_the_hubs_copy(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def load_dataset(name: str, config: str | None = None, **options: Any) -> Any:
        asked.append((name, config, options))
        if "revision" not in options:
            raise error
        return datasets.Dataset.from_dict({"text": ["from the copy"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(read_hub("org/scripted", "justice", "test").columns["text"]) == ["from the copy"]
    copy = {"data_dir": "justice", "revision": "refs/convert/parquet", "split": "test"}
    assert asked[1] == ("org/scripted", None, copy)


def test_other_failures_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*_: Any, **__: Any) -> Any:
        asked.append(1)
        raise ValueError("Unknown split")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"Unknown split\.$"):
        read_hub("org/name", None, "dev")
    assert asked == [1]


def test_a_split_is_opened_once(
    hub_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_folder("org/plain", train=[{"text": "a"}])
    first = read_hub("org/plain", None, "train")
    monkeypatch.setattr(datasets, "load_dataset", None)  # calling it would fail
    assert read_hub("org/plain", None, "train") is first


Write = Callable[..., Path]

LABELLED = HubRecord(
    name="weather",
    asks="Is it fair?",
    hub="org/weather",
    columns=("sentence", "label"),
    items=labelled("sentence"),
    prompt="Say: {sentence}",
    parts=HELD_OUT,
    licence="MIT",
    hub_rows="train 400",
)
QUESTIONS = HubRecord(
    name="questions",
    asks="Is the answer right?",
    hub="org/questions",
    columns=("context", "question", "answers", "correct_answer_id"),
    items=quail,
    prompt="{context} {question} {answer}",
    parts=ALL,
    licence="MIT",
    hub_rows="train 300",
)


def sentences(n: int, name: str = "day", every: int = 4) -> list[dict[str, Any]]:
    return [{"sentence": f"{name} {i}", "label": int(i % every == 0)} for i in range(n)]


def questions(n: int, name: str) -> list[dict[str, Any]]:
    return [
        {
            "context": f"passage {i // 3} of {name}",
            "question": f"question {i}?",
            "answers": [f"answer {i}-{j}" for j in range(4)],
            "correct_answer_id": i % 4,
        }
        for i in range(n)
    ]


@pytest.fixture
def weather(hub_folder: Write) -> None:
    hub_folder("org/weather", train=sentences(400), validation=sentences(40, "night"))


@pytest.fixture
def quiz(hub_folder: Write) -> None:
    parts = {name: questions(n, name) for name, n in (("train", 300), ("test", 60))}
    hub_folder("org/questions", **parts, validation=questions(30, "validation"))


def test_rows_have_the_prompt_and_as_many_of_either_class(weather: None) -> None:
    rows = rows_of(LABELLED, "test", 0)
    assert sorted(rows.columns["label"]) == [0] * 10 + [1] * 10
    for row_id, text, label in zip(
        *(rows.columns[c] for c in ("id", "text", "label")), strict=True
    ):
        number = int(row_id.removeprefix("weather-validation-"))
        assert text == f"Say: night {number}"
        assert label == int(number % 4 == 0)


def test_a_carved_split_takes_its_share_and_shares_no_row(weather: None) -> None:
    splits = {name: rows_of(LABELLED, name, 0) for name in ("train", "validation", "test")}
    texts = {name: set(rows.columns["text"]) for name, rows in splits.items()}
    assert not texts["train"] & texts["validation"]
    # 40 of 400 expected, standard deviation 6; balancing keeps about half of a split.
    items, _ = hub._items(LABELLED, "validation", _where())
    rest, _ = hub._items(LABELLED, "train", _where())
    assert len(items) + len(rest) == 400
    assert 16 < len(items) < 64


def _where() -> str | None:
    return os.environ.get(hub.DATASETS_VARIABLE)


def test_the_seed_moves_no_row_to_another_split(weather: None) -> None:
    held = {row_id for seed in range(5) for row_id in rows_of(LABELLED, "validation", seed).ids}
    trained = {row_id for seed in range(5) for row_id in rows_of(LABELLED, "train", seed).ids}
    assert not held & trained


def test_questions_of_one_passage_are_a_group(quiz: None) -> None:
    rows = rows_of(QUESTIONS, "train", 0)
    passages = [str(text).partition(" question")[0] for text in rows.contents()]
    assert rows.groups is not None
    pairs = set(zip(passages, rows.groups, strict=True))
    assert len(pairs) == len(set(passages)) == len(set(rows.groups))
    assert len(pairs) < len(rows)


def test_a_group_is_not_torn_apart_by_carving(hub_folder: Write) -> None:
    record = dataclasses.replace(QUESTIONS, parts=HELD_OUT)
    hub_folder("org/questions", train=questions(300, "train"), validation=questions(30, "v"))
    passages = {
        split: {text.partition(" question")[0] for text in rows_of(record, split, 0).contents()}
        for split in ("train", "validation")
    }
    assert len(passages["validation"]) > 2
    assert not passages["train"] & passages["validation"]


def test_a_text_of_two_splits_stays_in_the_test_set(hub_folder: Write) -> None:
    shared = [{"sentence": f"both {i}", "label": i % 2} for i in range(10)]
    hub_folder("org/weather", train=sentences(200) + shared, validation=shared + shared[:2])
    assert set(rows_of(LABELLED, "test", 0).contents()) == {f"Say: both {i}" for i in range(10)}
    for split in ("train", "validation"):
        assert not [t for t in rows_of(LABELLED, split, 0).contents() if "both" in str(t)]
    assert _left_out() == 10


def _left_out() -> int:
    return sum(
        hub._items(LABELLED, split, _where())[1]["standing in another split"]
        for split in ("train", "validation")
    )


def test_each_question_gives_one_row_right_or_wrong_by_a_fair_draw(quiz: None) -> None:
    items, _ = hub._items(QUESTIONS, "train", _where())
    shown = [hub._draw_version(key, item, 0) for key, item in items]
    assert len(shown) == 300
    right = sum(label for _, _, label, _ in shown)
    assert abs(right - 150) < 4 * 8.7  # sqrt(300 * .5 * .5) = 8.7
    for row_id, text, label, _ in shown:
        number, place = map(int, row_id.removeprefix("questions-train-").split("-"))
        assert text.endswith(f"question {number}? answer {number}-{place}")
        assert label == int(number % 4 == place)
    wrong = [int(row_id[-1]) for row_id, _, label, _ in shown if not label]
    assert set(wrong) == {0, 1, 2, 3}


def test_seeds_draw_other_answers_and_another_order(quiz: None) -> None:
    first, again, other = (rows_of(QUESTIONS, "test", seed) for seed in (0, 0, 1))
    assert first.ids == again.ids
    assert first.ids != other.ids
    assert set(first.ids) != set(other.ids)
    # Where both seeds show the same version it has the same id and the same text.
    texts = dict(zip(first.ids, first.hashes, strict=True))
    common = [i for i, row_id in enumerate(other.ids) if row_id in texts]
    assert common
    assert all(texts[other.ids[i]] == other.hashes[i] for i in common)


def test_an_id_and_its_draw_do_not_depend_on_the_rows_around_it(hub_folder: Write) -> None:
    hub_folder("org/questions", test=questions(60, "test"), train=questions(6, "train"))
    few = {row[0]: row for row in _shown_test()}
    hub_folder("org/more", test=questions(90, "test"))
    more = {row[0]: row for row in _shown_test(dataclasses.replace(QUESTIONS, hub="org/more"))}
    assert len(few) == 60
    assert all(more[key] == row for key, row in few.items())


def _shown_test(record: HubRecord = QUESTIONS) -> list[tuple[str, str, int]]:
    return [
        hub._draw_version(key, item, 5) for key, item in hub._items(record, "test", _where())[0]
    ]


def test_rows_without_a_label_are_left_out_and_counted(hub_folder: Write) -> None:
    unlabelled = [{"sentence": f"unknown {i}", "label": -1} for i in range(7)]
    rows = [*sentences(20), *unlabelled, {"sentence": " ", "label": 1}]
    hub_folder("org/weather", train=rows, validation=rows)
    found = rows_of(LABELLED, "test", 0)
    assert found.note == "left out: 8 without label or text."
    assert found.source == "weather@test"  # a name to find these rows by
    assert not [text for text in found.contents() if "unknown" in str(text)]


def test_a_split_without_labels_is_refused_with_what_was_expected(hub_folder: Write) -> None:
    hub_folder("org/weather", validation=[{"sentence": f"s{i}", "label": -1} for i in range(5)])
    with pytest.raises(
        DataError,
        match=r"split 'test' of the task 'weather' has no row of the class 'wrong' among 0 usable "
        r"rows of org/weather \(left out: 5 without label or text\)",
    ):
        rows_of(LABELLED, "test", 0)


def test_a_split_of_one_class_is_refused(hub_folder: Write) -> None:
    hub_folder("org/weather", validation=[{"sentence": f"s{i}", "label": 0} for i in range(5)])
    with pytest.raises(DataError, match=r"no row of the class 'right' among 5 usable rows"):
        rows_of(LABELLED, "test", 0)


def test_another_layout_of_columns_is_reported_with_the_card(hub_folder: Write) -> None:
    hub_folder("org/weather", validation=[{"text": "a", "label": 1}])
    with pytest.raises(
        DataError,
        match=r"org/weather \(validation\) has no column 'sentence'; it has text, label, and the "
        r"task 'weather' reads sentence, label: see https://huggingface.co/datasets/org/weather\.",
    ):
        rows_of(LABELLED, "test", 0)


def test_of_a_large_split_rows_are_taken_evenly_and_always_the_same() -> None:
    assert sampled_positions(5, 10) == [0, 1, 2, 3, 4]
    places = sampled_positions(1003, 100)
    assert places == sampled_positions(1003, 100)
    assert len(set(places)) == 100
    # One of each stretch of 10 or 11 rows, and not always its first.
    assert all(1003 * i // 100 <= p < 1003 * (i + 1) // 100 for i, p in enumerate(places))
    assert len({p - 1003 * i // 100 for i, p in enumerate(places)}) > 5


def test_a_large_split_keeps_the_numbers_of_its_rows(
    weather: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "sampled_positions", lambda rows: sampled_positions(rows, 20))
    rows = rows_of(LABELLED, "test", 0)
    assert 0 < len(rows) <= 20
    assert all(
        f"Say: night {i.rpartition('-')[2]}" == t
        for i, t in zip(rows.ids, rows.contents(), strict=True)
    )


def test_a_record_tells_where_its_splits_come_from() -> None:
    task = LABELLED.task()
    assert task.splits == ("train", "validation", "test")
    assert task.notes == (
        "train = 90% of the hub's train; validation = 10% of the hub's train; "
        "test = the hub's validation"
    )
    assert task.source == "hf:org/weather (columns sentence, label; train 400)"
    doubted = dataclasses.replace(LABELLED, confirmed=False, config="part").task()
    assert doubted.source.startswith("hf:org/weather:part (columns sentence, label, not confirmed")
    assert Part("a", "b").stop == 1.0
