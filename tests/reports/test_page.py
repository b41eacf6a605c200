"""What pages of verdicts are made from: rows, tables, the command that made them; no browser."""

from __future__ import annotations

import numpy as np
import pytest

from probekit.cleaning.evidence import RowEvidence, map_states, nearest_rows
from probekit.data import text_hash
from probekit.reports.page import Page, PageTable, RowsSection, render_page, write_page
from probekit.reports.rows import rows_payload, verdict_codes
from probekit.reports.tables import Table
from probekit.reports.verdicts import verdicts_page
from probekit.verdicts import Verdicts


def cloud(n=40, d=5, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def hashes(n):
    return [text_hash(f"text {i}") for i in range(n)]


def some_verdicts(n=6, classes=("a", "b"), **more):
    rng = np.random.default_rng(1)
    c = len(classes)
    weak = np.eye(c, dtype=np.float32)[rng.integers(0, c, n)]
    probe = rng.dirichlet(np.ones(c), n).astype(np.float32)
    fields = {
        "ids": [f"r{i}" for i in range(n)],
        "hashes": hashes(n),
        "classes": classes,
        "weak": weak,
        "probe": probe,
        "label": weak,
        "keep": np.ones(n, bool),
        "weight": np.ones(n, np.float32),
        "disagreement": (np.abs(weak - probe).sum(axis=1) / 2).astype(np.float32),
        "fold": np.zeros(n, np.int16),
    }
    return Verdicts(**fields | more)


def test_payload_has_rows_in_order_and_probabilities_by_class():
    verdicts = some_verdicts(classes=tuple("abcdefg"))
    payload = rows_payload(verdicts, RowEvidence(texts=[f"t{i}" for i in range(6)]))
    order = np.argsort(-verdicts.disagreement, kind="stable")
    rows = payload["rows"]
    assert rows["id"] == [f"r{i}" for i in order]
    assert rows["text"] == [f"t{i}" for i in order]
    assert rows["top"] == 5
    for place, i in enumerate(order):
        top = np.argsort(-verdicts.probe[i], kind="stable")[:5]
        assert rows["probe"]["class"][5 * place : 5 * place + 5] == top.tolist()
        found = rows["probe"]["prob"][5 * place : 5 * place + 5]
        assert found == pytest.approx(verdicts.probe[i, top], abs=1e-4)
    assert payload["near"] is None
    assert payload["map"] is None
    assert rows["truth"] is None


def test_verdicts_are_kept_changed_or_dropped():
    weak = np.eye(2, dtype=np.float32)[[0, 0, 1, 1]]
    label = np.eye(2, dtype=np.float32)[[0, 1, 1, 0]]
    found = some_verdicts(4, weak=weak, label=label, keep=np.array([True, True, False, False]))
    assert verdict_codes(found).tolist() == [0, 1, 2, 2]


def test_long_texts_are_cut_and_said_to_be():
    verdicts = some_verdicts(2)
    rows = rows_payload(verdicts, RowEvidence(texts=["x" * 5000, "short"]))["rows"]
    cut = dict(zip(rows["id"], zip(rows["text"], rows["cut"], strict=True), strict=True))
    assert cut["r1"] == ("short", 0)
    assert cut["r0"] == ("x" * 4000, 1000)


def test_the_page_of_verdicts_says_what_stands_in_them():
    verdicts = some_verdicts(
        provenance={"action": "filter", "notes": ["Mind <this>."], "probe": {"name": "KNNProbe"}}
    )
    truth = verdicts.weak.argmax(axis=1)
    html = render_page(verdicts_page(verdicts, RowEvidence(truth=truth), title="v.parquet"))
    assert "Mind &lt;this&gt;." in html
    assert "No row is dropped" in html  # an alarm
    assert "labels right before, %" in html
    assert "100.0" in html
    assert "probe.name" in html


def test_text_that_utf8_cannot_hold_does_not_stop_a_page(tmp_path):
    verdicts = some_verdicts(2)
    path = tmp_path / "a.html"
    write_page(verdicts_page(verdicts, RowEvidence(texts=["\ud800 lone", "b"]), title="v"), path)
    assert "? lone" in path.read_text(encoding="utf-8")


def test_a_page_of_tables_alone_has_no_script():
    table = PageTable("T", Table(("a", "b"), (("<i>", "1"),)))
    html = render_page(Page(title="x", kind="run", tables=(table,)))
    assert "<script" not in html
    assert "&lt;i&gt;" in html
    with_rows = Page(title="x", kind="run", rows=RowsSection({"map": None, "t": "</script>\u2028"}))
    assert '"t":"\\u003c/script\\u003e\\u2028"' in render_page(with_rows)


def test_pages_name_no_address_outside():
    verdicts = some_verdicts()
    near = nearest_rows(cloud(6), 2, groups=np.arange(6))
    evidence = RowEvidence(nearest=near, map=map_states(cloud(6)))
    html = render_page(verdicts_page(verdicts, evidence, title="v"))
    assert "http:" not in html
    assert "https:" not in html
    assert "default-src 'none'" in html.replace("&#39;", "'")
    assert "style=" not in html  # the policy would refuse it


def command_on_page(**provenance):
    verdicts = some_verdicts(provenance=provenance)
    page = verdicts_page(verdicts, RowEvidence(), title="v.parquet")
    assert not any(name == "command" for name, _ in page.provenance)
    return page.commands


def test_the_command_is_shown_as_the_file_records_it():
    plain = "probekit filter acts.h5 --labels 'weak labels.csv' --layer 1 -o v.parquet"
    ((sentence, command),) = command_on_page(action="filter", command=plain)
    assert command == plain
    assert "read it before you run it" in sentence
    assert command_on_page(action="filter") == ()  # files of 0.1.0
    relabel = plain.replace("filter", "relabel")
    assert command_on_page(action="relabel", command=relabel)[0][1] == relabel
    # It made what these verdicts were before.
    assert command_on_page(action="filter", command=plain, readmitted={"rows": 1}) == ()
    assert command_on_page(action="filter", command=plain, reviewed={"answers": 1}) == ()


@pytest.mark.parametrize(
    "command",
    [
        "rm -rf ~",
        "probekit run --config x",
        "sh -c 'probekit filter x'",
        "probekit filter a.h5\nrm x",
        "probekit filter \x1b[2J.h5",
        "probekit filter a\u202eb.h5",
        "probekit filter \ud800.h5",
        "probekit filter '",
    ],
)
def test_a_command_that_is_not_plain_is_not_shown(command):
    assert command_on_page(action="filter", command=command) == ()
