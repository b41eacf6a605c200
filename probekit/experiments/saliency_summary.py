"""Several tasks and seeds of a saliency comparison, combined as metrics.json holds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from probekit.experiments.saliency_judge import BARS, PROBES, Judged, combine, curve

__all__ = ["summarize_pairs"]

Found: TypeAlias = "tuple[Mapping[str, Any], Judged]"


def summarize_pairs(judged: Sequence[Found]) -> Iterator[dict[str, Any]]:
    """Pair of models by pair: every task over its seeds, then all tasks together.

    ``judged`` holds the record and the rightness of every task, pair and seed. Yields what
    metrics.json has under ``pairs``; ``overall`` is None of one task.
    """
    names = list(dict.fromkeys((r["weak"], r["strong"]) for r, _ in judged))
    for weak, strong in names:
        mine = [each for each in judged if (each[0]["weak"], each[0]["strong"]) == (weak, strong)]
        listed = dict.fromkeys(record["task"] for record, _ in mine)
        tasks = {task: [each for each in mine if each[0]["task"] == task] for task in listed}
        yield {
            "weak": weak,
            "strong": strong,
            "seeds": sorted({record["seed"] for record, _ in mine}),
            "tasks": [_summary(task, {task: found}) for task, found in tasks.items()],
            "overall": _summary(f"mean of {len(tasks)} tasks", tasks) if len(tasks) > 1 else None,
        }


def _summary(name: str, tasks: Mapping[str, Sequence[Found]]) -> dict[str, Any]:
    """Figures of one task over its seeds, or of several tasks."""
    records = {task: [record for record, _ in found] for task, found in tasks.items()}

    def mean(key: str) -> float:
        return float(np.mean([np.mean([r[key] for r in found]) for found in records.values()]))

    return {
        "name": name,
        "test_rows": sum(found[0]["rows"]["test"] for found in records.values()),
        "train_rows": sum(found[0]["rows"]["student"] for found in records.values()),
        **{key: mean(key) for key in ("chance", "weak_accuracy", "label_accuracy")},
        **combine({task: [each for _, each in found] for task, found in tasks.items()}),
        "auroc": {key: _mean(records, key) for key in BARS},
        "chosen_layers": {
            key: sorted({r["probes"][key]["chosen"]["layer"] for f in records.values() for r in f})
            for key in PROBES
        },
        "curves": _curves(records, mean("chance")),
    }


def _mean(records: Mapping[str, Sequence[Mapping[str, Any]]], key: str) -> float | None:
    """Mean over seeds, then tasks, of a bar's AUROC; None where one has none."""
    values = [[record["auroc"][key] for record in found] for found in records.values()]
    if any(value is None for found in values for value in found):
        return None
    return float(np.mean([np.mean(found) for found in values]))


def _curves(records: Mapping[str, Sequence[Mapping[str, Any]]], chance: float) -> dict[str, Any]:
    first = next(iter(records.values()))[0]
    found = {}
    for key in first["layers"]:
        layers = [each["layer"] for each in first["probes"][key]["layers"]]
        by_task = [[r["layers"][key] for r in rs] for rs in records.values()]
        units = [np.mean(s, axis=0).tolist() for s in by_task] if len(by_task) > 1 else by_task[0]
        found[key] = curve(layers, units, chance)
    return found
