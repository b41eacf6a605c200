"""Probes on frozen hidden states, as scikit-learn estimators that take hard or soft labels."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from probekit.probes.registry import REGISTRY

if TYPE_CHECKING:
    from probekit.probes.base import out_of_fold
    from probekit.probes.ensemble import EnsembleProbe
    from probekit.probes.knn import KNNProbe
    from probekit.probes.logistic import LogisticProbe
    from probekit.probes.mass_mean import MassMeanProbe
    from probekit.probes.pairs import PairProbe
    from probekit.probes.saving import load_probe
    from probekit.probes.topofilter import TopoFilterProbe

__all__ = [
    "EnsembleProbe",
    "KNNProbe",
    "LogisticProbe",
    "MassMeanProbe",
    "PairProbe",
    "TopoFilterProbe",
    "load_probe",
    "out_of_fold",
]

# Imported on first use: scikit-learn alone takes a second, which `probekit --help` must not pay.
_HOMES = {
    **{spec.class_name: spec.home.partition(":")[0] for spec in REGISTRY.values()},
    "PairProbe": "probekit.probes.pairs",
    "load_probe": "probekit.probes.saving",
    "out_of_fold": "probekit.probes.base",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
