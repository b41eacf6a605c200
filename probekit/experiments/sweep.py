"""Sweep: layers × probes × strengths of regularisation, out of fold, from stored states.

The figure of https://blog.eleuther.ai/weak-to-strong/: AUROC of a probe less that of the weak
labels it learned from, over k, over the penalty, over layers.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from probekit import __version__
from probekit.errors import DataError, ProbeError
from probekit.experiments.sweep_probes import LayerStates, SweepRows, SweepSettings, predictions
from probekit.experiments.sweep_scores import (
    KEYS,
    Scorer,
    choose,
    choose_each,
    mean_over_seeds,
    regret,
    row_of,
    truth_columns,
)
from probekit.files import atomic_write, check_format, save_table
from probekit.probes.registry import probe_spec
from probekit.safe import misfit, read_json
from probekit.sources import read_table
from probekit.tables import read_metadata

__all__ = ["Sweep", "is_sweep", "read_sweep", "remove_parts", "run_sweep", "write_sweep"]

FORMAT = "probekit-sweep"
VERSION = 1
# Version of how figures are computed: raised where an older unfinished sweep must not be resumed.
RULES = 2
NUMBER_OR_NONE = (int, float, type(None))


@dataclass(frozen=True)
class Sweep:
    """Rows of figures, the choice made without the truth, and its regret where it is known."""

    rows: tuple[dict[str, Any], ...]
    choice: dict[str, Any]
    best: tuple[dict[str, Any], ...]
    """The row chosen of each layer and probe, means over seeds."""
    regret: dict[str, dict[str, Any]]
    weak_labels: dict[str, float | None]
    """Accuracy and AUROC of the weak labels against the truth; None where it is not given."""
    notes: tuple[str, ...]
    provenance: dict[str, Any]

    @property
    def plain(self) -> dict[str, Any]:
        """All of it as JSON holds it."""
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
        From :func:`probekit.experiments.sweep_probes.join_rows`; only what scores reads its truth.
    settings
        What is tried.
    parts
        Folder that keeps what is done, layer by layer and probe by probe; a sweep that was
        interrupted goes on from there.
    say
        Is told how far the sweep is.
    """
    settings.check(rows)
    if parts is not None:
        parts.mkdir(exist_ok=True)
    todo = list(_todo(settings))
    found: list[dict[str, Any]] = []
    notes: list[str] = []
    states: LayerStates | None = None
    for number, (layer, probe) in enumerate(todo, 1):
        if states is None or states.layer != layer:
            states = LayerStates(rows, layer, metric=settings.metric)
        start = time.perf_counter()
        try:
            part, done = _part(states, probe, settings, parts)
        except KeyboardInterrupt as error:
            kept = "are not kept" if parts is None else f"are kept in {parts}"
            error.add_note(
                f"{number - 1} of {len(todo)} parts of the sweep {kept}; the same command goes on."
            )
            raise
        took = "done before" if done else f"{time.perf_counter() - start:.1f} s"
        name = "all layers" if probe_spec(probe).several_layers else f"layer {layer}"
        say(f"[{number}/{len(todo)}] {name} · {probe} · {len(part['rows'])} rows · {took}")
        for note in part["notes"]:
            say(f"Note: {note}")
        found += part["rows"]
        notes += part["notes"]
    if not found:
        raise ProbeError(f"No strength could be tried: {notes[0]}" if notes else "Nothing to try.")
    choice, means = choose(found), mean_over_seeds(found)
    scorer = Scorer(rows.labels.probs, None, contaminations=(), truth=rows.truth)
    return Sweep(
        rows=tuple(found),
        choice=choice,
        best=tuple(dict(row_of(means, row)) for row in choose_each(found)),
        regret=regret(found, choice, truth_columns(settings.contaminations)[1:])
        if rows.truth is not None
        else {},
        weak_labels=scorer.weak_labels(),
        notes=tuple(notes),
        provenance=_provenance(rows, settings),
    )


def write_sweep(sweep: Sweep, path: str | Path, *, command: str | None = None) -> None:
    """Write the rows as Parquet, or JSONL with the rest beside it in ``<path>.meta.json``.

    ``command`` is what makes the sweep again.
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
    """Whether a file is a sweep, by what it says of itself."""
    return path.is_file() and read_metadata(path).get("format") == FORMAT


def read_sweep(path: Path) -> dict[str, Any]:
    """Read what :func:`write_sweep` wrote, as :attr:`Sweep.plain`, and ``means`` over seeds.

    Raises
    ------
    DataError
        The file is damaged.
    """
    table = read_table(path)
    columns = {name: values[:] for name, values in table.columns.items()}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if not rows:
        raise DataError(f"{path} holds no results; make it again with `probekit sweep`.")
    check_format(table.metadata, path, FORMAT, VERSION, repair="`probekit sweep`")
    shape = {name: NUMBER_OR_NONE for name in columns if name != "probe"} | {"probe": str}
    said = {"choice": dict, "regret": dict, "notes?": [str], "provenance?": dict}
    if wrong := misfit(rows, [shape], "rows") or misfit(dict(table.metadata), said, "metadata"):
        raise DataError(f"{path} is damaged: {wrong}; make it again with `probekit sweep`.")
    means = mean_over_seeds(rows)
    best = [dict(row_of(means, row)) for row in choose_each(rows)]
    return {**table.metadata, "rows": rows, "means": means, "best": best}


def remove_parts(parts: Path) -> None:
    """Remove the folder of a sweep that is written."""
    shutil.rmtree(parts, ignore_errors=True)


def _todo(settings: SweepSettings) -> Iterator[tuple[int, str]]:
    for layer in settings.layers:
        for probe in settings.probes:
            if not probe_spec(probe).several_layers:
                yield layer, probe
    for probe in settings.probes:
        if probe_spec(probe).several_layers:  # it reads all stored layers by itself
            yield settings.layers[-1], probe


def _part(
    states: LayerStates, probe: str, settings: SweepSettings, folder: Path | None
) -> tuple[dict[str, Any], bool]:
    """Rows and notes of one probe on one layer, and whether an earlier run had made them."""
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
    """Digest of all that decides the figures of one probe on one layer."""
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
