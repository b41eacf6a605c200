"""The records: what is told without reading, the docs' table, and the real files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from real_files import REAL

from probekit.tasks import get_task, hub, hub_task, task_names
from probekit.tasks.hub_task import HubRecord
from probekit.tasks.nlp import RECORDS

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
    told = (f"[{record.hub}]({record.card})", record.licence, f"`{prompt}`", record.hub_rows)
    assert [part for part in (*told, " / ".join(record.classes)) if part not in rows[0]] == []
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
        items, _ = hub_task._items(record, split, folder)
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
