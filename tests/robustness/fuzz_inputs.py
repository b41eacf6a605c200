"""Give every option of every command, every setting and every argument values that are no such.

Each case is one command line (or one call of a public function), run in a forked process with
limits of time and memory, in a copy of a folder of small good files. What is promised is a result
or one sentence, and that a command that refuses leaves nothing behind; everything else is printed
with how to repeat it.

    python tests/robustness/fuzz_inputs.py --count 4500 --seed 0 --out build/fuzz
    python tests/robustness/fuzz_inputs.py --out build/fuzz --only 17     # with the traceback

The log is build/fuzz/inputs-SEED.jsonl; the same command resumes where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).parent))

import fuzz
from seeds import make_seeds

# Command -> a command line that works where its inputs lie, quick.
GOOD = {
    "audit": "acts.h5 --labels weak.jsonl --no-ask --rows rows.jsonl -o new.csv",
    "demo": "-m nothing --student-rows 100 --test-rows 100 -o new",
    "diagnose": "acts.h5 --labels weak.jsonl",
    "extract": "rows.jsonl -m model -o new.h5",
    "filter": "acts.h5 --labels weak.jsonl --layer 2 --probe knn --k 5 -o new.parquet",
    "finetune": "rows.jsonl -m model --labels weak.jsonl --max-steps 1 -o new",
    "info": "acts.h5",
    "merge": "acts.h5 -o new.h5",
    "predict": "rows.jsonl -m student/model -o new.parquet",
    "readmit": "verdicts.parquet --predictions predicted.parquet -o new.parquet",
    "relabel": "acts.h5 --labels weak.jsonl --layer 2 --probe knn --k 5 -o new.parquet",
    "report": "verdicts.parquet --no-text -o new.html",
    "review": "verdicts.parquet --no-text -o new.csv",
    "run": "--task task.jsonl --weak model@layers=1 --strong model --probes knn -o new --dry-run",
    "saliency": "--task task.jsonl --weak model@layers=1 --strong model -o new --dry-run",
    "sweep": "acts.h5 --labels weak.jsonl --layers last --probes knn --k 5 -o new.parquet",
    "tasks list": "",
    "tasks show": "docstrings",
    "tasks export": "docstrings --split student --limit 3 -o new.jsonl",
    "weak-labels": "acts.h5 --truth truth.jsonl --layer 1 -o new.parquet",
}
LONG = "9" * 20
NASTY = (
    *("", " ", "\t", "-1", "0", "1", "2", "-0", "1.5", "0.5", "1e-2", "1e999", "-1e999", "nan"),
    *("inf", "-inf", "NaN", LONG, "-" + LONG, "9" * 4400, "1" + "0" * 400, "0x10", "1_000", "+1"),
    *("٣", "１", "½", "true", "None", "null", "auto", "all", "mid", "last", "x", "knm", "-", "--"),
    *("-x", "--help", "=", "a=b", "a=", ",", ",,", "1,,2", "1,1", "0,1", "1-", "3-1", "1:2:log"),
    *("1:500:log", "1:2:0:log", "1e-320:1:log", "1:1e300:9999999:lin", "'", '"', "\\", "*", "[*a]"),
    *("{", "é", "\u202e", "\x1b[31m", "a\nb", "a\rb", "\x7f", "\ud800", "a" * 300, "b" * 5000),
    *(".", "..", "/", "/dev/null", "/dev/zero", "/proc/self/mem", "nobody/x", "~nobody/x", "model"),
    *("pipe", "loop", "gone", "rows.jsonl", "acts.h5", "weak.jsonl", "hf:", "hf:a/b", "hf:a@b"),
    *("hf://x", "model@layers=0", "model@layers=x", "model@layers=", "m@layers=" + LONG, "cuda:0"),
    *("cuda:-1", "cuda:" + LONG, "rows.jsonl@x", "docstrings@x", "docstring", "empty", "empty.csv"),
    *("x=rows.jsonl", "../x=rows.jsonl", "=rows.jsonl", "a/b=rows.jsonl", "new.parquet", "new.txt"),
)
# Values of settings, as YAML.
VALUES = (
    *(
        "",
        "~",
        "-1",
        "0",
        "1",
        "1.5",
        "1e-2",
        "1e999",
        ".nan",
        ".inf",
        "true",
        "no",
        "'false'",
        "x",
    ),
    *(
        "[]",
        "[x]",
        "[1, 1]",
        "{}",
        "{a: 1}",
        "{1: 2}",
        "[[[1]]]",
        LONG,
        "9" * 4400,
        "0b" + "1" * 2000,
    ),
    *(
        "&a [*a]",
        "*b",
        "!!python/object/apply:os.system [x]",
        "!!int x",
        "!!binary x",
        "2024-01-01",
    ),
    *(
        "1:30",
        "'",
        "[",
        "{",
        "\u202e",
        "'\\x1b[31m'",
        "!!set {a, b}",
        "!!float nan",
        "|",
        "auto",
        "mid",
    ),
)
WALL_SECONDS, MEMORY = 120, 40 << 30
Case = tuple[str, tuple[str, ...]]


def cases() -> list[Case]:
    """Every case: what is tried, and the words of the command."""
    return [*_options(), *_flags(), *_settings(), *_calls()]


def _commands() -> Iterator[tuple[str, Any]]:
    import click

    from probekit.cli.main import cli

    context = click.Context(cli)
    for name in GOOD:
        command: Any = cli
        for part in name.split():
            command = command.get_command(context, part)
        yield name, command


def _options() -> Iterator[Case]:
    """Each option and argument with each value; what else the command needs is good."""
    import click

    for name, command in _commands():
        good = GOOD[name].split()
        for param in command.params:
            if getattr(param, "is_flag", False) or getattr(param, "hidden", False):
                continue
            for value in NASTY:
                if isinstance(param, click.Argument):
                    words = (value, *good[1:])
                else:
                    words = (*good, max(param.opts, key=len), value)
                yield f"{name} {param.name}", (*name.split(), *words)
        yield f"{name} alone", tuple(name.split())
        for flag in ("--nothing", "--overwrit", "--sed=1", "--json=1", "-Z", "extra", "--seed"):
            yield f"{name} {flag}", (*name.split(), *good, flag)


def _flags() -> Iterator[Case]:
    """Each flag, and each two of a command's options together."""
    for name, command in _commands():
        flags = [o for p in command.params if getattr(p, "is_flag", False) for o in _names(p)]
        chosen = [(c,) for c in flags] + list(itertools.combinations(flags, 2))
        for some in chosen:
            yield f"{name} flags", (*name.split(), *GOOD[name].split(), *some)


def _names(param: Any) -> list[str]:
    return [max(param.opts, key=len), *param.secondary_opts]


def _settings() -> Iterator[Case]:
    """Each setting of a training and each field of a run, on the command line and in a file."""
    import dataclasses

    from probekit.experiments.config import RunConfig
    from probekit.students.config import FinetuneConfig

    trained = [each.name for each in dataclasses.fields(FinetuneConfig)]
    fields = [each.name for each in dataclasses.fields(RunConfig)]
    nested = [f"finetune.{name}" for name in trained[::4]]
    nested += ["probe_options.knn.k", "probe_options.logreg.l2", "probe_options.logreg.standardize"]
    nested += [
        "action_options.filter.contamination",
        "action_options.relabel.blend",
        "extract.pool",
    ]
    nested += ["extract.max_length", "loss_options.logconf.a_max", "seeds.x", "a.b.c.d", "", "."]
    for value in VALUES:
        for name in [*trained, "lora_rnk", "", " "]:
            words = ("finetune", *GOOD["finetune"].split(), "--lora", "--set", f"{name}={value}")
            yield f"finetune --set {name}", words
        for name in ("a_max", "warmup", "buffer_size", "x"):
            words = ("finetune", *GOOD["finetune"].split(), "--loss", "logconf")
            yield f"finetune --loss-option {name}", (*words, "--loss-option", f"{name}={value}")
        for name in [*fields, *nested]:
            yield f"run --set {name}", ("run", *GOOD["run"].split(), "--set", f"{name}={value}")
        for name in fields:
            text = f"task: task.jsonl\nweak: model@layers=1\nstrong: model\n{name}: {value}\n"
            yield f"run file {name}", ("FILE", text)


# Names of public functions -> a call, of which one argument is replaced.
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "filter_labels": ("probekit.cleaning.predict", {"labels": "weak.jsonl", "probe": "knn"}),
    "relabel": ("probekit.cleaning.predict", {"labels": "weak.jsonl", "probe": "knn"}),
    "diagnose": ("probekit.cleaning.diagnose", {}),
    "draw_rows": ("probekit.cleaning.audit", {}),
    "weak_labels": ("probekit.cleaning.weak_supervisor", {}),
    "extract": ("probekit.activations.extraction", {"output": "new.h5"}),
    "make_loss": ("probekit.students.losses", {"total_steps": 5}),
    "KNNProbe": ("probekit.probes", {}),
    "LogisticProbe": ("probekit.probes", {}),
    "TopoFilterProbe": ("probekit.probes", {}),
    "EnsembleProbe": ("probekit.probes", {}),
    "SweepSettings": ("probekit.experiments.sweep_probes", {"layers": (1,)}),
}
PYTHON: dict[str, Any] = {
    "text": "x",
    "empty": "",
    "false": "false",
    "nan": float("nan"),
    "inf": float("inf"),
    "-1": -1,
    "0": 0,
    "half": 0.5,
    "huge": 10**400,
    "true": True,
    "list": [1],
    "empty list": [],
    "dict": {"a": 1},
    "object": object(),
    "bytes": b"x",
}


def _calls() -> Iterator[Case]:
    """Each keyword argument of each public function with each value."""
    import importlib
    import inspect

    for name, (module, _) in CALLS.items():
        function = getattr(importlib.import_module(module), name)
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD or parameter.name in ("store", "states"):
                continue
            for value in PYTHON:
                yield f"{name}({parameter.name})", ("CALL", name, parameter.name, value)


def call(name: str, argument: str, value: str) -> None:
    """Call a public function with one argument replaced."""
    import importlib

    import numpy as np

    from probekit.activations.store import ActivationStore
    from probekit.labels import load_labels

    module, given = CALLS[name]
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    replaced = {**given, argument: PYTHON[value]}
    X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    y = (X[:, 0] > 0).astype(int)
    with ActivationStore("acts.h5") as store:
        if name.endswith("Probe"):
            function(**replaced).fit(X, y)
        elif name in ("filter_labels", "relabel"):
            function(store, **{"layer": 1, **replaced})
        elif name in ("diagnose", "draw_rows"):
            function(store, **{"labels": load_labels("weak.jsonl"), **replaced})
        elif name == "weak_labels":
            function(store, **{"truth": load_labels("truth.jsonl"), "layer": 1, **replaced})
        elif name == "extract":
            function(**{"rows": "rows.jsonl", "model": "model", **replaced}).close()
        elif name == "make_loss":
            function(**{"name": "logconf", "weak": np.eye(2)[y], **replaced})
        else:
            function(**replaced)


def target_of(case: Case) -> fuzz.Target:
    """The case as the harness of damaged files runs it."""
    what, words = case
    if words[0] == "CALL":
        return fuzz.Target(what, (), lambda _: call(*words[1:]))
    if words[0] == "FILE":

        def read(_: str) -> None:
            Path("run.yaml").write_text(words[1], encoding="utf-8", errors="surrogatepass")
            fuzz.probekit("run", "--config", "run.yaml", "-o", "new", "--dry-run")

        return fuzz.Target(what, (), read)
    return fuzz.Target(what, (), words)


def lay_out(seeds: Path, work: Path) -> dict[str, tuple[int, int]]:
    """Copy the good files, beside some that are none; returns what is there."""
    work.mkdir(parents=True, exist_ok=True)
    for path in work.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for path in seeds.iterdir():
        if path.is_dir() and path.name in ("model", "student"):
            shutil.copytree(path, work / path.name)
        elif path.is_file():
            shutil.copyfile(path, work / path.name)
    os.mkfifo(work / "pipe")
    (work / "loop").symlink_to("loop")
    (work / "empty").mkdir()
    (work / "empty.csv").touch()
    return contents(work)


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Files below a folder with size and time."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        if not path.is_dir() or path.is_symlink():
            found[str(path.relative_to(folder))] = (status.st_size, status.st_mtime_ns)
    return found


def try_all(
    numbers: list[int], case_of: Callable[[int], Case], seeds: Path, work: Path
) -> Iterator[tuple[int, str, str]]:
    """Run cases one after the other in a forked process, and in another one after a crash."""
    left = list(numbers)
    while left:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            _in_the_child(left, case_of, seeds, work, write)
        os.close(write)
        with os.fdopen(read, "rb", buffering=0) as pipe:
            for line in _lines(pipe, child):
                number, outcome, reason = json.loads(line)
                left.remove(number)
                yield number, outcome, reason
        _, status = os.waitpid(child, 0)
        if left and status:  # it ended in the first of those that are left
            hung = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            yield left.pop(0), "hang" if hung else "crash", f"status {status}"


def _in_the_child(
    numbers: list[int], case_of: Callable[[int], Case], seeds: Path, work: Path, write: int
) -> None:
    limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, limit))
    before = lay_out(seeds, work)
    os.chdir(work)
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silent, stream)
    for number in numbers:
        case = case_of(number)
        outcome, reason = fuzz.act(target_of(case), "")
        after = contents(work)
        changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
        if changed:
            before = lay_out(seeds, work)
            os.chdir(work)
        # The truth is opened when all else is done and written.
        late = case[0].endswith(" truth")
        if outcome == "sentence" and changed - {"run.yaml"} and not late:
            outcome, reason = "left behind", f"{sorted(changed)} after: {reason}"
        os.write(write, json.dumps([number, outcome, reason[-4000:]]).encode() + b"\n")
    os._exit(0)


def _lines(pipe: Any, child: int) -> Iterator[bytes]:
    """Lines of a child, which is killed where none comes for long."""
    waiting = b""
    while True:
        if not select.select([pipe], [], [], WALL_SECONDS)[0]:
            os.kill(child, signal.SIGKILL)
            return
        part = pipe.read(1 << 16)
        if not part:
            return
        *lines, waiting = (waiting + part).split(b"\n")
        yield from lines


def main() -> int:
    """Run the cases that the log lacks; 1 where anything but results and sentences came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=4500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--only", type=int)
    parser.add_argument("--matching", default="", help="Only cases whose name begins so.")
    options = parser.parse_args()
    os.environ["PROBEKIT_TRACEBACK"] = "1"
    out = options.out.absolute()
    seeds, work = out / "seeds", out / f"inputs-{options.seed}"
    fuzz.warm()
    make_seeds(seeds)
    every = cases()
    order = random.Random(options.seed).sample(range(len(every)), len(every))
    if options.only is not None:
        case = every[order[options.only]]
        lay_out(seeds, work)
        print(f"{case[0]}, in {work}: {case[1]!r:.500}")
        os.chdir(work)
        print(*fuzz.act(target_of(case), ""), sep="\n")
        return 0
    log = out / f"inputs-{options.seed}.jsonl"
    known = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    began = {record["case"] for record in known}
    numbers = [
        number
        for number in range(min(options.count, len(every)))
        if number not in began and every[order[number]][0].startswith(options.matching)
    ]
    with log.open("a", encoding="utf-8") as file:
        found = try_all(numbers, lambda number: every[order[number]], seeds, work)
        for number, outcome, reason in found:
            what, words = every[order[number]]
            record = {
                "case": number,
                "target": what.split()[0].split("(")[0],
                "what": what,
                "words": [word[:200] for word in words],
                "outcome": outcome,
                "reason": reason,
            }
            known.append(record)
            file.write(json.dumps(record) + "\n")
            file.flush()
            if outcome not in ("result", "sentence"):
                last = reason.strip().splitlines()[-1] if reason.strip() else ""
                print(f"case {number}: {outcome} of {what}, {words[-1]!r:.80}: {last:.300}")
                print(f"    {sys.executable} {__file__} --only {number}", flush=True)
    return fuzz.summary(known)


if __name__ == "__main__":
    sys.exit(main())
