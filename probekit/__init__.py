"""Filter and relabel weak labels with probes on a strong model's hidden states."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probekit.activations.extraction import extract
    from probekit.activations.store import ActivationStore
    from probekit.cleaned import clean
    from probekit.cleaning.audit import audit
    from probekit.cleaning.certify import certify
    from probekit.cleaning.diagnose import diagnose
    from probekit.cleaning.evaluate import evaluate
    from probekit.cleaning.predict import filter_labels, relabel, score_rows
    from probekit.cleaning.trust import TrustModel
    from probekit.data import Rows
    from probekit.errors import ProbekitError
    from probekit.labels import WeakLabels, load_labels
    from probekit.probes.base import out_of_fold
    from probekit.probes.ensemble import EnsembleProbe
    from probekit.probes.knn import KNNProbe
    from probekit.probes.logistic import LogisticProbe
    from probekit.probes.mass_mean import MassMeanProbe
    from probekit.probes.saving import load_probe
    from probekit.probes.topofilter import TopoFilterProbe
    from probekit.sources import load_rows
    from probekit.students.finetune import finetune
    from probekit.students.losses import make_loss
    from probekit.verdicts import Verdicts

__version__ = "0.1.0"

# Imported at first use: `probekit --help` must not wait for torch, transformers and scikit-learn.
_HOMES = {
    "ActivationStore": "probekit.activations.store",
    "EnsembleProbe": "probekit.probes.ensemble",
    "KNNProbe": "probekit.probes.knn",
    "LogisticProbe": "probekit.probes.logistic",
    "MassMeanProbe": "probekit.probes.mass_mean",
    "ProbekitError": "probekit.errors",
    "Rows": "probekit.data",
    "TopoFilterProbe": "probekit.probes.topofilter",
    "TrustModel": "probekit.cleaning.trust",
    "Verdicts": "probekit.verdicts",
    "WeakLabels": "probekit.labels",
    "audit": "probekit.cleaning.audit",
    "certify": "probekit.cleaning.certify",
    "clean": "probekit.cleaned",
    "diagnose": "probekit.cleaning.diagnose",
    "evaluate": "probekit.cleaning.evaluate",
    "extract": "probekit.activations.extraction",
    "filter_labels": "probekit.cleaning.predict",
    "finetune": "probekit.students.finetune",
    "load_labels": "probekit.labels",
    "load_probe": "probekit.probes.saving",
    "load_rows": "probekit.sources",
    "make_loss": "probekit.students.losses",
    "out_of_fold": "probekit.probes.base",
    "relabel": "probekit.cleaning.predict",
    "score_rows": "probekit.cleaning.predict",
}

__all__ = [
    "ActivationStore",
    "EnsembleProbe",
    "KNNProbe",
    "LogisticProbe",
    "MassMeanProbe",
    "ProbekitError",
    "Rows",
    "TopoFilterProbe",
    "TrustModel",
    "Verdicts",
    "WeakLabels",
    "audit",
    "certify",
    "clean",
    "diagnose",
    "evaluate",
    "extract",
    "filter_labels",
    "finetune",
    "load_labels",
    "load_probe",
    "load_rows",
    "make_loss",
    "out_of_fold",
    "relabel",
    "score_rows",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'probekit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
