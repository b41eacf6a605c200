"""Several seeds of one experiment in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probekit.experiments.judge import ALARMS, FIGURES, PGRS

__all__ = ["combine_seeds", "spread"]

COMBINED = ("rows", "label_accuracy", *FIGURES)
GAINS = ("gain", "gain_prior_matched")
AGREEMENT = ("overall", "right", "wrong")


def combine_seeds(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Median, mean and standard error of every figure over seeds.

    Parameters
    ----------
    seeds
        What :func:`probekit.experiments.judge.judge_arms` gave for each seed. Arms are matched by
        name; one that some seeds lack is combined over the others.

    Returns
    -------
    One dict per arm, in the order of the first seed that has it: ``figures`` from a name to median,
    mean, sem (None for one seed) and values; ``pgr`` and its kin also hold why seeds have none, and
    for a single seed its 95 % interval; ``alarms``: how many seeds have each.
    """
    names: dict[str, list[Mapping[str, Any]]] = {}
    for arms in seeds:
        for arm in arms:
            names.setdefault(str(arm["name"]), []).append(arm)
    listed = sorted(names, key=lambda name: names[name][0]["kind"] == "ceiling")
    return [_combined(name, names[name]) for name in listed]


def _combined(name: str, arms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "kind": arms[0]["kind"], "seeds": len(arms)}
    found["figures"] = {key: spread([arm.get(key) for arm in arms]) for key in COMBINED}
    raised = [name for arm in arms for name in arm.get("alarms", {})]
    found["alarms"] = {name: raised.count(name) for name in ALARMS if name in raised}
    found["agreement"] = None
    if any(arm.get("agreement") is not None for arm in arms):
        known = [arm.get("agreement") or {} for arm in arms]
        found["agreement"] = {key: spread([each.get(key) for each in known]) for key in AGREEMENT}
    for key in PGRS:
        given = [arm[key] for arm in arms if arm.get(key) is not None]
        found[key] = _recovered(given) if given else None
    for key in GAINS:
        given = [arm[key] for arm in arms if arm.get(key) is not None]
        found[key] = None
        if given:
            found[key] = spread([each["gain"] for each in given])
            if len(arms) == 1:
                found[key] |= {"low": given[0]["gain_low"], "high": given[0]["gain_high"]}
    return found


def _recovered(given: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = spread([each["pgr"] for each in given])
    found["undefined"] = sum(each["pgr"] is None for each in given)
    found["unbounded"] = sum(bool(each.get("unbounded")) for each in given)
    found["reasons"] = sorted({each["reason"] for each in given if each.get("reason")})
    found["over_weak"] = spread([each["gain"] for each in given])
    if len(given) == 1:
        found |= {"low": given[0].get("pgr_low"), "high": given[0].get("pgr_high")}
    return found


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Median, mean and standard error of what is defined; None where nothing is."""
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if not len(known):
        return {"median": None, "mean": None, "sem": None, "values": list(values)}
    sem = float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else None
    return {
        "median": float(np.median(known)),
        "mean": float(known.mean()),
        "sem": sem,
        "values": list(values),
    }
