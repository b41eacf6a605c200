from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from probekit.errors import OutputExistsError, ProbeError
from probekit.probes import (
    EnsembleProbe,
    KNNProbe,
    LogisticProbe,
    MassMeanProbe,
    TopoFilterProbe,
    load_probe,
)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((120, 5)).astype(np.float32)
    return X, rng.random(120), rng.standard_normal((30, 5))


PROBES = [
    KNNProbe(k=5),
    KNNProbe(k=np.int64(5), metric="euclidean", self_neighbor=True),
    KNNProbe(k=5, weights="cosine"),
    TopoFilterProbe(k_cc=5, k_zeta=7, zeta=0.4),
    TopoFilterProbe("eleuther", k_cc=9, k_zeta=7, contamination=0.2, per_class=True),
]


EVERY = [
    KNNProbe(k=3),
    LogisticProbe(l2=0.1),
    TopoFilterProbe(k_cc=5, k_zeta=7),
    EnsembleProbe(k=5, widths=[2, 3]),
    MassMeanProbe(),
]


@pytest.mark.parametrize("probe", PROBES, ids=repr)
@pytest.mark.parametrize("kind", ["soft", "strings", "booleans", "three"])
def test_a_loaded_probe_is_the_saved_one_bit_for_bit(rows, tmp_path, probe, kind):
    X, p, queries = rows
    y = {
        "soft": p,
        "strings": np.where(p > 0.4, "yes", "no — nein"),
        "booleans": p > 0.4,
        "three": np.digitize(p, [0.3, 0.6]) * 10,
    }[kind]
    weight = np.random.default_rng(1).random(120) if kind == "soft" else None
    fitted = probe.fit(X, y, sample_weight=weight).save(tmp_path / "probe")
    loaded = load_probe(tmp_path / "probe")
    assert type(loaded) is type(fitted)
    assert loaded.get_params() == fitted.get_params()
    assert loaded.classes_.dtype == fitted.classes_.dtype
    assert np.array_equal(loaded.predict_proba(queries), fitted.predict_proba(queries))
    assert np.array_equal(loaded.predict(queries), fitted.predict(queries))
    assert np.array_equal(loaded.oof_proba_, fitted.oof_proba_)
    if isinstance(fitted, KNNProbe):
        assert np.array_equal(loaded.oof_path([2, 9]), fitted.oof_path([2, 9]))
    else:
        assert np.array_equal(loaded.keep_, fitted.keep_)
        assert loaded.result_.dropped == fitted.result_.dropped


def test_names_of_features_come_along(rows, tmp_path):
    import pandas as pd

    frame = pd.DataFrame(rows[0], columns=list("abcde"))
    KNNProbe(k=3).fit(frame, rows[1]).save(tmp_path / "probe")
    loaded = load_probe(tmp_path / "probe")
    assert loaded.predict(frame).shape == (120,)
    with pytest.raises(ValueError, match="feature names"):
        loaded.predict(frame[list("edcba")])


def test_a_loaded_probe_checks_the_width_of_new_rows(rows, tmp_path):
    KNNProbe(k=3).fit(rows[0], rows[1]).save(tmp_path)
    with pytest.raises(ValueError, match="4 features"):
        load_probe(tmp_path).predict(rows[2][:, :4])


def test_nothing_is_overwritten_unasked(rows, tmp_path):
    probe = KNNProbe(k=3).fit(rows[0], rows[1])
    probe.save(tmp_path / "probe")
    before = (tmp_path / "probe" / "probe.json").read_bytes()
    other = KNNProbe(k=4).fit(rows[0], rows[1])
    with pytest.raises(OutputExistsError, match="has a probe already; pass overwrite=True"):
        other.save(tmp_path / "probe")
    assert (tmp_path / "probe" / "probe.json").read_bytes() == before
    other.save(tmp_path / "probe", overwrite=True)
    assert load_probe(tmp_path / "probe").k == 4
    (tmp_path / "file").touch()
    with pytest.raises(OutputExistsError, match="is a file"):
        probe.save(tmp_path / "file")


def test_only_fitted_probes_of_probekit_are_saved(rows, tmp_path):
    class KNNProbeOfMine(KNNProbe):
        pass

    with pytest.raises(ValueError, match="not fitted"):
        KNNProbe(k=3).save(tmp_path)
    with pytest.raises(ProbeError, match="can be saved, got KNNProbeOfMine"):
        KNNProbeOfMine(k=3).fit(rows[0], rows[1]).save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def edit(folder, **changes):
    path = folder / "probe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "other"}, "does not describe a probe"),
        ({"version": 2}, "version 2; this probekit reads version 1"),
        ({"version": None}, "version None"),
        ({"class": "os.system"}, "class 'os.system'; allowed are EnsembleProbe"),
        ({"class": "../../evil"}, "allowed are EnsembleProbe"),
        ({"params": {"k": 3, "evil": 1}}, "sets 'evil', which KNNProbe does not have"),
        ({"params": {"k": 3, "a\nb": 1}}, "sets 'a b', which KNNProbe does not have"),
        ({"params": None}, "damaged"),
        ({"n_features_in": None}, "damaged"),
        ({"sha256": "0" * 64}, "was not written with"),
    ],
)
def test_what_is_no_probe_of_ours_is_refused(rows, tmp_path, changes, words):
    KNNProbe(k=3).fit(rows[0], rows[1]).save(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(ProbeError, match=words):
        load_probe(tmp_path)


def test_damage_is_reported(rows, tmp_path):
    with pytest.raises(ProbeError, match=r"has no probe: .*probe\.json is missing"):
        load_probe(tmp_path)
    KNNProbe(k=3).fit(rows[0], rows[1]).save(tmp_path)
    numbers = tmp_path / "probe.safetensors"
    whole = numbers.read_bytes()
    numbers.write_bytes(whole[:-1])
    with pytest.raises(ProbeError, match="is damaged"):
        load_probe(tmp_path)
    numbers.unlink()
    with pytest.raises(ProbeError, match=r"probe\.safetensors is missing"):
        load_probe(tmp_path)
    numbers.write_bytes(whole)
    (tmp_path / "probe.json").write_text("{")
    with pytest.raises(ProbeError, match=r"probe\.json: not JSON"):
        load_probe(tmp_path)
    (tmp_path / "probe.json").write_text("[1]")
    with pytest.raises(ProbeError, match="does not describe a probe"):
        load_probe(tmp_path)


def test_missing_arrays_are_reported(rows, tmp_path):
    import hashlib

    KNNProbe(k=3).fit(rows[0], rows[1]).save(tmp_path)
    path = tmp_path / "probe.safetensors"
    arrays = load_file(path)
    del arrays["Y"]
    save_file(arrays, path)
    edit(tmp_path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(ProbeError, match="'Y' is missing or wrong"):
        load_probe(tmp_path)


def test_nothing_is_pickled(rows, tmp_path):
    KNNProbe(k=3).fit(rows[0], rows[1]).save(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["probe.json", "probe.safetensors"]
    description = json.loads((tmp_path / "probe.json").read_text())
    assert description["class"] == "KNNProbe"
    assert description["params"]["k"] == 3
    assert set(description["made_with"]) == {"probekit", "scikit-learn", "numpy"}


@pytest.mark.parametrize("probe", EVERY, ids=lambda probe: type(probe).__name__)
@pytest.mark.parametrize(
    "changes",
    [
        {"n_features_in": "x"},
        {"n_features_in": 10**40},
        {"n_features_in": 4},
        {"classes": [[1], [1, 2]]},
        {"classes": [10**30, 1]},
        {"classes": [1]},
        {"classes": {}},
        {"classes_dtype": [1]},
        {"classes_dtype": "O"},
        {"class": ["KNNProbe"]},
        {"params": {"backend": []}},
        {"params": [["k"]]},
        {"feature_names_in": ["a"]},
        {"sha256": [1]},
    ],
    ids=str,
)
def test_a_wrong_description_is_reported(rows, tmp_path, probe, changes):
    probe.fit(rows[0], rows[1]).save(tmp_path)
    edit(tmp_path, **changes)
    if changes == {"params": {"backend": []}} and not hasattr(probe, "backend"):
        changes = {"params": {"backend": "no such parameter"}}
    with pytest.raises(ProbeError):
        load_probe(tmp_path)


@pytest.mark.parametrize("probe", EVERY, ids=lambda probe: type(probe).__name__)
def test_every_array_is_checked(rows, tmp_path, probe):
    """One array at a time is cut, flattened, emptied or made of another kind; none goes through."""
    probe.fit(rows[0], rows[1]).save(tmp_path)
    whole = load_file(tmp_path / "probe.safetensors")
    damage = {
        "cut": lambda a: a[:-1],
        "emptied": lambda a: a[:0],
        "text": lambda a: a.astype(np.complex64),
        "longer": lambda a: np.concatenate([a, a[:1]]),
        "deeper": lambda a: a[None],
    }
    for name in whole:
        for change in damage.values():
            arrays = {**whole, name: np.ascontiguousarray(change(whole[name]))}
            replace_arrays(tmp_path, arrays)
            if (type(probe).__name__, name) in ALONE and arrays[name].ndim == whole[name].ndim:
                continue
            with pytest.raises(ProbeError):
                load_probe(tmp_path)
    replace_arrays(tmp_path, whole)  # the control
    assert load_probe(tmp_path).predict(rows[2]).shape == (30,)


# Nothing else in the file says how long these are, and nothing is computed with them.
ALONE = {
    ("MassMeanProbe", "oof_proba"),
    ("LogisticProbe", "l2_scores_"),
    ("LogisticProbe", "penalties_"),
    ("EnsembleProbe", "penalties"),
}


def replace_arrays(folder, arrays):
    import hashlib

    save_file(arrays, folder / "probe.safetensors")
    digest = hashlib.sha256((folder / "probe.safetensors").read_bytes()).hexdigest()
    edit(folder, sha256=digest)


def test_deep_json_is_reported(rows, tmp_path):
    KNNProbe(k=3).fit(rows[0], rows[1]).save(tmp_path)
    (tmp_path / "probe.json").write_text("[" * 100_000)
    with pytest.raises(ProbeError, match="deep"):
        load_probe(tmp_path)
