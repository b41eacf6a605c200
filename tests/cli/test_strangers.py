"""Files from strangers, from the command line: nothing hangs, nothing steers the terminal."""

from __future__ import annotations

import json
import os
import re

import h5py
import pyarrow.parquet as pq
import pytest

from probekit.activations.layout import spec_json

STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
NASTY = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eyes\nError: no"


@pytest.fixture
def verdicts(probekit, chain):
    made = ("filter", chain.acts, "--labels", chain.weak, "-o", chain.out)
    assert probekit(*made).exit_code == 0
    return chain.out


def named(path, name):
    """A special file under a name that ends as the command wants it."""
    os.mkfifo(path / name)
    return path / name


FIFOS = {
    "info": ["info", "x.h5"],
    "filter": ["filter", "x.h5", "--labels", "weak.jsonl", "-o", "new.parquet"],
    "labels": ["filter", "acts.h5", "--labels", "x.csv", "-o", "new.parquet"],
    "truth": ["filter", "acts.h5", "--labels", "weak.jsonl", "--truth", "x.csv", "-o", "n.jsonl"],
    "weak-labels": ["weak-labels", "acts.h5", "--truth", "x.csv", "-o", "new.parquet"],
    "train ids": [
        *("weak-labels", "acts.h5", "--truth", "truth.jsonl"),
        *("--train-ids", "x.txt", "-o", "new.parquet"),
    ],
    "diagnose": ["diagnose", "x.h5", "--labels", "weak.jsonl"],
    "sweep": ["sweep", "x.h5", "--labels", "weak.jsonl", "-o", "new.parquet"],
    "merge": ["merge", "acts.h5", "x.h5", "-o", "new.h5"],
    "report": ["report", "x.parquet", "-o", "new.html"],
    "review": ["review", "x.parquet", "-o", "new.csv"],
    "review back": ["review", "verdicts.parquet", "--merge", "x.csv", "-o", "new.parquet"],
    "readmit": [
        *("readmit", "x.parquet", "--predictions", "weak.jsonl", "-o", "new.parquet"),
    ],
    "audit": ["audit", "acts.h5", "--labels", "weak.jsonl", "-o", "x.csv", "--no-ask"],
    "run": ["run", "--config", "x.yaml", "-o", "new"],
    "extract": ["extract", "x.jsonl", "-m", "model", "-o", "new.h5"],
    "quantization": [
        *("extract", "rows.jsonl", "-m", "model", "--quantization", "x.json", "-o", "new.h5"),
    ],
    "predict": ["predict", "x.jsonl", "-m", "model", "-o", "new.parquet"],
    "finetune": ["finetune", "rows.jsonl", "-m", "model", "--labels", "x.csv", "-o", "new"],
}
SPECIAL = re.compile(r"pipe|not a file|plain file|does not exist|holds no classifier|no config")


@pytest.mark.parametrize("case", FIFOS)
def test_a_pipe_is_refused_at_once(case, chain, verdicts, refused, monkeypatch):
    """Opened, it would wait for ever; as would /dev/zero be read, which takes the same way."""
    monkeypatch.chdir(chain.folder)
    arguments = [*FIFOS[case]]
    for name in arguments:
        if name.startswith("x."):
            named(chain.folder, name)
    assert SPECIAL.search(refused(*arguments))
    assert not [p for p in chain.folder.iterdir() if p.name.startswith("new")]


@pytest.mark.parametrize("name", ["/dev/zero", "loop.h5", "~nobody-here/a.h5"])
def test_devices_loops_and_nobody_are_refused(name, chain, refused, monkeypatch):
    monkeypatch.chdir(chain.folder)
    (chain.folder / "loop.h5").symlink_to("loop.h5")
    refused("info", name)
    refused("filter", name, "--labels", chain.weak, "-o", "new.parquet")
    refused("merge", chain.acts, name, "-o", "new.h5")
    refused("filter", chain.acts, "--labels", name, "-o", "new.parquet")


def test_names_from_files_do_not_steer_the_terminal(probekit, chain, verdicts, write_rows):
    with h5py.File(chain.acts, "r+") as file:
        file.attrs["source"] = NASTY.replace("\x00", "")
        file.attrs["spec"] = spec_json({"model": NASTY, NASTY: NASTY})
    labels = write_rows(
        "nasty.jsonl",
        [
            {"id": i, "label": NASTY if w else "no"}
            for i, w in zip(chain.ids, chain.weak_of, strict=True)
        ],
    )
    shown = [probekit("info", chain.acts)]
    made = ("filter", chain.acts, "--labels", labels, "-o", chain.folder / "v.parquet")
    shown += [probekit(*made), probekit("diagnose", chain.acts, "--labels", labels)]
    shown += [probekit("review", chain.folder / "v.parquet", "--no-text", "-o", "x.bad")]
    for result in shown:
        assert "yes" in result.output or result.exit_code
        assert STEERING.search(result.output) is None
        # Nor does a newline in a name begin a line of its own.
        assert not any(line.startswith("Error: no") for line in result.output.splitlines())
    wrong = write_rows("wrong.jsonl", [{"id": "\x9b2J" + i, "label": 0} for i in chain.ids])
    refusal = probekit("filter", chain.acts, "--labels", wrong, "-o", chain.folder / "w.parquet")
    assert refusal.exit_code == 1
    assert STEERING.search(refusal.output) is None


def test_json_for_machines_keeps_what_it_says(probekit, chain):
    with h5py.File(chain.acts, "r+") as file:
        file.attrs["source"] = NASTY
    result = probekit("info", chain.acts, "--json")
    assert json.loads(result.stdout)["source"] == NASTY
    assert STEERING.search(result.stdout) is None


def test_what_click_says_does_not_steer_the_terminal(probekit, chain):
    result = probekit("filter", chain.acts, "--labels", "x", "--probe", "\x1b[2J\x9bknn")
    assert result.exit_code == 2
    assert STEERING.search(result.output) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["provenance"].update(probe="x"), "probe is not an object"),
        (lambda m: m["provenance"].update(probe={"name": 1}), "probe.name is not a str"),
        (lambda m: m["provenance"].update(notes="abc"), "notes is not a list"),
        (lambda m: m["provenance"].update(layer="last"), "layer is not an int"),
        (lambda m: m["provenance"].update(layers=["last"]), "layers"),
        (lambda m: m["provenance"].update(store=[]), "store is not an object"),
        (lambda m: m["provenance"].update(estimates={"hoc": ["x"]}), "hoc\\[0\\] is wrong"),
        (lambda m: m.update(classes="01"), "classes is not a list"),
        (lambda m: m.update(version="1\nError: no"), r"version '1\\nError: no' of"),
        (lambda m: m.update(classes=[0, 1]), "classes\\[0\\] is not a str"),
        (lambda m: m.update(provenance=None), "provenance is not an object"),
        (lambda m: m.pop("classes"), "classes is missing"),
    ],
)
def test_verdicts_that_say_something_else_are_refused(change, words, chain, verdicts, refused):
    table = pq.read_table(verdicts)
    metadata = json.loads(table.schema.metadata[b"probekit"])
    change(metadata)
    changed = table.replace_schema_metadata({b"probekit": json.dumps(metadata).encode()})
    pq.write_table(changed, verdicts)
    for command in (["report", verdicts, "-o", chain.folder / "x.html"], ["review", verdicts]):
        output = [] if "-o" in command else ["-o", chain.folder / "x.csv"]
        assert re.search(words, refused(*command, "--no-text", *output))


@pytest.mark.parametrize("metadata", [b"[" * 100_000, b"[1]", b"\xff", b'{"a": ' + b"9" * 5000])
def test_deep_and_huge_metadata_are_refused(metadata, chain, verdicts, refused):
    table = pq.read_table(verdicts)
    pq.write_table(table.replace_schema_metadata({b"probekit": metadata}), verdicts)
    assert "no verdicts" in refused("report", verdicts, "--no-text", "-o", chain.folder / "x.html")


def test_a_device_or_pipe_is_not_replaced(chain, refused):
    pipe = named(chain.folder, "x.parquet")
    command = ("filter", chain.acts, "--labels", chain.weak, "--overwrite", "-o")
    assert "pipe" in refused(*command, pipe)
    assert pipe.is_fifo()


@pytest.mark.parametrize("value", [5, 1.5, True, [1], {"a": 1}, "x", None])
def test_a_review_whose_hash_is_something_else_is_read_or_refused(value, probekit, verdicts, chain):
    """Nothing can be compared with such a hash, so the text beside it counts."""
    review = chain.folder / "review.jsonl"
    assert probekit("review", verdicts, "-n", "3", "-o", review).exit_code == 0
    records = [json.loads(line) for line in review.read_text(encoding="utf-8").splitlines()]
    for record in records:
        record["metadata"]["text_hash"] = value
        record["responses"] = {"label": [{"value": "1"}]}
    review.write_text("".join(json.dumps(record) + "\n" for record in records))
    result = probekit("review", verdicts, "--merge", review, "-o", chain.folder / "new.parquet")
    assert result.exit_code in (0, 1), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
