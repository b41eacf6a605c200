"""A path of nine penalties: one computation against nine scikit-learn and nine torch fits.

    python benchmarks/logistic_path.py [--runs 3] [--disk]

Times are medians of interleaved runs, so a busy machine slows all alike; ratios are what counts.
Errors are the largest differences of any coefficient, at any penalty, from scikit-learn's
newton-cholesky in float64 (in the widest case, where that takes minutes, from probekit in float64).
``--disk`` fits 6 GB of states on disk as well and reports the highest anonymous memory seen (the
states are memory-mapped; their pages are the system's to take back).
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _harness import interleaved, record, seconds, table
from sklearn.linear_model import LogisticRegression

from probekit.probes import logistic_rows
from probekit.probes.logistic import logistic_path

PENALTIES = np.logspace(-4, 0, 9)
TOL = 1e-5


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


def ours(X: np.ndarray, y: np.ndarray, folds: np.ndarray | None = None) -> np.ndarray:
    return logistic_path(X, y, PENALTIES, tol=TOL, folds=folds).coef_


def sklearn_fits(X: np.ndarray, y: np.ndarray, **options: object) -> np.ndarray:
    fits = [
        LogisticRegression(C=1 / (2 * l2 * len(y)), max_iter=10_000, **options).fit(X, y)
        for l2 in PENALTIES
    ]
    return np.stack([fit.coef_ for fit in fits])


def torch_fits(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Nine L-BFGS fits with strong Wolfe steps, as in EleutherAI's w2s."""
    x, target = torch.from_numpy(X), torch.from_numpy(y)
    classes = int(y.max()) + 1
    out = []
    for l2 in PENALTIES.tolist():
        linear = torch.nn.Linear(X.shape[1], 1 if classes == 2 else classes)
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
        optimizer = torch.optim.LBFGS(
            linear.parameters(),
            max_iter=10_000,
            tolerance_grad=TOL,
            tolerance_change=torch.finfo(torch.float32).eps,
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
                loss = torch.nn.functional.binary_cross_entropy_with_logits(z[:, 0], target.float())
            else:
                loss = torch.nn.functional.cross_entropy(z, target)
            loss = loss + l2 * linear.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        out.append(linear.weight.detach().numpy().copy())
    return np.stack(out)


def compare(name: str, n: int, d: int, classes: int, decay: float, runs: int) -> list[str]:
    X, y = states(n, d, classes, decay)
    folds = np.arange(n) % 5
    if d <= 1024:
        exact = sklearn_fits(X.astype(np.float64), y, solver="newton-cholesky", tol=1e-10)
    else:  # where newton-cholesky takes minutes
        exact = logistic_path(X, y, PENALTIES, dtype="float64", tol=1e-11).coef_
    peers: dict[str, Callable[[], np.ndarray]] = {
        "probekit": lambda: ours(X, y),
        "probekit, 5 folds": lambda: ours(X, y, folds),
        "torch L-BFGS": lambda: torch_fits(X, y),
        "scikit-learn lbfgs": lambda: sklearn_fits(X, y, solver="lbfgs", tol=TOL),
    }
    error: dict[str, float] = {}

    def keep(peer: str) -> Callable[[], None]:
        def run() -> None:
            error[peer] = float(np.abs(peers[peer]() - exact).max())

        return run

    time = interleaved({peer: keep(peer) for peer in peers}, runs, warmup=1)
    ratio = {peer: time[peer] / time["probekit"] for peer in peers}
    if not name.startswith("small"):
        record(
            "logistic_path",
            {"case": name, "n": n, "d": d, "classes": classes, "decay": decay}
            | {
                "penalties": len(PENALTIES),
                "threads": torch.get_num_threads(),
                "tol": TOL,
                "runs": runs,
                "seconds": time,
                "ratio": ratio,
                "coef_error": error,
            },
        )
    cells = [f"{seconds(time[p])} ({ratio[p]:.1f}x, {error[p]:.0e})" for p in peers]
    return [name, *cells]


def disk(n: int = 1_500_000, d: int = 1024) -> None:
    """Fit float32 states larger than the memory that a fit may take."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "states.npy"
        X = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, d))
        rng = np.random.default_rng(0)
        turn = rng.standard_normal((64, d), dtype=np.float32)
        w = rng.standard_normal(64, dtype=np.float32)
        y = np.empty(n, dtype=np.int64)
        for start in range(0, n, 50_000):
            latent = rng.standard_normal((min(50_000, n - start), 64), dtype=np.float32)
            X[start : start + len(latent)] = latent @ turn + rng.standard_normal(
                (len(latent), d), dtype=np.float32
            )
            y[start : start + len(latent)] = latent @ w + 4 * rng.standard_normal(len(latent)) > 0
        X.flush()
        del X
        X = np.load(path, mmap_mode="r")
        with Watch() as watch:
            time = interleaved({"disk": lambda: ours(X, y)}, 1, warmup=0)["disk"]
        some = slice(200_000)  # few enough to be copied, unless that is forbidden
        copied = ours(X[some], y[some])
        logistic_rows.COPY_BYTES = 0
        same = float(np.abs(ours(X[some], y[some]) - copied).max())
    row = {"case": "disk", "n": n, "d": d, "gigabytes": n * d * 4 / 1e9, "seconds": time}
    record("logistic_path", row | {"anonymous_mib": watch.peak, "against_memory": same})
    print(
        f"{n * d * 4 / 1e9:.1f} GB on disk: {seconds(time)}, {watch.peak:.0f} MiB anonymous "
        f"memory; its first {some.stop:,} rows read in passes and copied: coefficients differ by "
        f"{same:.0e}"
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--disk", action="store_true")
    parser.add_argument(
        "--small",
        action="store_true",
        help="a tenth of the rows, a quarter of the width, nothing recorded",
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    cases = [
        ("10,000 x 1,024", 10_000, 1024, 2, 1.0),
        ("10,000 x 1,024, decay 1.5", 10_000, 1024, 2, 1.5),
        ("2,000 x 4,096, decay 1.5", 2_000, 4096, 2, 1.5),
        ("5,000 x 512, 5 classes", 5_000, 512, 5, 1.0),
    ]
    if options.small:
        cases = [(f"small {name}", n // 10, d // 4, *rest) for name, n, d, *rest in cases]
    header = ["nine penalties", "probekit", "with 5 folds", "9 torch", "9 scikit-learn"]
    print(table(header, [compare(*case, options.runs) for case in cases]))
    print("In brackets: time relative to probekit, largest coefficient error.")
    print("Aims: scikit-learn >= 20x, torch >= 10x, folds <= 3x, probekit's error <= 1e-3.")
    if options.disk:
        disk()


if __name__ == "__main__":
    main()
