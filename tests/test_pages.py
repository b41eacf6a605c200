"""Blocks of code in the README and in pages run as they stand, on tiny models and small files.

The blocks of a page run in order, in one folder. Each line of an ``sh`` block is run in this
process, or it is one of ``NOT_RUN``. A ``python`` block is executed in the page's one namespace.
A block with a title is a file of that name, and one called "Output" is what the block above prints,
``…`` standing for anything.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from probekit.cli.main import cli
from probekit.labels import load_labels
from probekit.tasks import registry
from probekit.verdicts import Verdicts

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
OUTPUT = "Output"
# Commands that install, which no test of a page does.
NOT_RUN = ("python3 -m venv .venv && . .venv/bin/activate", "pip install -c constraints.txt")
# Assignments and comments of a batch script.
ASIDE = re.compile(r"#|\w+=\$\(scontrol ")
THINGS = ("kettle", "lamp", "radio", "chair")
SAID = (
    ("arrived broken", "stopped after a week", "leaks, I want a refund"),
    ("works very well", "is a great gift", "looks as I hoped"),
)
TEXTS = [f"The {THINGS[i // 6 % 4]} {SAID[i % 2][i // 2 % 3]} (order {i})." for i in range(120)]
# Every tenth label is wrong, and all of those say that a bad review is a good one.
LABELS = [i % 2 if i % 10 else 1 - i % 2 for i in range(120)]

# Of torch's loader, on a machine without an accelerator.
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")


@dataclass(frozen=True)
class Page:
    """What a page needs beside its own blocks."""

    before: str = ""
    """Commands that make the files of which it speaks."""
    instead: Mapping[str, str] = field(default_factory=dict)
    """Parts of its commands, and what a small run has in their place."""
    check: Callable[[dict[str, Any]], None] = lambda _: None
    """Looks at what was written, and at the names of its Python."""


def check_readme(names: dict[str, Any]) -> None:
    summary = json.loads(Path("cleaned/summary.json").read_text())
    assert (summary["rows"], summary["label_column"]) == (120, "stars_class")
    assert len(Path("cleaned/train.jsonl").read_text().splitlines()) == summary["kept"]
    verdicts = Verdicts.load("verdicts.parquet")
    assert len(verdicts) == 60, "the rows that were trained on get no weak label"
    assert len(Path("clean.jsonl").read_text().splitlines()) == int(verdicts.keep.sum()) > 40
    assert len(names["suspects"]) == 20
    assert len(names["train"]) == int(names["result"].verdicts.keep.sum())
    assert names["kept"].keep.sum() == 120 - 23
    assert names["soft"].keep.all()


def check_csv(names: dict[str, Any]) -> None:
    assert len(load_labels("new-labels.parquet")) == 20
    lines = [json.loads(line) for line in Path("clean.jsonl").read_text().splitlines()]
    (example,) = [
        text for kind, _, text in blocks("docs/how-to/from-your-csv.md") if kind == "json"
    ]
    assert set(lines[0]) == set(json.loads(example))
    assert {line["label"] for line in lines} == {"negative", "positive"}


def check_finetuning(names: dict[str, Any]) -> None:
    # A fifth, rounded down, of the 48 and the 72 rows of the weak classes.
    assert len(Path("clean.jsonl").read_text().splitlines()) == 120 - 23
    assert len(load_labels("student/predictions/test.parquet")) == 20
    assert len(load_labels("predictions.parquet")) == 20


EXTRACT = "probekit extract rows.jsonl -m MODEL -o acts.h5\n"
FILTER = "probekit filter acts.h5 --labels weak.csv -o verdicts.parquet --write-data clean.jsonl\n"
SMALL_RUN = {"--task docstrings": "--task mine.jsonl", "-o runs/": "--dry-run -o runs/"}
PAGES = {
    "README.md": Page(check=check_readme),
    "docs/how-to/from-your-csv.md": Page(check=check_csv),
    "docs/decide.md": Page(
        before=f"{EXTRACT}{FILTER}",
        instead={
            "weak.parquet": "weak.csv",
            "-m 40": "-m 40 --no-ask",
            "1:500": "1:99",
            **SMALL_RUN,
        },
    ),
    "docs/students.md": Page(
        before=f"{EXTRACT}{FILTER}", instead=SMALL_RUN, check=check_finetuning
    ),
    "examples/README.md": Page(instead={" examples/": f" {ROOT}/examples/"}),
}
ALL = sorted(
    str(path.relative_to(ROOT))
    for path in (README, ROOT / "examples/README.md", *ROOT.glob("docs/**/*.md"))
    if re.search(r"^```(sh|python)\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    and path.name != "format.md"  # tests/test_format_page.py
)

# Take more than three seconds of one core.
SLOW = ("docs/how-to/several-annotators.md",)


def blocks(page: str | Path) -> list[tuple[str, str, str]]:
    """Language, title and text of each block of a page of the repository, or of a test's own."""
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


class Reader:
    """Does what a page says, in the working folder."""

    def __init__(self, models: Mapping[str, str], instead: Mapping[str, str]) -> None:
        self.models = models
        self.instead = instead
        self.names: dict[str, Any] = {}
        self.printed = ""

    def follow(self, page: str | Path) -> None:
        for language, title, text in blocks(page):
            if title == OUTPUT:
                self.compare(text)
            elif title:
                Path(title).write_text(text, encoding="utf-8")
            elif language == "sh":
                self.shell(text)
            elif language == "python":
                self.python(text)

    def compare(self, text: str) -> None:
        parts = [re.escape(part) for part in text.strip().split("…")]
        printed = "\n".join(line.rstrip() for line in self.printed.strip().splitlines())
        assert re.fullmatch(".*".join(parts), printed, re.DOTALL), f"{text}\nis not\n{printed}"

    def python(self, text: str) -> None:
        for name, folder in self.models.items():
            text = text.replace(f'"{name}"', repr(folder))
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(text, "page", "exec"), self.names)
        self.printed = out.getvalue()

    def shell(self, text: str) -> None:
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        for part, small in self.instead.items():
            text = text.replace(part, small)
        self.printed = ""
        for line in text.replace("\\\n", " ").splitlines():
            if line and not ASIDE.match(line) and not line.startswith(NOT_RUN):
                self.command(shlex.split(os.path.expandvars(line), comments=True))

    def command(self, words: list[str]) -> None:
        if words[0] == "srun":
            words = words[1:]
        if words[:2] == ["ray", "symmetric-run"]:
            words = words[words.index("--") + 1 :]
        if words[0] == "probekit":
            self.probekit(words[1:])
        elif "probekit" in words and words[words.index("probekit") - 1] == "-m":
            at = words.index("probekit")
            launcher(words[: at + 1])
            self.probekit(words[at + 1 :])
        elif words[0] == "python":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", words[1:])
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    runpy.run_path(words[1], run_name="__main__")
            self.printed += out.getvalue()
        elif words[:3] == ["pip", "install", "-e"]:
            install(Path(words[3]))
        elif words[:2] == ["hf", "download"]:
            download(words[2], Path(words[words.index("--local-dir") + 1]))
        else:
            pytest.fail(f"No test runs {shlex.join(words)}.")

    def probekit(self, words: list[str]) -> None:
        for name, folder in self.models.items():
            words = [re.sub(rf"^{name}(?=$|@)", folder, word) for word in words]
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == 0, f"{shlex.join(words)}: {result.output}"
        self.printed += result.output


def launcher(words: list[str]) -> None:
    """Read the options of ``torchrun`` and the like; an unknown one ends the test."""
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    if words[0] == "torchrun":
        get_args_parser().parse_args(words[1:])
    elif words[:2] == ["accelerate", "launch"]:
        launch_command_parser().parse_args(words[2:])
    else:
        assert words == ["python", "-m", "probekit"]


def install(folder: Path) -> None:
    """Declare a project's entry points as pip does, for the folder that imports come from."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    text = "".join(
        f"[{group}]\n" + "".join(f"{name} = {home}\n" for name, home in points.items())
        for group, points in project["entry-points"].items()
    )
    (info / "entry_points.txt").write_text(text, encoding="utf-8")


def download(name: str, folder: Path) -> None:
    """What the hub would send: both splits that the task reads."""
    assert name == "stanfordnlp/sst2"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        rows = {"idx": range(120), "sentence": [f"{split}: {t}" for t in TEXTS], "label": LABELS}
        pq.write_table(pa.table({k: list(v) for k, v in rows.items()}), folder / f"{split}.parquet")


@pytest.fixture
def models(
    tmp_path: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, str]]:
    """The models by their names in pages; the folder holds the files of which pages speak."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PROBEKIT_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setattr(registry, "_registered", {})
    rows = [{"id": f"r{i}", "text": text} for i, text in enumerate(TEXTS)]
    reviews = [
        f'{row["id"]},"{row["text"]}",{("negative", "positive")[label]}\n'
        for row, label in zip(rows, LABELS, strict=True)
    ]
    true = [{**row, "label": i % 2} for i, row in enumerate(rows)]
    again = [{**row, "id": f"s{i}", "text": f"{row['text']} Yes."} for i, row in enumerate(true)]
    header = "review_id,review_body,stars_class\n"
    pairs = [
        {"prompt": f"{text} What now?", "chosen": " Let us look at it.", "rejected": " No idea."}
        for text in TEXTS
    ]
    for pair in pairs[::10]:
        pair["chosen"], pair["rejected"] = pair["rejected"], pair["chosen"]
    files: dict[str, str | list[dict[str, Any]]] = {
        "rows.jsonl": rows,
        "half0.jsonl": rows[:60],
        "half1.jsonl": rows[60:],
        "more.jsonl": [{"text": f"{row['text']} Again."} for row in rows[:20]],
        "test.jsonl": [{**row, "text": f"{row['text']} Really."} for row in true[:20]],
        "truth.jsonl": [{"id": row["id"], "label": row["label"]} for row in true[:60]],
        "mine.jsonl": true + again,
        "pairs.jsonl": pairs,
        "new-pairs.jsonl": [{**pair, "prompt": f"{pair['prompt']} Well?"} for pair in pairs[:20]],
        "weak.csv": "id,label\n" + "".join(f"r{i},{y}\n" for i, y in enumerate(LABELS)),
        "reviews.csv": header + "".join(reviews),
        "new.csv": header + "".join(reviews[:20]),
    }
    for name, content in files.items():
        if not isinstance(content, str):
            content = "".join(json.dumps(row) + "\n" for row in content)
        (tmp_path / name).write_text(content)
    for name in ("node0", "node1"):
        (tmp_path / name).mkdir()
    np.save(tmp_path / "states.npy", np.random.default_rng(0).normal(size=(len(rows), 8)))
    yield {"SMALL_MODEL": str(tiny_model("bert")), "MODEL": str(tiny_model("llama"))}
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in ALL]
)
def test_page(name: str, models: dict[str, str]) -> None:
    page = PAGES.get(name, Page())
    reader = Reader(models, page.instead)
    reader.shell(page.before)
    text = "".join(text for language, _, text in blocks(name) if language == "sh")
    assert [part for part in page.instead if part not in text] == []
    reader.follow(name)
    page.check(reader.names)
    if "how-to" in name:
        assert missing(name) == []


def missing(name: str) -> list[str]:
    """Files of which a page's prose speaks and that are neither here nor in the repository."""
    prose = BLOCK.sub("", (ROOT / name).read_text(encoding="utf-8"))
    files = re.findall(r"`([\w./-]+\.(?:csv|jsonl|parquet|h5|py|yaml|toml|json|html))`", prose)
    return [f for f in files if not (ROOT / f).is_file() and not list(Path().rglob(f))]


def test_readme_is_short() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    assert len(text.split()) <= 1300
    (code,) = [text for language, _, text in blocks(README) if language == "python"]
    assert len(code.splitlines()) <= 12, "ten lines and two empty ones"


@pytest.mark.parametrize(
    "block",
    [
        "```sh\nprobekit extract rows.jsonl -m MODEL -o acts.h5 --layer mid\n```",
        "```sh\nprobekit extract row.jsonl -m MODEL -o acts.h5\n```",
        "```sh\nprobekit tasks list > tasks.txt\n```",
        "```sh\nprobe-kit tasks list\n```",
        "```sh\ntorchrun --nproc 4 -m probekit tasks list\n```",
        "```sh\nif true; then\n```",
        "```python\nfrom probekit import clear\n```",
        '```python\nprint(1)\n```\n\n```text title="Output"\n2\n```',
    ],
)
def test_a_wrong_block_is_found(block: str, models: dict[str, str]) -> None:
    """The control."""
    page = Path("page.md").resolve()
    page.write_text(block)
    with pytest.raises(
        (AssertionError, ImportError, SystemExit, subprocess.SubprocessError, pytest.fail.Exception)
    ):
        Reader(models, {}).follow(page)


def test_a_file_that_nothing_writes_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    monkeypatch.chdir(tmp_path)
    Path("here.csv").touch()
    page = tmp_path / "page.md"
    page.write_text("`here.csv`, `there.csv` and `examples/pytorch.py`")
    assert missing(str(page)) == ["there.csv"]
