"""Sweep: layers × probes × strengths of regularisation, out of fold, from stored states.

Figures are against the weak labels, and against the truth where it is given; layer, probe and
strength are chosen without the truth, and what that choice cost is reported.

The figure of https://blog.eleuther.ai/weak-to-strong/: AUROC of a probe less that of the weak
labels it learned from, over k, over the penalty, over layers.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probekit import __version__
from probekit.cleaning.relabel import BLEND, decide_at_prior
from probekit.cuts import count_of, disagreement_of, largest
from probekit.engine import ray_tasks
from probekit.errors import DataError, ProbeError, ProbekitError
from probekit.experiments.sweep_probes import (
    LayerStates,
    Prediction,
    SweepRows,
    SweepSettings,
    predictions,
)
from probekit.files import atomic_write
from probekit.metrics import accuracy, auroc, cross_entropy
from probekit.output_tables import check_format, save_table
from probekit.probes.registry import probe_spec
from probekit.safe import misfit, read_json
from probekit.sources import read_table
from probekit.tables import read_metadata

__all__ = [
    "KEYS",
    "Sweep",
    "choose",
    "choose_each",
    "is_sweep",
    "read_sweep",
    "remove_parts",
    "row_of",
    "run_sweep",
    "truth_columns",
    "write_sweep",
]

FORMAT = "probekit-sweep"
VERSION = 1
# Version of how figures are computed; raised if older unfinished sweeps must not be resumed.
RULES = 2
NUMBER_OR_NONE = (int, float, type(None))
TINY = float(np.finfo(np.float64).tiny)
NAN = float("nan")
# What a probe at a strength on a layer is known by.
KEYS = ("layer", "probe", "k", "l2", "k_cc", "k_zeta", "zeta", "contamination")
# All that a choice may read.
WEAK = ("weak_log_loss", "weak_log_loss_se")
# Of these a larger one is less regularised: it drops more rows.
SMALLER_IS_MORE = ("zeta", "contamination")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Sweep:
    """Rows of figures, the choice made without the truth, and its regret if that is known."""

    rows: tuple[dict[str, Any], ...]
    choice: dict[str, Any]
    best: tuple[dict[str, Any], ...]
    """The chosen row of each layer and probe, means over seeds."""
    regret: dict[str, dict[str, Any]]
    weak_labels: dict[str, float | None]
    """Accuracy and AUROC of the weak labels against the truth; None without it."""
    notes: tuple[str, ...]
    provenance: dict[str, Any]

    @property
    def plain(self) -> dict[str, Any]:
        """Return all fields as JSON types."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def run_sweep(
    rows: SweepRows,
    settings: SweepSettings,
    *,
    parts: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Sweep:
    """Predict every row at every strength on every layer, and choose.

    Parameters
    ----------
    rows
        From :func:`probekit.experiments.sweep_probes.join_rows`; scores alone use their truth.
    settings
        Layers, probes and strengths to try.
    parts
        Folder that keeps finished parts, by layer and probe; an interrupted sweep resumes there.
    say
        Receives a line per part.
    """
    settings.check(rows)
    if parts is not None:
        parts.mkdir(exist_ok=True)
    todo = list(_todo(settings))
    results: list[dict[str, Any]] = []
    notes: list[str] = []
    number = 0
    try:
        for part, took in _made(todo, rows, settings, parts):
            layer, probe = todo[number]
            number += 1
            name = "all layers" if probe_spec(probe).several_layers else f"layer {layer}"
            say(f"[{number}/{len(todo)}] {name} · {probe} · {len(part['rows'])} rows · {took}")
            for note in part["notes"]:
                say(f"Note: {note}")
            results += part["rows"]
            notes += part["notes"]
    except KeyboardInterrupt as error:
        kept = "are not kept" if parts is None else f"are kept in {parts}"
        error.add_note(
            f"{number} of {len(todo)} parts of the sweep {kept}; the same command resumes."
        )
        raise
    if not results:
        raise ProbeError(f"No strength could be tried: {notes[0]}" if notes else "Nothing to try.")
    choice, means = choose(results), mean_over_seeds(results)
    scorer = Scorer(rows.labels.probs, None, contaminations=(), truth=rows.truth)
    return Sweep(
        rows=tuple(results),
        choice=choice,
        best=tuple(dict(row_of(means, row)) for row in choose_each(results)),
        regret=regret(results, choice, truth_columns(settings.contaminations)[1:])
        if rows.truth is not None
        else {},
        weak_labels=scorer.weak_labels(),
        notes=tuple(notes),
        provenance=_provenance(rows, settings),
    )


def write_sweep(sweep: Sweep, path: str | Path, *, command: str | None = None) -> None:
    """Write the rows as Parquet, or JSONL with the rest beside it in ``<path>.meta.json``.

    ``command`` repeats the sweep.
    """
    import pyarrow as pa

    types = {"probe": pa.string(), **dict.fromkeys(("layer", "seed", "rows"), pa.int32())}
    types |= dict.fromkeys(("k", "k_cc", "k_zeta"), pa.int32())
    columns = {
        name: pa.array([row[name] for row in sweep.rows], types.get(name, pa.float64()))
        for name in sweep.rows[0]
    }
    metadata = sweep.plain
    del metadata["rows"], metadata["best"]
    if command is not None:
        metadata["command"] = command
    save_table(columns, path, FORMAT, VERSION, **metadata)


def is_sweep(path: Path) -> bool:
    """Return whether a file is a sweep, by its metadata."""
    return path.is_file() and read_metadata(path).get("format") == FORMAT


def read_sweep(path: Path) -> dict[str, Any]:
    """Read a file of :func:`write_sweep`, as :attr:`Sweep.plain`, and ``means`` over seeds.

    Raises
    ------
    DataError
        If the file is damaged.
    """
    table = read_table(path)
    columns = {name: values[:] for name, values in table.columns.items()}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if not rows:
        raise DataError(f"{path} holds no results; make it again with `probekit sweep`.")
    check_format(table.metadata, path, FORMAT, VERSION, repair="`probekit sweep`")
    shape = {name: NUMBER_OR_NONE for name in columns if name != "probe"} | {"probe": str}
    expected = {"choice": dict, "regret": dict, "notes?": [str], "provenance?": dict}
    if wrong := misfit(rows, [shape], "rows") or misfit(dict(table.metadata), expected, "metadata"):
        raise DataError(f"{path} is damaged: {wrong}; make it again with `probekit sweep`.")
    means = mean_over_seeds(rows)
    best = [dict(row_of(means, row)) for row in choose_each(rows)]
    return {**table.metadata, "rows": rows, "means": means, "best": best}


def remove_parts(parts: Path) -> None:
    """Remove the folder of parts of a finished sweep."""
    shutil.rmtree(parts, ignore_errors=True)


def _todo(settings: SweepSettings) -> Iterator[tuple[int, str]]:
    for layer in settings.layers:
        for probe in settings.probes:
            if not probe_spec(probe).several_layers:
                yield layer, probe
    for probe in settings.probes:
        if probe_spec(probe).several_layers:  # it reads all stored layers itself
            yield settings.layers[-1], probe


def _made(
    todo: Sequence[tuple[int, str]], rows: SweepRows, settings: SweepSettings, parts: Path | None
) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield every part and how long it took; a cluster does one layer per task."""
    by_layer = [
        (layer, [probe for _, probe in each]) for layer, each in groupby(todo, key=itemgetter(0))
    ]
    tasks = ray_tasks()
    if tasks is None:
        for piece in by_layer:
            yield from _layer_parts(piece, rows, settings, parts)
        return
    folder, failed = None if parts is None else parts.absolute(), None
    for made, error in tasks.map(_parts_there, by_layer, rows, settings, folder):
        failed = failed or error
        yield from made if failed is None else ()
    if failed is not None:  # all others are kept
        raise failed


def _parts_there(
    piece: tuple[int, list[str]], *more: Any
) -> tuple[list[tuple[dict[str, Any], str]], ProbekitError | None]:
    """Return the parts of a layer that a worker makes, and the error of the first that fails."""
    made = list[tuple[dict[str, Any], str]]()
    try:
        made.extend(_layer_parts(piece, *more))
    except ProbekitError as error:
        return made, error
    return made, None


def _layer_parts(
    piece: tuple[int, list[str]], rows: SweepRows, settings: SweepSettings, parts: Path | None
) -> Iterator[tuple[dict[str, Any], str]]:
    layer, probes = piece
    states = LayerStates(rows, layer, metric=settings.metric)
    for probe in probes:
        start = time.perf_counter()
        part, done = _part(states, probe, settings, parts)
        yield part, "done before" if done else f"{time.perf_counter() - start:.1f} s"


def _part(
    states: LayerStates, probe: str, settings: SweepSettings, folder: Path | None
) -> tuple[dict[str, Any], bool]:
    """Return rows and notes of one probe on one layer, and whether an earlier run made them."""
    key = _key(states.rows, states.layer, probe, settings)
    path = None if folder is None else folder / f"{states.layer}-{probe}.json"
    if path is not None and path.exists():
        try:
            kept = read_json(path)
        except DataError:
            kept = {}
        if isinstance(kept, dict) and kept.get("key") == key and {"rows", "notes"} <= set(kept):
            return kept, True
    notes: list[str] = []
    scorer = Scorer(
        states.rows.labels.probs,
        states.rows.groups,
        contaminations=settings.contaminations,
        truth=states.rows.truth,
        ties=states.rows.ties,
        disagreement=settings.disagreement or "label",
    )
    rows = [
        _row(states, probe, prediction, scorer)
        for prediction in predictions(probe, states, settings, notes.append)
    ]
    part = {"key": key, "rows": rows, "notes": notes}
    if path is not None:
        with atomic_write(path, "w") as file:
            json.dump(part, file)
    return part, False


def _row(states: LayerStates, probe: str, prediction: Any, scorer: Scorer) -> dict[str, Any]:
    spec = probe_spec(probe)
    layer = None if spec.several_layers else states.layer
    named: dict[str, Any] = {"layer": layer, "probe": probe, **dict.fromkeys(KEYS[2:])}
    named |= prediction.strength
    first = spec.strengths[:1]
    strength = float(prediction.strength[first[0]]) if first else None
    return {
        **named,
        "strength": strength,
        "seed": prediction.seed,
        "rows": len(states.rows),
        **scorer.row(prediction),
    }


def _key(rows: SweepRows, layer: int, probe: str, settings: SweepSettings) -> str:
    """Return a hash of all that the figures of one probe on one layer depend on."""
    truth = None if rows.truth is None else hashlib.sha256(rows.truth.tobytes()).hexdigest()
    given = asdict(settings)
    text = json.dumps(
        [
            *(
                VERSION,
                RULES,
                __version__,
                rows.store.fingerprint,
                rows.labels.fingerprint,
                truth,
            ),
            *(layer, probe, settings.contaminations, settings.disagreement),
            {name: given[name] for name in probe_spec(probe).depends},
        ]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _provenance(rows: SweepRows, settings: SweepSettings) -> dict[str, Any]:
    labels, store = rows.labels, rows.store
    return {
        "probekit": __version__,
        "settings": _lists(asdict(settings)),
        "rows": len(rows),
        "labels": {"source": Path(labels.source).name, "fingerprint": labels.fingerprint},
        "store": {
            "name": store.path.name,
            "fingerprint": store.fingerprint,
            "rows_fingerprint": store.rows_fingerprint,
        },
        "truth": rows.truth is not None,
        **({"pairs": True} if store.differences else {}),
    }


def _lists(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for name, value in values.items()
    }


def filtered_name(share: float) -> str:
    """Return the column of the label accuracy after `filter` at a contamination."""
    return f"filtered_{share:g}"


def truth_columns(contaminations: Sequence[float]) -> tuple[str, ...]:
    """Return the columns that need the truth, in order."""
    filtered = (filtered_name(share) for share in contaminations)
    return (
        *("accuracy", "auroc", "auroc_gain"),
        *filtered,
        *("filtered_own", "relabelled_soft", "relabelled_hard"),
    )


def vote_proba(proba: NDArray[np.float64], votes: int | None) -> NDArray[np.float64]:
    """Return probabilities (n, C) with a finite log-loss: votes get one more, for all classes.

    A mean of k equal votes is 0 or 1, and one such row that is wrong would decide the log-loss. One
    more voter with 1/C for each class is the estimate of Krichevsky & Trofimov (1981) for two
    classes.
    """
    return proba if votes is None else (votes * proba + 1 / proba.shape[1]) / (votes + 1)


class Scorer:
    """Compares predictions with the labels of n rows.

    Parameters
    ----------
    Y
        Weak labels (n, C), rows summing to 1.
    groups
        Group numbers (n,) of duplicates, which count as one observation in standard errors; None:
        no duplicates.
    contaminations
        Shares to filter.
    truth
        True class numbers (n,), or None.
    ties
        Order of equal rows (n,); None: by row number.
    disagreement
        Its form, as for ``filter``.
    """

    def __init__(
        self,
        Y: NDArray[np.float64],
        groups: NDArray[np.int64] | None,
        *,
        contaminations: Sequence[float],
        truth: NDArray[np.int64] | None = None,
        ties: NDArray[Any] | None = None,
        disagreement: str = "label",
    ) -> None:
        self.Y, self.truth = Y, truth
        self.ties = np.arange(len(Y)) if ties is None else ties
        self.disagreement = disagreement
        self.groups = np.arange(len(Y)) if groups is None else groups
        self.contaminations = tuple(contaminations)
        self.hard = np.asarray(Y.argmax(axis=1), dtype=np.int64)
        self.size = np.bincount(self.hard, minlength=Y.shape[1])

    def weak_labels(self) -> dict[str, float | None]:
        """Return the accuracy and AUROC of the weak labels, which gains are measured from."""
        if self.truth is None:
            return {"accuracy": None, "auroc": None}
        return {"accuracy": accuracy(self.truth, self.hard), "auroc": auroc(self.truth, self.Y)}

    def row(self, prediction: Prediction) -> dict[str, Any]:
        """Return every figure of one prediction, by column; None if it needs an unknown truth."""
        P = prediction.proba
        loss = cross_entropy(self.Y, vote_proba(P, prediction.votes), floor=TINY)
        relabelled, _ = decide_at_prior(P, self.size, ties=self.ties)
        figures: dict[str, Any] = {
            "weak_accuracy": accuracy(self.hard, P.argmax(axis=1)),
            "weak_auroc": auroc(self.hard, P),
            "weak_log_loss": float(loss.mean()),
            "weak_log_loss_se": standard_error(loss, self.groups),
            "changed": float(np.mean(relabelled != self.hard)),
            "kept_own": None if prediction.keep is None else float(prediction.keep.mean()),
        }
        if self.truth is None:
            return figures | dict.fromkeys(truth_columns(self.contaminations))
        return figures | self._truth(prediction, self.truth, relabelled)

    def _truth(
        self, prediction: Prediction, truth: NDArray[np.int64], relabelled: NDArray[np.int64]
    ) -> dict[str, Any]:
        P, right = prediction.proba, truth == self.hard
        score = auroc(truth, P)
        kept = prediction.keep_at or self._filtered(P)
        # As verdicts store it: in float32, which decides ties.
        soft = ((1 - BLEND) * self.Y + BLEND * P).astype(np.float32).argmax(axis=1)
        return {
            "accuracy": accuracy(truth, P.argmax(axis=1)),
            "auroc": score,
            "auroc_gain": score - auroc(truth, self.Y),
            **{filtered_name(share): _share(right[kept[share]]) for share in self.contaminations},
            "filtered_own": None if prediction.keep is None else _share(right[prediction.keep]),
            "relabelled_soft": accuracy(truth, soft),
            "relabelled_hard": accuracy(truth, relabelled),
        }

    def _filtered(self, P: NDArray[np.float64]) -> Mapping[float, NDArray[np.bool_]]:
        """Return what `filter` keeps at each contamination: it drops ⌊c · n⌋ of each weak class."""
        score = disagreement_of(P, self.Y, self.disagreement)
        return {
            share: ~largest(
                score, [count_of(share, n) for n in self.size], self.hard, ties=self.ties
            ).selected
            for share in self.contaminations
        }


def standard_error(loss: NDArray[np.float64], groups: NDArray[np.int64]) -> float:
    """Return the standard error of the mean of ``loss`` (n,); a group is one observation.

    If no group has several rows, it is the standard deviation over √n.
    """
    total = np.bincount(groups, weights=loss - loss.mean())
    n_groups = int(np.count_nonzero(np.bincount(groups)))
    if n_groups < 2:
        return NAN
    return float(np.sqrt((total**2).sum() * n_groups / (n_groups - 1)) / len(loss))


def _share(right: NDArray[np.bool_]) -> float:
    return float(right.mean()) if len(right) else NAN


def mean_over_seeds(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one row for each layer, probe and strength: means of its seeds' figures."""
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
    """Choose the strength of each layer and probe by the one-standard-error rule.

    Among the strengths whose out-of-fold weak log-loss is within one standard error of the least,
    the most regularised: the largest k or l2; of TopoFilter the largest k_zeta, then k_cc, then the
    smallest zeta or contamination. ``least`` is that least log-loss (Breiman, Friedman, Olshen &
    Stone 1984, §3.4.3).
    """
    means = [{name: row[name] for name in (*KEYS, *WEAK)} for row in mean_over_seeds(rows)]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in means:
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

    The strength is that of :func:`choose_each`. Among equal layers and probes the first in the
    order of ``rows``. Only the weak log-loss and its standard error are read.
    """
    best = min(choose_each(rows), key=lambda row: row["least"])
    return {name: value for name, value in best.items() if value is not None}


def regret(rows: Sequence[Row], choice: Row, measures: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return how far the choice is behind the best row, for each measure against the truth.

    Each has ``chosen``, ``oracle``, ``regret`` (their difference), ``by_strength`` (how far the
    choice is behind the best strength of its own layer and probe) and ``at``, the oracle's layer,
    probe and strength; the oracle of each measure is another row.
    """
    means = mean_over_seeds(rows)
    chosen = row_of(means, choice)
    regrets = {}
    for measure in measures:
        known = [row for row in means if _finite(row[measure])]
        if not known or not _finite(chosen[measure]):
            continue
        best = max(known, key=lambda row: row[measure])
        here = [row for row in known if all(row[name] == chosen[name] for name in KEYS[:2])]
        regrets[measure] = {
            "chosen": chosen[measure],
            "oracle": best[measure],
            "regret": best[measure] - chosen[measure],
            "by_strength": max(row[measure] for row in here) - chosen[measure],
            "at": {name: best[name] for name in KEYS if best[name] is not None},
        }
    return regrets


def row_of(rows: Sequence[Row], choice: Row) -> Row:
    """Return the row with the choice's layer, probe and strength."""
    return next(row for row in rows if all(row[name] == choice.get(name) for name in KEYS))


def _regularised(row: Row) -> tuple[float, ...]:
    return tuple(
        -row[name] if name in SMALLER_IS_MORE else row[name]
        for name in probe_spec(row["probe"]).strengths
        if row[name] is not None
    )


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)
