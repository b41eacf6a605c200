from __future__ import annotations

import json

import numpy as np

from probekit.cleaning.relabel import readmit
from probekit.labels import load_labels
from probekit.verdicts import Verdicts


def test_dropped_rows_come_back(probekit, chain, write_rows, refused):
    probekit("filter", chain.acts, "--labels", chain.weak, "-o", chain.out)
    student = write_rows(
        "student.jsonl",
        [
            {"id": name, "prob": 0.95 if truth else 0.08}
            for name, truth in zip(chain.ids, chain.truth_of.tolist(), strict=True)
        ],
    )
    output = chain.folder / "again.parquet"
    asked = ("readmit", chain.out, "--predictions", student, "-o", output)
    result = probekit(*asked, "--truth", chain.truth, "--json")
    assert result.exit_code == 0, result.output
    outcome = json.loads(result.stdout)
    before, after = Verdicts.load(chain.out), Verdicts.load(output)
    assert after.keep.all()
    assert outcome["readmitted"] == outcome["dropped"] == (~before.keep).sum()
    assert outcome["right"]["label"] == 1 > outcome["right"]["weak"]
    expected = readmit(before, load_labels(student))
    assert np.array_equal(after.label, expected.label)
    assert "exists" in refused(*asked)
    assert "must end in" in refused(*asked[:-1], chain.folder / "a.csv")
    twice = refused(*asked[:-1], chain.folder / "c.parquet", "--predictions", student, code=2)
    assert "named twice" in twice  # a student agrees with itself
    assert "has no verdicts" in refused("readmit", chain.truth, *asked[2:-1], "b.parquet")
