"""One good file of every kind that probekit reads, made once by its own commands."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import random
import shutil
import sys
from pathlib import Path

import pytest

from probekit.errors import ProbekitError
from probekit.tables import no_progress_bars

TOOLS = Path(__file__).parents[1]
ANIMALS = ["a small cat", "the cats sleep", "one cat and a mouse", "my cat is old"]
HAMMERS = ["a steel hammer", "hammers and nails", "the hammer fell", "an old hammer broke"]
ROWS = 48


def probekit(*arguments: object) -> None:
    """Run a command in this process, silently; failures raise."""
    from probekit.cli.main import cli

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        cli.main([str(a) for a in arguments], standalone_mode=False)


def make_seeds(folder: Path) -> None:
    """Fill ``folder``, unless it was filled before."""
    if (folder / "done").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with contextlib.chdir(folder):
        _tables()
        _model()
        _chain()
        _probes()
        _texts()
    (folder / "done").touch()


def _tables() -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = random.Random(0)
    rows, labels, truth = [], [], []
    for i in range(ROWS):
        text = f"{(ANIMALS, HAMMERS)[i % 2][i // 2 % 4]} {i}"
        rows.append({"id": f"r{i}", "text": text, "note": "n"})
        labels.append({"id": f"r{i}", "label": i % 2 if rng.random() > 0.2 else 1 - i % 2})
        truth.append({"id": f"r{i}", "text": text, "label": i % 2})
    probs = [
        {"id": r["id"], "probs": [0.9 - 0.8 * r["label"], 0.1 + 0.8 * r["label"]]} for r in labels
    ]
    tables = {"rows": rows, "weak": labels, "truth": truth, "probs": probs}
    for name, records in tables.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        Path(f"{name}.jsonl").write_text(lines)
        Path(f"{name}.json").write_text(json.dumps(records))
        Path(f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        pq.write_table(pa.Table.from_pylist(records), f"{name}.parquet")
        with pa.ipc.new_file(f"{name}.arrow", pa.Table.from_pylist(records).schema) as file:
            file.write(pa.Table.from_pylist(records))
        for suffix, mark in ((".csv", ","), (".tsv", "\t")):
            with open(f"{name}{suffix}", "w", newline="") as out:
                writer = csv.DictWriter(out, list(records[0]), delimiter=mark)
                writer.writeheader()
                writer.writerows(records)
    chats = [{"id": r["id"], "messages": [{"role": "user", "content": r["text"]}]} for r in rows]
    pairs = [{"id": r["id"], "prompt": "p", "chosen": r["text"], "rejected": "no"} for r in rows]
    for name, records in (("chats", chats), ("pairs", pairs)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    task = [
        {"id": i, "text": f"{(ANIMALS, HAMMERS)[i % 2][i // 2 % 4]} {i}", "label": i % 2}
        for i in range(160)
    ]
    Path("task.jsonl").write_text("".join(json.dumps(record) + "\n" for record in task))
    import datasets

    with no_progress_bars():
        datasets.Dataset.from_list(rows).save_to_disk("saved")


def _model() -> None:
    sys.path.insert(0, str(TOOLS))
    import conftest

    conftest._save_model("bert", "float32", Path("model"))


def _chain() -> None:
    probekit("extract", "rows.jsonl", "-m", "model", "--layers", "all", "-o", "acts.h5")
    probekit(
        *("extract", "rows.jsonl", "-m", "model", "--layers", "last"),
        *("--compression", "gzip", "-o", "packed.h5"),
    )
    chosen = ("acts.h5", "--labels", "weak.jsonl", "--layer", "2")
    probekit("filter", *chosen, "--probe", "knn", "--k", "5", "-o", "verdicts.parquet")
    probekit("relabel", *chosen, "--probe", "logreg", "-o", "verdicts.jsonl")
    probekit("weak-labels", "acts.h5", "--truth", "truth.jsonl", "--layer", "1", "-o", "wl.parquet")
    sweep = (
        "acts.h5",
        "--labels",
        "weak.jsonl",
        "--k",
        "3,5",
        "--l2",
        "0.1",
        "--probes",
        "knn,logreg",
    )
    for name in ("sweep.parquet", "sweep.jsonl"):
        probekit("sweep", *sweep, "--truth", "truth.jsonl", "-o", name)
    probekit("audit", "acts.h5", "--labels", "weak.jsonl", "--no-ask", "-o", "audit.csv")
    for name in ("review.csv", "review.jsonl"):
        probekit("review", "verdicts.parquet", "-n", "10", "--rows", "rows.jsonl", "-o", name)
    _answer()
    short = ("-m", "model", "--max-steps", "2")
    probekit("finetune", "rows.jsonl", *short, "--labels", "weak.jsonl", "-o", "student")
    _begun()
    probekit("predict", "rows.jsonl", "-m", "student/model", "-o", "predicted.parquet")
    Path("run.yaml").write_text(
        "task: task.jsonl\nweak: model@layers=1\nstrong: model\nprobes: [knn]\nactions: [filter]\n"
        "losses: [xent]\nvalidation_share: 0.3\nrandom_drops: 0\n"
        "finetune: {max_steps: 40, lr: 0.003}\nprobe_options: {knn: {k: 5}}\n"
    )
    with contextlib.suppress(ProbekitError):  # a collapse is reported at the end
        probekit("run", "--config", "run.yaml", "-o", "runs/first", "--steps", "steps")
    Path("saliency.yaml").write_text(
        "task: task.jsonl\nweak: model@layers=1\nstrong: model\nvalidation_share: 0.3\n"
        "layers: last\nfinetune: {max_steps: 40, lr: 0.003}\n"
    )
    with contextlib.suppress(ProbekitError):
        probekit("saliency", "--config", "saliency.yaml", "-o", "runs/bars", "--steps", "steps")


def _begun() -> None:
    """A training that was stopped after its last checkpoint."""
    from probekit.students.folder import Folder

    def stop(*_: object) -> None:
        raise ProbekitError("stopped")

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(ProbekitError):
        patch.setattr(Folder, "finish", stop)
        probekit(
            *("finetune", "rows.jsonl", "-m", "model", "--max-steps", "3"),
            *("--labels", "weak.jsonl", "-o", "begun", "--set", "save_seconds=0"),
        )


def _answer() -> None:
    """Fill answers in, so that there is something to take over."""
    with open("review.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["label"] = "1"
    with open("review.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    records = [json.loads(line) for line in Path("review.jsonl").read_text().splitlines()]
    for record in records:
        record["responses"] = {"label": [{"value": "1"}]}
    Path("review.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def _probes() -> None:
    import numpy as np

    from probekit.probes import (
        EnsembleProbe,
        KNNProbe,
        LogisticProbe,
        MassMeanProbe,
        TopoFilterProbe,
    )

    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 6)).astype(np.float32)
    y = (X[:, 0] > 0).astype(int)
    probes = {
        "knn": KNNProbe(k=5),
        "logreg": LogisticProbe(),
        "topofilter": TopoFilterProbe(k_cc=3, k_zeta=5),
        "ensemble": EnsembleProbe(widths=[3, 3]),
        "mass-mean": MassMeanProbe(),
    }
    for name, probe in probes.items():
        probe.fit(X, y).save(f"probe-{name}")


def _texts() -> None:
    Path("ids.txt").write_text("".join(f"r{i}\n" for i in range(ROWS // 2)))
    Path("quantization.json").write_text(json.dumps({"load_in_4bit": True}))
    Path("template.jinja").write_text("Text: {{ text }}")
    Path("chat.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    )
