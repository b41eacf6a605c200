"""``probekit extract`` as users run it: output, refusals, Ctrl-C, kill -9, full disks."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from probekit.activations.spec import DTYPES, POOLS
from probekit.activations.store import ActivationStore
from probekit.cli import extract as module

pytestmark = pytest.mark.usefixtures("one_thread")

COMMAND = [sys.executable, "-m", "probekit", "extract"]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def rows(texts: list[str], write_jsonl: Callable[..., Path]) -> Path:
    return write_jsonl([{"id": f"r{i}", "text": t} for i, t in enumerate(texts)])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "acts.h5"


def contents(path: Path) -> dict[str, bytes]:
    """Every data set of the file, as bytes."""
    import h5py

    values: dict[str, bytes] = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                values.update({name: item[...].tobytes()}) if hasattr(item, "shape") else None
            )
        )
    return values


NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{{ m.content }}{% endfor %}"
)


def test_rows_that_the_template_refuses_are_told_before_the_model_is_loaded(
    probekit: Any,
    refused: Any,
    write_jsonl: Callable[..., Path],
    tiny_model: Callable[..., Path],
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def talk(system: bool) -> list[dict[str, str]]:
        return [{"role": "system" if system else "user", "content": "hello there"}]

    # The last rows: more than one window behind the first.
    many = [{"id": f"r{i}", "messages": talk(i >= 1500)} for i in range(1502)]
    rows, template = write_jsonl(many), out.with_name("chat.jinja")
    template.write_text(NO_SYSTEM)
    arguments = ["extract", rows, "-m", tiny_model("llama"), "-o", out, "--template", template]
    expected = (
        "The template refuses 2 of 1,502 rows (ids 'r1500', 'r1501'), the first one with: no "
        "system; repair them, or leave such rows out with `probekit extract --skip-refused`."
    )
    with monkeypatch.context() as patch:
        patch.setattr("probekit.activations.loading._load", None)
        assert refused(*arguments) == expected
        assert refused(*arguments, "--dry-run") == expected
        assert not out.exists()
    done = probekit(*arguments, "--skip-refused")
    assert done.exit_code == 0, done.output
    assert "2 of 1,502 rows are left out, which the template refuses (ids 'r1500'," in done.stderr
    with ActivationStore(out) as store:
        assert store.ids == [f"r{i}" for i in range(1500)]
    none = [{"id": "r0", "messages": talk(True)}]
    assert "refuses the row with id 'r0': no system; repair it." in refused(
        "extract", write_jsonl(none), *arguments[2:], "--skip-refused", "--overwrite"
    )


def test_rows_of_a_group_are_kept_together(
    probekit: Any,
    refused: Any,
    write_jsonl: Callable[..., Path],
    tiny_model: Callable[..., Path],
    out: Path,
) -> None:
    table = [{"id": f"r{i}", "text": f"row {i}", "user": i // 3 or None} for i in range(12)]
    arguments = ["extract", write_jsonl(table), "-m", tiny_model("gpt2"), "-o", out]
    assert "no column 'question'; it has id, text, user" in refused(
        *arguments, "--group-column", "question"
    )
    done = probekit(*arguments, "--group-column", "user", "--limit", "10")
    assert done.exit_code == 0, done.output
    with ActivationStore(out) as store:
        assert store.groups == ["", "", "", *("111222333"[:7])]
        numbers = store.copies().tolist()
        assert [len(set(numbers[a:b])) for a, b in ((0, 3), (3, 6), (6, 9))] == [3, 1, 1]
    assert "groups     3" in probekit("info", out).stdout
    assert "was made from rows in groups, and now they have none" in refused(
        *arguments, "--limit", "10"
    )


def test_a_row_that_stops_the_run_is_repaired_and_the_rest_is_kept(
    probekit: Any, write_jsonl: Callable[..., Path], tiny_model: Callable[..., Path], out: Path
) -> None:
    # What the tokenizer drops is found while rows are tokenised, window by window.
    model = tiny_model("gpt2")
    texts = [{"id": f"r{i}", "text": f"row {i}"} for i in range(1100)]
    broken = [*texts[:1090], {"id": "r1090", "text": "\u00a0.\u00a0"}, *texts[1091:]]
    template = out.with_name("t.jinja")
    template.write_text("{{ text | replace('\u00a0.\u00a0', '') }}")
    arguments = ["-m", model, "-o", out, "--template", template, "--json"]
    stopped = probekit("extract", write_jsonl(broken), *arguments)
    assert stopped.exit_code == 1
    assert "1 rows have no token (ids 'r1090')" in stopped.stderr
    assert "once such rows are repaired (not removed) the same command resumes" in stopped.stderr
    done = probekit("extract", write_jsonl(texts), *arguments)
    assert done.exit_code == 0, done.output
    assert "1 of the rows that were not done have another text now" in done.stderr
    assert json.loads(done.stdout)["rows_forwarded"] == 1100 - 1024


def test_a_text_that_is_cut_before_it_is_tokenised_is_told(
    probekit: Any, write_jsonl: Callable[..., Path], tiny_model: Callable[..., Path], out: Path
) -> None:
    rows = write_jsonl([{"id": "a", "text": "word " * 100_000}, {"id": "b", "text": "short"}])
    done = probekit("extract", rows, "-m", tiny_model("gpt2"), "-o", out, "--max-length", 8)
    assert done.exit_code == 0, done.output
    assert "1 rows are so long that only the part which is read was tokenised." in done.stderr
    with ActivationStore(out) as store:
        assert store.n_tokens[0] == 8
        assert store.truncated.tolist() == [True, False]


def test_specs_say_what_is_read_otherwise_than_before(
    probekit: Any, write_jsonl: Callable[..., Path], tiny_model: Callable[..., Path], out: Path
) -> None:
    def spec(record: dict[str, str], model: str) -> dict[str, Any]:
        rows = write_jsonl([{"id": "a", **record}])
        done = probekit("extract", rows, "-m", tiny_model(model), "-o", out, "--overwrite")
        assert done.exit_code == 0, done.output
        with ActivationStore(out) as store:
            return dict(store.spec)

    assert spec({"text": "a", "text_pair": "b"}, "llama")["separator"] == "\n\n"
    assert spec({"text": "<s>a"}, "llama")["opening"] == "once"
    # Whatever is read as 0.1.0 read it has the spec that 0.1.0 gave it.
    for record, model in (
        ({"text": "a", "text_pair": "b"}, "bert"),
        ({"text": "a"}, "llama"),
    ):
        assert not {"separator", "opening"} & set(spec(record, model))


def test_choices_are_those_of_the_library() -> None:
    options = {option.name: option.type for option in module.command.params}
    assert list(options["pool"].choices) == ["auto", *POOLS]
    assert list(options["dtype"].choices) == ["auto", *DTYPES]
    assert list(options["store_dtype"].choices) == ["same", *DTYPES]


def test_extract_then_info(
    probekit: Any, rows: Path, tiny_model: Callable[..., Path], out: Path
) -> None:
    arguments = ["extract", rows, "-m", tiny_model("gpt2"), "-o", out, "--layers", "0,-1"]
    result = probekit(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{out}: 40 rows, ")
    assert "0 rows truncated, layers 0, 3; " in line
    result = probekit(*arguments, "--json")
    report = json.loads(result.stdout)
    assert (report["rows"], report["rows_forwarded"], report["layers"]) == (40, 0, [0, 3])
    assert "40 rows were done before" in result.stderr
    info = json.loads(probekit("info", out, "--json").stdout)
    assert info["complete"]
    assert info["source"] == "rows.jsonl"
    assert info["tokens"] == report["tokens"]
    assert info["spec"]["pooling"] == "last"


def test_json_reports_what_was_forwarded(
    probekit: Any, rows: Path, tiny_model: Callable[..., Path], out: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    options = ["--max-length", 9, "--batch-tokens", 40, "--json", "--forward-log", log]
    result = probekit("extract", rows, "-m", tiny_model("bert"), "-o", out, *options)
    report = json.loads(result.stdout)
    batches = [int(line) for line in log.read_text().split()]
    assert sum(batches) == report["rows_forwarded"] == 40
    assert len(batches) == report["batches"] > 3
    assert report["tokens"] == report["tokens_forwarded"]
    assert 0 < report["truncated"] < 40
    assert report["batch_tokens"] == 40
    assert report["path"] == str(out)


def test_dry_run_writes_nothing(
    probekit: Any, rows: Path, tiny_model: Callable[..., Path], out: Path
) -> None:
    arguments = ["extract", rows, "-m", tiny_model("gpt2"), "-o", out, "--layers", "all"]
    result = probekit(*arguments, "--dry-run", "--json")
    output = json.loads(result.stdout)
    assert not out.exists()
    assert output["bytes_per_layer"] == {str(i): 40 * 32 * 4 for i in range(4)}
    text = probekit(*arguments, "--dry-run").stdout
    assert text.startswith(f"40 rows, {output['tokens']:,} tokens, the longest ")
    assert "layer   3: 32 wide, 5.1 kB" in text
    assert text.rstrip().endswith("are free")


def test_limit_and_compression(
    probekit: Any, rows: Path, tiny_model: Callable[..., Path], out: Path
) -> None:
    options = ["--limit", 7, "--compression", "gzip"]
    assert probekit("extract", rows, "-m", tiny_model("t5"), "-o", out, *options).exit_code == 0
    with ActivationStore(out) as store:
        assert store.ids == [f"r{i}" for i in range(7)]
        assert store.info().offset is None


def test_refusals(
    refused: Any,
    rows: Path,
    tiny_model: Callable[..., Path],
    out: Path,
    write_jsonl: Callable[..., Path],
    tmp_path: Path,
) -> None:
    gpt2 = tiny_model("gpt2")

    def refuse(source: Any = rows, model: Any = gpt2, *more: Any, code: int = 1) -> str:
        return str(refused("extract", source, "-m", model, "-o", out, *more, code=code))

    assert "does not exist" in refuse(model=tmp_path / "none")
    assert "did you mean docstrings" in refuse("docstring", code=2)
    assert "does not exist" in refuse(tmp_path / "none.jsonl")
    other = write_jsonl([{"body": "a", "title": "b"}], "other.jsonl")
    assert "it has body, title: name the one to read with --text-column" in refuse(other)
    empty = write_jsonl([{"text": "a"}, {"text": ""}], "empty.jsonl")
    assert "1 rows with an empty text (ids '1')" in refuse(empty)
    assert "There is no layer 4" in refuse(rows, gpt2, "--layers", "4", code=2)
    assert "has no chat template" in refuse(
        write_jsonl([{"messages": [{"role": "user", "content": "x"}]}], "chat.jsonl"), code=2
    )
    both = ["--load-in", "4bit", "--quantization", tmp_path / "q.json"]
    assert "give one of them" in refuse(rows, gpt2, *both, code=2)
    broken = tmp_path / "q.json"
    broken.write_text("[1]")
    assert "JSON object" in refuse(rows, gpt2, "--quantization", broken, code=2)
    assert "bitsandbytes" in refuse(rows, gpt2, "--load-in", "8bit", code=2)
    assert not out.exists()


def test_what_stands_at_the_output_is_left_alone(
    probekit: Any, refused: Any, rows: Path, tiny_model: Callable[..., Path], out: Path
) -> None:
    out.write_text("not a store")
    arguments = ["extract", rows, "-m", tiny_model("gpt2"), "-o", out]
    assert "pass --overwrite to replace it" in refused(*arguments)
    assert out.read_text() == "not a store"
    assert probekit(*arguments, "--overwrite").exit_code == 0
    before = out.read_bytes()
    stale = refused(*arguments, "--pool", "mean", code=1)
    assert "pooling is 'last' in the file and 'mean' now" in stale
    assert out.read_bytes() == before


def test_nothing_but_the_last_line_is_said(
    rows: Path, tiny_model: Callable[..., Path], out: Path
) -> None:
    # A process of its own: warnings and progress bars of other libraries would show here.
    done = subprocess.run(
        [*COMMAND, rows, "-m", tiny_model("bert"), "-o", out],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_model_of_the_hub_is_taken_from_its_cache_by_commit(
    rows: Path, tiny_model: Callable[..., Path], out: Path, tmp_path: Path
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "home"
    cached = home / "hub" / "models--org--tiny"
    shutil.copytree(tiny_model("bert"), cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    # The cache's place is read when a process starts.
    done = subprocess.run(
        [*COMMAND, rows, "-m", "org/tiny", "-o", out],
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, "HF_HOME": str(home)},
    )
    assert done.returncode == 0, done.stderr
    with ActivationStore(out) as store:
        assert store.spec["model"] == "org/tiny"
        assert store.spec["revision"] == commit
        assert store.spec["weights"] == f"commit:{commit[:16]}"
        assert len(store) == 40


# Starting Python with torch takes seconds. This process does it once; each run is a fork of it, a
# process of its own that can be killed, limited and interrupted like any other.
FORKING = """
import json, os, resource, signal, sys
# A shell that runs the tests in the background lets them ignore Ctrl-C, and so their children.
signal.signal(signal.SIGINT, signal.default_int_handler)
import probekit.activations.extraction
from transformers import BertModel
from probekit.cli.main import cli
print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    pid = os.fork()
    if pid == 0:
        for number, path in ((0, os.devnull), (1, asked["stdout"]), (2, asked["stderr"])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        if asked["limit"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (asked["limit"], asked["limit"]))
        cli(asked["arguments"])
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Forks:
    """Runs ``probekit`` in forks of a process that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self.stdout, self.stderr = folder / "stdout", folder / "stderr"
        self._process = subprocess.Popen(
            [sys.executable, "-c", FORKING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        assert self._read() == "ready"

    def start(self, *arguments: Any, limit: int = 0) -> int:
        asked = {"arguments": [str(a) for a in arguments], "limit": limit}
        asked |= {"stdout": str(self.stdout), "stderr": str(self.stderr)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return int(self._read())

    def wait(self) -> int:
        return int(self._read())

    def close(self) -> None:
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    running = Forks(tmp_path_factory.mktemp("forks"))
    yield running
    running.close()


def make_job(model: Path, write_jsonl: Callable[..., Path], n: int) -> list[str]:
    """Arguments of a run over n rows that takes some seconds."""
    rng = random.Random(0)
    words = ["heron", "reed", "water", "boat", "harbour", "map", "corner", "rain", "roof"]
    rows = [
        {"id": f"r{i}", "text": " ".join(rng.choices(words, k=rng.randint(2, 25)))}
        for i in range(n)
    ]
    path = write_jsonl(rows, "many.jsonl")
    options = ["--layers", "all", "--batch-tokens", "256", "--json"]
    return ["extract", str(path), "-m", str(model), *options]


def batches_in(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def wait_for(log: Path, batches: int, *, pid: int) -> None:
    """Wait until a run has forwarded this number of batches, or has ended."""
    deadline = time.monotonic() + 60
    while len(batches_in(log)) < batches and time.monotonic() < deadline:
        if Path(f"/proc/{pid}").exists() or not Path("/proc").exists():
            time.sleep(0.002)
        else:
            return


@pytest.mark.slow
def test_a_file_size_limit_is_told_before_the_first_row_is_forwarded(
    forks: Forks, rows: Path, tiny_model: Callable[..., Path], out: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    arguments = ["extract", rows, "-m", tiny_model("bert"), "-o", out, "--layers", "all"]
    forks.start(*arguments, "--forward-log", log, limit=20_000)
    assert forks.wait() == 1
    (line,) = forks.stderr.read_text().splitlines()
    assert line.startswith("Error: ")
    assert "a file may have 20.0 kB here (ulimit -f)" in line
    assert not log.exists()
    assert not out.exists()
    # Control: with room for it, the same run works.
    forks.start(*arguments, "--forward-log", log, limit=2_000_000)
    assert forks.wait() == 0


def test_ctrl_c_leaves_a_store_that_the_same_command_finishes(
    forks: Forks,
    tiny_model: Callable[..., Path],
    write_jsonl: Callable[..., Path],
    tmp_path: Path,
    out: Path,
) -> None:
    n, log = 16000, tmp_path / "log"
    command = [*make_job(tiny_model("bert"), write_jsonl, n), "-o", str(out)]
    pid = forks.start(*command, "--forward-log", log)
    wait_for(log, 20, pid=pid)
    os.kill(pid, signal.SIGINT)
    assert forks.wait() == 130
    assert forks.stdout.read_text() == ""
    (line,) = forks.stderr.read_text().splitlines()
    with ActivationStore(out, allow_incomplete=True) as store:
        done = int(store.done.sum())
    assert 0 < sum(batches_in(log)) <= done < n
    assert line == (
        f"Error: Interrupted. {done:,} of {n:,} rows are stored in {out}; the same command "
        "resumes from there."
    )
    forks.start(*command)
    assert forks.wait() == 0
    assert json.loads(forks.stdout.read_text())["rows_forwarded"] == n - done
    first, _ = forks.stderr.read_text().splitlines()
    assert first == f"Resuming {out}: {done:,} of {n:,} rows are done."


FLUSH_ROWS = 512
KILLS = 10


def rows_done(store: Path) -> int:
    """Rows that a store, if it is there, has for good."""
    if not store.exists():
        return 0
    with ActivationStore(store, allow_incomplete=True) as opened:
        return int(opened.done.sum())


def wait_for_rows(store: Path, more_than: int, *, pid: int) -> None:
    """Wait until a run has flushed more rows; not for one that has ended."""
    deadline = time.monotonic() + 60
    while rows_done(store) <= more_than and time.monotonic() < deadline:
        if not Path(f"/proc/{pid}").exists() and Path("/proc").exists():
            return
        time.sleep(0.002)


@pytest.mark.slow
def test_kill_nine_at_ten_random_moments_costs_at_most_a_flush_each(
    forks: Forks,
    tiny_model: Callable[..., Path],
    write_jsonl: Callable[..., Path],
    tmp_path: Path,
    out: Path,
) -> None:
    n, log = 12_000, tmp_path / "log"
    command = make_job(tiny_model("bert"), write_jsonl, n)
    command += ["--flush-rows", str(FLUSH_ROWS)]
    whole = tmp_path / "whole.h5"
    forks.start(*command, "-o", whole, "--forward-log", log)
    assert forks.wait() == 0
    batches = batches_in(log)
    log.unlink()

    command += ["-o", str(out), "--forward-log", str(log)]
    rng = random.Random(time.time_ns())
    # Two die while they start, the others after a random number of batches, ten runs' worth of
    # which are fewer than there are; and then somewhere between two batches.
    targets = [0, 0] + [rng.randint(1, len(batches) // KILLS) for _ in range(KILLS - 2)]
    rng.shuffle(targets)
    done_before, grown = 0, 0
    for kill, target in enumerate(targets):
        pid = forks.start(*command)
        if target:
            wait_for(log, len(batches_in(log)) + target, pid=pid)
        if kill in (KILLS // 2, KILLS - 1):  # a slow disk may have flushed nothing by now
            wait_for_rows(out, done_before, pid=pid)
        time.sleep(rng.uniform(0, 0.02 if target else 0.3))
        os.kill(pid, signal.SIGKILL)
        assert forks.wait() == -signal.SIGKILL
        done = rows_done(out)
        assert done >= done_before  # what is marked done stays done
        grown += done > done_before
        done_before = done
    assert 0 < done_before < n
    assert grown >= 2
    # The last run is started as a user starts it.
    last = subprocess.run(
        [sys.executable, "-m", "probekit", *command],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=True,
    )
    assert json.loads(last.stdout)["rows_forwarded"] == n - done_before
    # Lost by a kill: rows not flushed, and batches on their way to the writer (one in its hands,
    # two in the queue, one just forwarded).
    interval = FLUSH_ROWS + 4 * max(batches)
    assert n <= sum(batches_in(log)) <= n + KILLS * interval
    assert contents(out) == contents(whole)
