from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from probekit.verdicts import Verdicts


@pytest.fixture
def verdicts(probekit, chain):
    result = probekit("filter", chain.acts, "--labels", chain.weak, "-o", chain.out)
    assert result.exit_code == 0, result.output
    return chain.out


def test_out_and_back(probekit, chain, verdicts):
    path = chain.folder / "review.csv"
    result = probekit("review", verdicts, "-n", "20", "-o", path)
    assert result.exit_code == 0, result.output
    assert "20 of 300 rows" in result.stdout
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    texts = dict(zip(chain.ids, chain.texts, strict=True))
    assert [row["text"] for row in rows] == [texts[row["id"]] for row in rows]
    truth = dict(zip(chain.ids, chain.truth_of.tolist(), strict=True))
    for row in rows[:15]:
        row["label"] = truth[row["id"]]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    output = chain.folder / "reviewed.parquet"
    result = probekit("review", verdicts, "--merge", path, "-o", output, "--json")
    assert result.exit_code == 0, result.output
    outcome = json.loads(result.stdout)
    assert outcome["answers"] == 15
    before, after = Verdicts.load(verdicts), Verdicts.load(output)
    reviewed = [chain.ids.index(row["id"]) for row in rows[:15]]
    assert (after.hard[reviewed] == chain.truth_of[reviewed]).all()
    assert after.keep[reviewed].all()
    assert outcome["brought_back"] == (~before.keep[reviewed]).sum() > 0
    others = np.setdiff1d(np.arange(300), reviewed)
    assert np.array_equal(after.keep[others], before.keep[others])


def test_records_for_argilla(probekit, chain, verdicts):
    path = chain.folder / "review.jsonl"
    assert probekit("review", verdicts, "-o", path, "--rows", chain.rows).exit_code == 0
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(records) == 100
    assert set(records[0]) == {"id", "fields", "metadata", "suggestions", "responses"}
    assert probekit("review", verdicts, "-o", path, "--no-text", "--overwrite").exit_code == 0
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[0])["fields"] == {}


def test_refusals(chain, verdicts, refused):
    folder = chain.folder
    assert "must end in .csv or .jsonl" in refused("review", verdicts, "-o", folder / "a.parquet")
    merge = ("review", verdicts, "--merge", chain.weak)
    assert "must end in .parquet or .jsonl" in refused(*merge, "-o", folder / "a.csv")
    assert "not a review" in refused(*merge, "-o", folder / "a.parquet")
    assert "is read here" in refused(
        "review", verdicts, "--merge", chain.weak, "-o", chain.weak, "--overwrite"
    )
    assert "exists already" in refused("review", verdicts, "-o", chain.rows)
    assert "has no verdicts" in refused("review", chain.weak, "-o", folder / "a.csv")
    chain.acts.unlink()
    sentence = refused("review", verdicts, "-o", folder / "a.csv")
    assert "--rows" in sentence
    assert "--no-text" in sentence
