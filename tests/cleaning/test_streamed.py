"""Folders too large for a copy in memory: probes read their parts, and judge as on one file."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from probekit import filter_labels, relabel, score_rows
from probekit.cleaning.predict import read_states
from probekit.cleaning.saved import label_store, save_fitted
from probekit.errors import UsageError
from probekit.probes import EnsembleProbe, KNNProbe, LogisticProbe, TopoFilterProbe
from probekit.states import Streamed

EQUAL = {
    "knn": KNNProbe(k=7),
    "approximate": KNNProbe(k=7, approximate=True),
    "logreg": LogisticProbe(),
    "ridge": EnsembleProbe(knn=(), ridge=(0,)),
    "ensemble": EnsembleProbe(k=7),
    "topofilter": TopoFilterProbe(variant="eleuther", k_cc=10, k_zeta=10),
}


@pytest.fixture
def nothing_fits(monkeypatch):
    """No copy of the states is small enough, and blocks hold 60 rows."""
    for name in ("activations.store", "probes.logistic_design"):
        monkeypatch.setattr(f"probekit.{name}.COPY_BYTES", 0)
    monkeypatch.setattr("probekit.probes.ties.BLOCK_BYTES", 60 * 4 * 8)
    monkeypatch.setattr("probekit.probes.ridge.EXACT_BYTES", 0)


def rows(blobs):
    """Rows with copies, equal distances and a large offset."""
    data = blobs(400, distance=2.0)
    data.X = np.round(data.X * 4) / 4 + 30
    data.X[350:] = data.X[:50]
    return data


@pytest.mark.parametrize("name", EQUAL)
@pytest.mark.parametrize("act", [filter_labels, relabel])
def test_verdicts_are_those_of_the_merged_file(
    name, act, blobs, make_folder, as_labels, nothing_fits, monkeypatch
):
    data = rows(blobs)
    layers = (1, 2, 3) if name == "ensemble" else (3,)
    groups = [f"g{i // 3}" for i in range(400)]
    folder, file = make_folder(data.X, layers=layers, groups=groups)
    labels = as_labels(data.weak)
    with monkeypatch.context() as patch:
        # The folder's layer never becomes one array.
        patch.setattr(Streamed, "__array__", None)
        found = act(folder, labels, probe=EQUAL[name])
    expected = act(file, labels, probe=EQUAL[name])
    for column in ("probe", "label", "keep", "weight", "disagreement"):
        assert np.array_equal(getattr(found, column), getattr(expected, column)), column
    # Control: other rows have other verdicts.
    other = act(file, as_labels(1 - data.weak), probe=EQUAL[name])
    assert not np.array_equal(other.probe, expected.probe)


def test_some_rows_and_new_rows(blobs, make_folder, as_labels, nothing_fits, tmp_path):
    data = rows(blobs)
    folder, file = make_folder(data.X, layers=(1, 3))
    some = np.arange(5, 400, 3)[::-1]
    labels = as_labels(data.weak[some], ids=[f"r{i}" for i in some])
    for probe in (KNNProbe(k=5), EnsembleProbe(k=5), LogisticProbe()):
        layer = None if isinstance(probe, EnsembleProbe) else 3
        kwargs = {"probe": probe, "layer": layer, "only_labelled": True}
        found, expected = (score_rows(store, labels, **kwargs) for store in (folder, file))
        assert isinstance(found.X, Streamed)
        assert np.array_equal(found.proba, expected.proba)
        where = tmp_path / type(probe).__name__
        save_fitted(found, store=folder, folder=where)
        new, old = (label_store(store, where) for store in (folder, file))
        assert np.array_equal(new.probs, old.probs)


def test_other_probes_read_all_of_it(blobs, make_folder, as_labels, nothing_fits):
    from sklearn.naive_bayes import GaussianNB

    data = rows(blobs)
    folder, file = make_folder(data.X)
    for probe in (GaussianNB(), "mass-mean"):
        found, expected = (score_rows(s, as_labels(data.weak), probe) for s in (folder, file))
        assert np.array_equal(found.proba, expected.proba)


def test_what_is_not_finite_is_named(blobs, make_folder, as_labels, nothing_fits):
    from probekit.errors import StatesError

    data = blobs(400)
    data.X[123, 2] = np.nan
    folder, _ = make_folder(data.X)
    with pytest.raises(StatesError, match=r"1 of 400 rows \(first: 'r123'\)"):
        score_rows(folder, as_labels(data.weak), "knn")


def test_streamed_rows_are_those_of_an_array(blobs, make_folder, nothing_fits):
    X = rows(blobs).X
    folder, file = make_folder(X, layers=(1, 3), store_dtype="float16")
    streamed = read_states(folder, (1, 3), stream=True)
    whole = read_states(file, (1, 3))
    assert isinstance(streamed, Streamed)
    assert streamed.shape == whole.shape == (400, 16)
    picked = np.array([399, 0, 70, 69, 70])
    for key in (slice(60, 150), picked, slice(0, 400, 7)):
        assert np.array_equal(streamed[key], whole[key])
        assert np.array_equal(streamed[key, 6:10], whole[key, 6:10])
    assert np.array_equal(np.asarray(streamed[:, 5:12]), whole[:, 5:12])
    # What another process gets reads the same rows.
    again = pickle.loads(pickle.dumps(streamed))
    assert np.array_equal(again[picked], whole[picked])


def test_one_of_several_layers_must_be_named(blobs, make_folder, as_labels, nothing_fits):
    data = rows(blobs)
    for store in make_folder(data.X, layers=(1, 2)):
        with pytest.raises(UsageError, match="holds the layers 1, 2; choose one with --layer"):
            score_rows(store, as_labels(data.weak), "knn")
        assert score_rows(store, as_labels(data.weak), "knn", layer=2).X.shape == data.X.shape
