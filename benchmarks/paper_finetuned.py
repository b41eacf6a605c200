"""The paper's experiments that finetune, each as one command of probekit.

    python benchmarks/paper_finetuned.py --only saliency --output OWN   one of them
    python benchmarks/paper_finetuned.py                                what the results lack
    python benchmarks/paper_finetuned.py --commands                     print the commands

Whether finetuning on weak labels makes a concept salient (§5.2.3), whether a language-model loss
before it pays under both ceilings (§5.2.2), and a chain of models on chess moves (§4.3.1). What a
command prints with ``--json`` becomes a line of results/paper_finetuned.jsonl, without predictions.
A killed command resumes. Rows are read from ``PROBEKIT_DATA``, which all of them need.
``--models FOLDER`` holds the models by the names of weak_to_strong_rows.py; without it they come
from the hub.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _harness import RESULTS, append_line, hardware, read_lines, table
from real_files import write_puzzles
from real_tasks import text_hub
from weak_to_strong_rows import MODELS

from probekit.tasks.hub import DATASETS_VARIABLE

__all__ = ["COMMANDS", "chess_rows", "command", "language_rows", "saliency_rows"]

FILE = RESULTS / "paper_finetuned.jsonl"
FOLDER = Path.home() / ".cache" / "probekit-paper-finetuned"
SHORT = "--set finetune.batch_size=16 --set finetune.max_length=96"
ROWS = "--supervisor-rows 300 --student-rows 500 --test-rows 800 --epochs 3"
SALIENT = f"saliency --task sst2 {ROWS} --weak-lr 1e-4 --strong-lr 3e-5 {SHORT} --seeds 2"
COMMANDS = {
    "saliency": f"{SALIENT} --weak minilm@layers=1 --strong mpnet",
    "saliency-decoder": f"{SALIENT} --weak minilm@layers=1 --strong smollm2",
    "lm-first": (
        f"run --task sst2 --weak minilm@layers=1 --strong smollm2 --lm-first {ROWS} "
        f"--weak-lr 1e-4 --strong-lr 3e-5 {SHORT} --probes ensemble --actions filter "
        "--random-drops 0 --seeds 2"
    ),
    "chess-chain": (
        "run --task chess-move --chain smollm2@layers=4,smollm2@layers=8,smollm2@layers=12 "
        "--supervisor-rows 800 --student-rows 800 --test-rows 400 --epochs 4 "
        "--weak-lr 1e-4 --strong-lr 1e-4 "
        "--set finetune.batch_size=16 --probes ''"
    ),
}

Line = Mapping[str, Any]


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=tuple(COMMANDS), default=tuple(COMMANDS))
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="default: from the hub")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the runs")
    parser.add_argument("--output", type=Path, default=FILE)
    parser.add_argument("--commands", action="store_true", help="print them, run nothing")
    options = parser.parse_args()
    if options.commands:
        print("\n".join(f"probekit {COMMANDS[name]} -o runs/{name}" for name in options.only))
        return
    done = {line["experiment"] for line in read_lines(options.output)}
    with text_hub() as tasks:
        if len(tasks) == 1:
            raise SystemExit("These experiments need PROBEKIT_DATA.")
        if "chess-chain" in {*options.only} - done:
            write_puzzles(Path(os.environ["PROBEKIT_DATA"]), Path(os.environ[DATASETS_VARIABLE]))
        for name in options.only:
            if name not in done:
                words = command(name, options.models)
                append_line(options.output, measured(name, words, options.folder))
    print("\n\n".join(table(*rows(read_lines(options.output))) for rows in TABLES))


def command(name: str, models: Path | None) -> list[str]:
    """Words of an experiment's command, with models of the folder or of the hub."""

    def found(word: str) -> str:
        model, at, cut = word.partition("@")
        if model not in MODELS:
            return word
        place = MODELS[model][0] if models is None else str(models.absolute() / model)
        return f"{place}{at}{cut}"

    # A chain is several models.
    return [",".join(map(found, word.split(","))) for word in shlex.split(COMMANDS[name])]


def measured(name: str, words: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run a command; its figures, and the seconds of its steps."""
    target = folder.absolute() / name
    argv = [sys.executable, "-m", "probekit", *words, "-o", str(target), "--json"]
    # A part that failed, or gives one class only, is exit code 1: an alarm among the figures.
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout:
        raise SystemExit(f"{name}: the command ended with exit code {done.returncode}.")
    found = json.loads(done.stdout)
    seconds = {step: s for result in found["results"] for step, s in result["seconds"].items()}
    return {
        "experiment": name,
        "command": COMMANDS[name],
        **_KEPT[name](found),
        "alarms": found["failures"],
        "seconds": round(sum(seconds.values()), 1),
        "hardware": hardware(),
    }


def _saliency(found: Line) -> dict[str, Any]:
    (task,) = found["pairs"][0]["tasks"]
    ends = ("mean", "low", "high")
    return {
        "supervisor": task["weak_accuracy"],
        "labels": task["label_accuracy"],
        "bars": {
            bar["name"]: [bar[end] for end in ends] + [(bar["chosen"] or bar)["mean"]]
            for bar in task["bars"]
        },
        "gap_closed": {
            name: [task[key][end] for end in ("value", "low", "high")]
            for name, key in (("last layer", "gap_closed"), ("chosen", "gap_closed_chosen"))
        },
    }


def _language(found: Line) -> dict[str, Any]:
    seeds = [
        {
            "supervisor": result["arms"][0]["accuracy"],
            "starts": result["starts"],
            "perplexity": list(result["language_model"].values()),
        }
        for result in found["results"]
    ]
    return {"seeds": seeds}


def _chess(found: Line) -> dict[str, Any]:
    kept = ("name", "kind", "rows", "label_accuracy", "accuracy", "pgr", "gain")
    (chain,) = found["results"]
    return {"arms": [{key: arm[key] for key in kept} for arm in chain["arms"]]}


_KEPT = {"lm-first": _language, "chess-chain": _chess}
_KEPT |= dict.fromkeys(("saliency", "saliency-decoder"), _saliency)


def saliency_rows(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Header, and one row per bar, with the gap closed below them.

    For each model the accuracy at the last layer with its interval, and at the chosen one.
    """
    own = [line for line in lines if line["experiment"].startswith("saliency")]
    header, found = ["bar"], dict[str, list[str]]()
    for line in own:
        words = line["command"].split()
        model = words[words.index("--strong") + 1]
        header += [f"{model}: last layer", "chosen layer"]
        for name, (mean, *ends, chosen) in line["bars"].items():
            low, high = (f"{100 * end:.1f}" for end in ends)
            cells = [f"{100 * mean:.1f} [{low}, {high}]", f"{100 * chosen:.1f}"]
            found.setdefault(name, []).extend(cells)
        closed = line["gap_closed"].values()
        found.setdefault("gap closed", []).extend(_closed(*each) for each in closed)
    return header, [[name, *cells] for name, cells in found.items()]


def _closed(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if low is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def language_rows(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Header, and one row per seed and start: student, ceiling, PGR under both ceilings."""
    header = ["seed", "start", "supervisor", "student", "ceiling"]
    header += ["PGR: ceiling without", "ceiling with"]
    rows = []
    for line in (line for line in lines if line["experiment"] == "lm-first"):
        for seed, found in enumerate(line["seeds"]):
            for start in found["starts"]:
                shown = (found["supervisor"], start["student"], start["ceiling"])
                pgr = [each["pgr"] for each in start["pgr"].values()]
                rows.append(
                    [
                        str(seed),
                        start["start"],
                        *(f"{100 * value:.1f}" for value in shown),
                        *("-" if value is None else f"{value:.2f}" for value in pgr),
                    ]
                )
    return header, rows


def chess_rows(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Header, and one row per model of the chain: right labels and right moves."""
    rows = []
    for line in (line for line in lines if line["experiment"] == "chess-chain"):
        for arm in line["arms"]:
            shown = (arm["label_accuracy"], arm["accuracy"])
            cells = ("-" if value is None else f"{100 * value:.1f}" for value in shown)
            rows.append([arm["name"], *cells])
    return ["model", "labels right", "moves right"], rows


TABLES = (saliency_rows, language_rows, chess_rows)

if __name__ == "__main__":
    main()
