"""Ways to find wrong labels, each a score per row from the same states and weak labels."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from probekit.activations.store import ActivationStore
from probekit.cleaning.predict import score_rows
from probekit.labels import WeakLabels
from probekit.probes.neighbors import nearest_others

__all__ = ["FAMILIES", "Case", "Found"]

Array = np.ndarray[Any, Any]

VOTERS = 10  # of SimiFeat


@dataclass(frozen=True, eq=False)
class Case:
    """Rows of a store with weak labels, as a method sees them: without truth."""

    store: ActivationStore
    rows: Array
    """Numbers in the store (n,)."""
    weak: Array
    """P (n, C)."""
    seed: int

    @property
    def hard(self) -> Array:
        """Weak classes (n,)."""
        return np.asarray(self.weak.argmax(axis=1))

    @property
    def last(self) -> Array:
        """States (n, d) of the last layer."""
        return np.asarray(self.store.read(self.store.layers[-1], self.rows))

    @property
    def unit(self) -> Array:
        """The same of unit length, as sentence-transformers gives them for some models."""
        X = self.last
        return np.asarray(X / np.linalg.norm(X, axis=1, keepdims=True))


class Found(NamedTuple):
    """A score (n,) of how likely each label is wrong, and the rows (n,) that a method calls so."""

    score: Array
    flagged: Array | None = None


class Family(NamedTuple):
    """Methods that share a fit."""

    methods: tuple[str, ...]
    find: Callable[[Case], dict[str, Found]]


def cleanlab(case: Case) -> dict[str, Found]:
    """cleanlab's text recipe: 5 folds of logistic regression on the last layer.

    https://docs.cleanlab.ai/stable/tutorials/clean_learning/text.html and, for the scores,
    https://docs.cleanlab.ai/stable/cleanlab/rank.html.
    """
    return {
        "cleanlab": _recipe(case.last, case.hard, "self_confidence"),
        "cleanlab, margin": _recipe(case.last, case.hard, "normalized_margin"),
    }


def cleanlab_unit(case: Case) -> dict[str, Found]:
    """The same recipe, and Datalab, on states of unit length."""
    return {
        "cleanlab, unit length": _recipe(case.unit, case.hard, "self_confidence"),
        "Datalab, unit length": _datalab(case.unit, case.hard),
    }


def _recipe(X: Array, hard: Array, score: str) -> Found:
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    model = LogisticRegression(max_iter=400)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that 400 iterations were not enough
        P = cross_val_predict(model, X, hard, method="predict_proba", cv=5)
    quality = get_label_quality_scores(hard, P, method=score)
    return Found(1 - quality, find_label_issues(hard, P, n_jobs=1))


def datalab(case: Case) -> dict[str, Found]:
    """cleanlab's Datalab on features alone: votes of its nearest neighbours."""
    return {"Datalab": _datalab(case.last, case.hard)}


def _datalab(X: Array, hard: Array) -> Found:
    from cleanlab import Datalab

    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lab = Datalab({"label": hard}, label_name="label", verbosity=0)
        lab.find_issues(features=X, issue_types={"label": {}})
    issues = lab.get_issues("label")
    score = 1 - issues["label_score"].to_numpy()
    return Found(score, issues["is_label_issue"].to_numpy())


def simifeat(case: Case) -> dict[str, Found]:
    """SimiFeat's vote: the share of the 10 nearest others with another label.

    Zhu, Dong & Liu 2022, https://arxiv.org/abs/2110.06283, one round on the states as they are.
    """
    near = nearest_others(case.last, VOTERS).index
    votes = np.eye(case.weak.shape[1])[case.hard][near].sum(axis=1)
    own = votes[np.arange(len(votes)), case.hard]
    return {"SimiFeat": Found(1 - own / VOTERS, own < votes.max(axis=1))}


def ensemble(case: Case) -> dict[str, Found]:
    """Score as ``probekit filter`` does by default."""
    ids = [case.store.ids[i] for i in case.rows]
    classes = tuple(map(str, range(case.weak.shape[1])))
    labels = WeakLabels(ids, None, case.weak, classes)
    scored = score_rows(case.store, labels, "ensemble", seed=case.seed, only_labelled=True)
    kept = scored.filter(contamination="confident").keep
    return {"ensemble": Found(scored.disagreement, ~kept)}


FAMILIES = {
    "cleanlab": Family(("cleanlab", "cleanlab, margin"), cleanlab),
    "unit": Family(("cleanlab, unit length", "Datalab, unit length"), cleanlab_unit),
    "datalab": Family(("Datalab",), datalab),
    "simifeat": Family(("SimiFeat",), simifeat),
    "ensemble": Family(("ensemble",), ensemble),
}
