"""``--trusted`` of filter, relabel and clean, and the answers of an audit."""

from __future__ import annotations

import json

import numpy as np
import pytest

from probekit.cleaning.predict import filter_labels
from probekit.labels import load_labels
from probekit.verdicts import Verdicts


@pytest.fixture
def trusted(chain, write_rows):
    """True labels of the first 60 rows."""
    rows = [{"id": f"r{i}", "label": int(chain.truth_of[i])} for i in range(60)]
    return write_rows("trusted.jsonl", rows)


@pytest.fixture
def run(probekit, chain):
    def start(command, *more):
        base = (command, chain.acts, "--labels", chain.weak, "-o", chain.out, "--overwrite")
        result = probekit(*base, *more)
        assert result.exit_code == 0, result.output
        return result, Verdicts.load(chain.out)

    return start


@pytest.mark.parametrize("command", ["filter", "relabel"])
def test_trusted_labels_correct_the_probe(run, chain, trusted, command):
    said, verdicts = run(command, "--trusted", trusted)
    assert "trusted.jsonl: 60 labels, read from column 'label'" in said.stderr
    assert verdicts.provenance["trusted"]["rows"] == 60
    assert f"--trusted {trusted}" in verdicts.provenance["command"]
    assert verdicts.keep[:60].all()
    assert np.array_equal(verdicts.hard[:60], chain.truth_of[:60])
    plain = run(command)[1]
    assert not np.array_equal(plain.probe, verdicts.probe)
    # The truth to evaluate with is another file, and changes nothing.
    again = run(command, "--trusted", trusted, "--truth", chain.truth)[1]
    for name in ("probe", "label", "keep"):
        assert np.array_equal(getattr(again, name), getattr(verdicts, name))


def test_another_column_and_the_supervisors_states(run, chain, write_rows, make_acts):
    rows = [{"id": f"r{i}", "true": int(chain.truth_of[i])} for i in range(60)]
    path = write_rows("other.jsonl", rows)
    own = make_acts(chain.X[:, :2], chain.ids, chain.texts, name="own.h5")
    more = ("--trusted", path, "--trusted-column", "true", "--supervisor-acts", own)
    verdicts = run("filter", *more)[1]
    weak = load_labels(chain.weak)
    expected = filter_labels(
        chain.X,
        weak,
        trusted=load_labels(path, label_column="true"),
        supervisor_states=chain.X[:, :2],
    )
    assert np.allclose(verdicts.probe, expected.probe, atol=1e-6)


def test_the_answers_of_an_audit_are_trusted_by_themselves(run, chain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answers = [f"r{i},{chain.truth_of[i]}" for i in range(40)]
    text = "\n".join(["id,true_label", *answers, "r41,?"]) + "\n"
    (tmp_path / "weak.audit.csv").write_text(text, encoding="utf-8")
    said, verdicts = run("filter")
    assert "weak.audit.csv: 40 true labels, which are trusted." in said.stderr
    assert verdicts.provenance["trusted"]["rows"] == 40
    # Of other rows it is passed over, unless it was named.
    (tmp_path / "weak.audit.csv").write_text("id,true_label\nzzz,1\n", encoding="utf-8")
    said, verdicts = run("filter")
    assert "trusted" not in verdicts.provenance
    passed = [line for line in said.stderr.splitlines() if line.startswith("Passed over: ")]
    assert len(passed) == 1
    assert "weak.audit.csv has 1 ids that are not in the store (ids 'zzz')" in passed[0]
    assert passed[0].endswith("name another file with --audit.")


def test_what_cannot_be_trusted_is_refused_in_one_sentence(refused, chain, write_rows, make_acts):
    base = ("filter", chain.acts, "--labels", chain.weak, "-o", chain.out)

    def no(rows, *more):
        return refused(*base, "--trusted", write_rows("t.jsonl", rows), *more)

    assert "has no label for any row" in no([{"id": "zz", "label": 1}])
    twice = [{"id": "r1", "label": 1}, {"id": "r1", "label": 0}]
    assert "ids more than once (ids 'r1')" in no(twice)
    assert "has the classes 'good'" in no([{"id": "r1", "label": "good"}])
    assert "another text" in no([{"id": "r1", "label": 1, "text": "something else"}])
    assert "does nothing without --trusted" in refused(*base, "--trusted-column", "x")
    assert "of use with trusted labels only" in refused(*base, "--supervisor-acts", chain.acts)
    assert "missing.csv" in refused(*base, "--trusted", chain.folder / "missing.csv")
    assert not chain.out.exists()


def test_few_and_foreign_labels_are_reported(run, write_rows):
    rows = [{"id": "r1", "label": 1}, {"id": "zz", "label": 0}]
    said, verdicts = run("filter", "--trusted", write_rows("t.jsonl", rows))
    assert "1 label for an id that is not in" in said.stderr
    assert "1 trusted texts are too few to correct the probe (10 are needed)" in said.stderr
    assert verdicts.provenance["trusted"]["rows"] == 1
    assert verdicts.hard[1] == 1


def test_json_has_them(run, trusted):
    said, verdicts = run("relabel", "--trusted", trusted, "--json")
    assert json.loads(said.stdout)["output"]
    assert len(verdicts.provenance["trusted"]["penalties"]) == 2
