"""What stands beside the verdicts on a page: texts, truth, nearest rows, a map of the states."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.errors import DataError, UsageError, first_few

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from probekit.activations.store import ActivationStore
    from probekit.data import Rows
    from probekit.experiments.run import Run
    from probekit.experiments.weak_to_strong import Pair
    from probekit.reports.page import RowsSection
    from probekit.reports.page_rows import Evidence
    from probekit.verdicts import Verdicts

__all__ = ["find_texts", "row_texts", "run_rows", "verdict_evidence", "with_states"]

NEIGHBORS = 8


def verdict_evidence(verdicts: Verdicts, path: Path, options: Mapping[str, Any]) -> Evidence:
    """All that options and the verdicts' surroundings tell of their rows, in their order."""
    from probekit.activations.store import ActivationStore
    from probekit.cli.cleaning_run import truth_codes
    from probekit.reports.page_rows import Evidence

    truth = None if options["truth"] is None else truth_codes(verdicts, options)
    acts = options["acts"] or _store_beside(verdicts, path)
    if acts is None:
        if options["layer"] is not None:
            raise UsageError("--layer chooses among the layers of a store; name it with --acts.")
        texts = None if options["no_text"] else row_texts(verdicts, None, options)
        return Evidence(texts=texts, truth=truth)
    with ActivationStore(acts) as store:
        texts = None if options["no_text"] else row_texts(verdicts, store, options)
        layer = options["layer"]
        if layer is None:
            layer = next(reversed(verdicts.layers), None)
        found = Evidence(texts=texts, truth=truth)
        return with_states(found, verdicts, store, layer=layer, neighbors=options["neighbors"])


def find_texts(verdicts: Verdicts, path: Path, options: Mapping[str, Any]) -> list[str]:
    """The text of each verdict's row, from the rows, the store named or the one beside them."""
    from probekit.activations.store import ActivationStore

    acts = options["acts"] or (None if options["rows"] else _store_beside(verdicts, path))
    if acts is None:
        return row_texts(verdicts, None, options)
    with ActivationStore(acts) as store:
        return row_texts(verdicts, store, options)


def row_texts(
    verdicts: Verdicts, store: ActivationStore | None, options: Mapping[str, Any]
) -> list[str]:
    """The text of each verdict's row; verdicts themselves hold none."""
    from probekit.cli.cleaning_run import find_rows, read_rows

    if options["rows"] is not None:
        rows = read_rows(options["rows"], options)
    elif store is not None:
        rows = find_rows(store, options, purpose="Verdicts hold no texts")
    else:
        raise UsageError(
            "Verdicts hold no texts; name the rows with --rows, or the store that they were made "
            "from with --acts, or do without with --no-text."
        )
    return _texts_of(verdicts, rows)


def _texts_of(verdicts: Verdicts, rows: Rows) -> list[str]:
    """The rows' texts in the order of the verdicts."""
    from probekit.cleaning.audit_file import plain_text

    found: list[str] = [""] * len(verdicts)
    for content, verdict in zip(rows.contents(), verdicts.join(rows), strict=True):
        if verdict is not None:
            found[verdict] = plain_text(content)
    return found


def run_rows(
    run: Run, *, arm: str | None = None, neighbors: int = NEIGHBORS, limit: int | None = None
) -> RowsSection | None:
    """Rows that a run cleaned: of the arm named, else of its first filter, else of a relabelling.

    None where it has no such arm, or what its steps made is not there any more.

    Raises
    ------
    UsageError
        ``arm`` is none of those that clean labels.
    """
    from probekit.experiments.weak_to_strong import Pair

    pairs = [each.source for each in run.experiments if isinstance(each.source, Pair)]
    known = {name: key for pair in pairs[:1] for name, key in _cleaning_arms(pair).items()}
    if arm is not None and arm not in known:
        raise UsageError(
            f"The run has no arm {arm!r} that cleans labels; "
            + (f"it has {', '.join(known)}." if known else "it has none at all.")
        )
    if not known:
        return None
    name = arm or next((name for name in known if name.startswith("filter")), next(iter(known)))
    return _pair_rows(run, pairs[0], name, neighbors=neighbors, limit=limit)


def _cleaning_arms(pair: Pair) -> dict[str, tuple[str, str]]:
    """Arms of verdicts, as the table calls them, and their action and probe."""
    from probekit.probes.registry import probe_spec

    return {
        f"{action} {probe_spec(probe).label}": (action, probe) for action, probe in pair.verdicts
    }


def _pair_rows(
    run: Run, pair: Pair, name: str, *, neighbors: int, limit: int | None
) -> RowsSection | None:
    from probekit.activations.store import ActivationStore
    from probekit.experiments.context import VERDICTS
    from probekit.experiments.probe_steps import STORE
    from probekit.reports.page_rows import SHOWN_ROWS, Evidence
    from probekit.reports.page_verdicts import rows_section
    from probekit.verdicts import Verdicts

    step = pair.verdicts[_cleaning_arms(pair)[name]]
    path = run.engine.path(step) / VERDICTS
    if not (run.engine.done(step) and path.is_file()):
        return None
    verdicts = Verdicts.load(path)
    splits = pair.context.splits
    truth = splits.truth["student"].align(verdicts.keys).labels
    found = Evidence(
        texts=_texts_of(verdicts, splits.rows["student"]), truth=truth.codes(verdicts.classes)
    )
    acts = run.engine.path(step.inputs["states"]) / STORE
    if acts.is_file():
        with ActivationStore(acts) as store:
            layer = next(reversed(verdicts.layers), None)
            found = with_states(found, verdicts, store, layer=layer, neighbors=neighbors)
    names = pair.context.look(pair.weak).label, pair.context.look(pair.strong).label
    title = f"Rows: {name}; {splits.task}, {' → '.join(names)}, seed {pair.context.seed}"
    return rows_section(verdicts, found, title=title, limit=limit or SHOWN_ROWS)


def with_states(
    evidence: Evidence,
    verdicts: Verdicts,
    store: ActivationStore,
    *,
    layer: int | None,
    neighbors: int,
) -> Evidence:
    """Add nearest rows and the map, from one layer of the store that the verdicts were made from.

    The metric is the probe's own where it has one.
    """
    from probekit.reports.page_states import map_states, nearest_rows

    rows = _rows_of(verdicts, store)
    if layer is None and len(store.layers) > 1:
        layer = store.layers[-1]
    X = store.read(layer, rows)
    probe = verdicts.provenance.get("probe", {})
    euclidean = probe.get("parameters", {}).get("metric") == "euclidean"
    return replace(
        evidence,
        nearest=nearest_rows(
            X,
            neighbors,
            groups=store.copies(rows),
            metric="euclidean" if euclidean else "cosine",
        ),
        map=map_states(X),
        layer=store.layers[0] if layer is None else layer,
    )


def _rows_of(verdicts: Verdicts, store: ActivationStore) -> NDArray[np.int64]:
    """Row numbers in the store of all verdicts; another store is refused."""
    import numpy as np

    from probekit.joins import match, other_texts

    place = match(verdicts.keys, store.keys).place
    missing = [name for name, i in zip(verdicts.ids, place, strict=True) if i < 0]
    if missing:
        raise DataError(
            f"{store.path} lacks {len(missing)} of {len(verdicts)} rows of the verdicts (ids "
            f"{first_few(missing)}); name the store that they were made from with --acts."
        )
    if other := other_texts(verdicts.keys, store.keys, place):
        raise DataError(
            f"{store.path} has another text than the verdicts in {len(other)} of {len(verdicts)} "
            f"rows (ids {first_few(other)}); name the store that they were made from with --acts."
        )
    return np.array(place, dtype=np.int64)


def _store_beside(verdicts: Verdicts, path: Path) -> Path | None:
    """The store that the verdicts name, beside them or here, if it is the very one."""
    from probekit.activations.store import ActivationStore
    from probekit.errors import StoreError

    said = verdicts.provenance.get("store", {})
    name = Path(str(said.get("name", ""))).name
    for folder in (Path(os.path.realpath(path)).parent, Path.cwd()):
        candidate = folder / name
        if not name or not candidate.is_file():
            continue
        try:
            with ActivationStore(candidate) as store:
                if store.fingerprint == said.get("fingerprint"):
                    return candidate
        except StoreError:
            continue
    return None
