"""TopoFilter's largest components, also without the label of the row that is predicted.

L uses every label, also that of the row itself. Without its label a row has no edges, so it is
predicted from L(G − g): the largest components of the graph G without its group g (the row and its
copies), with the neighbour lists of all others unchanged.

Removing most groups changes L by these rows only. For the others the graph is divided once
(:class:`HiddenComponents`): the groups are halved again and again. All vertices outside a half are
part of every graph of that half, so each of their components is contracted to one vertex. Each
level of halves is one call on one sparse graph, whose edges all touch a group that may still be
removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components

from probekit.errors import ProbeError
from probekit.probes.knn import neighbor_means

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from probekit.probes.neighbors import NeighborIndex, Neighbors

__all__ = [
    "Connection",
    "HiddenComponents",
    "Note",
    "hidden_means",
    "largest_components",
    "nearest_hidden",
    "with_outcome",
]

Connection = Literal["weak", "strong"]

# Breadth-first orders that are tried to show that removing a group breaks no component.
ORDERS = 4
# Numbers in lists of neighbours at a time.
BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence for the user on a class, with ``{name}`` and ``{row}`` to be filled in."""

    text: str
    number: int | None = None
    """Class that ``{name}`` stands for."""
    row: int | None = None
    """Row that ``{row}`` stands for."""

    def sentence(self, classes: Sequence[Any], ids: Sequence[str] | None = None) -> str:
        """The sentence with the name of the class, and the id of the row or its number."""
        name = "" if self.number is None else str(classes[self.number])
        row = str(self.row) if self.row is None or ids is None else ids[self.row]
        return self.text.format(name=name, row=row)


def largest_components(
    index: NDArray[np.int64], hard: NDArray[np.int64], *, connection: Connection
) -> tuple[NDArray[np.bool_], list[Note]]:
    """Mask (n,) of the rows in the largest component of their class, and notes for the user.

    Edges go from a row to those of its ``index`` (n, k) that have its class. Of equally large
    components the one with the smallest row number is kept. Memory is O(n k).
    """
    _, part = label_components(index, hard, connection=connection)
    size = np.bincount(part)[part]
    keep = np.zeros(len(index), dtype=bool)
    notes = []
    for number in np.unique(hard):
        rows = np.flatnonzero(hard == number)
        largest = rows[size[rows] == size[rows].max()]
        keep[rows[part[rows] == part[largest[0]]]] = True
        n_largest = len(np.unique(part[largest]))
        if len(rows) == 1:
            text = "Class {name} has one row ({row}), which the component step keeps"
            notes.append(Note(text, int(number), int(rows[0])))
        elif n_largest > 1:
            text = (
                f"Class {{name}} has {n_largest} components of {size[largest[0]]} rows and none "
                "larger; the component step keeps the one with row {row}"
            )
            notes.append(Note(text, int(number), int(largest[0])))
    return keep, notes


def with_outcome(
    notes: Sequence[Note],
    component: NDArray[np.bool_],
    keep: NDArray[np.bool_],
    hard: NDArray[np.int64],
) -> list[Note]:
    """Finish notes of :func:`largest_components` with the decision of the last step."""
    finished = []
    for note in notes:
        rows = np.flatnonzero(component & (hard == note.number))
        kept = int(keep[rows].sum())
        if kept == len(rows):
            end = "and the last step keeps." if len(rows) == 1 else "and the last step keeps all."
        elif not kept:
            end = "and the last step drops." if len(rows) == 1 else "and the last step drops it."
        else:
            end = f"and the last step drops {len(rows) - kept} of its rows."
        finished.append(replace(note, text=f"{note.text}, {end}"))
    return finished


def label_components(
    index: NDArray[np.int64], hard: NDArray[np.int64], *, connection: Connection
) -> tuple[csr_matrix, NDArray[np.int64]]:
    """Graph (n, n) of edges from a row to those of its ``index`` (n, k) that have its class.

    Also the component (n,) of each row.
    """
    n, k = index.shape
    target = index.ravel()
    same = np.repeat(hard, k) == hard[target]
    degree = same.reshape(n, k).sum(axis=1)
    start = np.concatenate([[0], np.cumsum(degree)])
    graph = csr_matrix((np.ones(start[-1], dtype=np.int8), target[same], start), shape=(n, n))
    part = connected_components(graph, directed=True, connection=connection)[1]
    return graph, part.astype(np.int64)


class _Level(NamedTuple):
    """Vertices (v,) of all graphs of one level, and their edges (e,)."""

    half: NDArray[np.int64]
    """Number of the half whose graph the vertex is in."""
    group: NDArray[np.int64]
    """Place of its group, if that may still be removed; else -1."""
    number: NDArray[np.int64]
    """Class."""
    size: NDArray[np.int64]
    """Number of rows contracted to it."""
    first: NDArray[np.int64]
    """Smallest number of these rows."""
    tail: NDArray[np.int64]
    head: NDArray[np.int64]


class HiddenComponents:
    """L(G − g) of every group g, exactly.

    Parameters
    ----------
    index
        Neighbours that make the graph (n, k).
    hard, groups
        Class and group number of each row (n,).
    component
        L (n,), from :func:`largest_components`.
    connection
        Kind of components, as there.
    """

    def __init__(
        self,
        index: NDArray[np.int64],
        hard: NDArray[np.int64],
        groups: NDArray[np.int64],
        *,
        component: NDArray[np.bool_],
        connection: Connection,
    ) -> None:
        self._component, self._hard, self._groups = component, hard, groups
        self._connection: Connection = connection
        self._classes = int(hard.max()) + 1
        graph, self._part = label_components(index, hard, connection=connection)
        changed = np.flatnonzero(
            _outgrown(self._part, hard, groups, component)
            | _may_break(graph, hard, groups, component, connection)
        )
        self._place = np.full(int(groups.max()) + 1, -1)
        self._place[changed] = np.arange(len(changed))
        self._depth = max(0, int(len(changed) - 1).bit_length()) if len(changed) else -1
        self._maps: list[NDArray[np.int64]] = []
        self._best = np.full(self._classes, -1)
        if len(changed):
            self._divide(graph)

    @property
    def changed(self) -> NDArray[np.bool_]:
        """Mask (n,) of rows whose L(G − g) may differ from L without g."""
        return np.asarray(self._place[self._groups] >= 0)

    @property
    def pool(self) -> NDArray[np.bool_]:
        """Mask (n,) of all rows that are in L(G − g) of any group, and possibly some others."""
        leaves = self._best.reshape(-1, self._classes)[: int(self._place.max()) + 1]
        if not len(leaves):
            return self._component
        smallest = leaves.min(axis=0) // (len(self._hard) + 1)
        size = np.bincount(self._part)[self._part]
        return np.asarray(self._component | (size >= smallest[self._hard]))

    def holds(self, rows: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each of ``others`` (m, w) is in L(G − g) of the group of its row (m,)."""
        inside = self._component[others] & (self._groups[others] != self._groups[rows, None])
        place = self._place[self._groups[rows]]
        asked = np.flatnonzero(place >= 0)
        if len(asked):
            place, vertex = place[asked, None], others[asked]
            final = np.zeros(vertex.shape, dtype=np.int64)
            for level, contracted in enumerate(self._maps):
                half = (place >> (self._depth - level)) & 1 if level else 0
                vertex = np.where(final == 0, contracted[half, np.maximum(vertex, 0)], vertex)
                final = np.where((final == 0) & (vertex < 0), vertex, final)
            # A component is identified by its rank, of size and smallest row: is it the best one?
            inside[asked] = final == -self._best[place * self._classes + self._hard[others[asked]]]
        return np.asarray(inside)

    def _divide(self, graph: csr_matrix) -> None:
        n = len(self._hard)
        edges = graph.tocoo()
        here = _Level(
            half=np.zeros(n, dtype=np.int64),
            group=self._place[self._groups],
            number=self._hard,
            size=np.ones(n, dtype=np.int64),
            first=np.arange(n),
            tail=edges.row.astype(np.int64),
            head=edges.col.astype(np.int64),
        )
        copies = np.arange(n)[None, :]
        for level in range(self._depth + 1):
            if level:
                here, copies = self._halve(here, level)
                self._best = np.repeat(self._best.reshape(-1, self._classes), 2, axis=0).ravel()
            here, contracted = _contracted(here, self._connection)
            here, after = self._settle(here, last=level == self._depth)
            self._maps.append(np.where(copies < 0, 0, after[contracted][copies]))

    def _halve(self, here: _Level, level: int) -> tuple[_Level, NDArray[np.int64]]:
        """Two copies of each graph: in each, one half of the groups may still be removed."""
        v, shift = len(here.half), self._depth - level
        half = np.concatenate([2 * here.half, 2 * here.half + 1])
        group = np.tile(here.group, 2)
        group[(group >> shift) != half] = -1
        copy = {name: np.tile(getattr(here, name), 2) for name in ("number", "size", "first")}
        tail = np.concatenate([here.tail, here.tail + v])
        head = np.concatenate([here.head, here.head + v])
        return _Level(half, group, **copy, tail=tail, head=head), np.arange(2 * v).reshape(2, v)

    def _settle(self, here: _Level, *, last: bool) -> tuple[_Level, NDArray[np.int64]]:
        """Remove vertices that no removable group touches; return the rest, and a map to it.

        A removed vertex is mapped to minus its rank: by size, then by smallest row number.
        """
        n = len(self._hard)
        rank = here.size * (n + 1) + n - here.first
        stays = here.group >= 0
        if last:
            done = ~stays
        else:
            touched = np.zeros(len(stays), dtype=bool)
            touched[here.tail] = touched[here.head] = True
            done = ~(stays | touched)
        np.maximum.at(self._best, here.half[done] * self._classes + here.number[done], rank[done])
        mapped = np.where(done, -rank, np.cumsum(~done) - 1)
        half, group, number, size, first = (values[~done] for values in here[:5])
        tail, head = (here.tail[:0], here.head[:0]) if last else (here.tail, here.head)
        return _Level(half, group, number, size, first, mapped[tail], mapped[head]), mapped


def _contracted(here: _Level, connection: Connection) -> tuple[_Level, NDArray[np.int64]]:
    """Contract each component of vertices that stay to one vertex; also map old to new ones."""
    v = len(here.half)
    fixed = here.group < 0
    inside = fixed[here.tail] & fixed[here.head]
    count, label = _components(here.tail[inside], here.head[inside], v, connection)
    some = np.empty(count, dtype=np.int64)
    some[label] = np.arange(v)
    first = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(first, label, here.first)
    size = np.bincount(label, weights=here.size, minlength=count).astype(np.int64)
    tail, head = label[here.tail], label[here.head]
    other = tail != head
    pair = np.unique(tail[other] * count + head[other])
    tail, head = pair // max(count, 1), pair % max(count, 1)
    if connection == "strong" and len(tail):
        # An edge between two strong components is on no cycle, whatever else is removed.
        strong = _components(tail, head, count, connection)[1]
        within = strong[tail] == strong[head]
        tail, head = tail[within], head[within]
    level = _Level(here.half[some], here.group[some], here.number[some], size, first, tail, head)
    return level, label


def _components(
    tail: NDArray[np.int64], head: NDArray[np.int64], n: int, connection: Connection
) -> tuple[int, NDArray[np.int64]]:
    graph = csr_matrix((np.ones(len(tail), dtype=np.int8), (tail, head)), shape=(n, n))
    count, label = connected_components(graph, directed=True, connection=connection)
    return int(count), label.astype(np.int64)


def _outgrown(
    part: NDArray[np.int64],
    hard: NDArray[np.int64],
    groups: NDArray[np.int64],
    component: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Mask of groups without whose rows another component may be the largest of its class."""
    classes = int(hard.max()) + 1
    size = np.bincount(part)[part]
    second = np.zeros(classes, dtype=np.int64)
    np.maximum.at(second, hard[~component], size[~component])
    cell = groups * classes + hard
    lost = np.bincount(cell[component], minlength=(int(groups.max()) + 1) * classes)
    lost = lost.reshape(-1, classes)
    largest = np.bincount(hard[component], minlength=classes)
    return np.asarray(((lost > 0) & (largest - lost <= second)).any(axis=1))


def _may_break(
    graph: csr_matrix,
    hard: NDArray[np.int64],
    groups: NDArray[np.int64],
    component: NDArray[np.bool_],
    connection: Connection,
) -> NDArray[np.bool_]:
    """Mask of groups without which a component of L may fall apart; without others none does.

    In any order that begins with a row r of the component, let w be the first row that r does not
    reach without a group. Then all earlier rows with an edge to w are of that group. So a group
    breaks no component if it does not contain r and is, for no row, the only group with edges to it
    from earlier rows. Strong components must stay connected in both directions.
    """
    rows = np.flatnonzero(component)
    inner = graph[rows][:, rows].astype(np.float64)
    back = inner.T.tocsr()
    if connection == "weak":
        inner = back = inner + back
    both = ((inner, back),) if connection == "weak" else ((inner, back), (back, inner))
    number, group = hard[rows], groups[rows]
    may = np.ones(int(groups.max()) + 1, dtype=bool)
    _, root = np.unique(number, return_index=True)
    for _ in range(ORDERS):
        suspects = np.zeros(len(may), dtype=bool)
        suspects[group[root]] = True
        for out, into in both:
            order = _breadth_first(out, root)
            suspects |= _sole_way(into, order, group, len(may))
        may &= suspects
        last = np.zeros(int(number.max()) + 1, dtype=np.int64)
        last[number[order]] = order  # the last one of each class remains
        root = last[np.unique(number)]
    return may


def _breadth_first(out: csr_matrix, root: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows (m,) in breadth-first order from all roots at once."""
    m = out.shape[0]
    joined = csr_matrix(
        (
            np.ones(out.nnz + len(root)),
            np.concatenate([out.indices, root]),
            np.append(out.indptr, out.nnz + len(root)),
        ),
        shape=(m + 1, m + 1),
    )
    order = breadth_first_order(joined, m, return_predecessors=False)
    return np.asarray(order[1:], dtype=np.int64)


def _sole_way(
    into: csr_matrix, order: NDArray[np.int64], group: NDArray[np.int64], n_groups: int
) -> NDArray[np.bool_]:
    """Mask (n_groups,) of groups that alone have edges to some row from earlier in ``order``."""
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    head = np.repeat(np.arange(len(order)), np.diff(into.indptr))
    before = place[into.indices] < place[head]
    head, leads = head[before], group[into.indices[before]]
    sole = np.zeros(n_groups, dtype=bool)
    if len(head):
        start = np.flatnonzero(np.append(True, head[1:] != head[:-1]))
        least, most = np.minimum.reduceat(leads, start), np.maximum.reduceat(leads, start)
        sole[least[(least == most) & (least != group[head[start]])]] = True
    return sole


def nearest_hidden(
    index: NeighborIndex, wide: Neighbors, hidden: HiddenComponents, k: int
) -> NDArray[np.int64]:
    """Row numbers (n, k) of each row's nearest others in its L(G − g), nearest first.

    ``wide`` are the nearest others of all rows, of any group; ``index`` is searched for the rows
    whose list is too short. If L(G − g) has fewer than k rows, the list ends with -1.
    """
    near = np.full((len(index), k), -1)
    rows = _fill(near, np.arange(len(index)), wide.index, hidden)
    pool = hidden.pool
    most = int(pool.sum()) - 1
    width = min(2 * k, most)
    while len(rows):
        left = []
        step = max(1, BLOCK // width)
        for part in (rows[at : at + step] for at in range(0, len(rows), step)):
            others = index.others(width, rows=part, among=pool).index
            left.append(_fill(near, part, others, hidden, last=width == most))
        rows = np.concatenate(left)
        width = min(2 * width, most)
    return near


def _fill(
    near: NDArray[np.int64],
    rows: NDArray[np.int64],
    others: NDArray[np.int64],
    hidden: HiddenComponents,
    *,
    last: bool = False,
) -> NDArray[np.int64]:
    """Fill ``near[rows]`` with the first k of ``others`` (m, w) in L(G − g); return short rows."""
    k = near.shape[1]
    inside = hidden.holds(rows, others)
    rank: NDArray[np.int64] = np.cumsum(inside, axis=1)
    whole = np.ones(len(rows), dtype=bool) if last else rank[:, -1] >= k
    at, place = np.nonzero(inside & (rank <= k) & whole[:, None])
    near[rows[at], rank[at, place] - 1] = others[at, place]
    short: NDArray[np.int64] = rows[~whole]
    return short


def hidden_means(
    near: NDArray[np.int64], Y: NDArray[np.float64], weight: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Mean label (n, C) of the neighbours in ``near`` (n, k), whose lists may end with -1.

    Raises
    ------
    ProbeError
        If a row has none.
    """
    votes = (near >= 0).sum(axis=1)
    if len(votes) and not votes.min():
        raise ProbeError(
            f"Row {int(votes.argmin())} has no others in a largest component that are not "
            "duplicates of it; leave duplicates out."
        )
    out = np.empty((len(near), Y.shape[1]))
    for size in np.unique(votes):
        rows = np.flatnonzero(votes == size)
        out[rows] = neighbor_means(near[rows, :size], Y, [int(size)], weight=weight)[0]
    return out
