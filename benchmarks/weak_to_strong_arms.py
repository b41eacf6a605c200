"""One cell of the weak-to-strong grid: rows with a supervisor's labels, and all training sets."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from label_noise import bag_of_words
from label_states import LabelTask
from weak_to_strong_rows import MODELS, PARTS, cut, model_states, task_parts

from probekit.cleaning.advice import advise
from probekit.cleaning.audit import draw_rows
from probekit.cleaning.predict import score_rows
from probekit.cleaning.scored import Scored
from probekit.errors import RunError
from probekit.experiments.steps import random_verdicts
from probekit.labels import WeakLabels
from probekit.metrics import log_loss
from probekit.probes import LogisticProbe
from probekit.verdicts import Verdicts

__all__ = [
    "TRUSTED",
    "WORDS",
    "Cell",
    "Place",
    "advised",
    "draw_cell",
    "known_models",
    "training_sets",
]

Array = np.ndarray[Any, Any]

WORDS = "words"
# Rows with ground truth for the supervisor, and student's rows whose truth `trusted` knows.
SUPERVISED, TRUSTED = 300, 50
LEAST, ATTEMPTS = 0.1, 20  # smallest weak class, and how often a supervisor is drawn
CLASSES = ("0", "1")
AUDITS = (20, 40)  # true labels that an audit asks for


@dataclass(frozen=True)
class Place:
    """Which cell: supervisor and strong model, task, seed."""

    weak: str
    """``words``, a model, or MODEL@LAYER."""
    strong: str
    """A model, or MODEL@BLOCKS: one that is cut after so many."""
    task: str
    seed: int

    @property
    def pair(self) -> str:
        """Both models, as on the command line."""
        return f"{self.weak}:{self.strong}"

    def __str__(self) -> str:
        return f"{self.pair} on {self.task}, seed {self.seed}"


@dataclass(frozen=True, eq=False)
class Cell:
    """Rows of a student with weak labels; held-out rows with weak labels; test rows."""

    place: Place
    parts: dict[str, LabelTask]
    pool: Any
    """Store of the strong model's states of the pool."""
    test: Any
    """Store of those of the test rows."""
    supervised: Array
    rows: Array
    held_out: Array
    proba: Array
    """The supervisor's P (N, 2) of the whole pool; of its own rows never used."""
    floor: Array
    """The supervisor's P of the test rows."""
    read: int | None = None
    """Layer that students read; None: the one where a probe of the supervisor's rows is best."""

    @property
    def truth(self) -> Array:
        """True classes of the student's rows (n,)."""
        return np.asarray(self.parts["pool"].truth[self.rows])

    @cached_property
    def layer(self) -> int:
        """The layer of the strong model that students read."""
        if self.read is not None:
            return self.read
        return best_layer(self.pool, self.pool.layers, *self._supervision, self.place.seed)

    @property
    def _supervision(self) -> tuple[Array, Array]:
        return self.supervised, np.asarray(self.parts["pool"].truth[self.supervised])

    def labels(self, probs: Array, rows: Array | None = None) -> WeakLabels:
        """Labels (n, 2) of the student's or of other rows, as a file would hold them."""
        ids = [self.parts["pool"].ids[i] for i in (self.rows if rows is None else rows)]
        return WeakLabels(ids, None, probs, CLASSES)

    @property
    def weak(self) -> WeakLabels:
        """The student's weak labels."""
        return self.labels(self.proba[self.rows])

    @property
    def true(self) -> WeakLabels:
        """The truth of the student's rows, for the ceiling."""
        return self.labels(np.eye(len(CLASSES))[self.truth])

    def trusted(self) -> WeakLabels:
        """True labels of some of the student's rows."""
        rng = np.random.default_rng([self.place.seed, 2])
        chosen = np.sort(rng.permutation(len(self.rows))[:TRUSTED])
        return self.labels(np.eye(2)[self.truth[chosen]], self.rows[chosen])


def draw_cell(place: Place, rows: int, held_out: int, models: Path | None, cache: Path) -> Cell:
    """Draw rows and label them; draw again if a supervisor gives nearly all rows one class."""
    parts = task_parts(place.task, cache)
    truth = parts["pool"].truth
    name, layers = cut(place.strong)
    pool, test = (model_states(place.task, part, name, models, cache, layers) for part in PARTS)
    for attempt in range(ATTEMPTS):
        order = np.random.default_rng([place.seed, attempt]).permutation(len(truth))
        # The held-out rows come before the student's: these are as many as the pool has left.
        ends = np.cumsum([SUPERVISED, held_out, rows])
        supervised, held, chosen = np.split(order, ends)[:3]
        proba, floor = supervise(place, parts, np.sort(supervised), models, cache)
        share = np.bincount(proba[chosen].argmax(axis=1), minlength=2) / len(chosen)
        if share.min() >= LEAST:
            drawn = (np.sort(part) for part in (supervised, chosen, held))
            return Cell(place, parts, pool, test, *drawn, proba, floor)
    raise RunError("no supervisor tells the classes apart.")


@lru_cache(maxsize=1)
def prepared(
    place: Place, rows: int, held_out: int, models: Path | None, cache: Path
) -> tuple[Cell, dict[str, WeakLabels | Verdicts], float]:
    """Draw a cell; make the training sets of all its arms, and say in how many seconds."""
    cell = draw_cell(place, rows, held_out, models, cache)
    start = time.perf_counter()
    sets = training_sets(cell)
    return cell, sets, time.perf_counter() - start


def supervise(
    place: Place, parts: dict[str, LabelTask], rows: Array, models: Path | None, cache: Path
) -> tuple[Array, Array]:
    """P of all rows of the pool and of the test, by a supervisor that saw the truth of ``rows``.

    A logistic probe on frozen states, or logistic regression on counts of words.
    """
    truth = parts["pool"].truth[rows]
    if place.weak == WORDS:
        texts = parts["pool"].texts
        shown = [*texts, *parts["test"].texts]
        proba = bag_of_words([texts[i] for i in rows], truth, shown)
        return proba[: len(texts)], proba[len(texts) :]
    model, _, layer = place.weak.partition("@")
    pool, test = (model_states(place.task, part, model, models, cache) for part in PARTS)
    read = int(layer) if layer else best_layer(pool, pool.layers, rows, truth, place.seed)
    probe = LogisticProbe(random_state=place.seed).fit(pool.read(read, rows), truth)
    return probe.predict_proba(pool.layer(read)), probe.predict_proba(test.layer(read))


def best_layer(store: Any, layers: Sequence[int], rows: Array, truth: Array, seed: int) -> int:
    """The layer whose probe predicts true labels best out of fold."""

    def loss(layer: int) -> float:
        probe = LogisticProbe(random_state=seed).fit(store.read(layer, rows), truth)
        return log_loss(truth, probe.oof_proba_)

    return min(layers, key=loss)


def training_sets(cell: Cell) -> dict[str, WeakLabels | Verdicts]:
    """Every arm's labels, or verdicts, of the student's rows; their places are those of the rows.

    The ceiling alone has the truth of all rows; the three arms named after true labels have that of
    fifty.
    """
    weak, seed = cell.weak, cell.place.seed
    trusted = cell.trusted()
    scored: Scored = score_rows(cell.pool, weak, "ensemble", seed=seed, only_labelled=True)
    taught: Scored = score_rows(
        cell.pool, weak, "ensemble", seed=seed, only_labelled=True, trusted=trusted
    )
    kept = scored.filter()
    dropped = np.bincount(weak.hard[~kept.keep], minlength=len(CLASSES)).tolist()
    told = np.isin(weak.ids, trusted.ids)
    known = np.where(told[:, None], np.eye(2)[cell.truth], weak.probs)
    return {
        "plain": weak,
        "plain, hard": replace(weak, probs=np.eye(2)[weak.hard]),
        "plain, 50 true": replace(weak, probs=known),
        "random drop": random_verdicts(weak, dropped, seed=seed),
        "filter": kept,
        "relabel, soft": scored.relabel(),
        "relabel, hard": scored.relabel(hard=True),
        # As much as the filter above drops; by itself it would drop what is rather wrong, too.
        "filter, 50 true": taught.filter(contamination=0.2),
        "relabel, 50 true": taught.relabel(hard=True),
        "ceiling": cell.true,
    }


def advised(cell: Cell) -> dict[str, Any]:
    """What `diagnose` advises without true labels, and `audit` with 20 and 40."""
    weak, seed = cell.weak, cell.place.seed
    with contextlib.redirect_stderr(io.StringIO()):
        advice = advise(cell.pool, weak, seed=seed, only_labelled=True)
        draw = draw_rows(cell.pool, weak, seed=seed, only_labelled=True)
    truth = dict(zip(weak.ids, (CLASSES[c] for c in cell.truth), strict=True))
    said: dict[str, Any] = {
        "diagnose": advice.action,
        "pc": round(advice.signals.pc, 4),
        "A": round(advice.signals.agreement, 4),
        "c": round(advice.signals.confidence, 4),
    }
    for m in AUDITS:
        finding = draw.conclude({name: truth[name] for name in draw.ids[:m]}, more=False)
        said[f"audit {m}"] = finding.action or "leave"
    return said


def known_models() -> tuple[str, ...]:
    """What can label rows: models of the list, at any layer, and a bag of words."""
    return (*MODELS, WORDS)
