"""Kill commands at any moment, run them again, and compare with what was never killed.

    python tests/robustness/kill.py --kills 300 [--only finetune,run,sweep] [--minutes 30]

A child is forked from a process that has imported everything, and killed with SIGKILL after a
random time, or, where ``strace`` is there, at a random call that changes the disk. The same command
then runs to its end (sometimes after further kills) and must give byte for byte what an unkilled
one gave and leave nothing hidden behind. Every kill is a line of the log: the script resumes where
it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CALLS = (
    "fsync,fdatasync,rename,renameat,renameat2,link,unlink,unlinkat,mkdir,mkdirat,rmdir,"
    "write,pwrite64,ftruncate,fallocate,flock,chmod"
)
# Seconds, clocks and versions of runs differ; what is computed does not.
INCIDENTAL = re.compile(
    r"seconds|runtime|per_second|versions|hardware|written|total_flos|train_loss"
)
PATIENCE = 300.0


@dataclass(frozen=True)
class Case:
    """A command that is killed, in a folder of its own, and what it leaves."""

    name: str
    words: Sequence[str]
    results: Sequence[str]
    """Files and folders that are compared."""
    before: Sequence[Sequence[str]] = field(default=())
    """Commands that run before it, unkilled."""


def cases() -> list[Case]:
    """The commands of the table."""
    finetune = ["finetune", "../rows.jsonl", "-m", "../model", "--labels", "../weak.csv"]
    often = ["--epochs", "3", "--batch-size", "16", "--set", "save_seconds=0"]
    models = ["--task", "../task.jsonl", "--weak", "../model@layers=1", "--strong", "../model"]
    few = ["--supervisor-rows", "40", "--student-rows", "60", "--test-rows", "40"]
    short = [
        "--epochs",
        "4",
        "--set",
        "finetune.lr=1e-2",
        "--set",
        "finetune.save_seconds=0.3",
        "--set",
        "finetune.batch_size=8",
    ]
    run = [*models, *few, *short, "--set", "random_drops=0", "--set", "linear_students=false"]
    stop = ["--early-stop", "log_loss", "--curves"]
    extract = ["-m", "../model", "--layers", "all", "--flush-rows", "1"]
    return [
        Case("finetune", [*finetune, *often, "--predict", "../rows.jsonl", "-o", "ft"], ["ft"]),
        Case("finetune early-stop", [*finetune, *often, *stop, "-o", "ft"], ["ft"]),
        Case(
            "finetune overwrite",
            [*finetune, *often, "--lr", "1e-3", "-o", "ft", "--overwrite"],
            ["ft"],
            before=[[*finetune, "--max-steps", "1", "-o", "ft"]],
        ),
        Case(
            "run",
            [
                "run",
                *run,
                "--probes",
                "knn",
                "--actions",
                "filter",
                "-o",
                "run",
                "--steps",
                "steps",
            ],
            ["run"],
        ),
        Case("saliency", ["saliency", *run, "-o", "sal", "--steps", "steps"], ["sal"]),
        Case(
            "sweep",
            [
                *["sweep", "../acts.h5", "--labels", "../weak.csv", "-o", "s.jsonl"],
                *["--figures", "fig", "--k", "1,5,9", "--l2", "1e-2,1"],
            ],
            ["s.jsonl", "s.jsonl.meta.json", "fig"],
        ),
        Case(
            "filter",
            [
                *["filter", "../acts.h5", "--labels", "../weak.csv", "--rows", "../rows.jsonl"],
                *["-o", "v.jsonl", "--write-data", "clean.jsonl"],
            ],
            ["v.jsonl", "v.jsonl.meta.json", "clean.jsonl"],
        ),
        Case("merge", ["merge", "../a.h5", "../b.h5", "-o", "m.h5"], ["m.h5"]),
        Case(
            "extract compare",
            ["extract", "../pairs.jsonl", *extract, "--compare", "-o", "pairs/"],
            ["pairs"],
        ),
        Case(
            "extract add-layers",
            ["extract", "../rows.jsonl", *extract, "--add-layers", "-o", "acts/"],
            ["acts"],
            before=[["extract", "../rows.jsonl", "-m", "../model", "--layers", "1", "-o", "acts/"]],
        ),
    ]


def make_inputs(folder: Path) -> None:
    """A model of random weights, rows, weak labels, and their stores."""
    import numpy as np
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(60))]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ("pad", "unk", "cls", "sep", "mask")
    special = {f"{name}_token": f"[{name.upper()}]" for name in names}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **special, model_max_length=64)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(320):
        label = int(rng.integers(2))
        chosen = rng.integers(0, 30, 8) + 30 * (rng.random(8) < 0.05 + 0.9 * label)
        rows.append(
            {"id": f"r{i}", "text": " ".join(f"w{w}" for w in chosen) + f" w{i % 60}"}
            | {"label": label}
        )
    for name, part, kept in (
        ("rows", rows[:96], ("id", "text")),
        ("a", rows[:50], ("id", "text")),
        ("b", rows[50:96], ("id", "text")),
        ("task", rows, ("id", "text", "label")),
    ):
        lines = (json.dumps({key: row[key] for key in kept}) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    with (folder / "pairs.jsonl").open("w") as file:
        for one, other in zip(rows[:48], rows[48:96], strict=True):
            pair = {"id": one["id"], "text": one["text"], "text_pair": other["text"]}
            file.write(json.dumps(pair) + "\n")
    with (folder / "weak.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label"])
        flipped = rng.random(96) < 0.2
        writer.writerows(
            (row["id"], row["label"] ^ int(flip)) for row, flip in zip(rows, flipped, strict=False)
        )
    for name, store in (("rows", "acts"), ("a", "a"), ("b", "b")):
        words = ["extract", f"{name}.jsonl", "-m", "model", "-o", f"{store}.h5", "--layers", "all"]
        assert run_to_end(words, folder) == 0


def start(words: Sequence[str], folder: Path, *, held: bool = False) -> int:
    """Fork a child that runs a command; ``held`` it stops at once, to be traced."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.chdir(folder)
        with open("out", "ab") as out, open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        if held:
            os.kill(os.getpid(), signal.SIGSTOP)
        from probekit.cli.main import cli

        cli(list(words))
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def wait(pid: int, seconds: float) -> int | None:
    """Exit code of a child, negative for a signal; None where it is still there after so long."""
    deadline = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.002)


def run_to_end(words: Sequence[str], folder: Path, *, patience: float = PATIENCE) -> int | None:
    """Exit code of an unkilled command; None where it hung and was ended."""
    pid = start(words, folder)
    code = wait(pid, patience)
    if code is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return code


def kill_after(words: Sequence[str], folder: Path, seconds: float) -> bool:
    """Kill a command after so long; false where it had ended before."""
    pid = start(words, folder)
    if wait(pid, seconds) is not None:
        return False
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def kill_at_call(words: Sequence[str], folder: Path, number: int) -> bool:
    """Kill a command at the ``number``-th call of a thread; false where none made so many."""
    return traced(words, folder, "-e", f"inject={CALLS}:signal=SIGKILL:when={number}") == -9


def traced(words: Sequence[str], folder: Path, *options: str) -> int | None:
    """Exit code of a command under strace."""
    pid = start(words, folder, held=True)
    os.waitpid(pid, os.WUNTRACED)
    strace = ["strace", "-f", "-qq", "-e", f"trace={CALLS}", *options, "-p", str(pid)]
    tracer = subprocess.Popen(strace, stderr=subprocess.DEVNULL)
    while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text():
        time.sleep(0.002)
    os.kill(pid, signal.SIGCONT)
    code = wait(pid, PATIENCE)
    if code is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    tracer.wait(20)
    return code


def count_calls(words: Sequence[str], folder: Path) -> int:
    """Calls of a whole command that change the disk."""
    log = folder.parent / "calls"
    assert traced(words, folder, "-o", str(log)) == 0
    return sum(1 for line in log.open(errors="replace") if "(" in line)


def digest(path: Path) -> str:
    """Digest of a result, clocks aside."""
    if path.suffix == ".json":
        content = json.dumps(plain(json.loads(path.read_text())), sort_keys=True).encode()
    elif path.suffix == ".h5":
        content = store_bytes(path)
    elif path.suffix == ".html":
        content = b""  # shows the seconds of steps
    else:
        content = path.read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]


def store_bytes(path: Path) -> bytes:
    """States and columns of a store."""
    from probekit.activations.store import ActivationStore

    with ActivationStore(path) as store:
        parts = [store.layer(layer, dtype=None).tobytes() for layer in store.layers]
        return b"".join([*parts, store.n_tokens.tobytes(), "\n".join(store.ids).encode()])


def plain(value: Any) -> Any:
    """JSON without what differs between two runs of one command."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if not INCIDENTAL.search(k)}
    return [plain(each) for each in value] if isinstance(value, list) else value


def result_of(case: Case, folder: Path) -> dict[str, str]:
    """Digest of every file that a command is to leave."""
    found: dict[str, str] = {}
    for name in case.results:
        root = folder / name
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if path.is_file():
                found[path.relative_to(folder).as_posix()] = digest(path)
            elif not path.exists():
                found[path.relative_to(folder).as_posix()] = "missing"
    return found


def litter(folder: Path) -> list[str]:
    """Hidden names that nobody needs once a command has ended."""
    return sorted(path.name for path in folder.rglob(".*"))


@dataclass
class Known:
    """An unkilled run of a case."""

    seconds: float
    calls: int
    result: dict[str, str]


def whole(case: Case, folder: Path, *, trace: bool) -> Known:
    """Run a case unkilled, twice: a command that differs from itself cannot be judged."""
    results = []
    for _ in range(2):
        prepare(case, folder)
        began = time.monotonic()
        code = run_to_end(case.words, folder)
        seconds = time.monotonic() - began
        assert code == 0, (folder / "out").read_text()[-3000:]
        results.append(result_of(case, folder))
    assert results[0] == results[1], differences(*results)
    assert not litter(folder), litter(folder)
    calls = 0
    if trace:
        prepare(case, folder)
        calls = count_calls(case.words, folder)
    return Known(seconds, calls, results[0])


def prepare(case: Case, folder: Path) -> None:
    """Empty the folder and run what comes before."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for words in case.before:
        assert run_to_end(words, folder) == 0, (folder / "out").read_text()[-3000:]


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Files that differ."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def trial(
    case: Case, known: Known, folder: Path, rng: random.Random, *, trace: bool
) -> Iterator[dict[str, Any]]:
    """Kill a command one to eight times, let it end, and compare; one record per kill."""
    prepare(case, folder)
    kills: list[dict[str, Any]] = []
    for _ in range(rng.choice([1, 2, 3, 5, 8])):
        at_call = trace and rng.random() < 0.5
        if at_call:
            at: float = rng.randint(1, known.calls)
            killed = kill_at_call(case.words, folder, int(at))
        else:
            at = rng.uniform(0, known.seconds)
            killed = kill_after(case.words, folder, at)
        if not killed:
            break
        kills.append({"case": case.name, "how": "call" if at_call else "time", "at": at})
    if not kills:
        return
    patience = max(PATIENCE, 10 * known.seconds)
    again = [*case.words]
    code = run_to_end(again, folder, patience=patience)
    if code == 1 and "exists already; pass --overwrite" in (folder / "out").read_text()[-600:]:
        # Killed between its last output and its end: everything is there.
        code = 0
    outcome, told = "same", ""
    if code != 0:
        outcome, told = "stuck", (folder / "out").read_text(errors="replace")[-1500:]
    elif wrong := differences(known.result, result_of(case, folder)):
        outcome, told = "different", ", ".join(wrong)
    elif left := litter(folder):
        outcome, told = "litter", ", ".join(left)
    for kill in kills:
        yield {**kill, "outcome": outcome, "told": told}


def read_log(path: Path) -> list[dict[str, Any]]:
    """Kills that are done; a last line that was cut off is left out."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def table(records: Sequence[dict[str, Any]]) -> str:
    """Kills by command, and what came of them."""
    head = "| command | kills | at a moment | at a system call | stuck | different | litter |"
    lines = [head, "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    names = list(dict.fromkeys(each["case"] for each in records))
    for name in [*names, "all"]:
        mine = [each for each in records if name in (each["case"], "all")]
        how = Counter(each["how"] for each in mine)
        came = Counter(each["outcome"] for each in mine)
        numbers = (len(mine), how["time"], how["call"])
        outcomes = (came[o] for o in ("stuck", "different", "litter"))
        lines.append(f"| {name} | " + " | ".join(map(str, (*numbers, *outcomes))) + " |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=300, help="how many in all")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long")
    parser.add_argument("--only", help="commands, comma-separated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("build/kill"))
    parser.add_argument("--no-strace", action="store_true", help="only at random moments")
    return parser.parse_args()


def imports() -> None:
    """Import what the commands import, once; forks have it."""
    import torch

    torch.set_num_threads(1)
    import matplotlib.figure  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import transformers.trainer  # noqa: F401

    import probekit.activations.extraction
    import probekit.activations.merge
    import probekit.cleaning.predict
    import probekit.cli.main
    import probekit.experiments.run
    import probekit.experiments.saliency
    import probekit.experiments.sweep
    import probekit.reports.run
    import probekit.students.finetune  # noqa: F401


def main() -> int:
    """Kill until there are enough; 1 where anything was stuck, different or left over."""
    asked = arguments()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    deadline = time.monotonic() + 60 * asked.minutes
    folder = asked.folder.absolute()
    shutil.rmtree(folder / "inputs", ignore_errors=True)
    (folder / "inputs").mkdir(parents=True)
    log = folder / "kills.jsonl"
    records = read_log(log)
    imports()
    trace = shutil.which("strace") is not None and not asked.no_strace
    make_inputs(folder / "inputs")
    chosen = [c for c in cases() if asked.only is None or c.name in asked.only.split(",")]
    known: dict[str, Known] = {}
    trials: Counter[str] = Counter()
    tell: Callable[..., None] = print
    while len(records) < asked.kills and time.monotonic() < deadline:
        counts = Counter(each["case"] for each in records)
        case = min(chosen, key=lambda c: counts[c.name])
        work = folder / "inputs" / "work"
        if case.name not in known:
            known[case.name] = whole(case, work, trace=trace)
            it = known[case.name]
            tell(f"{case.name}: {it.seconds:.1f} s, {it.calls} calls", flush=True)
        trials[case.name] += 1
        rng = random.Random(f"{asked.seed} {case.name} {counts[case.name]} {trials[case.name]}")
        for record in trial(case, known[case.name], work, rng, trace=trace):
            records.append(record)
            with log.open("a") as file:
                file.write(json.dumps(record) + "\n")
            if record["outcome"] != "same":
                tell(json.dumps(record), flush=True)
    tell(table(records))
    return int(any(each["outcome"] != "same" for each in records))


if __name__ == "__main__":
    sys.exit(main())
