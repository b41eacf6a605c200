"""Methods that probekit leaves out unless they beat kNN on the grid: three published ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.mixture import GaussianMixture
from sklearn.semi_supervised import LabelSpreading

from probekit.probes.neighbors import nearest_others

Array = np.ndarray[Any, Any]


def spread_labels(X: Array, hard: Array) -> Array:
    """P (n, C) of label spreading over the 30 nearest by cosine, every label clamped at 0.8.

    Zhou et al. 2003, https://papers.nips.cc/paper/2506; scikit-learn's own.
    """
    unit = X - X.mean(axis=0)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    model = LabelSpreading(kernel="knn", n_neighbors=30, alpha=0.8, max_iter=100, tol=1e-4)
    return np.asarray(model.fit(unit, hard).label_distributions_)


def simifeat_vote(X: Array, hard: Array, groups: Array) -> Array:
    """Keep (n,) rows whose 10 nearest others vote for their label, ties too.

    Zhu, Dong & Liu 2022, https://arxiv.org/abs/2110.06283, one round on the states as they are.
    """
    near = nearest_others(X, 10, groups=groups).index
    votes = np.eye(int(hard.max()) + 1)[hard][near].sum(axis=1)
    return np.asarray(votes[np.arange(len(hard)), hard] >= votes.max(axis=1))


def fine(X: Array, hard: Array, *, seed: int) -> Array:
    """Keep (n,) rows aligned with their class's first direction, by a mixture of two Gaussians.

    Kim et al. 2021, https://arxiv.org/abs/2102.11628.
    """
    keep = np.ones(len(X), dtype=bool)
    unit = X.astype(np.float64)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    for k in np.unique(hard):
        rows = np.flatnonzero(hard == k)
        direction = np.linalg.eigh(unit[rows].T @ unit[rows])[1][:, -1]
        score = (unit[rows] @ direction)[:, None] ** 2
        mixture = GaussianMixture(2, random_state=seed).fit(score)
        clean = int(mixture.means_.argmax())
        keep[rows] = mixture.predict_proba(score)[:, clean] > 0.5
    return keep
