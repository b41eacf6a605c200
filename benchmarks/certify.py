"""Rows that people label until at most a share of the labels is wrong, with 95 % confidence.

    python benchmarks/certify.py --cache FOLDER [--models minilm mpnet] [--tasks sst2 ...]

For each strong model, task, kind of wrong labels and seed: the mean number of rows to label in all
(sample and rest) for ε = 1, 2, 5 and 10 %, of `probekit certify` and, with the same bound, of three
orders that stay as they are: at random; cleanlab's published recipe for text (self-confidence of a
5-fold logistic regression on the last layer); the ensemble's. These three get the sample size that
is best for the truth, `certify` its own, whose cost it estimates before and after the sample. The
two supervisors label softly and, as kinds of their own, hard. A line is written per case; those in
the file are skipped.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from _harness import RESULTS, append_line, done_places
from label_noise import KINDS, weak_labels
from label_states import CACHE, label_task

from probekit.activations.store import ActivationStore
from probekit.cleaning.bound import expected_reviews, smallest_samples
from probekit.cleaning.certify import Certifier
from probekit.cuts import count_of
from probekit.labels import WeakLabels

ERRORS = {0.01: 1, 0.02: 1, 0.05: 3, 0.1: 1}
"""ε, and the samples drawn of each case."""
CONFIDENCE = 0.95
TASKS = ("sst2", "twitter-sentiment", "docstrings", "tweeteval-sentiment", "cola")
KEY = ("model", "task", "kind", "seed")
HARD = {"model, hard": "model", "words, hard": "words"}
FIXED_DRAWS = 200

Array = np.ndarray[Any, Any]


def self_confidence(states: Array, hard: Array) -> Array:
    """P (n,) of each row's own label, out of fold, as cleanlab's recipe for text has it."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged after 400 steps
        P = cross_val_predict(
            LogisticRegression(max_iter=400), states, hard, cv=5, method="predict_proba"
        )
    return np.asarray(P[np.arange(len(hard)), hard])


def fixed_order(wrong: Array, max_wrong: int, rng: np.random.Generator) -> float:
    """Mean number of rows to label if rows leave in one order, errors (n,) from its start on."""
    n = len(wrong)
    sizes = smallest_samples(n, max_wrong, 1 - CONFIDENCE)
    allowed = np.arange(len(sizes))
    best = int(expected_reviews(wrong.astype(float), sizes, allowed).argmin())
    m, s = int(sizes[best]), int(allowed[best])
    totals = []
    for _ in range(FIXED_DRAWS):
        drawn = np.zeros(n, bool)
        drawn[rng.permutation(n)[:m]] = True
        hits = np.flatnonzero(drawn & wrong)
        cut = n if len(hits) <= s else int(hits[s])
        totals.append(m + int((~drawn[cut:]).sum()))
    return float(np.mean(totals))


def certified(
    certifier: Certifier, error: float, true: dict[str, str], rng: np.random.Generator
) -> dict[str, Any]:
    """Certify with several samples: rows labelled, and how often too many wrong ones are left."""
    labelled, left, sittings, after_sample = [], [], [], []
    for _ in range(ERRORS[error]):
        certifier.draw(error, CONFIDENCE, None, int(rng.integers(10**6)))
        answers: dict[str, str] = {}
        rounds = 0
        while (now := certifier.status(answers)).verdicts is None:
            answers |= {name: true[name] for name in now.ask}
            rounds += 1
            if rounds == 1:
                then = certifier.status(answers)
                after_sample.append(then.labelled + then.more)
        named = zip(now.verdicts.ids, now.verdicts.hard.tolist(), strict=True)
        classes = now.verdicts.classes
        labelled.append(len(answers))
        left.append(sum(classes[k] != true[name] for name, k in named))
        sittings.append(rounds)
    return {
        "certify": float(np.mean(labelled)),
        "labelled": labelled,
        "after_sample": after_sample,
        "sittings": float(np.mean(sittings)),
        "sample": certifier.plan.sample,
        "expected": certifier.plan.expected,
        "low": certifier.plan.low,
        "high": certifier.plan.high,
        "by_chance": certifier.plan.by_chance,
        "left": left,
        "max_wrong": certifier.max_wrong,
    }


def measure(model: str, task_name: str, kind: str, seed: int, cache: Path) -> dict[str, Any]:
    """All figures of one case."""
    begun = time.perf_counter()
    task = label_task(task_name, cache)
    store = ActivationStore(cache / model / f"{task_name}.h5")
    weaker = ActivationStore(cache / "minilm" / f"{task_name}.h5")
    noisy = weak_labels(HARD.get(kind, kind), task.texts, task.truth, weaker, seed)
    rows, hard, weak = noisy.rows, noisy.hard, noisy.weak
    if kind in HARD:
        weak = np.eye(weak.shape[1])[hard]
    wrong = hard != task.truth[rows]
    ids = [task.ids[i] for i in rows]
    names = tuple(map(str, range(weak.shape[1])))
    true = dict(zip(task.ids, map(str, task.truth.tolist()), strict=True))
    certifier = Certifier(store, WeakLabels(ids, None, weak, names), only_labelled=True)
    rng = np.random.default_rng(list(f"{model} {task_name} {kind} {seed}".encode()))
    last = np.asarray(store.read(store.layers[-1], rows))
    doubts = {
        "random": rng.random(len(rows)),
        "cleanlab": 1 - self_confidence(last, hard),
        "ensemble": certifier.doubt,
    }
    orders = {name: wrong[np.argsort(doubt, kind="stable")] for name, doubt in doubts.items()}
    figures = {}
    for error in ERRORS:
        max_wrong = count_of(error, len(rows))
        figures[str(error)] = {
            name: fixed_order(order, max_wrong, rng) for name, order in orders.items()
        } | certified(certifier, error, true, rng)
    case = dict(zip(KEY, (model, task_name, kind, seed), strict=True))
    seconds = round(time.perf_counter() - begun)
    return {
        **case,
        "rows": len(rows),
        "wrong": int(wrong.sum()),
        "errors": figures,
        "seconds": seconds,
    }


def main() -> None:
    """Measure the cases that the file does not have."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, default=CACHE, help="of benchmarks/label_states.py")
    parser.add_argument("--models", nargs="*", default=["minilm", "mpnet"])
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--kinds", nargs="*", default=(*KINDS, *HARD))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--results", type=Path, default=RESULTS / "certify.jsonl")
    options = parser.parse_args()
    done = done_places(options.results, KEY)
    for seed in options.seeds:
        for task in options.tasks:
            for kind in options.kinds:
                for model in options.models:
                    if (model, task, kind, seed) in done:
                        continue
                    case = measure(model, task, kind, seed, options.cache)
                    append_line(options.results, case)
                    five = case["errors"]["0.05"]
                    shown = {k: round(v) for k, v in five.items() if isinstance(v, float)}
                    print(model, task, kind, seed, shown, case["seconds"], "s", flush=True)


if __name__ == "__main__":
    main()
