"""`clean` does in one call what extract, diagnose and filter do, on tables as people have them."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from datasets import Dataset

import probekit
from probekit import cleaned
from probekit.cleaning.student import Learner, StudentAdvice
from probekit.cli.main import cli
from probekit.columns import AmbiguousColumnError
from probekit.errors import UsageError
from probekit.verdicts import Verdicts

WORDS = {"good": ["red", "apple", "sweet"], "bad": ["fast", "engine", "loud"]}
N = 120
ACTIONS = ("filter", "relabel", "leave")


def records(n: int = N, classes: int = 2) -> list[dict[str, Any]]:
    """Texts whose words show the class; every tenth label is wrong."""
    words = {**WORDS, "third": ["north", "wind", "cold"]}
    names = list(words)[:classes]
    rows = []
    for i in range(n):
        name = names[i % classes]
        text = f"{words[name][i % 3]} {words[name][(i // 3) % 3]} and the number {i}"
        given = name if i % 10 else names[(i + 1) % classes]
        rows.append({"Review Body": text, "stars_class": given, "lang": "en"})
    return rows


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> str:
    return str(tiny_model("bert"))


@pytest.fixture
def odd_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Semicolons, a column name with a space, and words as labels."""
    monkeypatch.chdir(tmp_path)
    with Path("reviews.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records()[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(records())
    return "reviews.csv"


def invoke(*arguments: str, **options: Any) -> Any:
    return CliRunner().invoke(cli, list(arguments), **options)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_one_command_cleans_an_odd_csv(odd_csv: str, model: str) -> None:
    result = invoke("clean", odd_csv, "-m", model, "-o", "cleaned", "--action", "filter")
    assert result.exit_code == 0, result.output
    first = result.stderr.splitlines()[0]
    assert "texts from 'Review Body', labels from 'stars_class': 120 rows, 2 classes" in first
    folder = Path("cleaned")
    names = {path.name for path in folder.iterdir()}
    assert {"states.h5", "verdicts.parquet", "train.jsonl", "train.csv"} <= names
    assert {"report.html", "summary.json"} <= names
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["rows"], summary["action"]) == (N, "filter")
    # The wrong labels are all "bad": floor(0.2 · 48) + floor(0.2 · 72).
    assert summary["dropped"] == 9 + 14
    verdicts = Verdicts.load(folder / "verdicts.parquet")
    train = lines_of(folder / "train.jsonl")
    assert len(train) == N - 23 == int(verdicts.keep.sum())
    kept = [records()[i] for i in np.flatnonzero(verdicts.keep)]
    assert [{k: row[k] for k in kept[0]} for row in train] == kept
    with (folder / "train.csv").open(newline="") as file:
        table = list(csv.DictReader(file, delimiter=";"))  # as in the input
    assert [row["Review Body"] for row in table] == [row["Review Body"] for row in train]
    assert json.loads(table[0]["probs"]) == train[0]["probs"]
    assert "probekit audit" in result.stdout
    assert str(folder / "report.html") in result.stdout
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Rows whose label the probe doubts most were dropped: as asked" in page
    assert "Weak label: the label in the column stars_class." in page
    assert '<th scope="col">changed' not in page
    assert "label moved by" not in page


def test_the_plain_commands_do_the_same(odd_csv: str, model: str) -> None:
    invoke("clean", odd_csv, "-m", model, "--action", "filter")
    summary = json.loads(Path("cleaned/summary.json").read_text())
    assert [line.split()[1] for line in summary["commands"]] == ["extract", "diagnose", "filter"]
    for line in summary["commands"]:
        again = shlex.split(line.replace("cleaned/", "again/"))[1:]
        Path("again").mkdir(exist_ok=True)
        result = invoke(*again)
        assert result.exit_code == 0, result.output
    first, second = (Verdicts.load(f"{name}/verdicts.parquet") for name in ("cleaned", "again"))
    for name in ("weak", "probe", "label", "keep", "disagreement"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert list(first.ids) == list(second.ids)


def test_a_student_may_be_given_one_class_a_row(
    odd_csv: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the advice for a student names is done, and the plain commands do the same."""
    monkeypatch.setattr(
        cleaned,
        "after_diagnosis",
        lambda *_: StudentAdvice(Learner("memorising"), "relabel", True, "so"),
    )
    result = invoke("clean", odd_csv, "-m", model, "--student", "memorising")
    assert result.exit_code == 0, result.output
    summary = json.loads(Path("cleaned/summary.json").read_text())
    assert (summary["action"], summary["why"]) == ("relabel", "for a memorising student: so.")
    assert "Every label was replaced by the probe" in Path("cleaned/report.html").read_text()
    first = Verdicts.load("cleaned/verdicts.parquet")
    assert set(first.label.max(axis=1)) == {1.0}
    assert "--student memorising" in summary["commands"][1]
    assert "--hard" in summary["commands"][2]
    for line in summary["commands"]:
        Path("again").mkdir(exist_ok=True)
        assert invoke(*shlex.split(line.replace("cleaned/", "again/"))[1:]).exit_code == 0
    np.testing.assert_array_equal(first.label, Verdicts.load("again/verdicts.parquet").label)


def test_trusted_labels_are_kept_and_named_in_the_plain_commands(
    odd_csv: str, model: str, tmp_path: Path
) -> None:
    truth = tmp_path / "truth.csv"
    lines = [f"{i},{'good' if i % 2 else 'bad'}" for i in range(40)]
    truth.write_text("\n".join(["id,label", *lines]) + "\n")
    more = ("-m", model, "--action", "filter", "--trusted", str(truth))
    result = invoke("clean", odd_csv, *more)
    assert result.exit_code == 0, result.output
    verdicts = Verdicts.load("cleaned/verdicts.parquet")
    assert verdicts.provenance["trusted"]["rows"] == 40
    assert [verdicts.classes[c] for c in verdicts.hard[:4]] == ["bad", "good", "bad", "good"]
    assert verdicts.keep[:40].all()
    summary = json.loads(Path("cleaned/summary.json").read_text())
    assert f"--trusted {truth}" in summary["commands"][-1]
    truth.write_text("id,label\n1,good\n")
    assert "too few to correct" in invoke("clean", odd_csv, *more, "-o", "few").stderr


@pytest.mark.parametrize("action", ACTIONS)
def test_the_same_kind_comes_back_and_nothing_stays_on_disk(
    action: Any, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    frame = probekit.clean(pd.DataFrame(records()), model=model, action=action)
    rows = probekit.clean(Dataset.from_list(records()), model=model, action=action)
    assert isinstance(frame.dataset, pd.DataFrame)
    assert isinstance(rows.dataset, Dataset)
    assert list(frame.dataset["Review Body"]) == list(rows.dataset["Review Body"])
    assert frame.commands == ()
    assert repr(frame).startswith(f"CleanResult({action}: 120 rows, ")
    assert list(tmp_path.iterdir()) == []


def test_labels_left_alone_are_unchanged_and_suspects_are_listed_all_the_same(model: str) -> None:
    result = probekit.clean(records(), model=model, action="leave")
    train = list(result.records())
    assert [{k: row[k] for k in records()[0]} for row in train] == records()
    assert all(row["weight"] == 1 for row in train)
    suspects = result.suspects(12)
    assert len(suspects) == 12
    scores = [row["disagreement"] for row in suspects]
    assert scores == sorted(scores, reverse=True)
    # The control: every tenth label is wrong, and most of the twelve are these.
    assert sum(int(row["id"]) % 10 == 0 for row in suspects) > 6


def test_a_relabelled_row_keeps_its_old_label_in_a_column_of_its_own(model: str) -> None:
    result = probekit.clean(records(), model=model, action="relabel")
    train = list(result.records())
    assert len(train) == N
    assert [row["weak_label"] for row in train] == [row["stars_class"] for row in records()]
    hard = [result.verdicts.class_values()[c] for c in result.verdicts.hard]
    assert [row["stars_class"] for row in train] == hard == [row["label"] for row in train]
    assert hard != [row["weak_label"] for row in train]


@pytest.mark.parametrize("classes", [2, 3])
def test_the_action_follows_the_diagnosis(model: str, classes: int) -> None:
    rows = records(40 * classes, classes=classes)
    result = probekit.clean(rows, model=model)
    assert result.diagnosis is not None
    assert result.action == result.diagnosis.advice.action
    other = next(action for action in ACTIONS if action != result.action)
    asked = probekit.clean(rows, model=model, action=other)
    assert asked.action == other
    assert f"the advice is {result.action}" in asked.why


def test_a_filter_of_three_classes_drops_a_fifth_of_each(model: str) -> None:
    result = probekit.clean(records(150, classes=3), model=model, action="filter")
    weak = result.verdicts.weak.argmax(axis=1)
    dropped = np.bincount(weak[~result.verdicts.keep], minlength=3)
    np.testing.assert_array_equal(dropped, np.floor(0.2 * np.bincount(weak)))


def test_rows_without_a_text_or_a_label_are_left_out_and_counted(model: str) -> None:
    rows = records()
    rows[3]["Review Body"], rows[7]["Review Body"], rows[11]["stars_class"] = "", None, None
    result = probekit.clean(rows, model=model, action="leave")
    assert result.notes[:2] == (
        "2 rows have no text and are left out.",
        "1 row has no label and is left out.",
    )
    # Numbers are those in the table, so that a person finds the row.
    assert sorted({str(i) for i in range(N)} - {*result.verdicts.ids}) == ["11", "3", "7"]
    assert result.commands == ()


def test_ids_are_those_of_the_named_column_whatever_else_is_called_id(model: str) -> None:
    """Also where rows are left out, and where the column ``id`` repeats."""
    rows = [{"id": i % 7, "key": f"k{i}", **row} for i, row in enumerate(records())]
    rows[3]["Review Body"], rows[11]["stars_class"] = None, None
    result = probekit.clean(rows, model=model, action="leave", id="key")
    assert result.verdicts.ids == tuple(f"k{i}" for i in range(N) if i not in (3, 11))
    labels = {row["key"]: row["stars_class"] for row in rows}
    assert [row["label"] for row in result.records()] == [labels[i] for i in result.verdicts.ids]


@pytest.mark.parametrize("ids", ["id", "key", None])
def test_rows_without_a_label_do_not_keep_the_others_from_an_audit(
    ids: str | None, odd_csv: str, model: str
) -> None:
    """Their numbers have gaps, and the audit asks about the rows that have these numbers."""
    frame = pd.read_csv(odd_csv, sep=";")
    frame.loc[::6, "stars_class"] = None
    names = [f"r{i}" for i in range(N)] if ids else [str(i) for i in range(N)]
    if ids:
        frame[ids] = names
    frame.to_csv(odd_csv, sep=";", index=False)
    named = ["--id", "key"] if ids == "key" else []
    result = invoke("clean", odd_csv, "-m", model, "--action", "leave", *named)
    assert result.exit_code == 0, result.output
    assert json.loads(Path("cleaned/summary.json").read_text())["commands"] == []
    line = result.stdout.splitlines()[-1]
    asked = invoke(*shlex.split(line)[1:], "--no-ask", "-m", "30", "-o", "asked.csv")
    assert asked.exit_code == 0, asked.output
    questions = pd.read_csv("asked.csv", dtype=str)
    texts = dict(zip(names, frame["Review Body"], strict=True))
    assert [texts[name] for name in questions["id"]] == list(questions["text"])
    assert len(questions) == 30
    assert not {*names[::6]} & {*questions["id"]}


@pytest.mark.parametrize("form", ["columns", "lines"])
def test_the_labels_of_several_annotators_are_cleaned(
    form: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("crowdkit")
    rows = records()
    wrong = {"good": "bad", "bad": "good"}
    votes = [
        [wrong[str(row["stars_class"])] if i % k == 0 else row["stars_class"] for k in (3, 7, 9)]
        for i, row in enumerate(rows, 1)
    ]
    frame = pd.DataFrame(rows).drop(columns="stars_class")
    if form == "columns":
        frame[["label_1", "label_2", "label_3"]] = votes
    else:
        frame = pd.concat([frame.assign(rater=k, seconds=k) for k in range(3)])
        frame.insert(0, "id", frame.index.astype(str))
        frame["stars"] = [row[k] for k in range(3) for row in votes]
    frame.to_csv("votes.csv", index=False)
    options = ("-m", model, "--action", "filter", "--annotators", "dawid-skene")
    result = invoke("clean", "votes.csv", *options)
    assert result.exit_code == 0, result.output
    first, note = result.stderr.splitlines()[:2]
    labels = "'label_1', 'label_2', 'label_3'" if form == "columns" else "'stars'"
    assert f"texts from 'Review Body', labels from {labels}: 120 rows, 2 classes." in first
    assert "3 annotators, 120 rows, 3.0 labels a row; all agree in" in note
    train = lines_of(Path("cleaned/train.jsonl"))
    assert len({row["Review Body"] for row in train}) == len(train) < N
    assert "rater" not in train[0]
    assert ("label_1" in train[0]) == (form == "columns")
    verdicts = Verdicts.load("cleaned/verdicts.parquet")
    assert verdicts.provenance["annotators"]["method"] == "dawid-skene"
    commands = json.loads(Path("cleaned/summary.json").read_text())["commands"]
    if form == "lines":  # the plain commands refuse ids that repeat
        assert commands == []
        return
    Path("again").mkdir()
    for line in commands:
        again = invoke(*shlex.split(line.replace("cleaned/", "again/"))[1:])
        assert again.exit_code == 0, again.output
    np.testing.assert_array_equal(verdicts.keep, Verdicts.load("again/verdicts.parquet").keep)


def test_states_are_read_once(odd_csv: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = probekit.clean(odd_csv, model=model, output="cleaned", action="filter")
    before = Path("cleaned/states.h5").stat().st_mtime_ns

    def no_model(*_: Any, **__: Any) -> None:
        raise AssertionError("the model is loaded again")

    monkeypatch.setattr("probekit.activations.job.tapped", no_model)
    second = probekit.clean(odd_csv, model=model, output="cleaned", action="filter")
    assert Path("cleaned/states.h5").stat().st_mtime_ns == before
    np.testing.assert_array_equal(first.verdicts.keep, second.verdicts.keep)


def test_texts_are_escaped_in_notebooks_and_reports(model: str, tmp_path: Path) -> None:
    rows = records()
    evil = "<script>alert(1)</script>"
    for row in rows:
        row["Review Body"] += f" {evil}"
    result = probekit.clean(rows, model=model, action="filter", output=tmp_path / "out")
    shown = result._repr_html_()
    assert evil not in shown
    assert "&lt;script&gt;" in shown
    assert evil not in (tmp_path / "out" / "report.html").read_text()


def test_ambiguous_columns_are_asked_for_at_a_terminal_only(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{**row, "comment": row["Review Body"]} for row in records()]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(AmbiguousColumnError):
        probekit.clean("rows.jsonl", model=model)
    refused = invoke("clean", "rows.jsonl", "-m", model)
    assert refused.exit_code == 2
    assert "several columns that could be the text; name one with --text" in refused.stderr
    assert not Path("cleaned/states.h5").exists()
    monkeypatch.setattr("probekit.cli.clean.at_terminal", lambda: True)
    asked = invoke("clean", "rows.jsonl", "-m", model, input="comment\n")
    assert asked.exit_code == 0, asked.output
    assert "Which column is the text?" in asked.stderr
    assert json.loads(Path("cleaned/summary.json").read_text())["text_column"] == "comment"


def test_what_cannot_be_done_is_one_sentence(tmp_path: Path, model: str) -> None:
    with pytest.raises(UsageError, match="action is one of auto, filter, relabel, leave, got 'x'"):
        probekit.clean(records(), model=model, action="x")  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file; name a folder"):
        probekit.clean(records(), model=model, output=tmp_path / "file")
