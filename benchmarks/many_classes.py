"""Many classes, as intents have: a default probe against the same fits by scikit-learn.

    python benchmarks/many_classes.py [--runs 1] [--rows 10000]

77 noisy classes x 10,000 rows x 768 columns, the size of Banking77. probekit's probe chooses its
penalty out of fold (11 penalties, 5 folds). scikit-learn's lbfgs fits (tol 1e-5) are timed for the
11 penalties on all rows, and counted six times: for all rows and without each of five folds.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings

import numpy as np
from _bench import Bench, Claim, parser, run
from _harness import peak_memory
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from probekit.probes import LogisticProbe
from probekit.probes.logistic import PENALTIES, logistic_path

CLASSES, WIDTH, NOISE = 77, 768, 0.2


def states(n: int, classes: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlated float32 states around a centre for each class, and labels, a fifth of them wrong.

    Second moments fall with their rank, as a transformer's do.
    """
    rng = np.random.default_rng(0)
    truth = rng.integers(0, classes, n)
    centres = rng.standard_normal((classes, d), dtype=np.float32)
    X = 0.7 * centres[truth] + rng.standard_normal((n, d), dtype=np.float32)
    X = (X * np.arange(1, d + 1, dtype=np.float32) ** -0.5) @ np.linalg.qr(
        rng.standard_normal((d, d), dtype=np.float32)
    )[0]
    wrong = rng.random(n) < NOISE
    return X / X.std(), np.where(wrong, rng.integers(0, classes, n), truth)


def measure(bench: Bench, asked: argparse.Namespace) -> None:
    """Time the probe beside scikit-learn; errors of P at the penalty that the probe chose."""
    warnings.simplefilter("ignore")
    n, classes, d = (400, 12, 24) if bench.quick else (asked.rows, CLASSES, WIDTH)
    X, y = states(n, classes, d)
    probe = LogisticProbe()
    times, memory = peak_memory(lambda: bench.times({"": lambda: probe.fit(X, y)}, warmup=0))
    seconds = times[""]
    scaled = StandardScaler().fit_transform(X)
    start, passes = time.perf_counter(), []
    for l2 in PENALTIES:
        fit = LogisticRegression(C=1 / (2 * l2 * n), tol=1e-5, max_iter=10_000).fit(scaled, y)
        passes.append(int(fit.n_iter_[0]))
        if l2 == probe.l2_:
            peer_proba = fit.predict_proba(scaled)
    peer = 6 * (time.perf_counter() - start)
    path = logistic_path(X, y, [probe.l2_], standardize=True, dtype="float64")
    exact = softmax(X @ path.coef_[0].T + path.intercept_[0], axis=1)
    error = float(np.abs(probe.predict_proba(X) - exact).max())
    peer_error = float(np.abs(peer_proba - exact).max())
    what = f"default logistic probe, {n:,} × {d}, {classes} classes"
    bench.claim(
        Claim(
            f"{what}, beside scikit-learn's 66 fits",
            f"{seconds:.1f} s, {memory:.0f} MiB",
            f"{peer:.0f} s",
            peer / seconds,
            ">= 10",
            f"error of P {error:.0e}, {peer_error:.0e}",
            agrees=error <= 1e-4,
        ),
        seconds={"probekit": seconds, "scikit-learn, 66 fits": peer},
        l2=probe.l2_,
        tried=int(np.isfinite(probe.l2_scores_).sum()),
        passes=passes,
        errors=[error, peer_error],
        peak_mib=memory,
    )


if __name__ == "__main__":
    flags = parser(__doc__)
    flags.add_argument("--rows", type=int, default=10_000)
    given = flags.parse_args()
    sys.exit(run("many_classes", given, lambda bench: measure(bench, given)))
