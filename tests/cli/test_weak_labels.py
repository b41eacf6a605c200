from __future__ import annotations

import json

import numpy as np
import pytest

from probekit.activations.store import ActivationStore
from probekit.cleaning.weak_supervisor import weak_labels
from probekit.labels import load_labels
from probekit.verdicts import Verdicts


@pytest.fixture
def run(probekit, chain):
    chain.out = chain.folder / "labels.parquet"

    def start(*more):
        result = probekit("weak-labels", chain.acts, "--truth", chain.truth, "-o", chain.out, *more)
        assert result.exit_code == 0, result.output
        return result

    return start


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ([], {}),
        (["--train-share", "0.2"], {"train_share": 0.2}),
        (["--train-rows", "40", "--seed", "3"], {"train_rows": 40, "seed": 3}),
        (["--l2", "0.5", "--layer", "6"], {"l2": 0.5, "layer": 6}),
    ],
)
def test_the_command_is_the_function(run, chain, options, how):
    result = run(*options)
    with ActivationStore(chain.acts) as store:
        expected = weak_labels(store, load_labels(chain.truth), **how)
    labels = load_labels(chain.out)
    assert labels.ids == expected.labels.ids
    assert labels.hashes == expected.labels.hashes
    assert np.array_equal(labels.probs[:, 1], expected.labels.probs[:, 1])
    assert labels.provenance == expected.labels.provenance
    assert f"labelled {len(labels):,}" in result.stdout


def test_train_ids_come_from_a_text_file_or_a_table(run, chain, write_rows):
    lines = chain.folder / "ids.txt"
    lines.write_text("\n".join(chain.ids[:50]) + "\n\n")
    run("--train-ids", lines)
    first = load_labels(chain.out)
    assert first.ids == chain.ids[50:]
    table = write_rows("ids.jsonl", [{"id": i} for i in chain.ids[:50]])
    run("--train-ids", table, "--overwrite")
    assert np.array_equal(load_labels(chain.out).probs, first.probs)


def test_accuracy_is_told(run, chain):
    result = json.loads(run("--json", "--train-rows", "50").stdout)
    labels = load_labels(chain.out)
    rows = [chain.ids.index(i) for i in labels.ids]
    assert result["accuracy"] == np.mean(labels.hard == chain.truth_of[rows])
    assert result["judged_rows"] == result["labelled_rows"] == 250
    assert result["trained_rows"] == 50
    assert 0.5 < result["auroc"] <= 1


def test_weak_labels_lead_to_verdicts(run, probekit, chain):
    run("--train-rows", "50")
    out = chain.folder / "verdicts.parquet"
    arguments = ["filter", chain.acts, "--labels", chain.out, "-o", out]
    result = probekit(*arguments)
    assert result.exit_code == 1
    assert "no label for 50 of 300 rows" in result.stderr
    assert "--only-labelled" in result.stderr
    assert probekit(*arguments, "--only-labelled").exit_code == 0
    assert Verdicts.load(out).ids == load_labels(chain.out).ids


def test_partly_known_truth(run, chain, write_rows):
    chain.truth = write_rows(
        "some.jsonl",
        [{"id": i, "label": int(t)} for i, t in zip(chain.ids, chain.truth_of, strict=True)][:60],
    )
    result = run("--train-share", "1")
    assert load_labels(chain.out).ids == chain.ids[60:]
    assert "have a truth" not in result.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--train-share", "0"], "a number in (0, 1]"),
        (["--train-share", "1"], "to label; train on fewer"),
        (["--train-share", "0.5", "--train-rows", "9"], "Give one of train ids"),
        (["--train-rows", "900"], "There are 300 rows with truth"),
        (["--layer", "2"], "has no layer 2"),
        (["-o", "labels.csv"], "must end in .parquet or .jsonl"),
    ],
)
def test_options_that_make_no_sense(refused, chain, options, words):
    arguments = ["weak-labels", chain.acts, "--truth", chain.truth, "-o", chain.out]
    assert words in refused(*arguments, *options, code=2)
    assert not chain.out.exists()


def test_files_that_do_not_fit(refused, chain, write_rows):
    arguments = ["weak-labels", chain.acts, "-o", chain.out, "--truth"]
    other = write_rows("other.jsonl", [{"id": f"x{i}", "label": i % 2} for i in range(9)])
    assert "no label for any row" in refused(*arguments, other)
    one = write_rows("one.jsonl", [{"id": i, "label": 1} for i in chain.ids])
    assert "one class only" in refused(*arguments, one)
    hashes = write_rows(
        "hash.jsonl", [{"id": i, "label": k % 2, "text": "x"} for k, i in enumerate(chain.ids)]
    )
    assert "another text than" in refused(*arguments, hashes)
    ids = chain.folder / "ids.txt"
    ids.write_text("nobody\n")
    assert "1 of 1 train ids are not in" in refused(*arguments, chain.truth, "--train-ids", ids)
    ids.write_text("\n")
    assert "holds no ids" in refused(*arguments, chain.truth, "--train-ids", ids)
    ids.write_bytes(b"\xff\xfe")
    assert "is not UTF-8 text" in refused(*arguments, chain.truth, "--train-ids", ids)
    assert "no column 'id'; give one id per line" in refused(
        *arguments, chain.truth, "--train-ids", write_rows("t.jsonl", [{"text": "x"}])
    )
    chain.out.write_text("mine")
    assert "exists already" in refused(*arguments, chain.truth)
    assert chain.out.read_text() == "mine"


def test_states_that_are_not_finite(refused, chain, make_acts):
    chain.X[7, 0] = np.inf
    acts = make_acts(chain.X, chain.ids, chain.texts, name="inf.h5")
    sentence = refused("weak-labels", acts, "--truth", chain.truth, "-o", chain.out)
    assert "contains NaN or inf in 1 of 300 rows (first: 'r7')" in sentence
