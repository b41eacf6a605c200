"""A path of nine penalties: one computation against nine scikit-learn and nine torch fits.

    python benchmarks/logistic_path.py [--runs 3] [--no-disk]

Hard labels, soft ones (which scikit-learn does not take), more columns than rows, five classes, and
nine penalties with five folds. Errors are the largest differences of any row's probability, at any
penalty, from the optimum: scikit-learn's newton-cholesky in float64; where that takes minutes (the
widest case) or cannot be asked (soft labels), probekit in float64. probekit runs in float32 at its
default tolerance, which promises 1e-4. In float32 the peers stop far above that at any tolerance,
so they are timed twice: as one would write them, and in float64 at the loosest tolerance (of whole
powers of ten) at which they come to 1e-4 on the first case, or near it within minutes.
Last, 6 GB of states on disk are fitted, and the peak of anonymous memory is reported (the states
are memory-mapped; the system may reclaim their pages).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _bench import Bench, Claim, parser, run
from sklearn.linear_model import LogisticRegression

from probekit.probes import logistic_design
from probekit.probes.logistic_path import logistic_path, logits_to_proba

PENALTIES = np.logspace(-4, 0, 9)
PROMISED = 1e-4  # error of P at the default tolerance
# Largest gradient, and for torch the change of the loss at which it stops, which ends it first.
EXACT_TORCH = {"dtype": torch.float64, "tol": 1e-7, "change": 1e-11}
EXACT_SKLEARN = {"solver": "lbfgs", "tol": 1e-7}
Fits = tuple[np.ndarray, np.ndarray]  # coefficients (P, V, d) and biases (P, V)


class Case(NamedTuple):
    """States, labels, and what is asked of them."""

    n: int
    d: int
    classes: int = 2
    decay: float = 1.0
    soft: bool = False

    @property
    def name(self) -> str:
        """Size and kind of labels."""
        kind = f"{self.classes} classes" if self.classes > 2 else "soft" if self.soft else "hard"
        return f"{self.n:,} × {self.d:,}, {kind}"


def states(n: int, d: int, classes: int, decay: float) -> tuple[np.ndarray, np.ndarray]:
    """Correlated float32 states and noisy labels; second moments fall as rank ** -decay.

    all-MiniLM-L6-v2's states fall with a decay of about 1, and much faster in the last directions.
    """
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((n, d), dtype=np.float32)
    turn = np.linalg.qr(rng.standard_normal((d, d), dtype=np.float32))[0]
    X = (latent * np.arange(1, d + 1, dtype=np.float32) ** (-decay / 2)) @ turn
    X = X / X.std() + rng.standard_normal(d, dtype=np.float32)
    scores = latent @ rng.standard_normal((d, classes), dtype=np.float32) * (3 / np.sqrt(d))
    return X, (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)


def soft_labels(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Probabilities (n,) of class 1 like a weak model's: sure of some rows, wrong in others."""
    rng = np.random.default_rng(1)
    return 1 / (1 + np.exp(-(2.0 * (2 * y - 1) + 1.5 * rng.standard_normal(len(X)))))


def ours(X: np.ndarray, y: np.ndarray, folds: np.ndarray | None = None) -> Fits:
    path = logistic_path(X, labels(y), PENALTIES, folds=folds)
    return path.coef_, path.intercept_


def labels(y: np.ndarray) -> np.ndarray:
    """Class numbers as they are; probabilities of class 1 as those of both."""
    return np.stack([1 - y, y], axis=1) if y.dtype.kind == "f" else y


def sklearn_fits(X: np.ndarray, y: np.ndarray, **options: object) -> Fits:
    fits = [
        LogisticRegression(C=1 / (2 * l2 * len(y)), max_iter=10_000, **options).fit(X, y)
        for l2 in PENALTIES
    ]
    return np.stack([fit.coef_ for fit in fits]), np.stack([fit.intercept_ for fit in fits])


def torch_fits(
    X: np.ndarray,
    y: np.ndarray,
    dtype: torch.dtype = torch.float32,
    tol: float = 1e-5,
    change: float = torch.finfo(torch.float32).eps,
) -> Fits:
    """Nine L-BFGS fits with strong Wolfe steps, as in EleutherAI's w2s."""
    x, target = torch.from_numpy(X).to(dtype), torch.from_numpy(y)
    soft = y.dtype.kind == "f"
    classes = 2 if soft else int(y.max()) + 1
    out = []
    for l2 in PENALTIES.tolist():
        linear = torch.nn.Linear(X.shape[1], 1 if classes == 2 else classes, dtype=dtype)
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
        optimizer = torch.optim.LBFGS(
            linear.parameters(),
            max_iter=10_000,
            tolerance_grad=tol,
            tolerance_change=change,
            line_search_fn="strong_wolfe",
        )

        def closure(
            linear: torch.nn.Linear = linear,
            optimizer: torch.optim.Optimizer = optimizer,
            l2: float = l2,
        ) -> torch.Tensor:
            optimizer.zero_grad()
            z = linear(x)
            if classes == 2:
                loss = torch.nn.functional.binary_cross_entropy_with_logits(
                    z[:, 0], target.to(dtype)
                )
            else:
                loss = torch.nn.functional.cross_entropy(z, target)
            loss = loss + l2 * linear.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        out.append([part.detach().numpy().copy() for part in (linear.weight, linear.bias)])
    coef, bias = zip(*out, strict=True)
    return np.stack(coef), np.stack(bias)


def proba(X: np.ndarray, fits: Fits) -> np.ndarray:
    """P (P, n, C) of the rows, in float64."""
    z = np.einsum("nd,pvd->pnv", X.astype(np.float64), fits[0]) + fits[1][:, None]
    return logits_to_proba(z)


def reference(X: np.ndarray, y: np.ndarray, case: Case) -> Fits:
    """The optima, in float64."""
    if case.soft or case.d > case.n:
        path = logistic_path(X, labels(y), PENALTIES, dtype="float64", tol=1e-11)
        return path.coef_, path.intercept_
    return sklearn_fits(X.astype(np.float64), y, solver="newton-cholesky", tol=1e-10)


def compare(bench: Bench, case: Case) -> dict[str, float]:
    """Time a case beside its peers; the ratios."""
    X, y = states(case.n, case.d, case.classes, case.decay)
    if case.soft:
        y = soft_labels(X, y)
    folds = np.arange(case.n) % 5
    exact = proba(X, reference(X, y, case))

    def off(fits: Fits) -> float:
        return float(np.abs(proba(X, fits) - exact).max())

    ways: dict[str, Callable[[], Fits]] = {
        "probekit": lambda: ours(X, y),
        "probekit, 5 folds": lambda: ours(X, y, folds),
        "nine torch L-BFGS fits in float32": lambda: torch_fits(X, y),
        "nine torch L-BFGS fits": lambda: torch_fits(X, y, **EXACT_TORCH),
    }
    if not case.soft:
        wide = X.astype(np.float64)
        ways["nine scikit-learn lbfgs fits"] = lambda: sklearn_fits(wide, y, **EXACT_SKLEARN)
    made: dict[str, Fits] = {}

    def keep(way: str) -> Callable[[], None]:
        def go() -> None:
            made[way] = ways[way]()

        return go

    keep("probekit")()  # imports and threads
    times = bench.times({way: keep(way) for way in ways}, warmup=0)
    error = {way: off(fits) for way, fits in made.items()}
    # With more columns than rows a pass is cheap for everybody.
    torch_aim = ">= 10" if case.d > case.n else ">= 20"
    aims = {"nine torch L-BFGS fits": torch_aim, "nine scikit-learn lbfgs fits": ">= 50"}
    figures: dict[str, Any] = {**case._asdict(), "seconds": dict(times), "proba_error": error}
    figures |= {"case": case.name, "threads": torch.get_num_threads()}
    ratios = {}
    for way in list(ways)[1:]:
        is_folds = way.startswith("probekit")
        ratios[way] = times.ratio(way, "probekit")
        mine, peer = (way, "probekit") if is_folds else ("probekit", way)
        what = f"logistic path, {case.name}: "
        what += "9 penalties × 5 folds, time beside 9" if is_folds else f"speed beside {way}"
        bench.claim(
            Claim(
                what,
                f"{times[mine]:.2f} s",
                f"{times[peer]:.2f} s",
                ratios[way],
                "<= 3" if is_folds else aims.get(way, ""),
                f"error of P {error[mine]:.0e}, {error[peer]:.0e}",
                agrees=error["probekit"] <= PROMISED,
            ),
            **figures,
        )
    return ratios


def write_states(path: Path, n: int, d: int) -> np.ndarray:
    """Write float32 states to disk in blocks, all with the same noise; their labels."""
    X = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, d))
    rng = np.random.default_rng(0)
    turn = rng.standard_normal((64, d), dtype=np.float32)
    w = rng.standard_normal(64, dtype=np.float32)
    y = np.empty(n, dtype=np.int64)
    noise = rng.standard_normal((min(50_000, n), d), dtype=np.float32)
    for start in range(0, n, 50_000):
        latent = rng.standard_normal((min(50_000, n - start), 64), dtype=np.float32)
        X[start : start + len(latent)] = latent @ turn + noise[: len(latent)]
        y[start : start + len(latent)] = latent @ w + 4 * rng.standard_normal(len(latent)) > 0
    X.flush()
    return y


def disk(bench: Bench, n: int, d: int) -> None:
    """Fit float32 states that are larger than the memory that a fit may take."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "states.npy"
        y = write_states(path, n, d)
        X = np.load(path, mmap_mode="r")
        usual = logistic_design.COPY_BYTES
        logistic_design.COPY_BYTES = min(usual, X.nbytes // 2)  # small ones are read in passes too
        start = time.perf_counter()
        with Watch() as watch:
            ours(X, y)
        seconds = time.perf_counter() - start
        some = slice(n // 20)
        logistic_design.COPY_BYTES = usual
        copied = ours(X[some], y[some])[0]
        logistic_design.COPY_BYTES = 0
        same = float(np.abs(ours(X[some], y[some])[0] - copied).max())
        logistic_design.COPY_BYTES = usual
    bench.claim(
        Claim(
            f"logistic path of {n * d * 4 / 1e9:.1f} GB on disk, anonymous memory",
            f"{watch.peak / 1024:.2f} GiB ({seconds:.0f} s)",
            "2 GiB",
            watch.peak / 1024 / 2,
            "<= 0.1",
            f"read in passes and copied: coefficients differ by {same:.0e}",
            agrees=same <= 1e-6,
        ),
        seconds=seconds,
        anonymous_mib=watch.peak,
    )


class Watch:
    """Highest anonymous resident memory of this process, in MiB, above where it stood."""

    def __enter__(self) -> Watch:
        self.start = self.peak = self._now()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        self.peak -= self.start

    def _look(self) -> None:
        while not self.done.wait(0.02):
            self.peak = max(self.peak, self._now())

    @staticmethod
    def _now() -> float:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return float(status.split("RssAnon:")[1].split()[0]) / 1024


def measure(bench: Bench, asked: argparse.Namespace) -> None:
    """Every case, and states on disk."""
    warnings.simplefilter("ignore")
    cases = [
        Case(10_000, 1024),
        Case(10_000, 1024, soft=True),
        Case(2_000, 4096),
        Case(5_000, 128, classes=5),
    ]
    if bench.quick:
        cases = [case._replace(n=case.n // 10, d=case.d // 16) for case in cases]
    for case in cases:
        compare(bench, case)
    if not asked.no_disk:
        disk(bench, *((20_000, 64) if bench.quick else (1_500_000, 1024)))


if __name__ == "__main__":
    flags = parser(__doc__)
    flags.add_argument("--no-disk", action="store_true", help="leave out the 6 GB on disk")
    given = flags.parse_args()
    sys.exit(run("logistic_path", given, lambda bench: measure(bench, given)))
