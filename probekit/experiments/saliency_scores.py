"""The five bars of a saliency comparison as figures: means, errors, intervals, gap closed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probekit.experiments.scores import plain_numbers, spread
from probekit.metrics import bootstrap_summary

__all__ = [
    "AFTER_TRUTH",
    "BARS",
    "CHOSEN",
    "COLUMNS",
    "COMPARED",
    "PROBES",
    "Judged",
    "combine",
    "curve",
    "drawn_means",
    "emerges",
    "gap_closed",
    "summarize_pairs",
]

# Key of a bar -> what is trained on what, in the order of Burns et al. 2023, section 5.2.3.
BARS = {
    "probe_weak": "linear probe, weak labels",
    "probe_truth": "linear probe, ground truth",
    "finetune_weak": "finetune, weak labels",
    "finetune_weak_probe_truth": "finetune, weak labels, then linear probe, ground truth",
    "finetune_truth": "finetune, ground truth",
}
PROBES = ("probe_weak", "probe_truth", "finetune_weak_probe_truth")
# Not a bar: probes on the states of bar 5, for accuracy by layer.
AFTER_TRUTH = "finetune_truth_probe_truth"
CHOSEN = "@chosen"
COLUMNS = (*BARS, *(key + CHOSEN for key in PROBES))
# Differences that are reported with an interval: the first minus the second.
COMPARED = (
    ("probe_weak", "probe_truth"),
    ("finetune_weak", "probe_weak"),
    ("finetune_truth", "probe_truth"),
    ("finetune_weak", "probe_truth"),
    ("finetune_weak_probe_truth", "probe_truth"),
    ("finetune_weak_probe_truth", "finetune_weak"),
)
DRAWS, CHUNK_NUMBERS = 10_000, 1 << 22
OUTSIDE = 0.025  # half of what a 95 % interval leaves out
# A concept counts as linear from the layer whose probe covers this share of the way from the
# majority to the best layer.
LINEAR_SHARE = 0.9


@dataclass(frozen=True, eq=False)
class Judged:
    """One task and seed: rightness 0 or 1 (t, 8) of the columns of ``COLUMNS`` on t test rows."""

    right: NDArray[np.float64]
    rows_fingerprint: str
    """Of the test rows; equal ones are drawn alike."""

    @property
    def means(self) -> NDArray[np.float64]:
        """Accuracy (8,)."""
        means: NDArray[np.float64] = self.right.mean(axis=0)
        return means


def drawn_means(
    values: ArrayLike, rows_fingerprint: str, *, draws: int = DRAWS
) -> NDArray[np.float64]:
    """Return means (draws, k) of values (n, k) over rows drawn with replacement, alike for all k.

    The fingerprint seeds the draw: models scored on the same rows, in several calls, are scored on
    the same draws.
    """
    columns = np.asarray(values, np.float64)
    n, rng = len(columns), np.random.default_rng(int(rows_fingerprint, 16))
    step = max(1, CHUNK_NUMBERS // n)
    means = []
    for start in range(0, draws, step):
        n_draws = min(step, draws - start)
        rows = rng.integers(n, size=(n_draws, n)) + n * np.arange(n_draws)[:, None]
        weight = np.bincount(rows.ravel(), minlength=n_draws * n).reshape(n_draws, n)
        means.append(weight.astype(np.float64) @ columns / n)
    return np.concatenate(means)


def gap_closed(point: ArrayLike, drawn: ArrayLike) -> dict[str, Any]:
    """Return (bar 4 − bar 2) / (bar 5 − bar 2) and its 95 % interval.

    Parameters
    ----------
    point, drawn
        Bars 2, 4 and 5: on all rows (3,), and on drawn rows (draws, 3).

    Returns
    -------
    ``value`` (NaN without a gap), ``low``, ``high``, ``unbounded`` if more than 2.5 % of the draws
    have no gap, ``no_gap``: their share, and ``reason``: why it is undefined.
    """
    probe, after, finetuned = (float(value) for value in np.asarray(point, np.float64))
    summary = bootstrap_summary(np.array([probe, after, finetuned]), np.asarray(drawn, np.float64))
    reason = None
    if finetuned <= probe:
        reason = (
            f"finetuning on ground truth ({finetuned:.1%}) is not above the linear probe on it "
            f"({probe:.1%})"
        )
    elif summary.unbounded:
        reason = f"{summary.no_gap:.1%} of the draws have no gap between bars 2 and 5"
    return {
        "value": summary.pgr,
        "low": summary.pgr_low,
        "high": summary.pgr_high,
        "unbounded": summary.unbounded,
        "no_gap": summary.no_gap,
        "reason": reason,
    }


def combine(tasks: Mapping[str, Sequence[Judged]], *, draws: int = DRAWS) -> dict[str, Any]:
    """Mean over the seeds of each task, then over tasks, with standard errors and intervals.

    The standard error is that of the mean over several tasks, otherwise over seeds; None for one.
    Intervals: 95 %, from test rows drawn with replacement, alike for all bars and for all seeds
    with the same test rows; training is not repeated.

    Returns
    -------
    ``over`` (tasks, seeds or None), ``bars`` by key, each with mean, sem, values, low, high and for
    probes the same at the ``chosen`` layer; ``compared``: differences; ``gap_closed`` and
    ``gap_closed_chosen``: of the mean bars, with ``values`` and ``sem`` of the single ones.
    """
    by_seed = {task: [each.means for each in seeds] for task, seeds in tasks.items()}
    by_task = {task: np.mean(seeds, axis=0) for task, seeds in by_seed.items()}
    units = list(by_task.values()) if len(tasks) > 1 else next(iter(by_seed.values()))
    point = np.mean(list(by_task.values()), axis=0)
    drawn = np.mean(
        [
            np.mean(
                [drawn_means(each.right, each.rows_fingerprint, draws=draws) for each in seeds],
                axis=0,
            )
            for seeds in tasks.values()
        ],
        axis=0,
    )
    table = _Combined(np.array(units), point, drawn)
    over = "tasks" if len(tasks) > 1 else "seeds"
    result = {
        "over": over if len(units) > 1 else None,
        "bars": [table.bar(key) for key in BARS],
        "compared": [table.difference(*pair) for pair in COMPARED],
        "gap_closed": table.gap(""),
        "gap_closed_chosen": table.gap(CHOSEN),
    }
    plain: dict[str, Any] = plain_numbers(result)
    return plain


@dataclass(frozen=True, eq=False)
class _Combined:
    """Columns of single tasks or seeds (u, 8), of their mean (8,), and of its draws (b, 8)."""

    units: NDArray[np.float64]
    point: NDArray[np.float64]
    drawn: NDArray[np.float64]

    def bar(self, key: str) -> dict[str, Any]:
        figures = {"key": key, "name": BARS[key], **self._figures(self._column(key))}
        figures["chosen"] = self._figures(self._column(key + CHOSEN)) if key in PROBES else None
        return figures

    def difference(self, first: str, second: str) -> dict[str, Any]:
        figures: dict[str, Any] = {"first": first, "second": second, "chosen": None}
        if first in PROBES and second in PROBES:
            one, other = (self._column(key + CHOSEN) for key in (first, second))
            figures["chosen"] = self._figures(one - other)
        return figures | self._figures(self._column(first) - self._column(second))

    def gap(self, where: str) -> dict[str, Any]:
        names = ("probe_truth" + where, "finetune_weak_probe_truth" + where, "finetune_truth")
        places = [COLUMNS.index(name) for name in names]
        values: list[float | None] = []
        for probe, after, finetuned in self.units[:, places]:
            gap = finetuned - probe
            values.append(float((after - probe) / gap) if gap > 0 else None)
        single = spread(values)
        return {
            **gap_closed(self.point[places], self.drawn[:, places]),
            "values": values,
            "sem": single["sem"],
        }

    def _column(self, key: str) -> _Column:
        place = COLUMNS.index(key)
        return _Column(self.units[:, place], self.point[place], self.drawn[:, place])

    @staticmethod
    def _figures(column: _Column) -> dict[str, Any]:
        ordered = np.sort(column.drawn)
        outside = int(OUTSIDE * len(ordered))
        values = column.units.tolist()
        return {
            "mean": float(column.point),
            "sem": spread(values)["sem"],
            "low": float(ordered[outside]),
            "high": float(ordered[-1 - outside]),
            "values": values,
        }


@dataclass(frozen=True, eq=False)
class _Column:
    units: NDArray[np.float64]
    point: np.float64
    drawn: NDArray[np.float64]

    def __sub__(self, other: _Column) -> _Column:
        return _Column(self.units - other.units, self.point - other.point, self.drawn - other.drawn)


def emerges(layers: Sequence[int], accuracy: Sequence[float], chance: float) -> int | None:
    """Return the first layer whose probe covers 90 % of the way from ``chance`` to the best layer.

    None if no layer is above chance.
    """
    best = max(accuracy)
    if best <= chance:
        return None
    wanted = chance + LINEAR_SHARE * (best - chance)
    return next(int(n) for n, value in zip(layers, accuracy, strict=True) if value >= wanted)


def curve(layers: Sequence[int], seeds: Sequence[Sequence[float]], chance: float) -> dict[str, Any]:
    """Return accuracy by layer, mean and standard error over seeds, and where it emerges."""
    figures = [spread(list(values)) for values in zip(*seeds, strict=True)]
    mean = [each["mean"] for each in figures]
    return {
        "layers": list(layers),
        "mean": mean,
        "sem": [each["sem"] for each in figures],
        "emerges": emerges(layers, mean, chance),
    }


def summarize_pairs(scored: Sequence[tuple[Mapping[str, Any], Judged]]) -> Iterator[dict[str, Any]]:
    """Summarise pair by pair: every task over its seeds, then all tasks together.

    ``scored`` has the record and the rightness of every task, pair and seed. Yields the entries of
    ``pairs`` in metrics.json; ``overall`` is None for one task.
    """
    names = list(dict.fromkeys((r["weak"], r["strong"]) for r, _ in scored))
    for weak, strong in names:
        of_pair = [
            each for each in scored if (each[0]["weak"], each[0]["strong"]) == (weak, strong)
        ]
        listed = dict.fromkeys(record["task"] for record, _ in of_pair)
        tasks = {task: [each for each in of_pair if each[0]["task"] == task] for task in listed}
        yield {
            "weak": weak,
            "strong": strong,
            "seeds": sorted({record["seed"] for record, _ in of_pair}),
            "tasks": [_summary(task, {task: seeds}) for task, seeds in tasks.items()],
            "overall": _summary(f"mean of {len(tasks)} tasks", tasks) if len(tasks) > 1 else None,
        }


def _summary(
    name: str, tasks: Mapping[str, Sequence[tuple[Mapping[str, Any], Judged]]]
) -> dict[str, Any]:
    """Return the figures of one task over its seeds, or of several tasks."""
    records = {task: [record for record, _ in seeds] for task, seeds in tasks.items()}

    def mean(key: str) -> float:
        return float(np.mean([np.mean([r[key] for r in seeds]) for seeds in records.values()]))

    return {
        "name": name,
        "test_rows": sum(seeds[0]["rows"]["test"] for seeds in records.values()),
        "train_rows": sum(seeds[0]["rows"]["student"] for seeds in records.values()),
        **{key: mean(key) for key in ("chance", "weak_accuracy", "label_accuracy")},
        **combine({task: [each for _, each in seeds] for task, seeds in tasks.items()}),
        "auroc": {key: _mean(records, key) for key in BARS},
        "chosen_layers": {
            key: sorted({r["probes"][key]["chosen"]["layer"] for f in records.values() for r in f})
            for key in PROBES
        },
        "curves": _curves(records, mean("chance")),
    }


def _mean(records: Mapping[str, Sequence[Mapping[str, Any]]], key: str) -> float | None:
    """Return a bar's AUROC, mean over seeds, then tasks; None if one has none."""
    values = [[record["auroc"][key] for record in seeds] for seeds in records.values()]
    if any(value is None for seeds in values for value in seeds):
        return None
    return float(np.mean([np.mean(seeds) for seeds in values]))


def _curves(records: Mapping[str, Sequence[Mapping[str, Any]]], chance: float) -> dict[str, Any]:
    first = next(iter(records.values()))[0]
    curves = {}
    for key in first["layers"]:
        layers = [each["layer"] for each in first["probes"][key]["layers"]]
        by_task = [[r["layers"][key] for r in rs] for rs in records.values()]
        units = [np.mean(s, axis=0).tolist() for s in by_task] if len(by_task) > 1 else by_task[0]
        curves[key] = curve(layers, units, chance)
    return curves
