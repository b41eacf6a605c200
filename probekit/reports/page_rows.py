"""The rows of verdicts as the page's script reads them: columns of JSON, no row twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from probekit.reports.page_states import Nearest, StateMap
    from probekit.verdicts import Verdicts

__all__ = ["SHOWN_ROWS", "Evidence", "rows_payload", "verdict_codes"]

# Rows that a page lists, the most disagreeing ones; a browser sorts and filters them at once.
SHOWN_ROWS = 20_000
# Characters of a text, and of all texts: a page is opened by a browser that reads it whole.
TEXT_LENGTH, TEXT_BUDGET = 4000, 40_000_000
# Classes shown of each distribution, most probable first.
TOP_CLASSES = 5
KEPT, CHANGED, DROPPED = range(3)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of the rows of verdicts beside the verdicts, in their order."""

    texts: Sequence[str] | None = None
    """n texts; None where the page is to do without."""
    truth: NDArray[np.int64] | None = None
    """True class numbers (n,), as in the verdicts' classes."""
    nearest: Nearest | None = None
    map: StateMap | None = None
    layer: int | None = None
    """Of the states that neighbours and map are of."""


def verdict_codes(verdicts: Verdicts) -> NDArray[np.int64]:
    """0 kept as it was, 1 kept with another class, 2 dropped (n,)."""
    changed = verdicts.hard != verdicts.weak.argmax(axis=1)
    return np.where(verdicts.keep, np.where(changed, CHANGED, KEPT), DROPPED)


def rows_payload(verdicts: Verdicts, evidence: Evidence, *, limit: int = SHOWN_ROWS) -> Any:
    """Rows for the page's script: the ``limit`` most disagreeing ones first, then their neighbours.

    A mapping of plain lists: ``classes``; ``listed``, how many are rows of the table; ``total``;
    columns of all rows in ``rows``; ``near`` (k neighbours of each listed row, as numbers of rows
    here); ``map``.
    """
    order = verdicts.ranking
    listed = min(limit, len(order))
    chosen = order[:listed]
    near = None
    if evidence.nearest is not None:
        index = evidence.nearest.index[chosen]
        others = np.setdiff1d(index, chosen)  # evidence for a listed row, themselves not listed
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
        "map": _map(evidence.map, chosen),
    }


def _columns(verdicts: Verdicts, evidence: Evidence, chosen: NDArray[np.int64]) -> dict[str, Any]:
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
        # Stable, as everywhere: of equal classes the first is the row's class.
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


def _map(found: StateMap | None, chosen: NDArray[np.int64]) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"x": _rounded(found.x[chosen]), "y": _rounded(found.y[chosen])}


def _rounded(values: NDArray[Any]) -> list[float]:
    """Four digits behind the point, flat: more would only make the page larger."""
    return np.round(values.astype(np.float64), 4).ravel().tolist()
