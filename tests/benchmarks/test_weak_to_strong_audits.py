"""Audits of the grid's rows: their shares are about the true ones, and every cell is done once."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from weak_to_strong_audits import DRAWS, SHARES, SIZES, audited, cells

from probekit import ActivationStore, WeakLabels
from probekit.activations.create import Plan
from probekit.activations.writer import StoreWriter

N = 400


@pytest.fixture
def cell(tmp_path: Path) -> SimpleNamespace:
    """States that tell the classes apart, and a quarter of the labels wrong."""
    rng = np.random.default_rng(0)
    truth = np.arange(N) % 2
    wrong = rng.permutation(N) < N // 4
    states = np.float32(rng.normal(size=(N, 8)) + 3 * truth[:, None])
    ids = [f"r{i}" for i in range(N)]
    plan = Plan({}, ids, hashes=ids, widths={0: 8}, store_dtype="float32")
    with StoreWriter.open(tmp_path / "acts.h5", plan) as writer:
        writer.write(np.arange(N), {0: states}, np.ones(N, "int32"), np.zeros(N, bool))
        writer.finish()
    weak = WeakLabels(ids, None, np.eye(2)[np.where(wrong, 1 - truth, truth)], ("0", "1"))
    place = SimpleNamespace(seed=0)
    return SimpleNamespace(
        pool=ActivationStore(tmp_path / "acts.h5"), weak=weak, truth=truth, place=place
    )


def test_audits_estimate_the_true_shares(cell: SimpleNamespace) -> None:
    found = audited(cell)
    assert set(found) == {f"audit {m}" for m in SIZES}
    for size, shares in found.items():
        assert {len(shares[name]) for name in SHARES} == {DRAWS}
        # A simple sample of 20 has a standard error of 0.1, the mean of twenty of 0.02; of nearly
        # separable states the relabelled and kept rows are nearly all right.
        assert np.mean(shares["leave"]) == pytest.approx(0.25, abs=0.08), size
        assert np.mean(shares["relabel"]) < 0.08
        assert np.mean(shares["filter"]) < 0.17  # a filter of a fifth leaves a few wrong ones
    assert np.std(found["audit 100"]["leave"]) < np.std(found["audit 20"]["leave"])


def test_another_truth_is_told(cell: SimpleNamespace) -> None:
    """The control: were the weak labels right, the estimates would say so."""
    cell.truth = cell.weak.hard
    found = audited(cell)
    assert np.mean(found["audit 100"]["leave"]) < 0.03
    assert np.mean(found["audit 100"]["relabel"]) > 0.15


def test_only_cells_with_cleaned_labels_are_audited(tmp_path: Path) -> None:
    arms = {"whole": ("plain", "filter", "relabel, soft", "relabel, hard"), "sizes": ("plain",)}
    lines = [
        {"pair": pair, "task": "t", "seed": 0, "student": "finetuned", "arm": arm}
        for pair, own in arms.items()
        for arm in own
    ]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert cells([path]) == {("whole", "t", 0, "finetuned")}
