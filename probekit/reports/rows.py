"""The rows of a page: texts, ground truth, nearest rows and a map, as its script reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.activations.store import ActivationStore
from probekit.cleaning.evidence import NEIGHBORS, RowEvidence, with_states
from probekit.errors import UsageError
from probekit.reports.page import RowsSection

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from probekit.experiments.run import Run
    from probekit.experiments.weak_to_strong import Pair
    from probekit.verdicts import Verdicts

__all__ = ["SHOWN_ROWS", "rows_payload", "rows_section", "run_rows", "verdict_codes"]

# Number of rows that a page lists, most disagreeing first; a browser still sorts them instantly.
SHOWN_ROWS = 20_000
# Maximum characters of one text and of all texts: a browser loads the page as a whole.
TEXT_LENGTH, TEXT_BUDGET = 4000, 40_000_000
# Classes shown of each distribution, most probable first.
TOP_CLASSES = 5
KEPT, CHANGED, DROPPED = range(3)


def run_rows(
    run: Run, *, arm: str | None = None, neighbors: int = NEIGHBORS, limit: int | None = None
) -> RowsSection | None:
    """Rows that a run cleaned: of the arm named, else of its first filter, else of a relabelling.

    None if the run has no such arm, or if the files of its steps have been deleted.

    Raises
    ------
    UsageError
        If ``arm`` is not one of the arms that clean labels.
    """
    from probekit.experiments.weak_to_strong import Pair

    pairs = [each.source for each in run.experiments if isinstance(each.source, Pair)]
    known = list(_cleaning_arms(pairs[0])) if pairs else []
    if arm is not None and arm not in known:
        raise UsageError(
            f"The run has no arm {arm!r} that cleans labels; "
            + (f"it has {', '.join(known)}." if known else "it has no such arms.")
        )
    if not known:
        return None
    name = arm or next((name for name in known if name.startswith("filter")), known[0])
    return _pair_rows(run, pairs[0], name, neighbors=neighbors, limit=limit)


def _cleaning_arms(pair: Pair) -> dict[str, tuple[str, str]]:
    """Name in the table -> action and probe of each arm with verdicts."""
    from probekit.probes.registry import probe_spec

    return {
        f"{action} {probe_spec(probe).label}": (action, probe) for action, probe in pair.verdicts
    }


def _pair_rows(
    run: Run, pair: Pair, name: str, *, neighbors: int, limit: int | None
) -> RowsSection | None:
    from probekit.experiments.steps import STORE
    from probekit.experiments.task_kinds.base import VERDICTS
    from probekit.verdicts import Verdicts

    step = pair.verdicts[_cleaning_arms(pair)[name]]
    path = run.cache.path(step) / VERDICTS
    if not (run.cache.done(step) and path.is_file()):
        return None
    verdicts = Verdicts.load(path)
    splits, kind = pair.context.splits, pair.context.kind
    texts, truth = kind.evidence(
        verdicts, splits.rows["student"], splits.truth["student"], path.parent
    )
    evidence = RowEvidence(texts=texts, truth=truth)
    acts = run.cache.path(step.inputs["states"]) / STORE
    # A store with each row twice has neighbours that the page does not list.
    if acts.is_file() and not kind.states_of_labels:
        with ActivationStore(acts) as store:
            evidence = with_states(evidence, verdicts, store, neighbors=neighbors)
    title = f"Rows: {name}; {splits.task}, {' → '.join(pair.names)}, seed {pair.context.seed}"
    return rows_section(verdicts, evidence, title=title, limit=limit or SHOWN_ROWS)


def rows_section(
    verdicts: Verdicts, evidence: RowEvidence, *, title: str = "Rows", limit: int = SHOWN_ROWS
) -> RowsSection:
    """The rows of verdicts, most disagreeing first, with what is known about them."""
    more = ", all probabilities and its nearest rows" if evidence.nearest else " and probabilities"
    # Older files do not record the form; theirs is the distance.
    distance = verdicts.provenance.get("disagreement", "distance") == "distance"
    meaning = (
        "half the absolute difference of probe and weak label"
        if distance
        else "1 less the probe's probability of the weak label's class"
    )
    notes = [
        f"Most disagreeing first: disagreement is {meaning}. Open a row for its whole text{more}."
    ]
    if evidence.texts is None:
        notes.append("This page does not contain the rows' texts.")
    if evidence.nearest is None:
        notes.append("Nearest rows and a map need stored states; name the store with --acts.")
    map_notes = []
    if evidence.map is not None:
        first, second = evidence.map.share
        layer = "" if evidence.layer is None else f" of layer {evidence.layer}"
        map_notes.append(
            f"The first two principal components of the states{layer}, over all rows; they explain "
            f"{first:.1%} and {second:.1%} of the variance. Rows that are close here may be far "
            "apart in the other dimensions. Rows that the filters above exclude are pale; point "
            "at a dot to read it, click (or tap twice) to open its row."
        )
        if evidence.map.outside:
            map_notes.append(f"{evidence.map.outside:,} outlying rows are drawn at the edge.")
        if limit < len(verdicts):
            map_notes.append("Only listed rows and their neighbours are drawn.")
    return RowsSection(
        rows_payload(verdicts, evidence, limit=limit), title, tuple(notes), tuple(map_notes)
    )


def verdict_codes(verdicts: Verdicts) -> NDArray[np.int64]:
    """0 kept unchanged, 1 kept with another class, 2 dropped (n,)."""
    changed = verdicts.hard != verdicts.weak.argmax(axis=1)
    return np.where(verdicts.keep, np.where(changed, CHANGED, KEPT), DROPPED)


def rows_payload(verdicts: Verdicts, evidence: RowEvidence, *, limit: int = SHOWN_ROWS) -> Any:
    """Rows for the page's script: the ``limit`` most disagreeing ones first, then their neighbours.

    A mapping of plain lists: ``classes``; ``listed``, the number of rows in the table; ``total``;
    columns of all rows in ``rows``; ``near`` (k neighbours of each listed row, as row numbers in
    this payload); ``map``.
    """
    order = verdicts.ranking
    listed = min(limit, len(order))
    chosen = order[:listed]
    near = None
    if evidence.nearest is not None:
        index = evidence.nearest.index[chosen]
        others = np.setdiff1d(index, chosen)  # neighbours of listed rows, not listed themselves
        chosen = np.concatenate([chosen, others])
        place = np.full(len(order), -1)
        place[chosen] = np.arange(len(chosen))
        near = {
            "k": index.shape[1],
            "measure": evidence.nearest.measure,
            "index": place[index].ravel().tolist(),
            "value": _rounded(evidence.nearest.value[order[:listed]]),
        }
    return {
        "classes": list(verdicts.classes),
        "listed": listed,
        "total": len(order),
        "rows": _columns(verdicts, evidence, chosen),
        "near": near,
        "map": None
        if evidence.map is None
        else {"x": _rounded(evidence.map.x[chosen]), "y": _rounded(evidence.map.y[chosen])},
    }


def _columns(
    verdicts: Verdicts, evidence: RowEvidence, chosen: NDArray[np.int64]
) -> dict[str, Any]:
    top = min(len(verdicts.classes), TOP_CLASSES)
    columns: dict[str, Any] = {
        "id": [verdicts.ids[i] for i in chosen.tolist()],
        "verdict": verdict_codes(verdicts)[chosen].tolist(),
        "disagreement": _rounded(verdicts.disagreement[chosen]),
        "fold": verdicts.fold[chosen].tolist(),
        "top": top,
        "text": None,
        "cut": None,
        "truth": None,
    }
    for name in ("weak", "probe", "label"):
        P = getattr(verdicts, name)[chosen]
        # Stable, as everywhere: among equal classes the first is the row's class.
        classes = np.argsort(-P, axis=1, kind="stable")[:, :top]
        columns[name] = {
            "class": classes.ravel().tolist(),
            "prob": _rounded(np.take_along_axis(P, classes, axis=1)),
        }
    if evidence.texts is not None:
        length = max(200, min(TEXT_LENGTH, TEXT_BUDGET // max(len(chosen), 1)))
        texts = [evidence.texts[i] for i in chosen.tolist()]
        columns["text"] = [text[:length] for text in texts]
        columns["cut"] = [max(len(text) - length, 0) for text in texts]
    if evidence.truth is not None:
        columns["truth"] = evidence.truth[chosen].tolist()
    return columns


def _rounded(values: NDArray[Any]) -> list[float]:
    """Four decimals, flat: more would only make the page larger."""
    return np.round(values.astype(np.float64), 4).ravel().tolist()
