"""A probe that is saved labels the rows of another store, of the same model and spec only."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from probekit.cleaning.predict import filter_labels, relabel
from probekit.cleaning.saved import check_savable, label_store, save_fitted
from probekit.errors import OutputExistsError, ProbeError, UsageError
from probekit.labels import WeakLabels
from probekit.probes import KNNProbe

CLASSES = ("cold", "warm", "hot")


def labels_of(weak):
    return WeakLabels([f"r{i}" for i in range(len(weak))], None, np.eye(3)[weak], CLASSES)


@pytest.fixture
def fitted(blobs, make_store, tmp_path):
    """A store with labels, and a function that saves a probe of it."""
    data = blobs(n=300, noise=(0.1, 0.1, 0.1))
    store = make_store(data.X)

    def save(probe, act=filter_labels):
        folder = tmp_path / "probe"
        keep = partial(save_fitted, store=store, folder=folder)
        return folder, act(store, labels_of(data.weak), probe=probe, on_scored=keep)

    yield data, store, save
    store.close()


@pytest.mark.parametrize("probe", ["knn", "logreg", "mass-mean"])
@pytest.mark.parametrize("act", [filter_labels, relabel])
def test_new_rows_are_labelled_as_the_probe_itself_does(
    fitted, blobs, make_store, probe, act, tmp_path
):
    data, _, save = fitted
    folder, _ = save(probe, act)
    new = blobs(n=90, noise=(0.0, 0.0, 0.0), seed=7)
    with make_store(new.X, name="new.h5") as store:
        labels = label_store(store, folder)
    assert labels.classes == CLASSES
    assert list(labels.ids) == [f"r{i}" for i in range(90)]
    assert (labels.hard == new.truth).mean() > 0.85
    assert labels.provenance["layers"] == [3]
    labels.save(tmp_path / "labels.parquet")
    if probe == "knn":
        second = (
            KNNProbe(random_state=0) if "random_state" in KNNProbe().get_params() else KNNProbe()
        )
        expected = second.fit(data.X, np.eye(3)[data.weak]).predict_proba(new.X)
        np.testing.assert_array_equal(labels.probs, expected)


def test_states_of_another_spec_or_layer_are_refused(fitted, blobs, make_store):
    _, _, save = fitted
    folder, _ = save("knn")
    new = blobs(n=30, noise=(0.0, 0.0, 0.0))
    with (
        make_store(new.X, name="other.h5", layers=(2,)) as store,
        pytest.raises(UsageError, match="layer"),
    ):
        label_store(store, folder)
    path = folder / "states.json"
    reads = json.loads(path.read_text())
    path.write_text(json.dumps({**reads, "spec": {**reads["spec"], "pooling": "last"}}))
    with (
        make_store(new.X, name="third.h5") as store,
        pytest.raises(UsageError, match="pooling None, not 'last'; extract these rows"),
    ):
        label_store(store, folder)


def test_what_cannot_be_saved_is_refused_before_any_work(fitted, tmp_path):
    from sklearn.linear_model import LogisticRegression

    _, store, save = fitted
    with pytest.raises(UsageError, match=r"Only EnsembleProbe, .* can be saved"):
        check_savable(LogisticRegression(), store, tmp_path / "p")
    with pytest.raises(UsageError, match="an array has none"):
        check_savable(KNNProbe(), np.zeros((3, 2)), tmp_path / "p")
    folder, _ = save("knn")
    with pytest.raises(OutputExistsError, match="exists and is not empty"):
        check_savable(KNNProbe(), store, folder)


def test_a_folder_without_its_states_or_with_damaged_ones_is_refused(fitted):
    _, store, save = fitted
    folder, _ = save("knn")
    path = Path(folder) / "states.json"
    path.write_text('{"format": "probekit-probe-states", "version": 1, "classes": 3}')
    with pytest.raises(ProbeError, match="is damaged"):
        label_store(store, folder)
    path.unlink()
    with pytest.raises(ProbeError, match="does not record which states"):
        label_store(store, folder)
