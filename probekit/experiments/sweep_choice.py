"""Choose layer, probe and strength without the truth, and say afterwards what that cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from probekit.probes.registry import probe_spec

__all__ = ["KEYS", "choose", "choose_each", "mean_over_seeds", "regret", "row_of"]

# What a probe at a strength on a layer is known by.
KEYS = ("layer", "probe", "k", "l2", "k_cc", "k_zeta", "zeta", "contamination")
# All that a choice may read.
WEAK = ("weak_log_loss", "weak_log_loss_se")
# Of these a larger one is less regularised: it drops more rows.
SMALLER_IS_MORE = ("zeta", "contamination")

Row = Mapping[str, Any]


def mean_over_seeds(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One row for each layer, probe and strength: means of its seeds' figures."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in KEYS), []).append(row)
    means = []
    for same in groups.values():
        first = dict(same[0])
        for name, value in first.items():
            if name not in KEYS and isinstance(value, float) and len(same) > 1:
                first[name] = math.fsum(row[name] for row in same) / len(same)
        first["seed"] = None if len(same) > 1 else first["seed"]
        means.append(first)
    return means


def choose_each(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each layer and probe the strength of the one-standard-error rule.

    Among the strengths whose out-of-fold weak log-loss is within one standard error of the least,
    the most regularised: the largest k or l2; of TopoFilter the largest k_zeta, then k_cc, then the
    smallest zeta or contamination. ``least`` is that least log-loss (Breiman, Friedman, Olshen &
    Stone 1984, §3.4.3).
    """
    told = [{name: row[name] for name in (*KEYS, *WEAK)} for row in mean_over_seeds(rows)]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in told:
        groups.setdefault((row["layer"], row["probe"]), []).append(row)
    chosen = []
    for same in groups.values():
        least = min(same, key=lambda row: row["weak_log_loss"])
        error = least["weak_log_loss_se"]
        limit = least["weak_log_loss"] + (0 if math.isnan(error) else error)
        near = [row for row in same if row["weak_log_loss"] <= limit]
        strongest = max(near, key=_regularised)
        chosen.append({**strongest, "least": least["weak_log_loss"]})
    return chosen


def choose(rows: Sequence[Row]) -> dict[str, Any]:
    """Choose a layer and probe by the least out-of-fold weak log-loss that any strength has there.

    The strength is that of :func:`choose_each`. Of equal layers and probes the first in the order
    of ``rows``. Nothing but the weak log-loss and its standard error is read.
    """
    best = min(choose_each(rows), key=lambda row: row["least"])
    return {name: value for name, value in best.items() if value is not None}


def regret(rows: Sequence[Row], choice: Row, measures: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How far the choice is behind the best row, of each measure that the truth gives.

    Each has ``chosen``, ``oracle``, ``regret`` (their difference), ``by_strength`` (how far the
    choice is behind the best strength of its own layer and probe) and ``at``, the oracle's layer,
    probe and strength; the oracle of each measure is another row.
    """
    means = mean_over_seeds(rows)
    mine = row_of(means, choice)
    found = {}
    for measure in measures:
        known = [row for row in means if _finite(row[measure])]
        if not known or not _finite(mine[measure]):
            continue
        best = max(known, key=lambda row: row[measure])
        here = [row for row in known if all(row[name] == mine[name] for name in KEYS[:2])]
        found[measure] = {
            "chosen": mine[measure],
            "oracle": best[measure],
            "regret": best[measure] - mine[measure],
            "by_strength": max(row[measure] for row in here) - mine[measure],
            "at": {name: best[name] for name in KEYS if best[name] is not None},
        }
    return found


def row_of(rows: Sequence[Row], choice: Row) -> Row:
    """Of the rows (one for each strength) the one with the choice's layer, probe and strength."""
    return next(row for row in rows if all(row[name] == choice.get(name) for name in KEYS))


def _regularised(row: Row) -> tuple[float, ...]:
    return tuple(
        -row[name] if name in SMALLER_IS_MORE else row[name]
        for name in probe_spec(row["probe"]).strengths
        if row[name] is not None
    )


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)
