"""Preference pairs from the shell: differences, weak labels, verdicts, and the data to train on."""

from __future__ import annotations

import json

import numpy as np
import pytest

from probekit.sources import load_rows

GOOD, BAD = "kind helpful patient honest careful", "rude useless hasty lying careless"


@pytest.fixture(scope="module")
def preference_records():
    rng = np.random.default_rng(0)

    def dialogue(i, words):
        said = " ".join(rng.choice(words.split(), 6))
        return f"\n\nHuman: question {i}\n\nAssistant: {said}"

    return [
        {"id": f"p{i}", "chosen": dialogue(i, GOOD), "rejected": dialogue(i, BAD), "topic": i % 3}
        for i in range(80)
    ]


def test_from_pairs_to_training_data(probekit, refused, preference_records, write_rows, tiny_model):
    wrong = {f"p{i}" for i in range(0, 80, 8)}
    weak = [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if row["id"] in wrong else row
        for row in preference_records
    ]
    truth, weak = write_rows("pairs.jsonl", preference_records), write_rows("weak.jsonl", weak)
    acts, out, data = (truth.with_name(name) for name in ("d.h5", "v.parquet", "clean.jsonl"))
    model = tiny_model("bert")
    result = probekit("extract", truth, "--compare", "-m", model, "--layers", 2, "-o", acts)
    assert result.exit_code == 0, result.output
    for probe in ("knn", "logreg", "topofilter"):
        # Weak labels are the same pairs, judged by another: they join by id and text.
        given = ["filter", acts, "--labels", weak, "--probe", probe, "--truth", truth]
        k = ["--k", 10] if probe == "knn" else []
        k = ["--k-zeta", 10] if probe == "topofilter" else k
        result = probekit(*given, *k, "-o", out, "--write-data", data, "--overwrite", "--json")
        assert result.exit_code == 0, result.output
        said = "without a bias" if probe == "logreg" else "in both orders"
        assert result.stderr.count(said) == 1
        output = json.loads(result.stdout)
        assert output["summary"]["rows"] == 80
        assert output["evaluation"]["labels"]["before"] == pytest.approx(1 - 10 / 80)
        # Random words of two lists, told apart by a random model's states.
        assert output["evaluation"]["probe"]["auroc"] > 0.8
        assert output["evaluation"]["weak"]["pairwise_accuracy"] == pytest.approx(1 - 10 / 80)
    kept = [json.loads(line) for line in data.read_text().splitlines()]
    rows = {row["id"]: row for row in load_rows(truth).records()}
    assert 0 < len(kept) < 80
    for row in kept:
        assert row["text"] == rows[row["id"]]["text"]
        assert row["topic"] == rows[row["id"]]["topic"]
        assert "chosen" not in row  # it would contradict the label that was decided on
    result = probekit(
        *("relabel", acts, "--labels", weak, "--probe", "logreg", "--intercept"),
        *("-o", out, "--overwrite"),
    )
    assert "has a bias" in result.stderr
    sentence = refused("filter", *given[1:4], "--probe", "knn", "--no-intercept", "-o", "v.parquet")
    assert "The probe 'knn' has no --no-intercept" in sentence


def test_weak_labels_of_pairs(probekit, preference_records, write_rows, tiny_model):
    truth = write_rows("pairs.jsonl", preference_records)
    acts, weak = truth.with_name("d.h5"), truth.with_name("weak.parquet")
    model = tiny_model("bert")
    probekit("extract", truth, "--compare", "-m", model, "--layers", 2, "-o", acts)
    given = ["weak-labels", acts, "--truth", truth, "--train-rows", 30, "-o", weak]
    result = probekit(*given)
    assert result.exit_code == 0, result.output
    assert "trained on 30 rows" in result.stdout
    assert "no bias" in result.stdout
    result = probekit(*given, "--intercept", "--overwrite")
    assert "no bias" not in result.stdout
    result = probekit(*given, "--json", "--overwrite")
    assert json.loads(result.stdout)["fit_intercept"] is False
