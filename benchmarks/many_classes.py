"""Many classes, as intents have: a default probe against the same fits by scikit-learn.

    python benchmarks/many_classes.py [--rows 10000] [--fits 11]

77 noisy classes x 10,000 rows x 768 columns, the size of Banking77. probekit's probe chooses its
penalty out of fold (11 penalties, 5 folds). scikit-learn's lbfgs fits (tol 1e-5) are timed for the
penalties on all rows, the strongest first, and counted six times: for all rows and without each of
five folds. Weaker penalties take longer: with fewer ``--fits`` each one left out counts as the
weakest that was timed, which is too little. Seconds are those of the processor, one thread each;
a finished fit is written down, and not timed again.
Last, the most that may take a minute of clock on two cores: 1,000 rows, classes out of 1,000.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings

import numpy as np
from _bench import Bench, Claim, parser, run
from _harness import peak_memory, read_lines, record
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from probekit.probes import LogisticProbe
from probekit.probes.logistic import PENALTIES
from probekit.probes.logistic_path import logistic_path

CLASSES, WIDTH, NOISE = 77, 768, 0.2
MOST, MINUTE = 1000, 60.0


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


def measure_most(bench: Bench) -> None:
    """Time by the clock a fit whose rows have classes out of n, for n rows."""
    count, d = (40, 24) if bench.quick else (MOST, WIDTH)
    X, y = states(count, count, d)
    probe = LogisticProbe()
    start, spent = time.perf_counter(), time.process_time()
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        probe.fit(X, y)
    seconds, spent = time.perf_counter() - start, time.process_time() - spent
    stuck = [each for each in raised if issubclass(each.category, ConvergenceWarning)]
    bench.claim(
        Claim(
            f"default logistic probe, {count:,} × {d}, {len(np.unique(y))} classes, of a minute",
            f"{seconds:.0f} s",
            f"{MINUTE:.0f} s",
            seconds / MINUTE,
            "<= 1",
            f"{len(stuck)} fits not converged",
            agrees=not stuck,
        ),
        seconds=seconds,
        processor_seconds=spent,
        l2=probe.l2_,
    )


def peer_fits(
    bench: Bench, X: np.ndarray, y: np.ndarray, count: int
) -> tuple[dict[float, float], dict[float, np.ndarray]]:
    """Seconds of scikit-learn's ``count`` strongest fits, and P (n, C) of those made now."""
    path, size = bench.results / "many_classes_fits.jsonl", [*X.shape, int(y.max()) + 1]
    known = [row for row in read_lines(path) if row["size"] == size]
    took, proba = {row["l2"]: row["seconds"] for row in known}, {}
    scaled = StandardScaler().fit_transform(X)
    for l2 in sorted(PENALTIES, reverse=True)[:count]:
        if l2 not in took:
            start = time.process_time()
            C = 1 / (2 * l2 * len(y))
            fit = LogisticRegression(C=C, tol=1e-5, max_iter=10_000).fit(scaled, y)
            took[l2] = time.process_time() - start
            proba[l2] = fit.predict_proba(scaled)
            row = {"size": size, "l2": l2, "seconds": took[l2], "passes": int(fit.n_iter_[0])}
            record("many_classes_fits", row, folder=bench.results)
    return took, proba


def measure(bench: Bench, asked: argparse.Namespace) -> None:
    """Time the probe beside scikit-learn; errors of P at the penalty that the probe chose."""
    warnings.simplefilter("ignore")
    n, classes, d = (400, 12, 24) if bench.quick else (asked.rows, CLASSES, WIDTH)
    X, y = states(n, classes, d)
    probe = LogisticProbe()
    start = time.process_time()
    _, memory = peak_memory(lambda: probe.fit(X, y))
    seconds = time.process_time() - start
    took, proba = peer_fits(bench, X, y, asked.fits)
    weakest = took[min(took)]
    peer = 6 * sum(took.get(l2, weakest) for l2 in PENALTIES)
    path = logistic_path(X, y, [probe.l2_], standardize=True, dtype="float64")
    exact = softmax(X @ path.coef_[0].T + path.intercept_[0], axis=1)
    error = float(np.abs(probe.predict_proba(X) - exact).max())
    agreement = f"error of P {error:.0e}"
    if probe.l2_ in proba:
        agreement += f", {np.abs(proba[probe.l2_] - exact).max():.0e}"
    what = f"default logistic probe, {n:,} × {d}, {classes} classes"
    timed = "" if len(took) == len(PENALTIES) else f", at least: {len(took)} timed"
    bench.claim(
        Claim(
            f"{what}, beside scikit-learn's 66 fits (processor seconds)",
            f"{seconds:.1f} s, {memory:.0f} MiB",
            f"{peer:.0f} s{timed}",
            peer / seconds,
            ">= 10",
            agreement,
            agrees=error <= 1e-4,
        ),
        seconds={"probekit": seconds, "scikit-learn, 66 fits": peer},
        l2=probe.l2_,
        tried=int(np.isfinite(probe.l2_scores_).sum()),
        fits={f"{l2:g}": value for l2, value in took.items()},
        error=error,
        peak_mib=memory,
    )
    measure_most(bench)


if __name__ == "__main__":
    flags = parser(__doc__)
    flags.add_argument("--rows", type=int, default=10_000)
    flags.add_argument("--fits", type=int, default=11, help="penalties timed for scikit-learn")
    given = flags.parse_args()
    sys.exit(run("many_classes", given, lambda bench: measure(bench, given)))
