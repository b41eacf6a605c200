"""Disagreeing rows out to people and their corrections back: nothing lost, nothing mixed up."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from probekit.cleaning.review import (
    merge_review,
    read_review,
    review_records,
    write_review,
)
from probekit.data import text_hash
from probekit.errors import DataError, UsageError
from probekit.verdicts import Verdicts

# What a spreadsheet takes for a formula, of half and of full width, and what hides it.
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "\t", "\r", "\n", "'")
TEXTS = [
    "=1+1",
    "plain",
    "'quoted",
    "-x",
    'two\nlines, and "quotes"',
    "@a",
    "+b",
    "\ttab",
    "\n=2",
    "a\r=cmd|x",
    "  =3",
    "＝4",
]
CLASSES = ("no", "yes", "-1")


@pytest.fixture
def verdicts():
    n = len(TEXTS)
    rng = np.random.default_rng(0)
    weak = np.eye(3, dtype=np.float32)[rng.integers(0, 3, n)]
    probe = rng.dirichlet(np.ones(3), n).astype(np.float32)
    return Verdicts(
        ids=[f"{FORMULA[i % 4]}{i}" for i in range(n)],
        hashes=[text_hash(t) for t in TEXTS],
        classes=CLASSES,
        weak=weak,
        probe=probe,
        label=weak.copy(),
        keep=np.arange(n) % 2 == 0,
        weight=np.ones(n, np.float32),
        disagreement=(np.abs(weak - probe).sum(axis=1) / 2).astype(np.float32),
        fold=np.zeros(n, np.int16),
        provenance={"action": "filter", "probe": {"name": "KNNProbe"}},
    )


def answered(verdicts, path, answers):
    """The CSV with the column label filled in, as a person would."""
    write_review(review_records(verdicts, TEXTS), path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    names = {row["id"] if not row["id"].startswith("'") else row["id"][1:]: row for row in rows}
    for name, answer in answers.items():
        names[name]["label"] = answer
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return rows


def test_records_are_the_most_disagreeing_rows_in_argillas_form(verdicts):
    records = review_records(verdicts, TEXTS, limit=3)
    order = np.argsort(-verdicts.disagreement)[:3].tolist()
    assert [record["id"] for record in records] == [verdicts.ids[i] for i in order]
    first, i = records[0], order[0]
    assert first["fields"] == {"text": TEXTS[i]}
    said = first["suggestions"]["label"]
    assert said["value"] == CLASSES[verdicts.probe[i].argmax()]
    assert said["score"] == pytest.approx(verdicts.probe[i].max(), abs=1e-6)
    assert said["agent"] == "probekit KNNProbe"
    assert first["metadata"]["weak_label"] == CLASSES[verdicts.weak[i].argmax()]
    assert first["metadata"]["verdict"] == ("kept" if verdicts.keep[i] else "dropped")
    assert first["responses"] == {}


def test_a_csv_is_harmless_and_comes_back_as_it_was(verdicts, tmp_path):
    path = tmp_path / "review.csv"
    write_review(review_records(verdicts, TEXTS), path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    # The control: texts, ids and a class do begin so.
    assert sum(text.lstrip(" ").startswith(FORMULA) for text in (*TEXTS, *verdicts.ids)) == 21
    assert not [cell for cell in cells if cell.lstrip(" ").startswith(FORMULA[:-1])]
    assert path.read_bytes().startswith("\ufeff".encode())  # else a spreadsheet shows Ã©
    read = {row["id"]: row for row in read_review(path)}
    assert {name: row["text"] for name, row in read.items()} == dict(
        zip(verdicts.ids, TEXTS, strict=True)
    )
    assert all(row["label"] is None for row in read.values())
    same = merge_review(verdicts, list(read.values()))
    assert np.array_equal(same.label, verdicts.label)
    assert np.array_equal(same.keep, verdicts.keep)
    assert same.provenance["reviewed"]["answers"] == 0


def test_corrections_merge_by_id(verdicts, tmp_path):
    path = tmp_path / "review.csv"
    dropped, kept = verdicts.ids[1], verdicts.ids[2]
    answered(verdicts, path, {dropped: "YES ", kept: "-1"})
    merged = merge_review(verdicts, read_review(path), source=str(path))
    assert merged.label[1].tolist() == [0, 1, 0]
    assert merged.label[2].tolist() == [0, 0, 1]
    assert merged.keep[[1, 2]].all()
    others = [0, 3, 4, 5, 6, 7]
    assert np.array_equal(merged.label[others], verdicts.label[others])
    assert np.array_equal(merged.keep[others], verdicts.keep[others])
    # What was said before is still there to be compared with.
    assert np.array_equal(merged.weak, verdicts.weak)
    assert np.array_equal(merged.probe, verdicts.probe)
    told = merged.provenance["reviewed"]
    assert (told["source"], told["answers"], told["brought_back"]) == ("review.csv", 2, 1)
    assert told["as_weak_label"] == sum(
        CLASSES[verdicts.weak[i].argmax()] == c for i, c in ((1, "yes"), (2, "-1"))
    )
    # A second round starts from the first.
    assert merge_review(merged, read_review(path)).provenance["reviewed"]["changed"] == 0


@pytest.mark.parametrize(
    "responses",
    [
        {"label": [{"value": "yes", "user_id": "u"}]},
        {"label": [{"value": "yes"}, {"value": "yes"}]},
        {"label": [{"value": "no", "status": "draft"}, {"value": "yes", "status": "submitted"}]},
        {"label": "yes"},
    ],
)
def test_answers_of_argilla(verdicts, tmp_path, responses):
    path = tmp_path / "review.jsonl"
    records = review_records(verdicts, TEXTS)
    record = next(r for r in records if r["id"] == verdicts.ids[3])
    record["responses"] = responses
    write_review(records, path)
    merged = merge_review(verdicts, read_review(path))
    assert merged.label[3].tolist() == [0, 1, 0]
    assert merged.provenance["reviewed"]["answers"] == 1
    # As Argilla's to_json writes them: one list.
    path = tmp_path / "review.json"
    path.write_text("[" + ",".join(map(json.dumps, records)) + "]", encoding="utf-8")
    assert np.array_equal(merge_review(verdicts, read_review(path)).label, merged.label)


@pytest.mark.parametrize(
    "responses", [{"label": [{"value": "yes"}, {"value": "no"}]}, {"label": [{}]}, [3], "yes"]
)
def test_answers_that_are_none(verdicts, tmp_path, responses):
    path = tmp_path / "review.jsonl"
    records = review_records(verdicts, TEXTS)
    records[0]["responses"] = responses
    write_review(records, path)
    with pytest.raises(DataError, match="one class is allowed"):
        read_review(path)


def test_what_is_of_other_rows_is_refused(verdicts, tmp_path):
    path = tmp_path / "review.csv"
    answered(verdicts, path, {verdicts.ids[0]: "yes"})
    answers = read_review(path)
    other = replace(verdicts, ids=[f"other {i}" for i in range(len(TEXTS))])
    with pytest.raises(DataError, match="12 ids that are not in the verdicts"):
        merge_review(other, answers)
    other = replace(verdicts, hashes=["0" * 16, *verdicts.hashes[1:]])
    with pytest.raises(DataError, match=r"another text than the verdicts in 1 rows"):
        merge_review(other, answers)
    # Without the hashes, by the texts themselves.
    bare = [{**answer, "text_hash": None} for answer in answers]
    assert merge_review(verdicts, bare).label[0].tolist() == [0, 1, 0]
    with pytest.raises(DataError, match=r"another text"):
        merge_review(other, bare)
    with pytest.raises(DataError, match=r"has 'maybe' .* allowed are 'no', 'yes', '-1'"):
        merge_review(verdicts, [{**answers[0], "label": "maybe"}])


def test_columns_that_were_sorted_apart_are_noticed(verdicts, tmp_path):
    path = tmp_path / "review.csv"
    answered(verdicts, path, {verdicts.ids[0]: "yes"})
    answers = read_review(path)
    texts = sorted(str(answer["text"]) for answer in answers)
    mixed = [{**a, "text": t} for a, t in zip(answers, texts, strict=True)]
    with pytest.raises(DataError, match="another text"):
        merge_review(verdicts, mixed)
    # A spreadsheet that takes a space away does no harm.
    spaced = [{**a, "text": f"{a['text']} "} for a in answers]
    assert merge_review(verdicts, spaced).label[0].tolist() == [0, 1, 0]


def test_files_that_are_no_review(verdicts, tmp_path, write_jsonl):
    with pytest.raises(UsageError, match=r"must end in \.csv or \.jsonl"):
        write_review([], tmp_path / "a.xlsx")
    with pytest.raises(DataError, match="not a review"):
        read_review(write_jsonl([{"id": "a", "label": 1}]))
    (tmp_path / "a.csv").write_text("id,text\na,b\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"no column 'label'"):
        read_review(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("id,label\na,no\na,yes\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"the id 'a' twice"):
        read_review(tmp_path / "a.csv")


def test_numbers_that_a_spreadsheet_made_decimal(verdicts):
    numbered = replace(verdicts, classes=("0", "1", "2"))
    answer = {"id": verdicts.ids[0], "text_hash": None, "text": None, "label": "2.0"}
    assert merge_review(numbered, [answer]).label[0].tolist() == [0, 0, 1]
