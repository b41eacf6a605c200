"""What a few true labels are worth to find wrong labels: trusted labels on top of the ensemble.

Tasks x strong models x six kinds of wrong labels x seeds (label_noise.py), 50, 100 and 400 true
labels of random rows, 20 draws of these (``--draws``). Each case is one line of
results/trust.jsonl with the means over the draws; finished lines are not repeated.
``--models minilm=FOLDER mpnet=FOLDER`` reads checkpoints from folders, by default from the hub;
``--cache`` keeps their states. ``--tasks docstrings-12`` has twelve classes.

Beside probekit's model stand a logistic regression without the ensemble as offset, and the form
of the paper (https://arxiv.org/abs/2606.01000), a perceptron on the supervisor's last hidden
states: trained on the same true labels, and on the supervisor's own labelled rows (out of fold).
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from _harness import RESULTS, append_line, done_places
from label_errors import figures
from label_noise import KINDS, WEAKER_LAYERS, NoisyLabels, weak_labels
from label_states import CACHE, MODELS, TASKS, LabelTask, case_states, model_folders
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probekit.activations.store import ActivationStore
from probekit.cleaning.predict import score_rows
from probekit.cleaning.trust import UNKNOWN, TrustModel
from probekit.cleaning.trusted import other_probes
from probekit.cuts import largest, prior_matched
from probekit.labels import WeakLabels

Array = np.ndarray[Any, Any]

FILE = RESULTS / "trust.jsonl"
SIZES = (50, 100, 400)
DRAWS, PERCEPTRONS = 20, 3  # a perceptron takes a hundred times as long
COMPONENTS = 8
DROPPED = 0.2


def main() -> None:
    """Append the lines that the file lacks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--only", choices=tuple(MODELS), help="one of the models as the strong one")
    parser.add_argument("--models", nargs="*", metavar="NAME=FOLDER", help="default: from the hub")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for the states")
    parser.add_argument("--output", type=Path, default=FILE)
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    models = model_folders(options.models)
    done = done_places(options.output, PLACE)
    for seed in range(options.seeds):
        for name in options.tasks:
            for model in models if options.only is None else (options.only,):
                for kind in options.kinds:
                    place = (model, name, kind, seed)
                    if place in done:
                        continue
                    task, weaker, store = case_states(name, model, models, options.cache)
                    line = dict(zip(PLACE, place, strict=True))
                    line |= measure(task, store, weaker, kind, seed, options.draws)
                    append_line(options.output, line)


PLACE = ("model", "task", "kind", "seed")


def measure(
    task: LabelTask,
    store: ActivationStore,
    weaker: ActivationStore,
    kind: str,
    seed: int,
    draws: int,
) -> dict[str, Any]:
    """Figures of the ensemble and, as means over draws, of everything that learns from labels."""
    noisy = weak_labels(kind, task.texts, task.truth, weaker, seed)
    truth, hard, n = task.truth[noisy.rows], noisy.hard, len(noisy.rows)
    names = tuple(map(str, range(noisy.weak.shape[1])))
    labels = WeakLabels([store.ids[i] for i in noisy.rows], None, noisy.weak, names)
    scored = score_rows(store, labels, seed=seed, only_labelled=True)
    supervisor = weaker.layer(WEAKER_LAYERS[seed % 2])[noisy.rows].astype(np.float64)
    # Of the components only the space counts, so they are found once, not in every draw.
    strong, weak, others = leading(scored.X), leading(supervisor), other_probes(scored, store)
    means: dict[str, list[dict[str, float]]] = {}

    def add(arm: str, P: Array) -> None:
        means.setdefault(arm, []).append(all_figures(P, hard, truth))

    add("ensemble", scored.proba)
    if kind == "model":
        own = trained_on_own_rows(task, noisy, weaker.layer(WEAKER_LAYERS[seed % 2]), supervisor)
        add("perceptron, the supervisor's rows", shared(own, scored.proba, hard))
    for m in SIZES:
        for draw in range(draws):
            chosen = np.random.default_rng([seed, m, draw]).permutation(n)[:m]
            known = np.full(n, UNKNOWN)
            known[chosen] = truth[chosen]
            given = (scored.proba, noisy.weak, known)
            add(f"trust {m}", TrustModel().fit(*given, strong, others=others).proba_)
            add(f"trust {m}, one probe", TrustModel().fit(*given, strong).proba_)
            if kind == "model":
                both = TrustModel().fit(*given, strong, weak, others).proba_
                add(f"trust {m}, supervisor's states", both)
            right = truth[chosen] == hard[chosen]
            if right.all() or not right.any():
                continue
            free = no_offset(scored.proba, noisy.weak, chosen, right)
            add(f"no offset {m}", shared(free, scored.proba, hard))
            if draw < PERCEPTRONS and m == max(SIZES):
                theirs = perceptron(supervisor[chosen], right, supervisor)
                add(f"perceptron {m}", shared(theirs, scored.proba, hard))
    result: dict[str, Any] = {"rows": n, "draws": draws}
    result["weak right"] = round(float((hard == truth).mean()), 4)
    for arm, each in means.items():
        result[arm] = {
            name: round(float(np.mean([one[name] for one in each])), 4) for name in each[0]
        }
        if len(each) > 1:
            result[arm]["spread"] = round(float(np.std([one["all"] for one in each])), 4)
    return result


def all_figures(P: Array, hard: Array, truth: Array) -> dict[str, float]:
    """How well P ranks wrong labels, and the share of right ones after a relabel or a filter."""
    rows, wrong = np.arange(len(P)), hard != truth
    score = 1 - P[rows, hard]
    size = np.bincount(hard, minlength=P.shape[1])
    dropped = largest(score, [int(DROPPED * k) for k in size], hard).selected
    return figures(score, hard, wrong) | {
        "matched": float((prior_matched(P, size / len(P)) == truth).mean()),
        "likeliest": float((P.argmax(axis=1) == truth).mean()),
        "kept": float(1 - wrong[~dropped].mean()),
    }


def leading(X: Array) -> Array:
    """Leading components (n, k) of standardised columns."""
    X = StandardScaler().fit_transform(X.astype(np.float32))
    return np.asarray(PCA(COMPONENTS, svd_solver="randomized", random_state=0).fit_transform(X))


def shared(right: Array, P: Array, hard: Array) -> Array:
    """Class probabilities (n, C) with P(right) of the weak class."""
    rows, others = np.arange(len(P)), np.maximum(P, 1e-6)
    others[rows, hard] = 0
    proba = others * ((1 - right) / others.sum(axis=1))[:, None]
    proba[rows, hard] = right
    return np.asarray(proba)


def no_offset(P: Array, weak: Array, chosen: Array, right: Array) -> Array:
    """P(right) by a logistic regression on four features, with scikit-learn's penalty."""
    hard, top = weak.argmax(axis=1), np.clip(weak.max(axis=1), 1e-6, 1 - 1e-6)
    p = np.clip(P[np.arange(len(P)), hard], 1e-6, 1 - 1e-6)
    z = np.log(p / (1 - p))
    X = np.column_stack([z, np.abs(z), np.eye(weak.shape[1])[hard], np.log(top / (1 - top))])
    X = StandardScaler().fit_transform(X)
    fit = LogisticRegression().fit(X[chosen], right)
    return np.asarray(fit.predict_proba(X)[:, 1])


def perceptron(trained: Array, right: Array, states: Array) -> Array:
    """P(right) by a perceptron on the supervisor's states."""
    model = make_pipeline(
        StandardScaler(), MLPClassifier((64,), alpha=0.1, max_iter=100, random_state=0)
    )
    return np.asarray(model.fit(trained, right).predict_proba(states)[:, 1])


def trained_on_own_rows(
    task: LabelTask, noisy: NoisyLabels, states: Array, supervisor: Array
) -> Array:
    """P(right) by a perceptron that saw where the supervisor errs on its own rows, out of fold."""
    own = np.setdiff1d(np.arange(len(task.truth)), noisy.rows)
    X, y = states[own].astype(np.float64), task.truth[own]
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.003, max_iter=1000))
    right = cross_val_predict(probe, X, y, cv=5) == y
    return perceptron(X, right, supervisor)


if __name__ == "__main__":
    main()
