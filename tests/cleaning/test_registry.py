"""The registry of probes: one entry for each, and nothing else that knows their names."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import probekit
from probekit.cleaning.predict import filter_labels, score_rows
from probekit.errors import UsageError
from probekit.experiments.config import RunConfig
from probekit.experiments.sweep import run_sweep
from probekit.experiments.sweep_probes import SweepSettings, join_rows
from probekit.probes import LogisticProbe, registry
from probekit.probes.registry import (
    PUBLISHED,
    REGISTRY,
    ProbeSpec,
    make_probe,
    parameter_kinds,
    probe_class,
    probe_names,
    probe_spec,
)

LOGISTIC = "sklearn.linear_model:LogisticRegression"
RUN = {"task": "t", "weak": "a", "strong": "b"}


class NewProbe(LogisticProbe):
    """What a new probe costs: this class, and one line."""


NEW = ProbeSpec("new", "brand-new", f"{__name__}:NewProbe")


@pytest.mark.parametrize("name", REGISTRY)
def test_every_entry_names_what_there_is(name):
    spec = REGISTRY[name]
    made = make_probe(name)
    parameters, kinds = made.get_params(deep=False), parameter_kinds(name)
    assert type(made) is getattr(probekit, spec.class_name) is probe_class(name)
    assert set(spec.options) | set(spec.strengths) | set(spec.preset or {}) <= set(parameters)
    assert set(kinds) == set(parameters) - {"random_state"}
    for key, value in (spec.preset or {}).items():
        kinds[key].read(value)
    settings = {each.name for each in fields(SweepSettings)}
    assert set(spec.depends) <= settings
    module, _, function = spec.path.partition(":")
    assert list(inspect.signature(getattr(import_module(module), function)).parameters) == [
        *("states", "settings", "note", "spec")
    ]
    assert not spec.axis or spec.strengths
    assert set(PUBLISHED) <= set(REGISTRY)


def test_names_of_probes_stand_in_the_registry_alone():
    """In no other file of the product is there a table of them (a default is one name)."""
    root = Path(probekit.__file__).parent
    quoted = re.compile("|".join(f'"{name}"' for name in REGISTRY))
    told = {}
    for path in sorted({p.resolve() for p in root.rglob("*.py")}):
        text = path.read_text(encoding="utf-8")
        found = set(quoted.findall(re.sub(r"__all__ = \[.*?\]", "", text, flags=re.DOTALL)))
        if len(found) > 1 and path.name != "registry.py":
            told[path.name] = found
    # The evidence names its members, kNN and ridge; the default is the ensemble, else kNN; what
    # scores rows lists the names for its readers.
    assert set(told) == {"predict.py"}


def test_a_new_probe_is_a_class_and_a_line(monkeypatch, blobs, make_store, as_labels):
    data = blobs(n=80)
    store, labels = make_store(data.X), as_labels(data.weak)
    with pytest.raises(UsageError, match="There is no probe 'new'"):
        score_rows(store, labels, "new")
    monkeypatch.setitem(REGISTRY, "new", NEW)
    scored = score_rows(store, labels, "new", seed=3)
    assert scored.provenance["probe"]["name"] == "NewProbe"
    assert np.array_equal(scored.proba, score_rows(store, labels, "logreg", seed=3).proba)
    sweep = run_sweep(join_rows(store, labels), SweepSettings(layers=(3,), probes=("new",)))
    assert [row["probe"] for row in sweep.rows] == ["new"]
    config = RunConfig.from_mapping({**RUN, "probes": "new", "probe_options": {"new": {"l2": 1.0}}})
    assert config.probes == ("new",)


def test_a_probe_of_an_installed_package(monkeypatch, blobs):
    points = [
        EntryPoint("theirs", LOGISTIC, registry.GROUP),
        EntryPoint("knn", LOGISTIC, registry.GROUP),
    ]
    assert "theirs" not in probe_names()
    monkeypatch.setattr(registry.metadata, "entry_points", lambda **_: points)
    assert probe_names() == (*REGISTRY, "theirs")
    assert isinstance(make_probe("theirs", C=2.0), LogisticRegression)
    assert make_probe("knn").__class__.__name__ == "KNNProbe"  # probekit's own name stays its own
    data = blobs(n=80)
    scored = score_rows(data.X, data.weak, "theirs")
    assert (scored.fold >= 0).all()
    assert RunConfig.from_mapping({**RUN, "probes": "theirs"}).probes == ("theirs",)


def test_any_classifier_by_the_name_of_its_class(blobs):
    data = blobs(n=120)
    named = filter_labels(data.X, data.weak, probe=LOGISTIC, n_folds=4, seed=2)
    given = filter_labels(data.X, data.weak, probe=LogisticRegression(), n_folds=4, seed=2)
    assert np.array_equal(named.probe, given.probe)
    assert np.array_equal(named.keep, given.keep)
    assert set(named.fold.tolist()) == {0, 1, 2, 3}
    assert make_probe("sklearn.ensemble:RandomForestClassifier", seed=7).random_state == 7


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("svm", "There is no probe 'svm'; allowed are knn, logreg"),
        ("topofiler", "did you mean topofilter"),
        ("no_such_package:Probe", "cannot be imported: No module named 'no_such_package'"),
        ("sklearn.linear_model:Nothing", "cannot be imported: .*Nothing"),
        ("os:system", "has no fit, predict_proba, get_params"),
        ("sklearn.svm:LinearSVC", "has no predict_proba"),
        ("sklearn.ensemble:VotingClassifier", "'VotingClassifier|cannot be made|has no"),
        (":Probe", "cannot be imported"),
        ("sklearn.linear_model:", "cannot be imported"),
    ],
)
def test_what_is_not_a_probe(name, sentence):
    with pytest.raises(UsageError, match=sentence) as told:
        make_probe(name)
    assert "\n" not in str(told.value)


def test_a_run_file_names_no_class():
    """A configuration may be a stranger's: nothing is imported for what stands in it."""
    for field in ({"probes": [LOGISTIC]}, {"probe_options": {LOGISTIC: {}}}):
        with pytest.raises(UsageError, match="knn, logreg, topofilter"):
            RunConfig.from_mapping({**RUN, **field})
    with pytest.raises(UsageError, match="knn, logreg, topofilter"):
        SweepSettings(layers=(0,), probes=(LOGISTIC,))


def test_names_are_listed_without_scikit_learn():
    code = (
        "import sys; from probekit.probes.registry import probe_names, probe_spec; probe_names(); "
        "probe_spec('knn'); print('sklearn' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_spec_of_a_class_has_its_name():
    assert probe_spec(LOGISTIC).label == "LogisticRegression"
