"""docs/format.md: its examples run, and what it says is what the code does."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from probekit import data
from probekit.activations.create import Plan
from probekit.activations.layout import FORMAT, ROW_COLUMNS, STORE_DTYPES, VERSION
from probekit.activations.store import ActivationStore
from probekit.activations.writer import StoreWriter
from probekit.cleaning.review import AUDIT_COLUMNS, METADATA
from probekit.labels import load_labels
from probekit.students.classifier import HeadInfo
from probekit.tables import read_metadata
from probekit.verdicts import COLUMNS, Verdicts

PAGE = (Path(__file__).parents[1] / "docs" / "format.md").read_text(encoding="utf-8")
OLD = Path(__file__).parent / "data" / "0.1.0"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TEXTS = {"a": "alpha", "b": "beta", "c": "gamma"}
STATES = np.array([[1, 2], [-3, 0.5], [8, 0.25]], np.float32)  # bfloat16 keeps all of them


@pytest.fixture(params=["float32", "bfloat16"])
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the example that holds a text, beside one file of each kind; returns its names."""
    monkeypatch.chdir(tmp_path)
    ids, hashes = list(TEXTS), [data.text_hash(text) for text in TEXTS.values()]
    bits = (STATES.view(np.uint32) >> 16).astype(np.uint16)
    with StoreWriter.open(
        "acts.h5",
        Plan(
            spec={"layers": [4]}, ids=ids, hashes=hashes, widths={4: 2}, store_dtype=request.param
        ),
    ) as writer:
        stored = bits if request.param == "bfloat16" else STATES
        writer.write(np.arange(3), {4: stored}, np.ones(3), np.zeros(3))
        writer.finish()
    half = np.array([[0.75, 0.25], [0, 1], [1, 0]], np.float32)
    Verdicts(
        ids=ids,
        hashes=hashes,
        classes=("no", "yes"),
        weak=half,
        probe=half,
        label=half,
        keep=np.array([True, True, False]),
        weight=np.ones(3, np.float32),
        disagreement=np.zeros(3, np.float32),
        fold=np.full(3, -1, np.int16),
    ).save("verdicts.parquet")

    def go(part: str) -> dict[str, Any]:
        (code,) = [example for example in EXAMPLES if part in example]
        names: dict[str, Any] = {"rows": [{"id": i, "text": t} for i, t in TEXTS.items()]}
        exec(compile(code, "docs/format.md", "exec"), names)
        return names

    return go


def test_every_example_is_run_here() -> None:
    here = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    parts = [
        node.args[0].value
        for node in ast.walk(here)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "run"
    ]
    for example in EXAMPLES:
        assert sum(part in example for part in parts) == 1


def test_text_hash_is_what_the_page_says(run: Any) -> None:
    theirs = run("def text_hash")["text_hash"]
    chat = [{"role": "user", "content": "Grüße", "name": None, "parts": [{"b": 1, "a": None}]}]
    for content in ("é \ud800", "", ("a", "b"), ("a\x1fb", ""), chat, []):
        assert theirs(content) == data.text_hash(content)
    assert theirs(chat) == theirs([{"content": "Grüße", "parts": [{"b": 1}], "role": "user"}])
    assert theirs("a") != theirs("b")


def test_a_store_is_read_with_plain_h5py(run: Any) -> None:
    names = run("h5py.File")
    assert names["ids"].tolist() == list(TEXTS)
    assert names["done"].all()
    np.testing.assert_array_equal(names["states"], STATES)


def test_a_store_is_read_with_probekit(run: Any) -> None:
    names = run("ActivationStore")
    np.testing.assert_array_equal(names["X"], STATES)
    np.testing.assert_array_equal(names["some"], STATES[[2, 0]])
    np.testing.assert_array_equal(names["states"], STATES[names["rows"]])


def test_labels_are_written_with_pyarrow(run: Any) -> None:
    run('pq.write_table(labels, "weak.parquet")')
    labels = load_labels("weak.parquet")
    assert labels.ids == ["a", "b", "c"]
    np.testing.assert_allclose(labels.probs[:, 1], [0.9, 0.2, 0.5])


def test_verdicts_are_read_with_pyarrow(run: Any) -> None:
    names = run("pq.read_table")
    assert names["kept"]["id"].to_pylist() == ["a", "b"]
    assert names["name"] == "yes"


def test_verdicts_are_applied(run: Any) -> None:
    clean = run("Verdicts.load")["clean"]
    assert [row["id"] for row in clean] == ["a", "b"]


def test_the_page_names_what_the_code_writes(run: Any) -> None:
    assert f"`{FORMAT}`" in PAGE
    assert f"version {VERSION} of this format" in PAGE
    for name in ROW_COLUMNS:
        assert f"/rows/{name} " in PAGE
    for name in [*STORE_DTYPES, *COLUMNS]:
        assert name in PAGE
    with h5py.File("acts.h5", "r") as file:
        for name in file.attrs:
            assert f"| `{name}` |" in PAGE
    with ActivationStore("acts.h5") as store:
        pairs = zip(store.ids, store.hashes, strict=True)
        assert store.rows_fingerprint == data.rows_fingerprint(*map(list, zip(*pairs, strict=True)))


def test_the_page_names_every_key_of_reviews_classifiers_and_sweeps() -> None:
    sweep = read_metadata(OLD / "sweep.parquet")
    columns = pq.read_schema(OLD / "sweep.parquet").names
    keys = [*AUDIT_COLUMNS[:3], *METADATA, *(field.name for field in fields(HeadInfo)), *sweep]
    keys += [*sweep["choice"], *sweep["weak_labels"]]
    keys += [name for name in columns if not name.startswith("filtered_0.")]
    keys += [*json.loads((OLD / "run" / "metrics.json").read_text(encoding="utf-8"))]
    assert [key for key in keys if f"`{key}`" not in PAGE] == []
    assert "`width`" not in PAGE  # the control: a key of no file
