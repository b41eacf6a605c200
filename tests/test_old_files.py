"""Files that probekit 0.1.0 wrote are still read, and say what they said.

tests/data/0.1.0 was written by it: a store, verdicts of kNN and of the ensemble, a sweep and the
folder of a run, from made-up rows and a model of random weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from probekit.activations.store import ActivationStore
from probekit.cleaning.predict import filter_labels
from probekit.cli.main import cli
from probekit.experiments.config import read_config
from probekit.labels import load_labels
from probekit.probes import KNNProbe
from probekit.verdicts import Verdicts

OLD = Path(__file__).parent / "data" / "0.1.0"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "old"
    shutil.copytree(OLD, folder)
    monkeypatch.chdir(folder)
    return folder


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words))


def test_a_store(old: Path) -> None:
    with ActivationStore(old / "acts.h5") as store:
        assert (len(store), store.layers, store.complete) == (40, [0, 1, 2], True)
        assert store.ids[:2] == ["r0", "r1"]
        assert np.isfinite(store.layer(2)).all()
        assert len(set(store.hashes)) > 30
        # The verdicts beside it name this very store.
        message = Verdicts.load(old / "verdicts.parquet").provenance["store"]
        assert message["fingerprint"] == store.fingerprint
        assert message["rows_fingerprint"] == store.rows_fingerprint
    assert run("info", "acts.h5").exit_code == 0


def test_verdicts_and_what_they_came_from(old: Path) -> None:
    verdicts = Verdicts.load(old / "verdicts.parquet")
    assert verdicts.layers == [2]
    assert Verdicts.load(old / "several.jsonl").layers == [1, 2]
    assert int((~verdicts.keep).sum()) == 7
    # The probe predicts what it predicted; which of equal rows are dropped has changed since.
    with ActivationStore(old / "acts.h5") as store:
        labels = load_labels(old / "weak.csv")
        again = filter_labels(store, labels, probe=KNNProbe(k=5), layer=2, ties="index")
    assert np.allclose(again.probe, verdicts.probe)
    assert np.allclose(again.weak, verdicts.weak)


@pytest.mark.parametrize("name", ["verdicts.parquet", "several.jsonl", "sweep.parquet", "run"])
def test_pages(old: Path, name: str) -> None:
    done = run("report", name, "-o", "page.html")
    assert done.exit_code == 0, done.output
    assert "<html" in (old / "page.html").read_text(encoding="utf-8")


def test_a_review_of_old_verdicts(old: Path) -> None:
    assert run("review", "verdicts.parquet", "--acts", "acts.h5", "--rows", "rows.jsonl",
               "-n", "5", "-o", "review.csv").exit_code == 0  # fmt: skip
    merged = run("review", "verdicts.parquet", "--merge", "review.csv", "-o", "merged.parquet")
    assert merged.exit_code == 0, merged.output


def test_a_run_is_read_and_its_configuration_replays(old: Path) -> None:
    config = read_config(old / "run" / "config.yaml")
    assert config.probes == ("knn",)
    result = json.loads((old / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert result["groups"][0]["arms"][0]["kind"] == "floor"
    predictions = sorted((old / "run" / "predictions").rglob("*.parquet"))
    assert predictions
    done = run("report", "run", "-o", "page.html")
    assert "weak labels, xent" in (old / "page.html").read_text(encoding="utf-8"), done.output


def test_what_is_not_an_old_file_is_still_refused(old: Path) -> None:
    path = old / "several.jsonl.meta.json"
    message = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**message, "version": 99}), encoding="utf-8")
    assert run("report", "several.jsonl", "-o", "page.html").exit_code == 1
