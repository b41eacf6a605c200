"""The page of verdicts in a real browser: it sorts, searches, filters, opens rows, stays alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probekit.cleaning.evidence import RowEvidence, map_states, nearest_rows
from probekit.data import text_hash
from probekit.reports.page import write_page
from probekit.reports.rows import rows_payload
from probekit.reports.verdicts import verdicts_page
from probekit.verdicts import Verdicts

EVIL = "<script>document.title = 'taken'</script></script><img src=x onerror=alert(1)><!--"
N = 300


def rows_of(n: int = N) -> tuple[Verdicts, RowEvidence]:
    """Two classes apart by 4 in one direction, a fifth of the weak labels wrong, row 7 is evil."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, n)
    X = rng.normal(size=(n, 6)).astype(np.float32)
    X[:, 0] += 4 * truth
    weak = np.where(rng.random(n) < 0.2, 1 - truth, truth)
    p = 1 / (1 + np.exp(-2 * (X[:, 0] - 2)))
    probe = np.column_stack([1 - p, p]).astype(np.float32)
    W = np.eye(2, dtype=np.float32)[weak]
    disagreement = np.abs(probe - W).sum(axis=1) / 2
    texts = [f"row number {i} about {'cats' if i % 3 else 'dogs'}" for i in range(n)]
    texts[7] = EVIL
    made = Verdicts(
        ids=[f"r{i}" for i in range(n)],
        hashes=[text_hash(text) for text in texts],
        classes=("no", "<b>yes</b>"),
        weak=W,
        probe=probe,
        label=np.where((disagreement > 0.9)[:, None], probe, W).astype(np.float32),
        keep=disagreement < 0.97,
        weight=np.ones(n, np.float32),
        disagreement=disagreement,
        fold=np.zeros(n, np.int16),
        provenance={"action": "filter", "note": EVIL},
    )
    evidence = RowEvidence(
        texts=texts,
        truth=truth,
        nearest=nearest_rows(X, 5, groups=np.arange(len(X))),
        map=map_states(X),
        layer=3,
    )
    return made, evidence


@pytest.fixture(scope="module")
def made() -> tuple[Verdicts, RowEvidence]:
    return rows_of()


@pytest.fixture(scope="module")
def page_path(made: tuple[Verdicts, RowEvidence], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(verdicts_page(*made, title=EVIL), path)
    return path


@pytest.fixture
def page(browser: Any, page_path: Path) -> Any:
    """The page, freshly opened; at the end nothing may have gone wrong or out."""
    browser.open(page_path)
    yield browser
    assert browser.console() == []
    assert [url for url in browser.requests() if url != page_path.as_uri()] == []


def shown(page: Any) -> list[int]:
    """Numbers of the verdicts' rows on this page of the table, by their ids."""
    ids = page.run(
        "const rows = JSON.parse(document.getElementById('data').textContent).rows;"
        "return [...document.querySelectorAll('.row')].map((e) => rows.id[e.dataset.row])"
    )
    return [int(name[1:]) for name in ids]


def test_most_disagreeing_rows_come_first(page, made):
    verdicts, _ = made
    expected = np.argsort(-verdicts.disagreement, kind="stable")[:50].tolist()
    assert shown(page) == expected
    assert page.texts("#status") == ["300 rows"]
    assert page.texts("#where") == ["page 1 of 6"]
    assert page.texts(".row .k-disagreement")[0] == f"{verdicts.disagreement[expected[0]]:.3f}"
    page.click("#last")
    assert shown(page) == np.argsort(-verdicts.disagreement, kind="stable")[250:].tolist()
    page.click("#before")
    assert page.texts("#where") == ["page 5 of 6"]


def test_every_heading_sorts(page, made):
    verdicts, evidence = made
    page.click("th.k-disagreement button")  # it is sorted so already: now the other way round
    least = np.sort(verdicts.disagreement)[:50]
    assert verdicts.disagreement[shown(page)] == pytest.approx(least, abs=1e-4)  # as it is shown
    assert page.run("return document.querySelector('[aria-sort]').className") == "k-disagreement"
    page.click("th.k-text button")
    assert page.texts(".row .clamp")[0] == EVIL  # "<" is before every letter
    for key, value in (
        ("weak", verdicts.weak.argmax(axis=1)),
        ("probe", verdicts.probe.argmax(axis=1)),
        ("truth", evidence.truth),
        ("verdict", np.where(verdicts.keep, verdicts.hard != verdicts.weak.argmax(axis=1), 2)),
    ):
        page.click(f"th.k-{key} button")
        up = value[shown(page)]
        page.click(f"th.k-{key} button")
        down = value[shown(page)]
        assert set(up) == {value.min()}, key
        assert down[0] == value.max(), key
        assert (np.diff(down.astype(int)) <= 0).all(), key


def test_search_finds_all_words_and_nothing_else(page, made):
    _, evidence = made
    page.choose("#search", "DOGS 12")
    found = [i for i, text in enumerate(evidence.texts) if "dogs" in text and "12" in text]
    # An id is searched too.
    assert sorted(shown(page)) == found != []
    assert page.texts("#status") == [f"{len(found)} rows of 300"]
    page.choose("#search", "no such words")
    assert shown(page) == []
    assert page.texts("#status") == ["0 rows of 300"]
    page.click("#clear")
    assert len(shown(page)) == 50


def test_filters_hold_together(page, made):
    verdicts, evidence = made
    page.choose("#size", "200")
    weak, probe = verdicts.weak.argmax(axis=1), verdicts.probe.argmax(axis=1)
    page.choose("#by-verdict", "2")
    assert set(shown(page)) == set(np.flatnonzero(~verdicts.keep).tolist())
    page.choose("#by-weak", "1")
    assert set(shown(page)) == set(np.flatnonzero(~verdicts.keep & (weak == 1)).tolist())
    page.choose("#by-verdict", "")
    page.choose("#by-probe", "0")
    assert set(shown(page)) == set(np.flatnonzero((weak == 1) & (probe == 0)).tolist())
    page.click("#clear")
    page.choose("#size", "200")
    wrong = weak != evidence.truth
    for value, mask in {
        "wrong": wrong,
        "missed": wrong & verdicts.keep & (verdicts.hard == weak),
        "lost": ~wrong & (~verdicts.keep | (verdicts.hard != weak)),
    }.items():
        page.choose("#by-truth", value)
        assert set(shown(page)) == set(np.flatnonzero(mask).tolist()), value


def test_a_row_opens_with_its_neighbours_as_evidence(page, made):
    verdicts, evidence = made
    row = shown(page)[0]
    assert page.texts(".detail") == []
    page.click(".opener")
    assert page.run("return document.querySelector('.opener').ariaExpanded") == "true"
    assert page.texts(".detail .full") == [evidence.texts[row]]
    near = evidence.nearest.index[row]
    assert page.texts(".near li .clamp") == [evidence.texts[i] for i in near]
    classes = verdicts.weak.argmax(axis=1)
    same = int((classes[near] == classes[row]).sum())
    name = verdicts.classes[classes[row]]
    assert page.texts(".detail h3") == [f"Nearest rows: {same} of 5 carry the weak label “{name}”"]
    assert [float(t) for t in page.texts(".near .number")] == pytest.approx(
        evidence.nearest.value[row], abs=1e-3
    )
    page.click(".opener")
    assert page.texts(".detail") == []


def test_text_is_never_markup(page, page_path, made):
    assert page.driver.title == f"{EVIL} – probekit"
    page.choose("#search", "onerror")
    assert shown(page) == [7]
    page.click(".opener")
    assert page.texts(".row .clamp") == [EVIL]
    assert page.texts(".detail .full") == [EVIL]
    assert page.run("return document.querySelectorAll('main img, main script, b').length") == 0
    assert "<b>yes</b>" in page.texts("#legend")[0]
    assert page.driver.title != "taken"
    # The file itself: three blocks, of which only the last is a program.
    html = page_path.read_text(encoding="utf-8")
    assert len(re.findall(r"<script", html)) == 2
    assert "onerror=alert(1)>" not in html


def test_the_policy_stops_scripts_pictures_and_addresses(browser, page_path):
    """The control: what the page itself never does is refused, loudly."""
    browser.open(page_path)
    browser.run(
        "const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
        "document.body.append(s); const i = new Image(); i.src = 'http://127.0.0.1:9/x.png';"
        "document.body.append(i); fetch('http://127.0.0.1:9/').catch(() => 0)"
    )
    browser.settle()
    assert browser.run("return window.ran === undefined")
    refusals = "\n".join(browser.console())
    for directive in ("script-src", "img-src data:", "default-src 'none'"):
        assert directive in refusals
    browser.requests()


def test_map_tells_what_a_dot_is_and_leads_to_its_row(page, made):
    verdicts, evidence = made
    assert page.texts("#legend li")[0].startswith("no (")
    page.choose("#colour", "right")
    wrong = int((verdicts.weak.argmax(axis=1) != evidence.truth).sum())
    assert page.texts("#legend li") == [f"right ({N - wrong})", f"wrong ({wrong})"]
    row = 42
    dot = (
        "const c = document.getElementById('canvas'), b = c.getBoundingClientRect();"
        "const x = b.left + 14 + arguments[0] * (c.clientWidth - 28);"
        "const y = b.top + c.clientHeight - 14 - arguments[1] * (c.clientHeight - 28);"
        "const at = {clientX: x, clientY: y, bubbles: true, pointerType: arguments[3] ?? 'mouse'};"
        "c.dispatchEvent(new PointerEvent(arguments[2], at))"
    )
    at = evidence.map.x[row], evidence.map.y[row]
    page.run(dot, *map(float, at), "pointermove")
    assert page.texts("#tip .clamp") == [evidence.texts[row]]
    page.run(dot, *map(float, at), "click")
    assert shown(page) == [row]
    assert page.texts("#status") == ["1 row, chosen on the mapShow all"]
    page.click("#status button")
    assert len(shown(page)) == 50
    page.run(dot, *map(float, at), "click", "touch")  # a finger reads first, then opens
    assert len(shown(page)) == 50
    assert page.texts("#tip .clamp") == [evidence.texts[row]]
    page.run(dot, *map(float, at), "click", "touch")
    assert shown(page) == [row]


def test_twenty_thousand_rows_answer_at_once(browser, tmp_path):
    path = tmp_path / "large.html"
    verdicts, evidence = rows_of(20_000)
    write_page(verdicts_page(verdicts, evidence, title="large"), path)
    assert path.stat().st_size < 20e6
    browser.open(path)
    assert browser.texts("#status") == ["20,000 rows"]
    took = browser.run(
        "const t = performance.now(); document.querySelector('th.k-text button').click();"
        "return performance.now() - t"
    )
    assert took < 3000  # half a second here; a page that lists all rows would take a minute
    browser.choose("#search", "dogs")
    assert browser.texts("#status") == ["6,667 rows of 20,000"]
    assert browser.console() == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_stands_out_of_the_window(browser, page_path, width, dark):
    browser.open(page_path, width=width, dark=dark)
    browser.click(".opener")
    wide = browser.run("return document.documentElement.scrollWidth")
    assert wide <= width
    ground = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 25, 30)" if dark else "rgb(255, 255, 255)")


def test_prints_the_rows_without_the_controls(page):
    page.command("Emulation.setEmulatedMedia", media="print")
    hidden = page.run(
        "return ['#controls', '#pager', 'nav'].map("
        "(name) => getComputedStyle(document.querySelector(name)).display)"
    )
    assert hidden == ["none"] * 3
    assert page.run("return document.querySelector('.row').clientHeight") > 0
    assert len(page.command("Page.printToPDF")["data"]) > 10_000
    page.command("Emulation.setEmulatedMedia", media="")


def test_without_texts_ids_stand_in_their_place(browser, made, tmp_path):
    path = tmp_path / "bare.html"
    verdicts, _ = made
    write_page(verdicts_page(verdicts, RowEvidence(), title="bare"), path)
    browser.open(path)
    first = int(np.argmax(verdicts.disagreement))
    assert browser.texts(".row .clamp")[0] == f"r{first}"
    browser.click(".opener")
    assert browser.texts(".near") == []
    assert browser.run("return document.getElementById('map')") is None
    assert browser.run("return document.getElementById('truth-filter').hidden")
    assert browser.console() == []


def test_neighbours_of_listed_rows_are_there_though_not_listed(browser, made, tmp_path):
    verdicts, evidence = made
    payload = rows_payload(verdicts, evidence, limit=3)
    assert payload["listed"] == 3
    assert len(payload["rows"]["id"]) > 3
    first = payload["near"]["index"][:5]
    row = int(np.argsort(-verdicts.disagreement, kind="stable")[0])
    names = [payload["rows"]["id"][i] for i in first]
    assert names == [f"r{i}" for i in evidence.nearest.index[row]]
    path = tmp_path / "few.html"
    write_page(verdicts_page(verdicts, evidence, title="few", limit=3), path)
    browser.open(path)
    assert browser.texts("#status") == ["3 rows (the most disagreeing of 300)"]
    assert len(shown(browser)) == 3
