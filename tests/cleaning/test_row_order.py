"""The order of the rows, which may have a meaning, decides nothing."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from probekit.cleaning.advice import draw_sample
from probekit.cleaning.audit import draw_rows
from probekit.cleaning.diagnose import diagnose
from probekit.cleaning.weak_supervisor import weak_labels
from probekit.experiments.sweep import run_sweep
from probekit.experiments.sweep_probes import SweepSettings, join_rows


@pytest.fixture
def in_two_orders(blobs, make_store, as_labels):
    """The same store, weak labels and truth in two orders, and the second order."""
    data = blobs(n=400, noise=(0.25, 0.25))
    # Copies, which make groups of two; of the two the first is the nearer one to other rows.
    data.X[380:], data.weak[380:] = data.X[360:380], data.weak[360:380]
    order = np.random.default_rng(9).permutation(400)
    found = []
    for name, rows in (("a.h5", np.arange(400)), ("b.h5", order)):
        ids, hashes = [f"r{i}" for i in rows], [f"{i if i < 380 else i - 20:016x}" for i in rows]
        store = make_store(data.X[rows], ids=ids, hashes=hashes, name=name)
        labels = as_labels(data.weak[rows], ids=ids, hashes=hashes)
        found.append((store, labels, as_labels(data.truth[rows], ids=ids, hashes=hashes)))
    return found, order


def test_weak_labels_of_a_supervisor(in_two_orders):
    (first, second), _ = in_two_orders
    one, two = (weak_labels(store, truth, train_share=0.3) for store, _, truth in (first, second))
    trained = [{s[0].ids[i] for i in found.trained} for s, found in ((first, one), (second, two))]
    assert trained[0] == trained[1]
    assert one.probe.l2_ == two.probe.l2_
    place = {name: i for i, name in enumerate(two.labels.ids)}
    again = two.labels.probs[[place[name] for name in one.labels.ids]]
    assert np.abs(one.labels.probs - again).max() < 1e-3
    other = weak_labels(first[0], first[2], train_share=0.3, seed=1)  # the control
    assert {first[0].ids[i] for i in other.trained} != trained[0]


def test_rows_of_an_audit_in_their_order(in_two_orders):
    (first, second), _ = in_two_orders
    one, two = (draw_rows(store, weak) for store, weak, _ in (first, second))
    assert len(one.ids) > 20
    # Of copies that are labelled alike either may be asked about.
    assert _hashes(one, first[1]) == _hashes(two, second[1])
    assert np.array_equal(one.weak, two.weak)
    assert _hashes(draw_rows(first[0], first[1], seed=1), first[1]) != _hashes(one, first[1])


def _hashes(drawn, labels):
    """The texts that are asked about, in their order."""
    of = dict(zip(labels.ids, labels.hashes, strict=True))
    return [of[name] for name in drawn.ids]


def test_the_sample_of_a_diagnosis(in_two_orders):
    (first, second), _ = in_two_orders
    one, two = (draw_sample(store, weak, rows=100) for store, weak, _ in (first, second))
    assert np.array_equal(one.states[3], two.states[3])
    assert np.array_equal(one.hard, two.hard)
    found = [diagnose(store, weak, permutations=9) for store, weak, _ in (first, second)]
    assert asdict(found[0].concord) == asdict(found[1].concord)
    assert found[0].advice == found[1].advice
    other = draw_sample(first[0], first[1], rows=100, seed=1)
    assert not np.array_equal(one.states[3], other.states[3])


def test_a_sweep(in_two_orders):
    (first, second), _ = in_two_orders
    settings = SweepSettings(layers=(3,), k=(1, 5), l2=(0.01, 1.0), k_cc=(5,), k_zeta=(9,))
    one, two = (run_sweep(join_rows(*part), settings) for part in (first, second))
    assert one.choice["probe"] == two.choice["probe"]
    for a, b in zip(one.rows, two.rows, strict=True):
        for name in ("filtered_0.1", "filtered_0.2", "changed", "relabelled_hard", "auroc"):
            # One row more or less where sums in another order part equal logits.
            assert a[name] == pytest.approx(b[name], abs=0 if a["probe"] == "knn" else 5e-3), name
