"""Registry of probes: name, class, options, and how `sweep` varies each.

A new probe is one file with a class and one entry of ``REGISTRY``. Probes of other packages are
registered by the entry point ``probekit.probes`` (a name for ``package.module:Class``), or named as
``package.module:Class`` on the command line and in Python.

Nothing here imports scikit-learn, so that ``probekit filter --help`` is fast.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

from probekit.errors import UsageError, did_you_mean
from probekit.kinds import Choice, Kind, Like
from probekit.safe import one_line

__all__ = [
    "PUBLISHED",
    "REGISTRY",
    "STRENGTHS",
    "ProbeName",
    "ProbeSpec",
    "make_probe",
    "pair_settings",
    "parameter_kinds",
    "probe_class",
    "probe_names",
    "probe_spec",
]

GROUP = "probekit.probes"
AS_FILTER = "probekit.experiments.sweep_probes:as_filter"


@dataclass(frozen=True)
class ProbeSpec:
    """One probe, as commands, tables and figures need to know it."""

    name: str
    """Name for ``--probe``."""
    label: str
    """Name in tables and figures."""
    home: str
    """``package.module:Class``."""
    options: tuple[str, ...] = ()
    """Parameters that have an option of `filter` and `relabel`."""
    preset: Mapping[str, Any] | None = None
    """Parameters of ``--preset eleuther``; None if it has none."""
    strengths: tuple[str, ...] = ()
    """Parameters that `sweep` varies; curves are drawn over the first."""
    axis: str = ""
    """Name of the first strength in figures; without it the probe has no panel."""
    depends: tuple[str, ...] = ()
    """Settings of a sweep that its figures depend on, besides the contaminations."""
    path: str = AS_FILTER
    """Function that predicts all strengths out of fold at once; by default as `filter` does."""
    several_layers: bool = False
    """Whether it reads several layers of a store by itself."""
    neighbors: bool = False
    """Whether it searches its rows' neighbours, which is long work."""
    on_cluster: bool = False
    """Whether a Ray cluster shares its work."""

    @property
    def class_name(self) -> str:
        """Name of the class, as stored in provenance and on disk."""
        return self.home.partition(":")[2]


REGISTRY: dict[str, ProbeSpec] = {
    spec.name: spec
    for spec in (
        ProbeSpec(
            "knn",
            "kNN",
            "probekit.probes.knn:KNNProbe",
            options=("k", "weights", "metric", "approximate"),
            preset={"k": 50, "metric": "euclidean", "self_neighbor": True},
            strengths=("k",),
            axis="neighbours k",
            depends=("k", "metric"),
            path="probekit.experiments.sweep_probes:knn",
            neighbors=True,
            on_cluster=True,
        ),
        ProbeSpec(
            "logreg",
            "logistic",
            "probekit.probes.logistic:LogisticProbe",
            options=("l2", "fit_intercept", "n_folds"),
            preset={"l2": 1e-2, "standardize": False},
            strengths=("l2",),
            axis="penalty l2",
            depends=("l2", "seeds", "n_folds", "standardize"),
            path="probekit.experiments.sweep_probes:logreg",
            on_cluster=True,
        ),
        ProbeSpec(
            "topofilter",
            "TopoFilter",
            "probekit.probes.topofilter:TopoFilterProbe",
            options=("metric", "variant", "k_cc", "k_zeta", "zeta", "cap", "rank"),
            preset={"variant": "eleuther", "metric": "euclidean", "self_neighbor": True},
            strengths=("k_zeta", "k_cc", "zeta", "contamination"),
            axis="neighbours that vote, k_zeta",
            depends=("k_cc", "k_zeta", "zeta", "variant", "metric"),
            path="probekit.experiments.sweep_probes:topofilter",
            neighbors=True,
            on_cluster=True,
        ),
        ProbeSpec(
            "ensemble",
            "ensemble",
            "probekit.probes.ensemble:EnsembleProbe",
            options=("k", "approximate"),
            strengths=("k",),
            several_layers=True,
            neighbors=True,
            on_cluster=True,
        ),
        ProbeSpec("mass-mean", "mass-mean", "probekit.probes.mass_mean:MassMeanProbe"),
    )
}
# The default probes of a run and a sweep: those of the published comparison.
PUBLISHED = ("knn", "logreg", "topofilter")
# All strengths, each once.
STRENGTHS = tuple(dict.fromkeys(name for spec in REGISTRY.values() for name in spec.strengths))


def probe_names() -> tuple[str, ...]:
    """Names of all probes: probekit's own, then those of installed packages."""
    return (*REGISTRY, *_installed())


def probe_spec(name: str) -> ProbeSpec:
    """Look up a probe by its name or as ``package.module:Class``.

    Raises
    ------
    UsageError
        If there is no probe of that name.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    if ":" in name:
        return ProbeSpec(name, name.partition(":")[2], name)
    installed = _installed()
    if name in installed:
        return installed[name]
    names = (*REGISTRY, *installed)
    raise UsageError(
        f"There is no probe {name!r}{did_you_mean(name, names)}; allowed are {', '.join(names)}, "
        "or a scikit-learn classifier as package.module:Class."
    )


def _installed() -> dict[str, ProbeSpec]:
    """Probes of installed packages, except those with a name of probekit's own."""
    return {
        point.name: ProbeSpec(point.name, point.name, point.value)
        for point in sorted(metadata.entry_points(group=GROUP))
        if point.name not in REGISTRY
    }


def probe_class(name: str) -> Any:
    """Import the class of a probe.

    Raises
    ------
    UsageError
        If there is no such probe or class, or the class is not a classifier.
    """
    spec = probe_spec(name)
    module, _, attribute = spec.home.partition(":")
    try:
        cls = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UsageError(
            f"The probe {name!r} cannot be imported: {one_line(str(error)).rstrip('.')}."
        ) from None
    lacking = [m for m in ("fit", "predict_proba", "get_params") if not hasattr(cls, m)]
    if lacking or not isinstance(cls, type):
        reason = f"has no {', '.join(lacking)}" if lacking else "is not a class"
        raise UsageError(
            f"The probe {name!r} {reason}; name a scikit-learn classifier with predict_proba."
        )
    return cls


def parameter_kinds(name: str) -> dict[str, Kind]:
    """Parameters of a probe by name, and the kind of each."""
    cls = probe_class(name)
    if hasattr(cls, "kinds"):
        return {key: kind for key, kind in cls.kinds.items() if key != "random_state"}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(cls).parameters.values()
    return {each.name: Like("any value") for each in parameters if each.kind in named}


def pair_settings(name: str) -> dict[str, Any]:
    """Default parameters on differences of pairs: no bias if that makes the probe symmetric."""
    cls = probe_class(name)
    return {"fit_intercept": False} if getattr(cls, "odd_without_bias", False) else {}


def make_probe(name: str, *, seed: int = 0, pairs: bool = False, **params: Any) -> Any:
    """Make a probe by its name.

    Parameters
    ----------
    name : str
        One of :func:`probe_names`, or ``package.module:Class``.
    seed : int, default=0
        ``random_state`` of a probe that has one.
    pairs : bool, default=False
        Whether it is for differences of pairs: then :func:`pair_settings` are its defaults.
    **params
        Parameters of the probe; None keeps its default.

    Raises
    ------
    UsageError
        If there is no such probe, or it has no such parameter.

    Examples
    --------
    >>> make_probe("knn", k=5)
    KNNProbe(k=5)
    """
    cls = probe_class(name)
    known = inspect.signature(cls).parameters
    given = {key: value for key, value in params.items() if value is not None}
    if pairs:
        given = {**pair_settings(name), **given}
    foreign = [key for key in given if key not in known]
    if foreign:
        listed = ", ".join(parameter_kinds(name)) or "none"
        raise UsageError(
            f"The probe {name!r} has no parameter {', '.join(foreign)}; it has {listed}."
        )
    if "random_state" in known:
        given.setdefault("random_state", seed)
    try:
        return cls(**given)
    except TypeError as error:
        raise UsageError(f"The probe {name!r} cannot be made: {one_line(str(error))}.") from None


class ProbeName(Kind):
    """Name of a probe; with ``classes`` also ``package.module:Class``.

    With ``several`` also different ones, commas between; the text itself is kept.
    """

    def __init__(self, *, classes: bool = False, several: bool = False) -> None:
        self.classes, self.several = classes, several

    @property
    def words(self) -> str:  # type: ignore[override]
        """What is allowed."""
        more = " or package.module:Class" if self.classes else ""
        several = ", or several, each once, commas between" if self.several else ""
        return f"one of {', '.join(probe_names())}{more}{several}"

    def read(self, value: Any) -> str:
        """Take a name."""
        if self.several and isinstance(value, str) and "," in value:
            names = [ProbeName(classes=self.classes).read(name) for name in value.split(",")]
            if len(set(names)) < len(names):
                raise ValueError(self.words)
            return value
        # Installed packages are searched for other names only.
        if isinstance(value, str) and (value in REGISTRY or (self.classes and ":" in value)):
            return value
        return str(Choice(*probe_names()).read(value))
