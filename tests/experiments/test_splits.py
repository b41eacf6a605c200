"""A task's rows, dealt so that nobody trains on what it is tested on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probekit.data import Rows
from probekit.errors import DataError, LabelsError, UsageError
from probekit.experiments.config import RunConfig
from probekit.experiments.splits import Splits, chain_splits, contents_only, run_splits
from probekit.tasks import registry
from probekit.tasks.registry import Task, register


def config(**more: Any) -> RunConfig:
    return RunConfig.from_mapping({"task": "t", "weak": "a", "strong": "b", **more})


def check_disjoint(splits: Splits) -> None:
    for one, other in combinations(splits.rows.values(), 2):
        assert not set(one.ids) & set(other.ids)
        assert not set(one.hashes) & set(other.hashes)


@pytest.fixture
def rows_file(write_jsonl: Callable[..., Path]) -> Path:
    """200 rows of three classes, each text twice under another id."""
    rows = [
        {"id": f"r{i}", "text": f"text {i // 2}", "label": ["red", "green", "blue"][i // 2 % 3]}
        for i in range(200)
    ]
    return write_jsonl(rows)


def test_docstrings_keep_their_halves() -> None:
    settings = config(supervisor_rows=50, student_rows=80, test_rows=30, validation_share=0.25)
    splits = run_splits("docstrings", settings, 0)
    assert {"supervisor", "student", "validation", "test"} == set(splits.rows)
    assert len(splits.rows["supervisor"]) == 50
    assert len(splits.rows["student"]) + len(splits.rows["validation"]) == 80
    assert 8 <= len(splits.rows["validation"]) <= 32  # 20 expected; 4 standard deviations
    assert len(splits.rows["test"]) == 30
    check_disjoint(splits)
    assert splits.classes == ("standard library", "science")


def test_so_many_validation_rows_beside_the_students() -> None:
    settings = config(supervisor_rows=50, student_rows=80, test_rows=30, validation_rows=20)
    splits = run_splits("docstrings", settings, 0)
    sizes = {name: len(rows) for name, rows in splits.rows.items()}
    assert sizes == {"supervisor": 50, "student": 80, "validation": 20, "test": 30}
    check_disjoint(splits)
    own = run_splits("docstrings", settings.changed(weak_on="train"), 0)
    assert own.rows["student"].ids == own.rows["supervisor"].ids == splits.rows["supervisor"].ids
    assert own.rows["validation"].ids == splits.rows["validation"].ids


def test_trusted_rows_are_moved_from_the_supervisor_to_the_student() -> None:
    settings = config(supervisor_rows=50, student_rows=80, test_rows=30)
    before = run_splits("docstrings", settings, 0)
    splits = run_splits("docstrings", settings.changed(trusted_rows=20), 0)
    assert len(splits.rows["supervisor"]) == 30
    assert len(splits.trusted) == 20
    check_disjoint(splits)
    # All else is as it was: the same rows, these among the student's.
    everyone = {*before.rows["supervisor"].ids, *before.rows["student"].ids}
    assert everyone == {*splits.rows["supervisor"].ids, *splits.rows["student"].ids}
    assert splits.trusted == {*splits.rows["student"].ids} - {*before.rows["student"].ids}
    assert splits.rows["validation"].ids == before.rows["validation"].ids
    trusted = splits.trusted_labels()
    assert trusted is not None
    truth = dict(zip(before.truth["supervisor"].ids, before.truth["supervisor"].hard, strict=True))
    assert [truth[name] for name in trusted.ids] == trusted.hard.tolist()
    assert before.trusted_labels() is None
    with pytest.raises(UsageError, match=r"trusted set of 50 .* another trusted_rows"):
        run_splits("docstrings", settings.changed(trusted_rows=50), 0)
    for more in ({"weak_on": "train"}, {"chain": ["a", "b"]}):
        with pytest.raises(UsageError, match="trusted_rows are taken from the supervisor"):
            config(trusted_rows=20, **more)


def test_copies_do_not_part_for_the_sake_of_a_number(rows_file: Path) -> None:
    splits = run_splits(str(rows_file), config(validation_rows=15, test_rows=20), 0)
    assert len(splits.rows["validation"]) == 14, "each text stands twice"
    check_disjoint(splits)
    with pytest.raises(UsageError, match=r"set of 1000 of .* another validation_rows"):
        run_splits(str(rows_file), config(validation_rows=1000), 0)


def test_rows_carry_no_label(rows_file: Path) -> None:
    for task in ("docstrings", str(rows_file)):
        splits = run_splits(task, config(test_rows=20), 0)
        assert all(set(rows.columns) == {"id", "text"} for rows in splits.rows.values())


def test_file_is_dealt_with_copies_on_one_side(rows_file: Path) -> None:
    splits = run_splits(str(rows_file), config(), 0)
    check_disjoint(splits)
    assert sum(len(rows) for rows in splits.rows.values()) == 200
    assert splits.classes == ("blue", "green", "red")
    for name, rows in splits.rows.items():
        for row_id, code in zip(rows.ids, splits.truth[name].hard, strict=True):
            expected = ["red", "green", "blue"][int(row_id[1:]) // 2 % 3]
            assert splits.classes[code] == expected


def test_seed_deals_the_halves_and_leaves_the_test_rows(rows_file: Path) -> None:
    first, again, other = (run_splits(str(rows_file), config(), seed) for seed in (0, 0, 1))
    assert first.rows["student"].ids == again.rows["student"].ids
    assert first.rows["student"].ids != other.rows["student"].ids
    assert first.rows["test"].ids == other.rows["test"].ids


@pytest.mark.parametrize("ids", [True, False])
def test_parts_are_those_of_the_rows_in_any_order(
    write_jsonl: Callable[..., Path], ids: bool
) -> None:
    rows = [
        {"text": f"text {i}", "label": i % 3, **({"id": f"r{i}"} if ids else {})}
        for i in range(200)
    ]
    order = np.random.default_rng(0).permutation(200)
    settings = config(supervisor_rows=30, student_rows=40, test_rows=20, validation_share=0.25)
    first, second = (
        run_splits(str(write_jsonl(part, name)), settings, 3)
        for part, name in ((rows, "a.jsonl"), ([rows[i] for i in order], "b.jsonl"))
    )
    parts = [{name: set(p.hashes) for name, p in s.rows.items()} for s in (first, second)]
    assert parts[0] == parts[1]
    other = run_splits(str(write_jsonl(rows, "c.jsonl")), settings, 4)
    assert set(other.rows["student"].hashes) != parts[0]["student"]


def test_column_split_decides(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl(
        [
            {"text": f"t{i}", "label": i % 2, "split": "test" if i < 40 else "train"}
            for i in range(100)
        ]
    )
    splits = run_splits(str(path), config(validation_share=0), 0)
    assert sorted(splits.rows["test"].ids, key=int) == [str(i) for i in range(40)]
    assert set(splits.rows) == {"supervisor", "student", "test"}


def test_trained_on_its_own_rows(rows_file: Path) -> None:
    splits = run_splits(str(rows_file), config(weak_on="train"), 0)
    assert splits.rows["student"].ids == splits.rows["supervisor"].ids
    np.testing.assert_array_equal(splits.truth["student"].probs, splits.truth["supervisor"].probs)


def test_chain_has_a_part_for_each_model(rows_file: Path) -> None:
    settings = config(chain=["a", "b", "c"], student_rows=20)
    splits = chain_splits(str(rows_file), settings, 0)
    assert list(splits.rows) == ["part0", "part1", "part2", "test"]
    assert [len(splits.rows[f"part{i}"]) for i in (1, 2)] == [20, 20]
    check_disjoint(splits)


def test_pairs_and_messages_keep_their_text() -> None:
    pairs = Rows({"text": ["a", "b"], "text_pair": ["c", "d"], "label": [0, 1], "x": [1, 2]})
    kept = contents_only(pairs)
    assert kept.columns.keys() == {"id", "text", "text_pair"}
    assert kept.hashes == pairs.hashes
    chats = Rows({"messages": [[{"role": "user", "content": "hi"}]], "label": [0]})
    assert contents_only(chats).hashes == chats.hashes


@pytest.mark.parametrize(
    ("rows", "error", "sentence"),
    [
        ([{"text": "a"}], LabelsError, "no column 'label' with the ground truth"),
        ([{"text": "a", "label": None}, {"text": "b", "label": 1}], LabelsError, "1 rows without"),
        (
            [{"text": "a", "label": 0, "split": "dev"}, {"text": "b", "label": 1, "split": "dev"}],
            DataError,
            "0 rows to train on and 0 to test on",
        ),
    ],
)
def test_unusable_files_are_told(
    rows: list[dict[str, Any]],
    error: type[Exception],
    sentence: str,
    write_jsonl: Callable[..., Path],
) -> None:
    with pytest.raises(error, match=sentence):
        run_splits(str(write_jsonl(rows)), config(), 0)


def test_too_few_rows(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl([{"text": f"t{i}", "label": i % 2} for i in range(8)])
    with pytest.raises((DataError, UsageError), match=r"more rows|too few rows"):
        run_splits(str(path), config(), 0)


def test_too_few_rows_for_validation_name_the_settings_that_mend_it(rows_file: Path) -> None:
    few = config(student_rows=10)
    repair = "raise student_rows, set validation_share to 0, or take a task with more rows"
    with pytest.raises(DataError, match=rf"leaves . rows for validation, .*; {repair}\."):
        run_splits(str(rows_file), few, 0)
    assert "validation" not in run_splits(str(rows_file), few.changed(validation_share=0), 0).rows
    assert "validation" in run_splits(str(rows_file), few.changed(student_rows=80), 0).rows


def test_unknown_task() -> None:
    with pytest.raises(UsageError, match=r"did you mean docstrings"):
        run_splits("docstring", config(), 0)


def test_a_group_is_not_split_across_the_parts() -> None:
    """A task that tells questions: all rows of one are dealt to one part."""
    rows = Rows(
        {
            "id": [f"r{i}" for i in range(240)],
            "text": [f"text {i}" for i in range(240)],
            "label": [i % 2 for i in range(240)],
        }
    )
    rows.groups = ["" if i < 40 else f"question {i // 4}" for i in range(240)]
    train, test = rows.select(range(202)), rows.select(range(202, 240))
    found = {"train": train, "test": test}
    task = Task(
        name="quiz-in-groups",
        description="",
        source="",
        licence="",
        classes=("no", "yes"),
        splits=("train", "test"),
        load=lambda split, seed: found[split],  # noqa: ARG005 (a task's signature)
    )
    register(task)
    try:
        splits = run_splits(task.name, config(validation_share=0.25), 0)
    finally:
        registry._registered.pop(task.name)
    check_disjoint(splits)
    dealt = [set(part.groups or ()) - {""} for part in splits.rows.values()]
    assert len(dealt) == 4
    assert all(dealt)
    for one, other in combinations(dealt, 2):
        assert not one & other
    many = sum(len(part) for part in splits.rows.values())
    assert many == 238  # two rows of a question that is in the test set are left out


def test_groups_of_a_file_are_told_by_a_column(write_jsonl: Callable[..., Path]) -> None:
    rows = [
        {"id": f"r{i}", "text": f"text {i}", "label": i % 2, "user": i // 8} for i in range(400)
    ]
    path = str(write_jsonl(rows))
    splits = run_splits(path, config(group_column="user", validation_share=0.25), 0)
    users = [{int(i[1:]) // 8 for i in part.ids} for part in splits.rows.values()]
    assert all(not one & other for one, other in combinations(users, 2))
    assert sum(len(part) for part in splits.rows.values()) == 400  # none is left out
    plain = run_splits(path, config(validation_share=0.25), 0)
    users = [{int(i[1:]) // 8 for i in part.ids} for part in plain.rows.values()]
    assert users[0] & users[1]  # the control
    with pytest.raises(DataError, match="no column 'question'"):
        run_splits(path, config(group_column="question"), 0)
