"""Wrong labels of six kinds, for benchmarks that look for them.

``weak_labels(kind, texts, truth, weaker, seed)`` draws them; equal arguments give equal labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from probekit.activations.store import ActivationStore

__all__ = ["KINDS", "TRAINED", "NoisyLabels", "bag_of_words", "weak_labels"]

KINDS = ("model", "words", "symmetric", "class", "unsure", "rule")
"""A weaker model; bag of words; planted evenly, by class, where a model is unsure, by a rule."""

TRAINED = 300  # true labels that a supervisor is trained on; it labels the other rows
WEAKER_LAYERS = (1, 3)  # of all-MiniLM, by seed
SYMMETRIC = 0.25
BY_CLASS = (0.10, 0.35)  # of the classes in turn
UNSURE = 0.6  # share of wrong labels where the weaker model is least sure; a fifth in all
RULED = 0.3  # share of rows that a rule labels
LEAST, ATTEMPTS = 0.1, 50  # smallest weak class, and how often to draw for it

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class NoisyLabels:
    """Weak labels of some rows of a task."""

    rows: Array
    """Numbers (n,) of the rows, ascending; a supervisor's training rows are left out."""
    weak: Array
    """P (n, C) of the supervisor; ones and zeros where the errors were planted."""

    @property
    def hard(self) -> Array:
        """Weak classes (n,)."""
        return np.asarray(self.weak.argmax(axis=1))


def weak_labels(
    kind: str, texts: Sequence[str], truth: Array, weaker: ActivationStore, seed: int
) -> NoisyLabels:
    """Label a task's rows with errors of one kind.

    ``truth`` (N,) holds classes from 0, and ``weaker`` the all-MiniLM states of the same N rows, of
    which the supervisor reads layer 1 (even seeds) or 3. A supervisor that gives nearly all rows
    one class is drawn again.
    """
    C = int(truth.max()) + 1
    for attempt in range(ATTEMPTS):
        # All kinds label the same rows, unless a supervisor has to be drawn again.
        order = np.random.default_rng([seed, attempt]).permutation(len(truth))
        rng = np.random.default_rng([seed, attempt, KINDS.index(kind)])
        trained, rows = np.sort(order[:TRAINED]), np.sort(order[TRAINED:])
        if len(np.unique(truth[trained])) < C:
            continue

        def supervisor(trained: Array = trained, rows: Array = rows) -> Array:
            X = weaker.layer(WEAKER_LAYERS[seed % 2]).astype(np.float64)
            return _probe(X[trained], truth[trained], X[rows])

        shown = [texts[i] for i in rows]
        if kind == "model":
            weak = supervisor()
        elif kind == "words":
            weak = bag_of_words([texts[i] for i in trained], truth[trained], shown)
        else:
            weak = np.eye(C)[_planted(kind, shown, truth[rows], supervisor, seed, rng)]
        share = np.bincount(weak.argmax(axis=1), minlength=C) / len(rows)
        if share.min() >= LEAST * 2 / C:
            return NoisyLabels(rows, weak)
    raise SystemExit(f"{kind}, seed {seed}: no supervisor tells the classes apart.")


def _planted(
    kind: str,
    texts: Sequence[str],
    truth: Array,
    supervisor: Callable[[], Array],
    seed: int,
    rng: np.random.Generator,
) -> Array:
    """Weak classes (n,): the truth with planted errors."""
    C = int(truth.max()) + 1
    other = (truth + rng.integers(1, C, len(truth))) % C
    u = rng.random(len(truth))
    if kind == "symmetric":
        return np.where(u < SYMMETRIC, other, truth)
    if kind == "class":
        return np.where(u < np.array(BY_CLASS)[truth % 2], other, truth)
    if kind == "unsure":
        P = supervisor()
        top = np.sort(P, axis=1)
        doubt = rankdata(top[:, -2] - top[:, -1]) / len(P)  # 1: the two likeliest classes are equal
        np.put_along_axis(P, truth[:, None], -1, axis=1)
        return np.where(u < UNSURE * doubt**2, P.argmax(axis=1), truth)
    # A rule labels its rows, whatever the truth: those with a word class 0, or the longest the
    # last class.
    if seed % 2:
        length = np.array([len(text) for text in texts])
        return np.where(rankdata(length) > (1 - RULED) * len(texts), C - 1, truth)
    return np.where(_with_word(texts), 0, truth)


def _with_word(texts: Sequence[str]) -> Array:
    """Whether each text has the word that is in nearest to 30 % of all texts."""
    from sklearn.feature_extraction.text import CountVectorizer

    found = CountVectorizer(binary=True, token_pattern=r"(?u)\b\w+\b").fit_transform(texts)
    share = np.asarray(found.mean(axis=0)).ravel()
    return np.asarray(found[:, [int(np.abs(share - RULED).argmin())]].todense()).ravel() > 0


def _probe(trained: Array, truth: Array, states: Array) -> Array:
    """P (n, C) of a logistic probe."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=1000))
    return np.asarray(probe.fit(trained, truth).predict_proba(states))


def bag_of_words(trained: Sequence[str], truth: Array, texts: Sequence[str]) -> Array:
    """P (n, C) of a logistic regression on counts of words."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1000))
    return np.asarray(model.fit(trained, truth).predict_proba(texts))
