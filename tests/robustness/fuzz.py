"""Damage files of every kind that probekit reads, and count what its commands make of them.

Each case damages one file, by a random generator seeded with the case's number, and runs one
command on it in a forked process with limits of time and memory. What is promised is a result or
one sentence; everything else is printed with how to repeat it.

    python tests/robustness/fuzz.py --count 2600 --seed 0 --out build/fuzz
    python tests/robustness/fuzz.py --seed 0 --out build/fuzz --only 17     # with the traceback

The log is build/fuzz/log-SEED.jsonl; the same command resumes where it stopped.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).parent))

from damage import BYTES, JSON, TEXT, Damage
from inside import (
    arrays,
    header,
    parquet_column,
    parquet_metadata,
    same_hash,
    store_attribute,
    store_data,
    template,
    yaml_value,
)
from seeds import make_seeds, probekit

CPU_SECONDS, WALL_SECONDS = 40, 200
MEMORY = 6 << 30
PARQUET: dict[str, Damage] = {
    **BYTES,
    "metadata": parquet_metadata,
    "says": parquet_metadata,
    "column": parquet_column,
    "columns": parquet_column,
}
STORE: dict[str, Damage] = {
    **BYTES,
    "attribute": store_attribute,
    "spec": store_attribute,
    "data": store_data,
    "states": store_data,
}
TENSORS: dict[str, Damage] = {**BYTES, "arrays": arrays, "numbers": arrays, "header": header}
YAML: dict[str, Damage] = {**BYTES, "value": yaml_value, "field": yaml_value, "deep": TEXT["deep"]}
TEMPLATES: dict[str, Damage] = {"pieces": template, **BYTES, "deep": TEXT["deep"]}
BY_SUFFIX = {
    ".parquet": PARQUET,
    ".h5": STORE,
    ".safetensors": TENSORS,
    ".json": JSON,
    ".jsonl": JSON,
    ".csv": TEXT,
    ".tsv": TEXT,
    ".yaml": YAML,
    ".jinja": TEMPLATES,
}


@dataclass(frozen=True)
class Target:
    """Files of one kind and a command that reads them."""

    name: str
    files: tuple[str, ...]
    """What is damaged, one of these at a time; of a pattern any three of its files."""
    read: tuple[str, ...] | Callable[[str], Any]
    """Command; FILE in it is the damaged file. Or a function of its name."""
    beside: tuple[str, ...] = field(default=())
    """What else the command writes into or reads beside it, copied whole."""


def load_and_predict(file: str) -> None:
    """Load a probe and predict with it."""
    import numpy as np

    from probekit.probes import load_probe

    load_probe(Path(file).parent).predict(np.ones((3, 6), np.float32))


def read_rows(file: str) -> None:
    """Read rows with everything that commands take of them."""
    from probekit.sources import load_rows

    name = file.partition("/")[0] if file.startswith("saved/") else file
    rows = load_rows(name)
    _ = rows.ids, rows.hashes, rows.contents(), list(rows.records())


def read_labels(file: str) -> None:
    """Read labels and join them."""
    from probekit.labels import load_labels

    load_labels(file).align([f"r{i}" for i in range(48)], [""] * 48)


def read_store(file: str) -> None:
    """Read everything in a store."""
    from probekit.activations.store import ActivationStore

    with ActivationStore(file, allow_incomplete=True) as store:
        _ = store.ids, store.hashes, store.n_tokens, store.truncated, store.rows_intact()
        for layer in store.layers:
            store.layer(layer)
            list(store.batches(layer, 7, shuffle=True))


def tables(name: str) -> tuple[str, ...]:
    """A table in every format."""
    formats = ("jsonl", "json", "jsonl.gz", "csv", "tsv", "parquet", "arrow")
    return tuple(f"{name}.{form}" for form in formats)


MODEL = tuple(
    f"model/{name}"
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
)
STUDENT = ("student/model/classifier.json", "student/model/classifier.safetensors")
LAYER = ("--layer", "2")
TARGETS = [
    Target("rows", (*tables("rows"), "chats.jsonl", "pairs.jsonl"), read_rows),
    Target(
        "saved data set", ("saved/dataset_info.json", "saved/state.json"), read_rows, ("saved",)
    ),
    Target("rows extracted", tables("rows"), ("extract", "FILE", "-m", "model", "-o", "new.h5")),
    Target("labels", (*tables("weak"), *tables("probs"), "wl.parquet"), read_labels),
    Target(
        "labels filtered",
        (*tables("weak"), *tables("probs"), "wl.parquet", "verdicts.parquet", "verdicts.jsonl"),
        ("filter", "acts.h5", "--labels", "FILE", *LAYER, "--only-labelled", "-o", "new.parquet"),
    ),
    Target(
        "truth",
        tables("truth"),
        (*("weak-labels", "acts.h5", "--truth", "FILE"), *LAYER, "-o", "new.parquet"),
    ),
    Target(
        "train ids",
        ("ids.txt",),
        (
            *("weak-labels", "acts.h5", "--truth", "truth.jsonl", "--train-ids", "FILE"),
            *(*LAYER, "-o", "new.parquet"),
        ),
    ),
    Target("store", ("acts.h5", "packed.h5"), read_store),
    Target("store told", ("acts.h5", "packed.h5"), ("info", "FILE")),
    Target(
        "store filtered",
        ("acts.h5",),
        ("filter", "FILE", "--labels", "weak.jsonl", *LAYER, "-o", "new.parquet"),
    ),
    Target(
        "store written to",
        ("acts.h5",),
        ("extract", "rows.jsonl", "-m", "model", "--layers", "all", "-o", "FILE"),
    ),
    Target("stores merged", ("acts.h5",), ("merge", "FILE", "acts2.h5", "-o", "new.h5")),
    Target(
        "verdicts told",
        ("verdicts.parquet", "verdicts.jsonl", "verdicts.jsonl.meta.json"),
        ("report", "VERDICTS", "--no-text", "-o", "new.html"),
        ("verdicts.jsonl", "verdicts.jsonl.meta.json"),
    ),
    Target(
        "verdicts reviewed",
        ("verdicts.parquet", "verdicts.jsonl"),
        ("review", "FILE", "--rows", "rows.jsonl", "-o", "new.csv"),
        ("verdicts.jsonl.meta.json",),
    ),
    Target(
        "review",
        ("review.csv", "review.jsonl"),
        ("review", "verdicts.parquet", "--merge", "FILE", "-o", "new.parquet"),
    ),
    Target(
        "verdicts readmitted",
        ("verdicts.parquet", "predicted.parquet"),
        ("readmit", "verdicts.parquet", "--predictions", "predicted.parquet", "-o", "new.parquet"),
    ),
    Target(
        "audit",
        ("audit.csv",),
        ("audit", "acts.h5", "--labels", "weak.jsonl", "--no-ask", "-o", "FILE"),
    ),
    Target(
        "sweep",
        ("sweep.parquet", "sweep.jsonl", "sweep.jsonl.meta.json"),
        ("report", "SWEEP", "-o", "new.html"),
        ("sweep.jsonl", "sweep.jsonl.meta.json"),
    ),
    Target(
        "run",
        ("runs/first/metrics.json", "runs/first/config.yaml"),
        ("report", "runs/first", "-o", "new.html", "--steps", "steps"),
        ("runs", "steps"),
    ),
    Target(
        "run again",
        ("runs/first/metrics.json", "runs/first/config.yaml", "steps/*/*.json"),
        ("run", "--config", "run.yaml", "-o", "runs/first", "--steps", "steps"),
        ("runs", "steps"),
    ),
    Target(
        "saliency",
        ("runs/bars/metrics.json",),
        ("report", "runs/bars", "-o", "new.html"),
        ("runs",),
    ),
    Target(
        "weak labels of a run",
        ("task.jsonl",),
        (
            *("run", "--task", "task.jsonl", "--weak-labels", "FILE", "--strong", "model"),
            *("--student", "linear", "--probes", "knn", "-o", "new", "--dry-run"),
        ),
    ),
    Target(
        "task",
        ("task.jsonl", "truth.csv", "truth.parquet"),
        (
            *("run", "--task", "FILE", "--weak", "model@layers=1", "--strong", "model"),
            *("--set", "validation_share=0.3", "-o", "new", "--dry-run"),
        ),
    ),
    Target(
        "swept",
        ("acts.h5", "weak.csv", "truth.jsonl"),
        (
            *("sweep", "acts.h5", "--labels", "weak.csv", "--truth", "truth.jsonl"),
            *("--probes", "mass-mean", "-o", "new.parquet"),
        ),
    ),
    Target(
        "saliency configuration",
        ("saliency.yaml",),
        ("saliency", "--config", "FILE", "-o", "new", "--dry-run"),
    ),
    Target("configuration", ("run.yaml",), ("run", "--config", "FILE", "-o", "new", "--dry-run")),
    Target(
        "probe",
        tuple(
            f"probe-{name}/probe.{end}"
            for name in ("knn", "logreg", "topofilter", "ensemble", "mass-mean")
            for end in ("json", "safetensors")
        ),
        load_and_predict,
        tuple(f"probe-{n}" for n in ("knn", "logreg", "topofilter", "ensemble", "mass-mean")),
    ),
    Target(
        "classifier",
        STUDENT,
        ("predict", "rows.jsonl", "-m", "student/model", "-o", "new.parquet"),
        ("student",),
    ),
    Target(
        "student again",
        ("student/run.json", "student/metrics.json"),
        (
            *("finetune", "rows.jsonl", "-m", "model", "--max-steps", "2"),
            *("--labels", "weak.jsonl", "-o", "student"),
        ),
        ("student",),
    ),
    Target(
        "checkpoint",
        ("begun/checkpoints/*/*", "begun/run.json"),
        (
            *("finetune", "rows.jsonl", "-m", "model", "--max-steps", "3"),
            *("--labels", "weak.jsonl", "-o", "begun", "--set", "save_seconds=0"),
        ),
        ("begun",),
    ),
    Target(
        "model",
        MODEL,
        ("extract", "rows.jsonl", "-m", "model", "-o", "new.h5"),
        ("model",),
    ),
    Target(
        "template",
        ("template.jinja",),
        ("extract", "rows.jsonl", "-m", "model", "--template", "FILE", "-o", "new.h5"),
    ),
    Target(
        "chat template",
        ("chat.jinja",),
        ("extract", "chats.jsonl", "-m", "model", "--template", "FILE", "-o", "new.h5"),
    ),
    Target(
        "quantization",
        ("quantization.json",),
        ("extract", "rows.jsonl", "-m", "model", "--quantization", "FILE", "-o", "new.h5"),
    ),
]


def prepare(
    number: int, seed: int, seeds: Path, work: Path, *, whole: bool = False
) -> tuple[Target, str, str]:
    """Lay out a folder with one damaged file; returns what it is for, the file and the damage.

    ``whole`` leaves the file as it is.
    """
    rng = random.Random(f"{seed}/{number}")
    target = TARGETS[number % len(TARGETS)]
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for path in seeds.iterdir():
        (work / path.name).symlink_to(path)
    (work / "acts2.h5").symlink_to(seeds / "acts.h5")
    names = []
    for pattern in target.files:
        found = sorted(str(p.relative_to(seeds)) for p in seeds.glob(pattern) if p.is_file())
        names += rng.sample(found, min(3, len(found))) if "*" in pattern else [pattern]
    name = rng.choice(names)
    for copied in {*target.beside, name.partition("/")[0]}:
        (work / copied).unlink()
        source = seeds / copied
        (shutil.copytree if source.is_dir() else shutil.copy)(source, work / copied)
    if whole:
        return target, name, "whole"
    kinds = BY_SUFFIX.get(Path(name).suffix, BYTES)
    how = rng.choice(sorted(kinds))
    data = (work / name).read_bytes()
    try:
        changed = kinds[how](data, rng)
    except Exception:  # a damage that this file is too small or too plain for
        how, changed = "flip", BYTES["flip"](data, rng)
    (work / name).write_bytes(changed)
    if name.endswith("probe.safetensors") and how in ("arrays", "numbers", "header"):
        description = work / name.replace("safetensors", "json")
        description.write_bytes(same_hash(description.read_bytes(), changed))
    return target, name, how


def command_of(target: Target, name: str) -> list[str]:
    """The command line of a case."""
    assert not callable(target.read)
    plain = name.removesuffix(".meta.json")
    return [
        plain if a in ("VERDICTS", "SWEEP") else name if a == "FILE" else a for a in target.read
    ]


def act(target: Target, name: str) -> tuple[str, str]:
    """Run a case here; returns its outcome and the reason."""
    import click

    from probekit.errors import ProbekitError

    try:
        if callable(target.read):
            target.read(name)
        else:
            probekit(*command_of(target, name))
    except (ProbekitError, click.ClickException) as error:
        text = str(error) if isinstance(error, ProbekitError) else error.format_message()
        return ("sentence" if "\n" not in text else "several lines"), text
    except click.exceptions.Exit:
        return "result", ""
    except SystemExit as error:
        return ("result" if not error.code else "sentence"), f"exit {error.code}"
    except MemoryError:
        return "sentence", "Not enough memory"
    except BaseException:
        return "traceback", traceback.format_exc()
    return "result", ""


def in_a_child(target: Target, name: str, work: Path) -> tuple[str, str]:
    """Run a case in a forked process, within limits."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        limits = {resource.RLIMIT_CPU: CPU_SECONDS, resource.RLIMIT_AS: _address_space() + MEMORY}
        for limit, value in limits.items():
            resource.setrlimit(limit, (value, value))
        os.chdir(work)
        silent = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silent, stream)
        found = act(target, name)
        with os.fdopen(write, "w", encoding="utf-8", errors="backslashreplace") as file:
            json.dump(found, file)
        os._exit(0)
    os.close(write)
    with _killed_after(child, WALL_SECONDS), os.fdopen(read, encoding="utf-8") as file:
        said = file.read()
    _, status = os.waitpid(child, 0)
    if said:
        outcome, reason = json.loads(said)
        return outcome, reason
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    slow = number in (signal.SIGXCPU, signal.SIGKILL, signal.SIGALRM)
    return ("hang" if slow else "crash"), f"signal {number}, status {status}"


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@contextlib.contextmanager
def _killed_after(child: int, seconds: int) -> Iterator[None]:
    """Kill a child that sleeps for ever, which no limit of processor time ends."""

    def kill(*_: object) -> None:
        os.kill(child, signal.SIGKILL)

    before = signal.signal(signal.SIGALRM, kill)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def warm() -> None:
    """Import what all cases need before they fork, on one thread."""
    import torch

    torch.set_num_threads(1)
    from probekit.cli.main import COMMANDS, cli

    for name in COMMANDS:
        cli.get_command(None, name)  # type: ignore[arg-type]
    import datasets  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import sklearn.neighbors  # noqa: F401
    import transformers  # noqa: F401

    import probekit.activations.extraction
    import probekit.experiments.run
    import probekit.probes
    import probekit.students.finetune
    import probekit.students.predict  # noqa: F401


def main() -> int:
    """Run the cases that the log lacks; 1 where anything but results and sentences came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=2600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--only", type=int, help="run this case here, with its traceback")
    parser.add_argument("--control", action="store_true", help="damage nothing: all are results")
    options = parser.parse_args()
    os.environ["PROBEKIT_TRACEBACK"] = "1"
    out = options.out.absolute()
    seeds, work = out / "seeds", out / f"work-{options.seed}"
    warm()
    make_seeds(seeds)
    if options.only is not None:
        target, name, how = prepare(options.only, options.seed, seeds, work)
        shown = (
            target.read
            if callable(target.read)
            else " ".join(["probekit", *command_of(target, name)])
        )
        print(f"{name} ({how}), in {work}: {shown}")
        os.chdir(work)
        print(*act(target, name), sep="\n")
        return 0
    if options.control:
        return control(seeds, work)
    log = out / f"log-{options.seed}.jsonl"
    known = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    began = {record["case"] for record in known}
    with log.open("a", encoding="utf-8") as file:
        for number in range(options.count):
            if number in began:
                continue
            start = time.monotonic()
            target, name, how = prepare(number, options.seed, seeds, work)
            outcome, reason = in_a_child(target, name, work)
            record = {
                "case": number,
                "target": target.name,
                "file": name,
                "damage": how,
                "outcome": outcome,
                "reason": reason[-4000:],
                "seconds": round(time.monotonic() - start, 2),
            }
            known.append(record)
            file.write(json.dumps(record) + "\n")
            file.flush()
            if outcome not in ("result", "sentence"):
                last = reason.strip().splitlines()[-1] if reason.strip() else ""
                print(
                    f"case {number}: {outcome} of {target.name}, {name} ({how}): {last}", flush=True
                )
                print(f"    {sys.executable} {__file__} --seed {options.seed} --only {number}")
    return summary(known)


def control(seeds: Path, work: Path) -> int:
    """Every command on whole files: what is refused here, damage would not show."""
    wrong = 0
    for number, target in enumerate(TARGETS):
        _, name, _ = prepare(number, 0, seeds, work, whole=True)
        outcome, reason = in_a_child(target, name, work)
        if outcome != "result" and "bitsandbytes, which is not installed" not in reason:
            wrong += 1
            print(f"{target.name}, {name}: {outcome}: {reason[-300:]}", flush=True)
    print(f"{len(TARGETS) - wrong} of {len(TARGETS)} commands give a result on whole files")
    return int(wrong > 0)


def summary(records: list[dict[str, Any]]) -> int:
    """Print outcomes by target."""
    outcomes = ["result", "sentence", "several lines", "traceback", "hang", "crash"]
    print(f"{'':22}" + "".join(f"{name:>15}" for name in outcomes))
    for target in [*dict.fromkeys(r["target"] for r in records), "all"]:
        found = collections.Counter(r["outcome"] for r in records if target in ("all", r["target"]))
        print(f"{target:22}" + "".join(f"{found[name]:>15,}" for name in outcomes))
    return int(any(r["outcome"] not in outcomes[:2] for r in records))


if __name__ == "__main__":
    sys.exit(main())
