"""Real data sets in their published files, as rows of the hub's schema.

``python benchmarks/real_files.py FOLDER`` writes the data sets of the folder ``PROBEKIT_DATA`` in
the hub's layout; with ``PROBEKIT_DATASETS=FOLDER`` every command then reads these tasks.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def jsonl(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(path: Path, names: str = "", delimiter: str = "\t") -> Rows:
    with path.open(encoding="utf-8", newline="") as file:
        quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
        options: dict[str, Any] = {"delimiter": delimiter, "quoting": quoting}
        return list(csv.DictReader(file, names.split() or None, **options))


def halves(rows: Rows, share: float = 0.5) -> tuple[Rows, Rows]:
    cut = int(len(rows) * share)
    return rows[:cut], rows[cut:]


def boolq(data: Path) -> dict[str, Rows]:
    keys = ("question", "answer", "passage")
    rows = [{key: row[key] for key in keys} for row in jsonl(data / "boolq" / "dev.jsonl")]
    return dict(zip(("train", "validation"), halves(rows), strict=True))


def cola(data: Path) -> dict[str, Rows]:
    files = {"train": "in_domain_train.tsv", "validation": "mixed_dev.tsv"}
    return {
        split: [
            {"sentence": row["sentence"], "label": int(row["label"]), "idx": i}
            for i, row in enumerate(table(data / "cola" / file, "source label mark sentence"))
        ]
        for split, file in files.items()
    }


def sst2(data: Path) -> dict[str, Rows]:
    return {
        split: [
            {"idx": i, "sentence": row["sentence"], "label": int(row["label"])}
            for i, row in enumerate(table(data / "sst2" / file))
        ]
        for split, file in {"train": "train.tsv", "validation": "dev.tsv"}.items()
    }


def ethics(part: str) -> Callable[[Path], dict[str, Rows]]:
    def read(data: Path) -> dict[str, Rows]:
        files = [
            [{**row, "label": int(row["label"])} for row in table(path, delimiter=",")]
            for path in (data / "ethics" / f"{part}_{name}.csv" for name in ("train", "test"))
        ]
        validation, test = halves(files[1])  # the hub's hard test set is not available
        return {"train": files[0], "validation": validation, "test": test}

    return read


def hellaswag(data: Path) -> dict[str, Rows]:
    path = data / "hellaswag" / "hellaswag_val_full.txt.bz2"
    lines = bz2.decompress(path.read_bytes()).decode("utf-8").splitlines()
    rows = [
        {"ctx": lines[i], "label": lines[i + 1], "endings": lines[i + 2 : i + 6]}
        for i in range(0, len(lines), 6)
    ]
    return dict(zip(("train", "validation"), halves(rows, 0.7), strict=True))


def mctaco(data: Path) -> dict[str, Rows]:
    files = {"validation": "dev_3783.tsv", "test": "test_9442.tsv"}
    names = "sentence question answer label category"
    return {
        split: [
            {**row, "label": ("no", "yes").index(row["label"])}
            for row in table(data / "mctaco" / file, names)
        ]
        for split, file in files.items()
    }


def piqa(data: Path) -> dict[str, Rows]:
    splits = {}
    for split, stem in {"train": "train.partial5600", "validation": "valid"}.items():
        labels = (data / "piqa" / f"{stem}-labels.lst").read_text().split()
        rows = jsonl(data / "piqa" / f"{stem}.jsonl")
        splits[split] = [
            {**{key: row[key] for key in ("goal", "sol1", "sol2")}, "label": int(label)}
            for row, label in zip(rows, labels, strict=True)
        ]
    return splits


def sciq(data: Path) -> dict[str, Rows]:
    files = {"train": "train", "validation": "valid", "test": "test"}
    return {
        split: json.loads((data / "sciq" / f"{file}.json").read_text(encoding="utf-8"))
        for split, file in files.items()
    }


def twitter(data: Path) -> dict[str, Rows]:
    """TweetEval in the hub's two classes: the neutral tweets dropped."""
    splits = {}
    for split, file in {"train": "test", "test": "val"}.items():
        texts, labels = (
            (data / "tweeteval_sentiment" / f"{file}_{kind}.txt").read_text("utf-8").splitlines()
            for kind in ("text", "labels")
        )
        splits[split] = [
            {"text": text, "label": int(label) // 2}
            for text, label in zip(texts, labels, strict=True)
            if label.strip() != "1"
        ]
    return splits


def wic(data: Path) -> dict[str, Rows]:
    return {
        split: [
            {**row, "label": int(row["label"])} for row in jsonl(data / "wic" / f"{file}.jsonl")
        ]
        for split, file in {"train": "train", "validation": "val"}.items()
    }


def hh(data: Path) -> dict[str, Rows]:
    packed = (data / "hh_rlhf" / "harmless-base.test.jsonl.gz").read_bytes()
    rows = [json.loads(line) for line in gzip.decompress(packed).decode("utf-8").splitlines()]
    return dict(zip(("train", "test"), halves(rows, 0.7), strict=True))


# Task -> the real files as the hub has them.
REAL: dict[str, Callable[[Path], dict[str, Rows]]] = {
    "boolq": boolq,
    "cola": cola,
    "sst2": sst2,
    "ethics-justice": ethics("justice"),
    "ethics-deontology": ethics("deontology"),
    "hellaswag": hellaswag,
    "mc-taco": mctaco,
    "piqa": piqa,
    "sciq": sciq,
    "sciq-with-support": sciq,
    "twitter-sentiment": twitter,
    "wic": wic,
    "anthropic-hh": hh,
}


def write_hub(data: Path, folder: Path) -> list[str]:
    """Write every data set of ``data`` as Parquet where the hub's tasks look; return the tasks."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from probekit.tasks.nlp import RECORDS

    done = []
    for record in RECORDS:
        if record.name not in REAL:
            continue
        target = folder / record.hub / (record.config or "data")
        if not target.is_dir():
            target.mkdir(parents=True)
            for split, rows in REAL[record.name](data).items():
                pq.write_table(pa.Table.from_pylist(rows), target / f"{split}.parquet")
        done.append(record.name)
    return done


def write_puzzles(data: Path, folder: Path) -> None:
    """Write Lichess' puzzles where the hub's chess tasks look; these have no records."""
    from probekit.tasks.chess import HUB

    target = folder / HUB / "data"
    target.mkdir(parents=True)
    shutil.copyfile(data / "lichess_puzzles" / "chessAlarm.puzzles.csv", target / "train.csv")


if __name__ == "__main__":
    if len(sys.argv) != 2 or "PROBEKIT_DATA" not in os.environ:
        sys.exit("PROBEKIT_DATA=... python benchmarks/real_files.py FOLDER")
    print(", ".join(write_hub(Path(os.environ["PROBEKIT_DATA"]), Path(sys.argv[1]))))
