from __future__ import annotations

import csv
import hashlib
import json

import click
import numpy as np
import pytest

from probekit.cli import certify as command
from probekit.verdicts import Verdicts


@pytest.fixture
def certify(probekit, chain, tmp_path, monkeypatch):
    """Run it beside the files, without asking."""
    monkeypatch.chdir(tmp_path)

    def run(*more, labels=chain.weak, ask=False):
        asking = () if ask else ("--no-ask",)
        return probekit("certify", chain.acts, "--labels", labels, *asking, *more)

    return run


@pytest.fixture
def true(chain):
    return dict(zip(chain.ids, map(str, chain.truth_of), strict=True))


def rewrite(path, change):
    """Edit the rows of a CSV as a spreadsheet would: no byte order mark, no quotes."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = change(list(csv.DictReader(file)))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return rows


def fill(path, true, at_most=None):
    """Answer rows that wait, the first ``at_most`` of them."""

    def answer(rows):
        for row in [row for row in rows if not row["true_label"]][:at_most]:
            row["true_label"] = true[row["id"]]
        return rows

    return rewrite(path, answer)


def finish(certify, path, true, *more):
    """Sit until the certificate is there; its JSON, and the number of sittings."""
    for sitting in range(30):
        result = certify("--json", *more)
        assert result.exit_code == 0, result.output
        state = json.loads(result.stdout)
        if state["stage"] == "done":
            return state, sitting
        fill(path, true)
    raise AssertionError("it never ends")


def test_a_sample_then_sittings_then_a_certificate(certify, chain, true, tmp_path, probekit):
    first = certify("--max-error", "0.04", "--confidence", "0.9", "--seed", "1", "--sitting", "40")
    assert first.exit_code == 0, first.output
    assert "To certify: at most 12 of 300 labels are wrong (0.04), with confidence 0.9." in (
        first.stdout
    )
    assert "by chance alone" in first.stdout
    assert "estimates" in first.stdout
    path = tmp_path / "weak.certify.csv"
    # The command resumes without its settings: they were fixed with the sample.
    state, sittings = finish(certify, path, true)
    assert sittings > 1
    verdicts = Verdicts.load(tmp_path / "weak.certified.parquet")
    certificate = verdicts.provenance["certificate"]
    assert (certificate["max_error"], certificate["confidence"]) == (0.04, 0.9)
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    assert certificate["answers"] == {"source": "weak.certify.csv", "sha256": content}
    assert (verdicts.hard != chain.truth_of).sum() <= 12
    assert state["labelled"] == certificate["labelled"] < 300
    again = certify()
    assert again.exit_code == 1
    assert "weak.certified.parquet exists" in again.stderr
    page = probekit("report", "weak.certified.parquet", "--acts", chain.acts, "-o", "page.html")
    assert page.exit_code == 0, page.output
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "At most 0.04 of the labels are wrong with confidence 0.9" in text
    assert "hypergeometric" in text


def test_half_a_sitting_and_another_order_of_rows_lose_nothing(certify, true, tmp_path):
    certify()
    path = tmp_path / "weak.certify.csv"
    fill(path, true, at_most=7)
    state = json.loads(certify("--json").stdout)
    assert state["labelled"] == 7
    assert state["waiting"] == state["sample"] - 7
    fill(path, true)
    before = json.loads(certify("--json").stdout)
    rewrite(path, lambda rows: rows[::-1])
    assert json.loads(certify("--json").stdout) == before


def test_rows_that_were_deleted_come_back_and_own_columns_stay(certify, true, tmp_path):
    certify()
    path = tmp_path / "weak.certify.csv"
    fill(path, true, at_most=5)
    gone = rewrite(path, lambda rows: [{**row, "note": "mine"} for row in rows[:3] + rows[9:]])
    assert certify().exit_code == 0
    rows = rewrite(path, lambda rows: rows)
    assert len(rows) == len(gone) + 6
    assert [row["note"] for row in rows[: len(gone)]] == ["mine"] * len(gone)
    assert sum(bool(row["true_label"]) for row in rows) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"true_label": "maybe"}, "has the answer 'maybe' for the id 'r[0-9]+'; allowed are"),
        ({"true_label": "=1+1"}, "has the answer '=1\\+1'"),
        ({"id": "other"}, "1 ids that are not in the store .*it is a certificate of other rows"),
        ({"text_hash": "f" * 16}, "another text than the store in 1 rows.*with --answers"),
    ],
)
def test_answers_of_other_rows_or_classes_are_refused_and_kept(
    certify, refused, chain, tmp_path, change, words
):
    certify()
    path = tmp_path / "weak.certify.csv"
    rewrite(path, lambda rows: [{**rows[0], **change}, *rows[1:]])
    before = path.read_bytes()
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(refused("certify", chain.acts, "--labels", chain.weak, "--no-ask"))
    assert path.read_bytes() == before


def test_what_was_fixed_with_the_sample_stays(certify, chain, tmp_path, write_rows):
    assert certify("--max-error", "0.06").exit_code == 0
    for options in (["--max-error", "0.05"], ["--seed", "1"], ["--sample", "100"]):
        result = certify(*options)
        assert result.exit_code == 2
        assert "weak.certify.csv was begun with" in result.stderr
    flipped = [
        {"id": i, "label": 1 - int(w)} for i, w in zip(chain.ids, chain.weak_of, strict=True)
    ]
    write_rows("weak.jsonl", flipped)
    assert "was begun with other labels" in certify().stderr
    (tmp_path / "weak.certify.json").write_text('{"trusted_labels": 3}', encoding="utf-8")
    assert "weak.certify.json is not the plan of a certificate" in certify().stderr
    (tmp_path / "weak.certify.json").unlink()
    result = certify()
    assert result.exit_code == 1
    assert "weak.certify.csv exists without weak.certify.json" in result.stderr
    assert certify("--answers", "new.csv", "--seed", "1").exit_code == 0


def test_an_audit_that_came_first_is_trusted_and_a_later_one_is_not(certify, true, tmp_path):
    audit = tmp_path / "weak.audit.csv"
    lines = ["id,true_label", *(f"r{i},{true[f'r{i}']}" for i in range(40)), "r41,?"]
    audit.write_text("\n".join(lines) + "\n", encoding="utf-8")
    first = certify()
    assert "weak.audit.csv: 40 true labels, which are trusted." in first.stderr
    path = tmp_path / "weak.certify.csv"
    # Its answers may depend on the sample now, so that it is not read again.
    audit.write_text("\n".join([*lines, f"r50,{true['r50']}"]) + "\n", encoding="utf-8")
    state, _ = finish(certify, path, true)
    assert state["certificate"]["trusted"] == 40
    rows = rewrite(path, lambda rows: rows)
    assert not {row["id"] for row in rows} & {f"r{i}" for i in range(40)}
    assert len(rows) == state["labelled"] - 40
    again = certify("--audit", "weak.audit.csv", "--overwrite")
    assert again.exit_code == 2
    assert "was begun with other trusted labels" in again.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-error", "0.001"], "less than one label; the smallest possible is 0.003334"),
        (["--max-error", "7"], "7 % is 0.07"),
        (["--confidence", "1"], "[0.5, 1)"),
        (["--sample", "10"], "smallest possible is 0.2"),
        (["-o", "verdicts.csv"], "must end in .parquet or .jsonl"),
        (["--answers", "weak.jsonl"], "weak.jsonl"),
    ],
)
def test_what_cannot_be_is_refused_before_a_row_is_drawn(certify, tmp_path, options, words):
    result = certify(*options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (tmp_path / "weak.certify.csv").exists()


def test_without_a_terminal_the_file_is_named(certify):
    result = certify(ask=True)
    assert result.exit_code == 2
    assert "add --no-ask, fill in the column true_label of weak.certify.csv" in result.stderr


def test_verdicts_are_certified(certify, chain, true, tmp_path, probekit):
    made = probekit("relabel", chain.acts, "--labels", chain.weak, "--hard", "-o", "new.parquet")
    assert made.exit_code == 0, made.output
    result = certify("--sitting", "60", labels="new.parquet")
    assert "the labels of 300 kept rows" in result.stderr
    for _ in range(20):
        fill(tmp_path / "new.certify.csv", true)
        if "Certified" in certify(labels="new.parquet").stdout:
            break
    verdicts = Verdicts.load(tmp_path / "new.certified.parquet")
    assert verdicts.provenance["action"] == "relabel"
    assert np.mean(verdicts.hard != chain.truth_of) <= 0.05


def test_keys_answer_and_a_stop_resumes(certify, true, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "at_terminal", lambda: True)
    path = tmp_path / "weak.certify.csv"
    certify("--sitting", "60")
    listed = [row["id"] for row in rewrite(path, lambda rows: rows)]
    keys = iter([true[name] for name in listed[:5]] + ["q"])
    monkeypatch.setattr(click, "getchar", lambda: next(keys))
    result = certify(ask=True)
    assert result.exit_code == 0, result.output
    assert "Stopped" in result.stderr
    assert sum(bool(row["true_label"]) for row in rewrite(path, lambda rows: rows)) == 5

    def press():
        """The right answer to the first row that waits."""
        with path.open(encoding="utf-8-sig", newline="") as file:
            waiting = [row["id"] for row in csv.DictReader(file) if not row["true_label"]]
        return true[waiting[0]]

    monkeypatch.setattr(click, "getchar", press)
    result = certify(ask=True)
    assert result.exit_code == 0, result.output
    assert "Certified: at most 15 of 300 labels are wrong (0.05)" in result.stdout
